"""The report: what it holds, and how it behaves in a browser."""

import base64
import io
import json
import math
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
import yaml
from made_up_run import make_up_run, report
from PIL import Image
from small_project import Undisturbed, digests

from opam.evaluation.doubts import doubtful_labels
from opam.method.parts import PartParams, score_parts, select_parts
from opam.photographs.decoding.images import read_image
from opam.pipeline.artifacts import BOX, read_json, read_table
from opam.pipeline.errors import OpamError
from opam.report.page import figures, tables
from opam.report.page.copies import GROUPS, MEMBERS, copy_groups
from opam.report.page.doubts import ALIKE, SHOWN, doubted_labels
from opam.report.page.gallery import PIECE, write_pieces
from opam.report.page.photographs import LONGEST_SIDE, candidate_table, packed_map
from opam.report.page.render import compact_json

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
QUIET += ["--disable-component-update", "--disable-sync"]

EVIL = "<script>alert(1)</script>"
EVIL_CLASSES = [EVIL, '"><img src=x onerror=alert(2)>', "a&amp;b </table>", "</script><b>x"]
EVIL_IDS = [
    f"test/{name}.jpg" for name in (EVIL, "\"'><svg onload=alert(3)>", "ä {{ 7*7 }}", "%00#q=1&x")
]


# Figures and tables


def test_confused_pairs_are_counted_and_shown_with_photographs() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2, 2])
    predicted = np.array([1, 1, 0, 1, 1, 0, 2])
    confidence = np.array([0.5, 0.9, 0.8, 0.6, 0.7, 0.4, 0.3])
    pairs = tables.confused_pairs(labels, predicted, confidence, most=5, shown=2)
    assert pairs == [
        {"actual": 0, "predicted": 1, "count": 2, "wrong": [1, 0], "right": [4, 3]},
        {"actual": 2, "predicted": 0, "count": 1, "wrong": [5], "right": [2]},
    ]
    assert tables.confused_pairs(labels, labels, confidence, 5, 2) == []
    counts = tables.confusion(labels, predicted, 3)
    assert counts.tolist() == [[1, 2, 0], [0, 2, 0], [1, 0, 1]]


def test_a_class_without_photographs_has_no_accuracy() -> None:
    table = tables.class_accuracy(np.array([0, 0, 2]), {"fused": np.array([0, 1, 2])}, 3)
    assert table["photographs"].tolist() == [2, 0, 1]
    np.testing.assert_array_equal(table["fused"], [0.5, np.nan, 1])
    assert figures.percent(np.nan) == figures.percent(None) == ""


def test_reliability_bins_hold_means() -> None:
    bins = tables.reliability_bins(np.array([0.11, 0.19, 1.0]), np.array([True, False, True]))
    assert bins["photographs"].tolist() == [2, 1]
    np.testing.assert_allclose(bins["confidence"], [0.15, 1.0])
    np.testing.assert_allclose(bins["accuracy"], [0.5, 1.0])
    np.testing.assert_allclose(bins["high"], [0.2, 1.0])


def test_the_most_exciting_parts_are_of_different_photographs() -> None:
    parts = pd.DataFrame(
        {
            "image_id": ["a", "a", "b", "b", "c"],
            "part": [0, 1, 0, 1, 0],
            "cluster": [0, 0, 0, 1, 0],
            "activation": np.array([3, 4, 2, 9, 8], dtype=np.float32),
        }
    ).set_index("image_id")
    found = tables.most_exciting(parts, {"a": 5, "b": 6}, shown=2)
    assert [(each["photograph"], each["part"]) for each in found[0]] == [(5, 1), (6, 0)]
    assert found[1] == [{"photograph": 6, "part": 1, "activation": 9.0}]


def test_training_photographs_are_of_different_classes() -> None:
    rows = [(f"{label}/{n}", label, "train") for label in range(10) for n in range(3)]
    manifest = pd.DataFrame([*rows, ("x", 3, "val")], columns=["image_id", "label", "split"])
    assert tables.choose_training(manifest, 4) == ["0/0", "3/0", "6/0", "9/0"]
    assert len(tables.choose_training(manifest, 99)) == 10


def test_candidates_are_those_that_parts_are_chosen_from() -> None:
    rng = np.random.default_rng(0)
    saliency = rng.random((40, 50)).astype(np.float32)
    corners = rng.integers(0, 30, (60, 2))
    boxes = np.hstack([corners, corners + rng.integers(3, 20, (60, 2))])
    params = PartParams(min_iou=0.1, max_iou=0.8, max_candidates=20)
    object_box = np.array([5, 5, 45, 35])
    table = candidate_table(saliency, object_box, boxes, params, "none")
    assert 2 <= len(table) <= 20
    chosen = select_parts(saliency, object_box, boxes, 2, 0.1, 0.7, 20, 0.8)
    assert chosen.fallback == "none"
    assert set(chosen.indices) <= set(table["rank"])
    for row in table.head(5).to_dict("records"):
        box = [row[name] for name in BOX]
        assert row["score"] == pytest.approx(score_parts(saliency, object_box, [box]))
    assert table["score"].is_monotonic_decreasing
    assert len(candidate_table(saliency, object_box, boxes, params, "saliency")) == 60
    assert candidate_table(saliency, object_box, boxes[:0], params, "object_box").empty


def test_a_map_is_packed_from_its_least_to_its_greatest_value() -> None:
    packed = packed_map(np.array([[-1.0, 0.0, 1.0]]))
    assert (packed["rows"], packed["columns"], packed["cells"]) == (1, 3, "AID/")
    assert packed_map(np.full((1, 3), 7.0))["cells"] == "AAAA"


def test_text_is_harmless_in_figures_and_data(tmp_path: Path) -> None:
    matrix = figures.confusion_matrix(np.ones((2, 2), dtype=np.int64), [EVIL, "b"])
    assert "<script" not in matrix
    assert "&lt;script&gt;" in matrix
    assert "<script" not in figures.histogram(np.ones(3, dtype=np.int64), EVIL, EVIL, 0.5, EVIL)
    text = compact_json({"name": EVIL_CLASSES + EVIL_IDS + ["\u2028"]})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text)["name"][0] == EVIL
    files = list(write_pieces(tmp_path, iter([{"n": n} for n in range(PIECE + 1)])))
    assert [path.name for path in files] == ["0000.js", "0001.js"]
    assert files[1].read_text() == f'addDetails(1,[{{"n":{PIECE}}}]);\n'


# The page of a finished run


@pytest.fixture(scope="module")
def data(undisturbed: Undisturbed) -> Path:
    return undisturbed.untouched / "data"


@pytest.fixture(scope="module")
def predictions(data: Path) -> pd.DataFrame:
    table = read_table(data / "predictions.parquet", "predictions")
    return table[table["split"] == "test"].reset_index(drop=True)


def piece(folder: Path, number: int) -> list[dict[str, Any]]:
    text = (folder / f"photographs/{number:04}.js").read_text()
    found = re.fullmatch(rf"addDetails\({number},(.*)\);\n", text)
    assert found
    return json.loads(found[1])


@pytest.mark.slow
def test_it_holds_what_the_stages_found(data: Path, predictions: pd.DataFrame) -> None:
    folder = data / "report"
    doubts = pd.read_csv(data / "doubtful_labels.csv")
    doubted = min(SHOWN, len(doubts))
    pieces = range(math.ceil((len(predictions) + doubted) / PIECE))
    details = [each for number in pieces for each in piece(folder, number)]
    assert len(details) == len(predictions) + doubted
    assert all([*each] == ["pictures"] for each in details[len(predictions) :])
    details = details[: len(predictions)]
    parts = read_table(data / "aligned_parts.parquet", "aligned_parts").set_index("image_id")
    proposals = read_table(data / "proposals.parquet", "proposals").set_index("image_id")
    saliency = read_table(data / "saliency.parquet", "saliency").set_index("image_id")
    for row, found in zip(predictions.itertuples(), details, strict=True):
        drawn = Image.open(io.BytesIO(base64.b64decode(found["picture"])))
        assert max(drawn.size) <= LONGEST_SIDE
        assert found["proposals"] == proposals.loc[row.image_id, BOX].to_numpy().tolist()
        assert found["top"]["fused"][0] == [row.fused, round(1000 * row.confidence)]
        assert found["camLabel"] == saliency.loc[row.image_id, "predicted_label"]
        expected = parts.loc[row.image_id]
        assert (expected["activation"] > 0).all()
        np.testing.assert_allclose(found["activations"], expected["activation"], atol=1e-3)
        if expected["fallback"].iloc[0] in ("none", "min_iou"):
            chosen = {each["part"]: each["box"] for each in found["candidates"]}
            for part, box in enumerate(expected[BOX].to_numpy().tolist()):
                assert chosen[part] == box
    html = (folder / "index.html").read_text()
    metrics = read_json(data / "metrics.json")
    assert f"<strong>{metrics['accuracy']['fused']:.1%}</strong>" in html
    assert "mean IoU" in html
    assert "bcnn" in html
    assert "<script src" not in html


@pytest.mark.slow
def test_again_gives_the_same_bytes_and_leaves_nothing_over(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    folder = tmp_path / "again"
    shutil.copytree(undisturbed.untouched, folder)
    (folder / "data/report/photographs/left.js").write_text("of an older report")
    done = report(folder)
    assert done.returncode == 0, done.stderr
    assert "data/report/index.html: " in done.stdout
    assert " MB" in done.stdout
    assert digests(folder) == undisturbed.digests
    first = (folder / "data/report/index.html").read_bytes()
    (folder / "data/comparison.json").unlink()
    assert report(folder).returncode == 0
    second = (folder / "data/report/index.html").read_text()
    assert "Not compared in this run" in second
    assert report(folder).returncode == 0
    assert (folder / "data/report/index.html").read_text() == second
    assert first != second.encode()
    (folder / "data/metrics.json").unlink()
    done = report(folder)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: data/metrics.json: not found")


# In a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield running
        running.close()


Open = Callable[..., Any]


@pytest.fixture
def open_page(browser: Any) -> Iterator[Open]:
    """Open a report; at the end there must be no error, and no request beyond its folder."""
    problems: list[str] = []

    def opened(folder: Path, address: str = "", width: int = 1280, scheme: str = "light") -> Any:
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        home = (folder / "index.html").absolute().as_uri()

        def check(request: Any) -> None:
            if not request.url.startswith((home.removesuffix("index.html"), "data:")):
                problems.append(f"request to {request.url}")

        page.on("request", check)
        page.on("requestfailed", lambda request: problems.append(f"failed: {request.url}"))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append(f"alert: {dialog.message}"))
        page.on("console", lambda message: problems.append(message.text))
        page.goto(home + address)
        page.wait_for_selector("#gallery .tile", state="attached")
        return page

    yield opened
    for context in browser.contexts:
        context.close()
    assert not problems


@pytest.fixture(scope="module")
def folder(data: Path) -> Path:
    return data / "report"


def names(page: Any) -> list[str]:
    return page.locator("#gallery .name").all_text_contents()


def ids_where(predictions: pd.DataFrame, chosen: pd.Series) -> list[str]:
    return predictions.loc[chosen, "image_id"].tolist()


@pytest.mark.slow
def test_filters_search_and_order(
    folder: Path, predictions: pd.DataFrame, data: Path, open_page: Open
) -> None:
    page = open_page(folder)
    classes = read_json(data / "classes.json")
    assert names(page) == predictions["image_id"].tolist()
    assert page.inner_text("#count") == "16 of 16 photographs"
    page.check("[name=wrong]")
    assert names(page) == ids_where(predictions, predictions["fused"] != predictions["label"])
    page.uncheck("[name=wrong]")
    page.check("[name=changed]")
    assert names(page) == ids_where(predictions, predictions["fused"] != predictions["original"])
    page.uncheck("[name=changed]")
    page.check("[name=fallback]")
    parts = read_table(data / "parts.parquet", "parts")
    objects = read_table(data / "objects.parquet", "objects")
    relaxed = {
        *parts.loc[parts["fallback"] != "none", "image_id"],
        *objects.loc[objects["fallback"] != "none", "image_id"],
    }
    assert set(names(page)) == relaxed & set(predictions["image_id"])
    page.click("button[type=reset]")
    page.wait_for_function("document.querySelectorAll('#gallery .tile').length === 16")
    page.select_option("[name=actual]", label=classes[3])
    assert names(page) == ids_where(predictions, predictions["label"] == 3)
    page.select_option("[name=actual]", "")
    answer = int(predictions["fused"].iloc[0])
    page.select_option("[name=predicted]", label=classes[answer])
    assert names(page) == ids_where(predictions, predictions["fused"] == answer)
    page.select_option("[name=predicted]", "")
    page.fill("[name=q]", "BROOK")
    found = ids_where(predictions, predictions["image_id"].str.contains("brook"))
    assert names(page) == found
    page.fill("[name=q]", "")
    page.select_option("[name=sort]", "unsure")
    confidence = dict(zip(predictions["image_id"], predictions["confidence"], strict=True))
    shown = [round(confidence[name], 3) for name in names(page)]
    assert shown == sorted(shown)


@pytest.mark.slow
def test_boxes_and_saliency_are_drawn_where_they_are(
    folder: Path, predictions: pd.DataFrame, data: Path, open_page: Open
) -> None:
    page = open_page(folder)
    box = page.locator("#gallery .box-object").first
    row = read_table(data / "objects.parquet", "objects").set_index("image_id")
    x0, y0, x1, y1 = row.loc[predictions["image_id"].iloc[0], BOX].tolist()
    drawn = [float(box.get_attribute(name)) for name in ("x", "y", "width", "height")]
    assert drawn == [x0, y0, x1 - x0, y1 - y0]
    assert page.locator("#gallery .tile").first.locator(".box-part").count() == 2
    assert box.is_visible()
    page.uncheck("[name=object]")
    assert not box.is_visible()
    assert page.locator("#gallery canvas").count() == 0
    page.check("[name=map]")
    page.wait_for_function("document.querySelectorAll('#gallery canvas').length === 16")
    page.uncheck("[name=map]")
    assert page.locator("#gallery canvas").count() == 0
    loaded = "image => image.complete && image.naturalWidth > 0"
    page.locator("#gallery img").first.scroll_into_view_if_needed()
    page.wait_for_function(f"({loaded})(document.querySelector('#gallery img'))")


@pytest.mark.slow
def test_the_large_view_goes_by_keyboard(
    folder: Path, predictions: pd.DataFrame, open_page: Open
) -> None:
    page = open_page(folder)
    ids = predictions["image_id"].tolist()
    page.locator("#gallery .tile").first.focus()
    page.keyboard.press("Enter")
    title = page.locator("#large-title")
    assert title.inner_text() == ids[0]
    page.wait_for_selector("#large-body dl")
    page.keyboard.press("ArrowLeft")
    assert title.inner_text() == ids[0]
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert title.inner_text() == ids[2]
    assert "photograph=" in page.url
    page.wait_for_selector("#large-body .box-proposal", state="attached")
    proposal = page.locator("#large-body .box-proposal").first
    assert not proposal.is_visible()
    page.check("[data-layer=proposal]")
    assert proposal.is_visible()
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#large-body .box-proposal")
    page.keyboard.press("Escape")
    assert not page.locator("dialog").is_visible()
    focused = "document.activeElement.querySelector('.name').textContent"
    page.wait_for_function(f"{focused} == {json.dumps(ids[3])}")  # the event of closing comes later
    assert "photograph=" not in page.url


@pytest.mark.slow
def test_the_first_key_presses_lead_to_the_content(folder: Path, open_page: Open) -> None:
    page = open_page(folder)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    reached = set()
    focused = "document.activeElement.name || document.activeElement.className"
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate(focused))
    assert {"q", "actual", "wrong", "tile"} <= reached


@pytest.mark.slow
def test_a_link_shows_what_its_sender_saw(folder: Path, open_page: Open) -> None:
    page = open_page(folder)
    page.fill("[name=q]", "warbler/0001")
    page.select_option("[name=sort]", "sure")
    page.uncheck("[name=parts]")
    page.locator("#gallery .tile").nth(1).click()
    page.wait_for_selector("#large-body dl")
    address = page.url.partition("index.html")[2]
    other = open_page(folder, address)
    other.wait_for_selector("#large-body dl")
    assert other.inner_text("#large-title") == page.inner_text("#large-title")
    other.keyboard.press("Escape")
    page.keyboard.press("Escape")
    assert names(other) == names(page)
    assert other.input_value("[name=sort]") == "sure"
    assert not other.is_checked("[name=parts]")
    # Whatever an address says, the page works.
    nonsense = open_page(folder, "#sort=nothing&page=99&actual=nobody&photograph=none&map=x")
    assert len(names(nonsense)) == 16


@pytest.mark.slow
def test_a_confusion_leads_to_its_photographs(
    folder: Path, predictions: pd.DataFrame, open_page: Open
) -> None:
    page = open_page(folder)
    wrong = predictions[predictions["fused"] != predictions["label"]]
    counts = wrong.groupby(["label", "fused"]).size()
    button = page.locator("#pairs button[data-show-actual]").first
    pair = (
        int(button.get_attribute("data-show-actual")),
        int(button.get_attribute("data-show-predicted")),
    )
    assert counts[pair] == counts.max()
    button.click()
    both = (predictions["label"] == pair[0]) & (predictions["fused"] == pair[1])
    assert names(page) == ids_where(predictions, both)
    page.locator("#pairs button[data-photograph]").first.click()
    page.wait_for_selector("#large-body dl")


def violations(page: Any) -> list[tuple[str, str]]:
    """What axe-core finds of serious or critical impact."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    found = axe.Axe().run(page).response["violations"]
    return [
        (each["id"], node["html"][:200])
        for each in found
        if each["impact"] in ("serious", "critical")
        for node in each["nodes"]
    ]


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_accessible(folder: Path, open_page: Open, scheme: str) -> None:
    page = open_page(folder, scheme=scheme)
    for details in page.locator("details").all():
        details.evaluate("each => { each.open = true; }")
    assert violations(page) == []
    page.locator("#gallery .tile").first.click()
    page.wait_for_selector("#large-body dl")
    assert violations(page) == []


OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.mark.slow
@pytest.mark.parametrize("width", [320, 400, 2560])
def test_it_fits_narrow_and_wide_windows(folder: Path, open_page: Open, width: int) -> None:
    page = open_page(folder, width=width)
    assert page.evaluate(OVERFLOW) <= 0
    page.locator("#gallery .tile").first.click()
    page.wait_for_selector("#large-body dl")
    large = "document.querySelector('dialog')"
    assert page.evaluate(f"{large}.scrollWidth - {large}.clientWidth") <= 0


@pytest.mark.slow
def test_copies_are_shown_at_any_width(tmp_path: Path, open_page: Open) -> None:
    folder = make_up_run(tmp_path / "copies", len(EVIL_IDS), EVIL_CLASSES, EVIL_IDS)
    done = report(folder)
    assert done.returncode == 0, done.stderr
    page = open_page(folder / "data/report", width=400)
    assert page.evaluate(OVERFLOW) <= 0
    assert page.inner_text("#copies h3") == "Identical: in train and test"
    assert page.inner_text("#copies .tile:last-child .name") == "train/0003.jpg"
    assert page.inner_text("#copies .tile:first-child strong") == EVIL
    page.focus("a[href='#copies']")
    page.keyboard.press("Enter")
    loaded = "[...document.querySelectorAll('#copies img')].map((each) => each.naturalWidth)"
    page.wait_for_function(f"{loaded}.every((width) => width === 40)")
    assert len(page.evaluate(loaded)) == 2
    assert violations(page) == []


@pytest.mark.slow
def test_parents_are_shown_at_any_width(tmp_path: Path, open_page: Open) -> None:
    parents = ["a_parent_with_a_name_that_is_rather_long", EVIL, EVIL, EVIL]
    folder = make_up_run(tmp_path / "parents", 40, EVIL_CLASSES, parents=parents)
    done = report(folder)
    assert done.returncode == 0, done.stderr
    page = open_page(folder / "data/report", width=400)
    assert page.evaluate(OVERFLOW) <= 0
    page.focus("a[href='#levels']")
    page.keyboard.press("Enter")
    assert page.locator("#levels tbody tr").first.locator("th").inner_text() == "classes"
    button = page.locator("#levels button[data-show-actual]").first
    button.focus()
    page.keyboard.press("Enter")
    row = button.locator("xpath=ancestor::tr").locator(".number").inner_text()
    assert page.inner_text("#count").startswith(f"{row} of 40")
    assert violations(page) == []


def test_copies_are_in_the_page(tmp_path: Path) -> None:
    folder = make_up_run(tmp_path, len(EVIL_IDS), EVIL_CLASSES, EVIL_IDS)
    done = report(folder)
    assert done.returncode == 0, done.stderr
    html = (folder / "data/report/index.html").read_text()
    section = html[html.index('<section id="copies"') : html.index("</main>")]
    assert "Identical: in train and test" in section
    assert section.count('<img class="copy" src="data:image/jpeg;base64,') == 2
    assert EVIL not in section
    assert "train/0003.jpg" in section
    assert '<a href="#copies">' in html
    assert "In 25.0% of the photographs no one object was found" in html
    # Parameters are shown as they are, with what all networks share.
    params = yaml.safe_load((folder / "params.yaml").read_text())
    shown = html[html.index('<pre tabindex="0">') :].split("</pre>")[0]
    assert yaml.safe_load(shown.split(">", 1)[1]) | {"execution": params["execution"]} == params


def test_conflicts_come_first_and_few_copies_are_shown(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (300, 200)).save(path)
    rows = [(group, f"{group}/{n}", str(path)) for group in range(1, 31) for n in range(2)]
    table = pd.DataFrame(rows, columns=["group", "image_id", "path"])
    table = table.assign(class_name="x", split="train", kind="near", action="kept", conflict="")
    table.loc[table["group"] == 30, "conflict"] = "2 labels"
    found = copy_groups(pd.concat([table, *[table.tail(1)] * 9]), read_image)
    assert len(found) == GROUPS
    assert [found[0]["conflict"], found[0]["count"]] == ["2 labels", 11]
    assert len(found[0]["photographs"]) == MEMBERS
    assert found[1]["photographs"][0]["image_id"] == "1/0"
    assert copy_groups(table.head(0), read_image) == []


def test_beside_a_doubted_label_stand_photographs_against_it_and_for_it() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 50)
    said = rng.dirichlet(np.full(3, 0.5), 150)
    ids = [f"train/{n:03}.jpg" for n in range(150)]
    images = pd.DataFrame({"image_id": ids, "split": "train", "label": labels})
    manifest = images.assign(path=images["image_id"], width=4, height=3).set_index("image_id")
    classes = ["owl", "NA", "wren"]
    found = doubtful_labels(said, labels)
    listed = pd.DataFrame(
        {
            "image_id": [ids[row] for row in found["row"]],
            "label": [classes[labels[row]] for row in found["row"]],
            "suggested": [classes[label] for label in found["suggested"]],
        }
    )
    shown = doubted_labels(listed, images, said, manifest, classes)
    assert len(listed) > SHOWN
    assert [each["photograph"]["image_id"] for each in shown] == listed["image_id"][:SHOWN].tolist()
    for each in shown:
        own = each["photograph"]["image_id"]
        for beside, name in ((each["against"], each["suggested"]), (each["for"], each["label"])):
            assert len(beside) == ALIKE
            assert own not in [other["image_id"] for other in beside]
            names = {classes[manifest["label"][other["image_id"]]] for other in beside}
            assert names == {name}
    # Others are not as a list of older scores knows them.
    with pytest.raises(OpamError, match=r"doubtful_labels\.csv: train/.*dvc repro doubt_labels"):
        doubted_labels(listed, images[:0], said[:0], manifest, classes)


def test_doubted_labels_are_in_the_page(tmp_path: Path) -> None:
    folder = make_up_run(tmp_path, len(EVIL_IDS), EVIL_CLASSES, EVIL_IDS)
    done = report(folder)
    assert done.returncode == 0, done.stderr
    listed = pd.read_csv(folder / "data/doubtful_labels.csv")
    assert EVIL in {*listed["label"], *listed["suggested"]}
    html = (folder / "data/report/index.html").read_text()
    section = html[html.index('<section id="doubts"') : html.index('<section id="copies"')]
    assert section.count('<li class="pair"') == len(listed)
    assert EVIL not in section
    assert [section.index(name) for name in listed["image_id"]] == sorted(
        section.index(name) for name in listed["image_id"]
    )
    pictures = piece(folder / "data/report", 0)[len(EVIL_IDS) :]
    assert len(pictures) == len(listed)
    for number, each in enumerate(pictures):
        drawn = [Image.open(io.BytesIO(base64.b64decode(one))) for one in each["pictures"]]
        assert {image.size for image in drawn} == {(40, 30)}
        assert section.count(f'data-doubt="{number}"') == len(drawn) >= 2
    write = listed.head(0).to_csv(index=False)
    (folder / "data/doubtful_labels.csv").write_text(write)
    assert report(folder).returncode == 0
    assert "No label is doubted." in (folder / "data/report/index.html").read_text()
    (folder / "data/doubtful_labels.csv").unlink()
    done = report(folder)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: data/doubtful_labels.csv: not found")


@pytest.mark.slow
@pytest.mark.parametrize("width", [400, 1280])
def test_doubted_labels_are_shown_at_any_width(tmp_path: Path, open_page: Open, width: int) -> None:
    folder = make_up_run(tmp_path / "doubts", len(EVIL_IDS), EVIL_CLASSES, EVIL_IDS)
    assert report(folder).returncode == 0
    listed = pd.read_csv(folder / "data/doubtful_labels.csv")
    page = open_page(folder / "data/report", width=width)
    page.focus("a[href='#doubts']")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "doubts"
    first = listed.iloc[0]
    title = page.inner_text("#doubt-1 h3")
    assert title == f"1. Labelled {first['label']}, looks like {first['suggested']}"
    assert page.inner_text("#doubt-1 .name") == f"{first['image_id']}, train"
    assert f"{first['suggested_probability']:.1%}" in page.inner_text("#doubt-1 dl")
    for image in page.locator("#doubts img").all():
        image.scroll_into_view_if_needed()
    loaded = "[...document.querySelectorAll('#doubts img')].map((each) => each.naturalWidth)"
    page.wait_for_function(f"{loaded}.every((width) => width === 40)")
    assert page.evaluate(OVERFLOW) <= 0
    assert violations(page) == []


@pytest.mark.slow
def test_names_that_are_code_are_shown_and_not_run(tmp_path: Path, open_page: Open) -> None:
    folder = make_up_run(tmp_path / "evil", len(EVIL_IDS), EVIL_CLASSES, EVIL_IDS)
    done = report(folder)
    assert done.returncode == 0, done.stderr
    html = (folder / "data/report/index.html").read_text()
    assert EVIL not in html
    page = open_page(folder / "data/report")
    assert names(page) == sorted(EVIL_IDS)
    options = page.locator("[name=actual] option").all_text_contents()
    assert options[1:] == EVIL_CLASSES
    page.check("[name=map]")
    for place, name in enumerate(sorted(EVIL_IDS)):
        page.locator("#gallery .tile").nth(place).click()
        page.wait_for_selector("#large-body dl")
        assert page.inner_text("#large-title") == name
        address = page.url.partition("index.html")[2]
        page.keyboard.press("Escape")
        other = open_page(folder / "data/report", address)
        assert other.inner_text("#large-title") == name
        other.close()
    page.select_option("[name=actual]", label=EVIL)
    assert EVIL in unquote(page.url.replace("+", " "))
    assert page.evaluate("document.querySelectorAll('img[src=x], svg[onload]').length") == 0
    assert "This data set has no boxes" in page.inner_text("#trust")


@pytest.mark.slow
def test_six_thousand_photographs_stay_quick(tmp_path: Path, open_page: Open) -> None:
    count = 6_000
    classes = [f"{label:03}.Some_Longer_Name_of_a_Species" for label in range(200)]
    folder = make_up_run(tmp_path / "large", count, classes)
    done = report(folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "data/report/index.html").stat().st_size < 5e6
    page = open_page(folder / "data/report")
    timing = "performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd"
    print(f"{count} photographs: page ready after {page.evaluate(timing):.0f} ms; {done.stdout}")
    assert page.evaluate(timing) < 10_000
    assert page.locator("#gallery .tile").count() == 24
    quick = """() => {
      const begun = performance.now();
      document.querySelector("[name=wrong]").click();
      return performance.now() - begun;
    }"""
    assert page.evaluate(quick) < 2_000
    page.click("#last-page")
    assert page.inner_text("#page-number").startswith("Page ")
    assert page.evaluate("document.querySelectorAll('*').length") < 60_000
