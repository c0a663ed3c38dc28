"use strict";

// All text from the data set enters the page as text, never as HTML.
const report = JSON.parse(document.getElementById("data").textContent);
const { classes, photographs } = report;
const BRANCHES = Object.keys(photographs.answers);
const A_PAGE = 24;
const CLUSTER_COLOURS = 6;
const FALLBACKS = {
  whole_image: "The map says nothing: the object box is the whole photograph.",
  min_iou: "Too few candidates for parts: the least overlap with the object was relaxed.",
  saliency: "No valid parts: the candidates of highest saliency were taken.",
  object_box: "Too few candidates: the object box stands for the parts.",
};

const byId = (id) => document.getElementById(id);
const controls = byId("controls");
const dialog = byId("large");
const layers = byId("layers");
const position = new Map(photographs.ids.map((id, index) => [id, index]));

let shown = [];
let page = 0;
let open = null;

/** An element with attributes and children; strings become text. */
function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

function makeSvg(name, attributes, title) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (title) {
    const text = document.createElementNS("http://www.w3.org/2000/svg", "title");
    text.textContent = title;
    element.append(text);
  }
  return element;
}

const percent = (perMille) => `${(perMille / 10).toFixed(1)}%`;
const jpeg = (base64) => `data:image/jpeg;base64,${base64}`;
const pictureOf = (index) => () => details(index).then((found) => jpeg(found.picture));
const answerOf = (branch, index) => photographs.answers[branch][index];
const isWrong = (index) => answerOf("fused", index) !== photographs.labels[index];
const isChanged = (index) => answerOf("fused", index) !== answerOf("original", index);
const usesFallback = (index) =>
  photographs.objectFallbacks[index] !== "none" || photographs.partFallbacks[index] !== "none";

// Pictures and details: scripts, loaded when a photograph of theirs is looked at.

const PIECES_KEPT = 200;
const pieces = new Map();

window.addDetails = (number, content) => pieces.get(number)?.resolve(content);

function details(index) {
  const number = Math.floor(index / report.piece);
  if (!pieces.has(number)) {
    if (pieces.size >= PIECES_KEPT) pieces.delete(pieces.keys().next().value);
    const piece = {};
    piece.loaded = new Promise((resolve, reject) => {
      piece.resolve = resolve;
      const source = `photographs/${String(number).padStart(4, "0")}.js`;
      const script = make("script", { src: source });
      script.onerror = () => {
        pieces.delete(number);
        reject(new Error(`${source} cannot be loaded; keep it beside index.html`));
      };
      document.head.append(script);
    });
    pieces.set(number, piece);
  }
  return pieces.get(number).loaded.then((content) => content[index % report.piece]);
}

// Drawings

const sources = new WeakMap();
const comesIntoView = new IntersectionObserver(
  (entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      comesIntoView.unobserve(target);
      load(target, sources.get(target));
    }
  },
  { rootMargin: "300px" },
);

function load(image, source) {
  source().then(
    (address) => {
      image.src = address;
    },
    (error) => {
      image.title = error.message;
    },
  );
}

/** Fetch an image's picture when it comes into view; `source` promises its address. */
function loadWhenSeen(image, source) {
  sources.set(image, source);
  comesIntoView.observe(image);
}

function rectangle(box, kind, title) {
  const [x0, y0, x1, y1] = box;
  return makeSvg("rect", { x: x0, y: y0, width: x1 - x0, height: y1 - y0, class: kind }, title);
}

/** A photograph with boxes over it: [box, class, title] each. */
function drawing(source, size, alternative, boxes, lazy = true) {
  const [width, height] = size;
  const image = make("img", { alt: alternative, decoding: "async" });
  if (lazy) loadWhenSeen(image, source);
  else load(image, source);
  const svg = makeSvg("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
  svg.append(...boxes.map((box) => rectangle(...box)));
  const frame = make("span", { class: "photograph" }, image, svg);
  frame.style.aspectRatio = `${width} / ${height}`;
  return frame;
}

function alternativeText(index) {
  const actual = classes[photographs.labels[index]];
  const answer = classes[answerOf("fused", index)];
  const verdict = isWrong(index) ? `taken for ${answer}` : "recognised";
  return `Photograph of ${actual}, ${verdict}`;
}

const partClass = (cluster) => `box-part cluster-${cluster % CLUSTER_COLOURS}`;

function mainBoxes(index) {
  return [
    [photographs.objects[index], "box-object", "object"],
    ...photographs.parts[index].map((part) => [
      part.slice(0, 4),
      partClass(part[4]),
      `part of cluster ${part[4]}`,
    ]),
  ];
}

const drawPhotograph = (index) =>
  drawing(pictureOf(index), photographs.sizes[index], alternativeText(index), mainBoxes(index));

/** A box of a photograph, cut out. */
function cutOut(index, box, cluster, alternative) {
  const [width, height] = photographs.sizes[index];
  const [x0, y0, x1, y1] = box;
  const across = x1 - x0;
  const down = y1 - y0;
  const image = make("img", { alt: alternative, decoding: "async" });
  Object.assign(image.style, {
    width: `${(100 * width) / across}%`,
    height: `${(100 * height) / down}%`,
    left: `${(-100 * x0) / across}%`,
    top: `${(-100 * y0) / down}%`,
  });
  loadWhenSeen(image, pictureOf(index));
  const inner = make("span", { class: `cluster-${cluster % CLUSTER_COLOURS}` }, image);
  const wide = across >= down;
  Object.assign(inner.style, {
    aspectRatio: `${across} / ${down}`,
    width: wide ? "100%" : "auto",
    height: wide ? "auto" : "100%",
    maxHeight: "100%",
  });
  return make("span", { class: "crop" }, inner);
}

const COLOURS = [[20, 11, 84], [106, 27, 154], [203, 53, 84], [249, 142, 9], [252, 255, 164]];

function colourOf(value) {
  const place = (value / 255) * (COLOURS.length - 1);
  const below = Math.min(Math.floor(place), COLOURS.length - 2);
  const share = place - below;
  return COLOURS[below].map((low, i) => low + share * (COLOURS[below + 1][i] - low));
}

/** A saliency map in colours; the browser smooths it when it is stretched. */
function paintMap(packed, name) {
  const canvas = make("canvas", { width: packed.columns, height: packed.rows, class: name });
  canvas.setAttribute("aria-hidden", "true");
  const context = canvas.getContext("2d");
  const image = context.createImageData(packed.columns, packed.rows);
  const cells = atob(packed.cells);
  for (let cell = 0; cell < cells.length; cell += 1) {
    const value = cells.charCodeAt(cell);
    // What is not salient stays visible.
    image.data.set([...colourOf(value), 70 + 0.4 * value], 4 * cell);
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

// Gallery

function answers(index) {
  const lines = make("span", { class: "answers" });
  for (const branch of BRANCHES) {
    const answer = answerOf(branch, index);
    const right = answer === photographs.labels[index];
    lines.append(
      make("span", {}, branch),
      make("span", { class: right ? "right" : "wrong" }, `${right ? "✓" : "✗"} ${classes[answer]}`),
      make("span", {}, percent(photographs.confidence[branch][index])),
    );
  }
  return lines;
}

function tile(index) {
  const frame = make("span", { class: "frame" }, drawPhotograph(index));
  const [width, height] = photographs.sizes[index];
  frame.firstChild.style.width = `min(100%, ${(11 * width) / height}rem)`;
  const button = make(
    "button",
    { type: "button", class: "tile", "data-photograph": index },
    frame,
    make("strong", {}, classes[photographs.labels[index]]),
    make("span", { class: "name" }, photographs.ids[index]),
    answers(index),
  );
  return make("li", {}, button);
}

const ORDERS = {
  sure: (a, b) => photographs.confidence.fused[b] - photographs.confidence.fused[a],
  unsure: (a, b) => photographs.confidence.fused[a] - photographs.confidence.fused[b],
  missed: (a, b) => photographs.trueConfidence[a] - photographs.trueConfidence[b],
};

function choose() {
  const wanted = controls.elements;
  const text = wanted.q.value.trim().toLowerCase();
  const chosen = [];
  for (let index = 0; index < photographs.ids.length; index += 1) {
    if (text && !photographs.ids[index].toLowerCase().includes(text)) continue;
    if (wanted.actual.value && Number(wanted.actual.value) !== photographs.labels[index]) continue;
    if (wanted.predicted.value && Number(wanted.predicted.value) !== answerOf("fused", index)) continue;
    if (wanted.wrong.checked && !isWrong(index)) continue;
    if (wanted.changed.checked && !isChanged(index)) continue;
    if (wanted.fallback.checked && !usesFallback(index)) continue;
    chosen.push(index);
  }
  const order = ORDERS[wanted.sort.value];
  return order ? chosen.sort((a, b) => order(a, b) || a - b) : chosen;
}

function showPage() {
  const last = Math.max(0, Math.ceil(shown.length / A_PAGE) - 1);
  page = Math.min(Math.max(page, 0), last);
  const start = page * A_PAGE;
  byId("gallery").replaceChildren(...shown.slice(start, start + A_PAGE).map(tile));
  byId("count").textContent =
    `${shown.length.toLocaleString("en")} of ${photographs.ids.length.toLocaleString("en")} photographs`;
  byId("page-number").textContent = `Page ${page + 1} of ${last + 1}`;
  byId("first-page").disabled = byId("previous-page").disabled = page === 0;
  byId("last-page").disabled = byId("next-page").disabled = page === last;
  drawLayers();
}

function drawLayers() {
  const wanted = controls.elements;
  const gallery = byId("gallery");
  gallery.classList.toggle("no-object", !wanted.object.checked);
  gallery.classList.toggle("no-parts", !wanted.parts.checked);
  for (const button of gallery.querySelectorAll("button")) {
    const frame = button.querySelector(".photograph");
    frame.querySelector("canvas")?.remove();
    if (!wanted.map.checked) continue;
    details(Number(button.dataset.photograph)).then((found) => {
      if (!wanted.map.checked || frame.querySelector("canvas")) return;
      frame.querySelector("img").after(paintMap(found.maps.cam, "map"));
    }, tell);
  }
}

function update() {
  shown = choose();
  showPage();
}

function tell(error) {
  byId("count").textContent = error.message;
}

// State in the address: a link shows what its sender saw.

const CHECKED_AT_FIRST = { object: true, parts: true };

function writeAddress() {
  const state = new URLSearchParams();
  for (const element of controls.elements) {
    if (!element.name) continue;
    if (element.type === "checkbox") {
      if (element.checked !== Boolean(CHECKED_AT_FIRST[element.name])) {
        state.set(element.name, element.checked ? "1" : "0");
      }
    } else if (element.value) {
      const isClass = element.name === "actual" || element.name === "predicted";
      state.set(element.name, isClass ? classes[element.value] : element.value);
    }
  }
  if (page) state.set("page", page + 1);
  if (open !== null) state.set("photograph", photographs.ids[open]);
  const text = state.toString();
  history.replaceState(null, "", text ? `#${text}` : location.pathname + location.search);
}

function readAddress() {
  const text = location.hash.slice(1);
  const state = new URLSearchParams(text.includes("=") ? text : "");
  for (const element of controls.elements) {
    if (!element.name) continue;
    const value = state.get(element.name);
    if (element.type === "checkbox") {
      element.checked = value === null ? Boolean(CHECKED_AT_FIRST[element.name]) : value === "1";
    } else if (element.name === "actual" || element.name === "predicted") {
      const label = classes.indexOf(value);
      element.value = label < 0 ? "" : String(label);
    } else {
      element.value = value ?? "";
    }
  }
  if (controls.elements.sort.selectedIndex < 0) controls.elements.sort.value = "";
  page = (Number.parseInt(state.get("page") ?? "1", 10) || 1) - 1;
  update();
  const wanted = position.get(state.get("photograph"));
  if (wanted !== undefined) showLarge(wanted);
  else if (dialog.open) dialog.close();
  return text.includes("=");
}

// Large view

function showLarge(index) {
  open = index;
  byId("large-title").textContent = photographs.ids[index];
  const place = shown.indexOf(index);
  byId("previous-photograph").disabled = place <= 0;
  byId("next-photograph").disabled = place < 0 || place === shown.length - 1;
  byId("large-body").replaceChildren(make("p", {}, "Loading"));
  if (!dialog.open) {
    dialog.showModal();
    byId("large-title").focus();
  } else if (document.activeElement?.disabled) {
    byId("large-title").focus();
  }
  dialog.scrollTop = 0;
  writeAddress();
  details(index).then(
    (found) => {
      if (open === index) fillLarge(index, found);
    },
    (error) => byId("large-body").replaceChildren(make("p", { role: "alert" }, error.message)),
  );
}

function step(by) {
  const next = shown[shown.indexOf(open) + by];
  if (shown.includes(open) && next !== undefined) showLarge(next);
}

function fillLarge(index, found) {
  byId("large-body").replaceChildren(
    make("div", {}, largeDrawing(index, found), ...partCuts(index, found)),
    make("div", {}, facts(index, found), ...probabilities(index, found)),
    make("div", {}, ...candidates(found)),
  );
  drawLargeLayers();
}

function largeDrawing(index, found) {
  const candidateBoxes = found.candidates.map((each, number) => [
    each.box,
    "box-candidate",
    `candidate ${number + 1}`,
  ]);
  const trueBox = photographs.trueBoxes[index];
  const boxes = [
    ...found.proposals.map((box) => [box, "box-proposal", ""]),
    ...candidateBoxes,
    ...(trueBox ? [[trueBox, "box-true", "true box"]] : []),
    ...mainBoxes(index),
  ];
  const size = photographs.sizes[index];
  const frame = drawing(pictureOf(index), size, alternativeText(index), boxes, false);
  frame.style.width = `min(100%, ${(70 * size[0]) / size[1]}vh)`;
  frame.querySelector("img").after(
    paintMap(found.maps.cam, "layer-cam"),
    paintMap(found.maps.object, "layer-map-object"),
  );
  return frame;
}

function drawLargeLayers() {
  for (const input of layers.querySelectorAll("input")) {
    const name = input.dataset.layer;
    for (const each of byId("large-body").querySelectorAll(`.box-${name}, .layer-${name}`)) {
      if (each.closest(".photograph")) each.style.display = input.checked ? "" : "none";
    }
  }
}

function partCuts(index, found) {
  const list = make("ul", { class: "crops", "aria-label": "Parts" });
  photographs.parts[index].forEach((part, number) => {
    const cluster = part[4];
    list.append(
      make(
        "li",
        {},
        cutOut(index, part.slice(0, 4), cluster, `Part ${number}, of cluster ${cluster}`),
        `Part ${number}: cluster ${cluster}, activation ${found.activations[number]?.toFixed(1) ?? "none"}`,
      ),
    );
  });
  return [make("h3", {}, "Parts"), list];
}

function intersectionOverUnion(a, b) {
  const area = ([x0, y0, x1, y1]) => Math.max(0, x1 - x0) * Math.max(0, y1 - y0);
  const low = [Math.max(a[0], b[0]), Math.max(a[1], b[1])];
  const both = area([...low, Math.min(a[2], b[2]), Math.min(a[3], b[3])]);
  return both / (area(a) + area(b) - both);
}

function facts(index, found) {
  const list = make("dl");
  const add = (term, text, kind = null) =>
    list.append(make("dt", {}, term), make("dd", { class: kind }, text));
  add("True class", classes[photographs.labels[index]]);
  const verdict = isWrong(index) ? ["✗ wrong", "answer-wrong"] : ["✓ right", "answer-right"];
  add("Fused answer", `${classes[answerOf("fused", index)]}, ${verdict[0]}`, verdict[1]);
  add("Activation map of", classes[found.camLabel]);
  add("Score of the parts", found.score === null ? "undefined" : String(found.score));
  const trueBox = photographs.trueBoxes[index];
  if (trueBox) add("IoU with true box", intersectionOverUnion(photographs.objects[index], trueBox).toFixed(2));
  for (const name of [photographs.objectFallbacks[index], photographs.partFallbacks[index]]) {
    if (name !== "none") add("Fallback", FALLBACKS[name] ?? name);
  }
  return list;
}

function probabilities(index, found) {
  const heading = make("h3", {}, "Probabilities");
  const tables = BRANCHES.map((branch) => {
    const rows = found.top[branch].map(([label, share]) => {
      const bar = make("span");
      bar.style.width = `${share / 10}%`;
      const isTrue = label === photographs.labels[index];
      return make(
        "tr",
        {},
        make("th", { scope: "row" }, `${classes[label]}${isTrue ? " (true)" : ""}`),
        make("td", { class: "track-cell" }, make("span", { class: "share" }, bar)),
        make("td", { class: "number" }, percent(share)),
      );
    });
    const caption = make("caption", {}, branch);
    caption.style.textAlign = "left";
    const table = make("table", {}, caption, make("tbody", {}, ...rows));
    table.style.width = "100%";
    table.style.marginBottom = "0.75rem";
    return table;
  });
  return [heading, ...tables];
}

function candidates(found) {
  const text =
    `${found.candidate_count} of ${found.proposal_count} proposals may become a part` +
    (found.candidate_count > found.candidates.length
      ? `; the ${found.candidates.length} of highest score are listed. `
      : ". ") +
    "The score is that of the box alone: logarithm of its area inside the object, plus logarithm " +
    "of its mean saliency. The chosen parts are best together, so they need not be the first." +
    (found.proposal_count > found.proposals.length
      ? ` Of the proposals ${found.proposals.length} are drawn, evenly over the ranks.`
      : "");
  const parts = [make("h3", { id: "candidates-title" }, "Candidates for parts"), make("p", {}, text)];
  if (!found.candidates.length) return parts;
  const heads = ["candidate", "score", "saliency", "IoU with object", "inside object"];
  const head = make("tr", {}, ...heads.map((name) => make("th", { scope: "col" }, name)));
  const rows = found.candidates.map((each, number) => {
    const chosen = each.part === null ? "" : ` (part ${each.part})`;
    const row = make(
      "tr",
      { "data-candidate": number },
      make("th", { scope: "row" }, make("button", { type: "button", class: "link", "aria-pressed": "false" }, `${number + 1}${chosen}`)),
      make("td", {}, each.score === null ? "undefined" : each.score.toFixed(2)),
      make("td", {}, (each.saliency / 1000).toFixed(2)),
      make("td", {}, (each.iou / 1000).toFixed(2)),
      make("td", {}, percent(each.inside)),
    );
    return row;
  });
  const table = make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows));
  table.addEventListener("click", (event) => {
    const row = event.target.closest("button") && event.target.closest("tr");
    if (row) lightUp(Number(row.dataset.candidate));
  });
  parts.push(
    make("p", {}, "Press a number to see the box."),
    make("div", { class: "scroll tall", tabindex: "0", role: "region", "aria-labelledby": "candidates-title" }, table),
  );
  return parts;
}

function lightUp(number) {
  const boxes = byId("large-body").querySelectorAll("rect.box-candidate");
  const buttons = byId("large-body").querySelectorAll("[data-candidate] button");
  boxes.forEach((box, each) => {
    const lit = each === number && !box.classList.contains("lit");
    box.classList.toggle("lit", lit);
    buttons[each].setAttribute("aria-pressed", String(lit));
    box.style.display = lit || layers.querySelector("[data-layer=candidate]").checked ? "" : "none";
  });
}

function closed() {
  const last = open;
  open = null;
  const place = shown.indexOf(last);
  if (place >= 0 && Math.floor(place / A_PAGE) !== page) {
    page = Math.floor(place / A_PAGE);
    showPage();
  }
  writeAddress();
  byId("gallery").querySelector(`[data-photograph="${last}"]`)?.focus();
}

// Sections below the gallery

function photographButton(index, content) {
  return make("button", { type: "button", class: "link", "data-photograph": index }, ...content);
}

function showPairs() {
  byId("no-pairs").hidden = report.pairs.length > 0;
  const side = (title, indices) => {
    const list = make("div", {}, make("h4", {}, title));
    for (const index of indices) {
      const cuts = make("ul", { class: "crops", "aria-label": `Parts in ${photographs.ids[index]}` });
      for (const part of photographs.parts[index]) {
        cuts.append(make("li", {}, cutOut(index, part.slice(0, 4), part[4], `Part of cluster ${part[4]}`)));
      }
      const frame = drawPhotograph(index);
      const size = photographs.sizes[index];
      frame.style.width = `min(100%, ${(12 * size[0]) / size[1]}rem)`;
      list.append(frame, photographButton(index, [photographs.ids[index]]), cuts);
    }
    if (!indices.length) list.append(make("p", {}, "None."));
    return list;
  };
  byId("pairs").replaceChildren(
    ...report.pairs.map((pair) => {
      const actual = classes[pair.actual];
      const predicted = classes[pair.predicted];
      const button = make(
        "button",
        { type: "button", "data-show-actual": pair.actual, "data-show-predicted": pair.predicted },
        "Show them in the gallery",
      );
      return make(
        "section",
        { class: "pair", "aria-label": `${actual} taken for ${predicted}` },
        make("p", {}, make("strong", {}, `${actual} taken for ${predicted}: ${pair.count} `), button),
        side(`${actual}, taken for ${predicted}`, pair.wrong),
        side(`${predicted}, recognised`, pair.right),
      );
    }),
  );
}

function showExciting() {
  for (const list of document.querySelectorAll("[data-exciting]")) {
    const cluster = Number(list.dataset.exciting);
    for (const each of report.exciting[cluster] ?? []) {
      const index = each.photograph;
      const name = classes[photographs.labels[index]];
      const box = photographs.parts[index][each.part].slice(0, 4);
      const button = make(
        "button",
        { type: "button", "data-photograph": index },
        cutOut(index, box, cluster, `Part of a photograph of ${name}`),
        make("span", {}, `${name}: ${each.activation.toFixed(1)}`),
      );
      list.append(make("li", {}, button));
    }
  }
}

function showTraining() {
  byId("training").replaceChildren(
    ...report.training.map((each) => {
      const boxes = each.patches.map(([x0, y0, x1, y1, confidence, kept]) => [
        [x0, y0, x1, y1],
        kept ? "box-kept" : "box-rejected",
        `${percent(confidence)}, ${kept ? "kept" : "rejected"}`,
      ]);
      // Rejected ones below, for they are many.
      boxes.sort((a, b) => (a[1] < b[1] ? 1 : -1));
      const name = classes[each.label];
      const frame = drawing(async () => jpeg(each.picture), each.size, `Training photograph of ${name} with its patches`, boxes);
      frame.style.width = "100%";
      const heads = ["confidence", "filter", "box"].map((text) => make("th", { scope: "col" }, text));
      const rows = each.patches.map(([x0, y0, x1, y1, confidence, kept]) =>
        make(
          "tr",
          {},
          make("td", {}, percent(confidence)),
          make("td", {}, kept ? "kept" : "rejected"),
          make("td", {}, `${x0}, ${y0} to ${x1}, ${y1}`),
        ),
      );
      const table = make("table", {}, make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...rows));
      const label = `Patches of ${each.id}`;
      return make(
        "li",
        { class: "tile" },
        frame,
        make("strong", {}, name),
        make("span", { class: "name" }, each.id),
        make("span", {}, `${each.kept} of ${each.count} patches kept (solid green); rejected ones dashed`),
        make(
          "details",
          {},
          make("summary", {}, each.count > each.patches.length ? "Most and least confident patches" : "Patches"),
          make("div", { class: "scroll tall", tabindex: "0", role: "region", "aria-label": label }, table),
        ),
      );
    }),
  );
}

/** Pictures of doubted labels lie behind those of the gallery's photographs, in the same files. */
function showDoubts() {
  for (const image of byId("doubts").querySelectorAll("[data-doubt]")) {
    const index = photographs.ids.length + Number(image.dataset.doubt);
    const place = Number(image.dataset.picture);
    loadWhenSeen(image, () => details(index).then((found) => jpeg(found.pictures[place])));
  }
}

function showLegend() {
  const clusters = new Set(photographs.parts.flat().map((part) => part[4]));
  const entry = (kind, text) =>
    make("li", {}, make("span", { class: `swatch ${kind}`, "aria-hidden": "true" }), text);
  byId("legend").replaceChildren(
    entry("box-object", "object"),
    ...[...clusters].sort((a, b) => a - b).map((each) => entry(`cluster-${each % CLUSTER_COLOURS}`, `part of cluster ${each}`)),
  );
}

function showOnly(actual, predicted) {
  controls.reset();
  controls.elements.actual.value = actual;
  controls.elements.predicted.value = predicted ?? "";
  page = 0;
  update();
  writeAddress();
  byId("photographs").scrollIntoView();
  byId("gallery").querySelector("button")?.focus({ preventScroll: true });
}

function listen() {
  controls.addEventListener("submit", (event) => event.preventDefault());
  controls.addEventListener("input", (event) => {
    if (["map", "object", "parts"].includes(event.target.name)) {
      drawLayers();
    } else {
      page = 0;
      update();
    }
    writeAddress();
  });
  controls.addEventListener("reset", () => setTimeout(() => {
    page = 0;
    update();
    writeAddress();
  }));
  const turn = (id, to) => byId(id).addEventListener("click", () => {
    page = to();
    showPage();
    writeAddress();
    byId("photographs").scrollIntoView();
    if (byId(id).disabled) byId("gallery").querySelector("button")?.focus({ preventScroll: true });
  });
  turn("first-page", () => 0);
  turn("previous-page", () => page - 1);
  turn("next-page", () => page + 1);
  turn("last-page", () => Infinity);

  document.body.addEventListener("click", (event) => {
    const photograph = event.target.closest("[data-photograph]");
    if (photograph) return showLarge(Number(photograph.dataset.photograph));
    const pair = event.target.closest("[data-show-actual]");
    if (pair) return showOnly(pair.dataset.showActual, pair.dataset.showPredicted);
    const cell = event.target.closest(".matrix [data-actual]");
    if (cell) return showOnly(cell.dataset.actual, cell.dataset.predicted);
    const link = event.target.closest('a[href^="#"]');
    if (link) {
      // The address keeps its state.
      event.preventDefault();
      const target = document.querySelector(link.getAttribute("href"));
      target.scrollIntoView();
      target.setAttribute("tabindex", "-1");
      target.focus({ preventScroll: true });
    }
  });
  byId("close").addEventListener("click", () => dialog.close());
  byId("previous-photograph").addEventListener("click", () => step(-1));
  byId("next-photograph").addEventListener("click", () => step(1));
  dialog.addEventListener("close", closed);
  dialog.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    if (event.target.closest(".scroll")) return;
    if (event.key === "ArrowLeft") step(-1);
    else if (event.key === "ArrowRight") step(1);
    else return;
    event.preventDefault();
  });
  layers.addEventListener("change", drawLargeLayers);
  window.addEventListener("hashchange", readAddress);
}

function start() {
  for (const name of ["actual", "predicted"]) {
    const options = classes.map((text, label) => make("option", { value: label }, text));
    controls.elements[name].append(...options);
  }
  showLegend();
  showPairs();
  showExciting();
  showTraining();
  showDoubts();
  listen();
  readAddress();
}

start();
