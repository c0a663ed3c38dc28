"""`opam serve`: good photographs are labelled, all else is refused in one sentence."""

import asyncio
import io
import json
import logging
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from fastapi import HTTPException, Request
from fastapi.testclient import TestClient
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from small_project import ROOT, Undisturbed

from opam import Classifier
from opam.app.serve import app as app_module
from opam.app.serve.app import FRAME, LOCAL, create_app, in_time, page_html, uploaded
from opam.app.serve.batches import BATCH, Batches, NotClassified
from opam.app.serve.observing import JsonLines, Measures
from opam.app.serve.server import listen, names_of
from opam.photographs.decoding.images import MAX_PIXELS
from opam.pipeline.errors import OpamError
from opam.report.panels import COLOURS

sys.path.insert(0, str(ROOT / "benchmarks"))
import serving

pytestmark = pytest.mark.slow

LIMIT = 300_000
WAITING = 8
HERE = "http://localhost"


@pytest.fixture(scope="module")
def bundle(undisturbed: Undisturbed) -> Path:
    return undisturbed.untouched / "data/bundle"


@pytest.fixture(scope="module")
def classifier(bundle: Path) -> Classifier:
    return Classifier.load(bundle, "cpu")


def batches_of(classifier: Classifier) -> Batches:
    batches = Batches(Measures())
    batches.start(classifier)
    return batches


def client_of(batches: Batches, *allowed: str) -> TestClient:
    app = create_app(batches, LIMIT, WAITING, [*LOCAL, *allowed])
    return TestClient(app, HERE, raise_server_exceptions=False)


@pytest.fixture(scope="module")
def client(classifier: Classifier) -> Iterator[TestClient]:
    with client_of(batches_of(classifier)) as client:
        yield client


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[serving.Served]:
    """A process with few seconds for a body."""
    program = f"from opam.app.serve import app; app.BODY_SECONDS = 3\n{serving.SERVE}"
    options = ["--device", "cpu", "--max-megabytes", "1", "--max-waiting", str(WAITING)]
    with serving.served(bundle, *options, program=program) as server:
        yield server


class Gate:
    """Holds the classifier's calls until it is opened, and notes how many photographs each has."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        self.open = threading.Event()
        classify = Classifier.classify

        def held(classifier: Classifier, images: list) -> list:
            self.sizes.append(len(images))
            assert self.open.wait(60)
            return classify(classifier, images)

        monkeypatch.setattr(Classifier, "classify", held)

    def closed_behind(self, first: Future) -> None:
        """Wait until one photograph is being classified, so that others have to wait."""
        until(lambda: self.sizes and not first.done())


def until(so: object) -> None:
    end = time.monotonic() + 60
    while not so():
        assert time.monotonic() < end
        time.sleep(0.01)


def photograph(kind: str = "JPEG", seed: int = 0, width: int = 120, **options: object) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (90, width, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that promises many pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1_000_000))
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def sent(client: TestClient, content: bytes, name: str = "bird.jpg") -> tuple[int, dict]:
    response = client.post("/predict", files={"photograph": (name, content)})
    return response.status_code, response.json()


def assert_refused(status: int, answer: dict, expected: int, words: str) -> None:
    assert status == expected
    assert set(answer) == {"detail"}
    sentence = answer["detail"]
    assert words in sentence
    assert "\n" not in sentence
    assert "Traceback" not in sentence
    for secret in (str(ROOT), sys.prefix, tempfile.gettempdir(), ".py", "BytesIO", "0x"):
        assert secret not in sentence


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_a_photograph_is_labelled_as_by_the_classifier(
    client: TestClient, classifier: Classifier, kind: str
) -> None:
    content = photograph(kind)
    status, answer = sent(client, content)
    assert status == 200
    found = classifier(Image.open(io.BytesIO(content)))
    assert answer["class"] == answer["top"][0]["class"] == found.class_name
    assert (answer["width"], answer["height"]) == (120, 90)
    assert answer["object"]["box"] == found.object_box.tolist()
    assert [part["box"] for part in answer["parts"]] == found.parts.tolist()
    assert len(answer["top"]) == min(5, len(classifier.classes))
    for branch in ("fused", "original", "object", "part"):
        expected = found.probabilities[branch][found.label]
        assert answer["top"][0][branch] == pytest.approx(expected, abs=1e-5)


def test_boxes_are_those_of_the_upright_photograph(client: TestClient) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    _, answer = sent(client, photograph(exif=exif.tobytes()))
    assert (answer["width"], answer["height"]) == (90, 120)


def test_what_is_no_photograph_is_refused(client: TestClient) -> None:
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"
    for content, words in (
        (photograph()[:900], "truncated"),
        (b"no photograph at all\n", "of no known image format"),
        (eps, "of no known image format"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "of no known image format"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "cannot be decoded"),
        (b"", "There is no photograph in the request"),
    ):
        assert_refused(*sent(client, content), 400, words)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("width", [MAX_PIXELS // 10_000 + 1, 60_000])
def test_a_decompression_bomb_is_refused(client: TestClient, width: int) -> None:
    assert_refused(*sent(client, bomb(width, 10_000)), 400, "pixels")


def test_a_huge_body_is_refused(client: TestClient) -> None:
    assert_refused(*sent(client, bytes(LIMIT + 1)), 413, "larger than 0.3 megabytes")
    assert_refused(*sent(client, bytes(LIMIT * 10)), 413, "larger than 0.3 megabytes")


def test_a_huge_body_is_refused_before_it_is_read() -> None:
    """By its announced length at once; without one, when the limit is passed."""
    read = 0

    async def endless() -> dict:
        nonlocal read
        read += 1
        start = b'--x\r\nContent-Disposition: form-data; name="p"; filename="p"\r\n\r\n'
        body = start if read == 1 else bytes(10_000)
        return {"type": "http.request", "body": body, "more_body": True}

    form = (b"content-type", b"multipart/form-data; boundary=x")
    for length, pieces in ((b"999999999", 0), (b"9" * 5000, 0), (None, (LIMIT + FRAME) // 10_000)):
        read = 0
        headers = [form] if length is None else [form, (b"content-length", length)]
        request = Request({"type": "http", "method": "POST", "headers": headers}, endless)
        with pytest.raises(HTTPException) as refused:
            asyncio.run(uploaded(request, LIMIT))
        assert refused.value.status_code == 413
        assert pieces <= read <= pieces + 2


def test_nothing_is_written_to_disk(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def rolled(_file: object) -> None:
        raise AssertionError("written to disk")

    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", rolled)
    assert_refused(*sent(client, bytes(LIMIT)), 400, "of no known image format")


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"content-type": "multipart/form-data"}, b"--x"),
        ({"content-type": "multipart/form-data; boundary=x"}, b"rubbish"),
        ({"content-type": "multipart/form-data; boundary=x"}, b"--x\r\n\r\n--x--"),
        ({"content-type": "image/jpeg"}, photograph()),
        ({}, b""),
    ],
)
def test_other_requests_are_refused(client: TestClient, headers: dict, body: bytes) -> None:
    response = client.post("/predict", headers=headers, content=body)
    assert_refused(response.status_code, response.json(), 400, "")


def test_several_files_are_refused(client: TestClient) -> None:
    files = [("photograph", ("a.jpg", photograph())), ("photograph", ("b.jpg", photograph()))]
    response = client.post("/predict", files=files)
    assert_refused(response.status_code, response.json(), 400, "Too many files")


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/..%2f..%2fetc%2fpasswd",
        "/predict/../../etc/passwd",
        "/page.html",
        "/static/page.html",
        "/docs",
        "/redoc",
        "/openapi.json",
    ],
)
def test_no_other_address_answers(client: TestClient, path: str) -> None:
    response = client.get(path)
    assert response.status_code in (404, 405)
    assert set(response.json()) == {"detail"}
    assert "root:" not in response.text


def test_the_files_own_name_is_not_used(client: TestClient) -> None:
    for name in ("../../etc/passwd", "<script>alert(1)</script>.jpg", "/etc/shadow", "a\x00b"):
        status, answer = sent(client, photograph(), name)
        assert status == 200
        assert "alert" not in str(answer)
        assert "etc" not in str(answer)
        assert_refused(*sent(client, b"text", name), 400, "The photograph: cannot be decoded")


def test_what_goes_wrong_inside_stays_inside(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_self: object, _images: object) -> None:
        raise RuntimeError(f"inner workings of {__file__}")

    monkeypatch.setattr(Classifier, "classify", fail)
    client = client_of(batches_of(classifier))
    assert_refused(*sent(client, photograph()), 500, "the server's log says why")


def test_every_answer_carries_the_headers_and_no_other_site_may_read(client: TestClient) -> None:
    other = {"origin": "https://elsewhere.example"}
    asked = {**other, "access-control-request-method": "POST"}
    for response in (
        client.get("/", headers=other),
        client.get("/none", headers=other),
        client.post("/predict", headers=other),
        client.post("/predict", headers=other, files={"photograph": photograph()}),
        client.options("/predict", headers=asked),
    ):
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["content-security-policy"].startswith("default-src 'none'; ")
        assert not [name for name in response.headers if name.startswith("access-control")]


def test_the_page_needs_nothing_from_elsewhere(client: TestClient) -> None:
    response = client.get("/")
    assert response.headers["content-type"].startswith("text/html")
    policy = response.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert policy.count("'sha256-") == 2
    page = response.text
    assert not re.findall(r"""(?:src|href)="(?!data:)[^"]""", page)
    assert "innerHTML" not in page
    assert not re.findall(r"""\s(?:style|on\w+)=["']""", page)  # the policy would refuse them
    assert f'"maxBytes": {LIMIT}' in page
    assert COLOURS[0] in page_html(1)


def test_photographs_that_wait_are_classified_together(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bounded batch at a time, each photograph as if it were alone."""
    contents = [photograph(seed=seed, width=100 + seed) for seed in range(2 * BATCH)]
    alone = [classifier(Image.open(io.BytesIO(content))) for content in contents]
    gate, batches = Gate(monkeypatch), batches_of(classifier)
    first = batches.ask(contents[0])
    gate.closed_behind(first)
    others = [batches.ask(content) for content in contents[1:]]
    gate.open.set()
    answers = [each.result(60) for each in (first, *others)]
    assert gate.sizes == [1, BATCH, BATCH - 1]
    assert [decoded.width for decoded, _ in answers] == [100 + seed for seed in range(2 * BATCH)]
    for (_, found), expected in zip(answers, alone, strict=True):
        assert found.label == expected.label
        np.testing.assert_array_equal(found.object_box, expected.object_box)
        np.testing.assert_array_equal(found.parts, expected.parts)
        np.testing.assert_array_equal(found.clusters, expected.clusters)
        for branch, scores in expected.probabilities.items():
            np.testing.assert_allclose(found.probabilities[branch], scores, atol=1e-5)


def test_one_that_fails_fails_alone(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    classify = Classifier.classify

    def fails_of_one(self: Classifier, images: list) -> list:
        if any(image.width == 77 for image in images):
            raise RuntimeError("no such width")
        return classify(self, images)

    monkeypatch.setattr(Classifier, "classify", fails_of_one)
    gate, batches = Gate(monkeypatch), batches_of(classifier)
    first = batches.ask(photograph())
    gate.closed_behind(first)
    broken = batches.ask(b"no photograph")
    bad = batches.ask(photograph(width=77))
    good = [batches.ask(photograph(width=width)) for width in (60, 70)]
    gate.open.set()
    assert [each.result(60)[0].width for each in (first, *good)] == [120, 60, 70]
    with pytest.raises(OpamError, match="of no known image format"):
        broken.result(60)
    with pytest.raises(NotClassified):
        bad.result(60)
    assert [record.message for record in caplog.records] == ["a photograph could not be classified"]


def test_who_no_longer_waits_is_not_classified(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, batches = Gate(monkeypatch), batches_of(classifier)
    first = batches.ask(photograph())
    gate.closed_behind(first)
    gone, there = batches.ask(photograph()), batches.ask(photograph())
    assert gone.cancel()
    gate.open.set()
    assert there.result(60)
    assert gate.sizes == [1, 1]


def test_more_than_may_wait_are_told_at_once_to_come_again(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, batches = Gate(monkeypatch), batches_of(classifier)
    with client_of(batches) as client, ThreadPoolExecutor(WAITING) as pool:
        waiting = [pool.submit(sent, client, photograph()) for _ in range(WAITING)]
        until(lambda: batches.measures.waiting == WAITING)
        files = {"photograph": ("bird.jpg", photograph())}
        refused = client.post("/predict", files=files)
        assert_refused(refused.status_code, refused.json(), 503, "wait already")
        assert int(refused.headers["retry-after"]) > 0
        assert client.get("/ready").status_code == 200
        gate.open.set()
        assert [each.result(60)[0] for each in waiting] == [200] * WAITING
        assert sent(client, photograph())[0] == 200
    assert sum(gate.sizes) == WAITING + 1


def test_it_is_ready_when_the_bundle_is_there_and_it_is_not_stopping(
    classifier: Classifier,
) -> None:
    batches, stops = Batches(Measures()), False
    app = create_app(batches, LIMIT, WAITING, stopping=lambda: stops)
    client = TestClient(app, HERE)

    def assert_not_ready(words: str) -> None:
        assert client.get("/health").status_code == 200
        assert client.get("/ready").headers["retry-after"]
        assert_refused(*sent(client, photograph()), 503, words)

    assert_not_ready("being loaded")
    batches.start(classifier)
    assert client.get("/ready").status_code == 200
    assert sent(client, photograph())[0] == 200
    stops = True
    assert_not_ready("stopping")


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("localhost", True),
        ("LOCALHOST:8000", True),
        ("127.0.0.1:8000", True),
        ("[::1]:8000", True),
        ("birds.example.org", True),
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("www.birds.example.org", False),
        ("", False),
    ],
)
def test_a_server_of_another_name_is_not_this_one(
    classifier: Classifier, host: str, allowed: bool
) -> None:
    client = client_of(batches_of(classifier), "birds.example.org")
    for path in ("/", "/metrics"):
        response = client.get(path, headers={"host": host})
        assert response.status_code == (200 if allowed else 400)
        assert response.headers["x-content-type-options"] == "nosniff"
    files = {"photograph": photograph()}
    response = client.post("/predict", headers={"host": host}, files=files)
    assert response.status_code == (200 if allowed else 400)
    for path in ("/health", "/ready"):
        assert client.get(path, headers={"host": host}).status_code == 200


def test_the_names_of_the_server() -> None:
    assert names_of("127.0.0.1", []) == [*LOCAL, "127.0.0.1"]
    assert names_of("fd00::1", ["*.example.org"]) == [*LOCAL, "[fd00::1]", "*.example.org"]
    assert names_of("0.0.0.0", ["*"]) == [*LOCAL, "*"]
    for name in ("http://birds.example.org", "birds.example.org:80", "birds.*", "", "::1"):
        with pytest.raises(OpamError, match="is no name; give one without scheme and port"):
            names_of("127.0.0.1", [name])


def measured(client: TestClient) -> dict[str, float]:
    """Every figure of the metrics, by its name and its label."""
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    return {
        sample.name + "".join(sample.labels.values()): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def test_metrics_count_what_was_answered(classifier: Classifier) -> None:
    client = client_of(batches_of(classifier))
    assert sent(client, photograph())[0] == 200
    assert sent(client, b"no photograph")[0] == 400
    assert client.get("/none").status_code == 404
    found = measured(client)
    assert [found[f"opam_requests_total{status}"] for status in (200, 400, 404)] == [1, 1, 1]
    assert found["opam_photographs_classified_total"] == 1
    assert found["opam_requests_waiting"] == 0
    assert found["opam_batch_size_count"] == found["opam_batch_size_sum"] == 2
    assert found["opam_waiting_seconds_count"] == 2
    assert found["opam_classifying_seconds_sum"] > 0
    assert found["process_resident_memory_bytes"] > 0
    assert measured(client)["opam_requests_total200"] == 2


def test_a_request_is_a_line_of_json(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    content = photograph()
    with caplog.at_level(logging.INFO, "opam.app.serve"):
        sent(client, content)
        client.get("/no%0Asuch?secret=1")
    posted, got = (JsonLines().format(record) for record in caplog.records[-2:])
    assert "\n" not in posted + got
    line = json.loads(posted)
    assert line.pop("time").endswith("+00:00")
    assert line.pop("seconds") > 0
    assert len(content) < line.pop("bytes") < len(content) + FRAME
    told = {"level": "info", "method": "POST", "path": "/predict", "status": 200, "waiting": 0}
    assert line == told
    assert json.loads(got).items() >= {"path": "/no\nsuch", "status": 404, "bytes": 0}.items()
    assert "secret" not in got


def test_what_goes_wrong_is_a_line_of_json_too() -> None:
    try:
        raise RuntimeError("two\nlines")
    except RuntimeError:
        record = logging.getLogger().makeRecord(
            *("opam", logging.ERROR, __file__, 1, "%s broke", ("it",), sys.exc_info())
        )
    text = JsonLines().format(record)
    assert "\n" not in text
    line = json.loads(text)
    assert (line["level"], line["message"]) == ("error", "it broke")
    assert line["traceback"].endswith("RuntimeError: two\nlines")


@pytest.mark.parametrize(("end", "status"), [("silence", 408), ("http.disconnect", 400)])
def test_a_body_that_does_not_arrive(
    end: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_module, "BODY_SECONDS", 0.05)
    begun = False

    async def receive() -> dict:
        nonlocal begun
        if begun and end == "silence":
            await asyncio.sleep(60)
        if begun:
            return {"type": end}
        begun = True
        return {"type": "http.request", "body": b"--x\r\n", "more_body": True}

    headers = [(b"content-type", b"multipart/form-data; boundary=x")]
    request = Request({"type": "http", "method": "POST", "headers": headers}, receive)
    with pytest.raises(HTTPException, match="did not arrive") as refused:
        asyncio.run(in_time(uploaded(request, LIMIT)))
    assert refused.value.status_code == status


def test_slow_clients_are_left_and_stop_nobody(server: serving.Served) -> None:
    """As many as may wait: none can ask meanwhile, and all can thereafter."""
    body = serving.form(photograph())
    head = (
        "POST /predict HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()
    slow = [socket.create_connection(("127.0.0.1", server.port), 60) for _ in range(WAITING)]
    for each in slow:
        each.sendall(head + body[:100])
    for each in slow:
        answer = b""
        while piece := each.recv(10_000):  # until the server closes
            answer += piece
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"did not arrive within 3 seconds" in answer
        each.close()
    [answer] = serving.ask(server.port, body, time.monotonic())
    assert answer.status == 200


def test_a_hundred_clients_at_once(server: serving.Served) -> None:
    """Each is answered or told when to come again, and memory does not grow."""
    serving.load(server.port, 100, 1)  # what is loaded and allocated once
    found = serving.load(server.port, 100, 4)
    assert not found.faults()
    assert set(found.statuses()) == {200, 503}
    assert max(found.memory) < found.memory[0] + 64 * serving.MEGABYTE
    server.log.seek(0)
    lines = [json.loads(line) for line in server.log.read().splitlines()]
    answered = [line["seconds"] for line in lines if line.get("status") == 200]
    assert len(answered) >= found.statuses()[200]
    assert not [line for line in lines if line["level"] != "info"]


def test_a_port_that_is_taken_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OpamError, match=f"port {port}: cannot listen there"):
            listen("127.0.0.1", port)


def test_without_the_extra_it_says_what_to_install() -> None:
    program = (
        "import sys\n"
        "sys.modules['fastapi'] = None\n"
        "from opam.app.cli import main\n"
        "sys.argv = ['opam', 'serve']\n"
        "main()\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "error: fastapi is not installed; `pip install 'opam[serve]'`\n"


def test_the_command_serves_the_page(server: serving.Served) -> None:
    address = f"http://127.0.0.1:{server.port}"
    with urllib.request.urlopen(address, timeout=60) as response:
        assert b"photograph" in response.read()


def test_the_container_asks_whether_it_is_ready(server: serving.Served) -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    (check,) = re.findall(r"^HEALTHCHECK .* CMD (\[.*\])$", dockerfile, re.MULTILINE)
    (port,) = re.findall(r"^EXPOSE (\d+)$", dockerfile, re.MULTILINE)
    _, *options = json.loads(check)
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        nobodys = nobody.getsockname()[1]
    for own, code in ((server.port, 0), (nobodys, 1)):
        command = [sys.executable, *(each.replace(f":{port}/", f":{own}/") for each in options)]
        assert subprocess.run(command, capture_output=True, check=False).returncode == code


SLOWLY = """
import time
from opam import Classifier
from opam.app.serve import server
classify = Classifier.classify
def slowly(self, images):
    time.sleep({seconds})
    return classify(self, images)
Classifier.classify = slowly
server.STOP_SECONDS = {bound}
"""


@pytest.mark.parametrize(
    ("number", "seconds", "bound", "status"),
    [(signal.SIGTERM, 1.5, 60, 200), (signal.SIGINT, 60, 1, 503)],
)
def test_what_is_under_way_is_answered_when_it_stops(
    bundle: Path, number: int, seconds: float, bound: int, status: int
) -> None:
    """With a class; or, where that would take too long, with when to come again."""
    program = SLOWLY.format(seconds=seconds, bound=bound) + serving.SERVE
    with (
        serving.served(bundle, "--device", "cpu", program=program) as server,
        ThreadPoolExecutor(1) as pool,
    ):
        body = serving.form(photograph())
        asked = pool.submit(serving.ask, server.port, body, time.monotonic())
        until(lambda: waits(server.port))
        server.process.send_signal(number)
        told = time.monotonic()
        [answer] = asked.result(60)
        assert answer.status == status
        assert (answer.retry_after is not None) == (status == 503)
        with pytest.raises(ConnectionRefusedError):
            serving.resident(server.port)
        assert server.process.wait(60) == 0
        assert time.monotonic() - told < 40
        server.log.seek(0)
        assert b"Traceback" not in server.log.read()


def waits(port: int) -> bool:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as response:
        return b"opam_requests_waiting 1.0" in response.read()


def test_a_bundle_that_cannot_be_loaded_ends_it_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-c", serving.SERVE, "serve", "--port", "0"]
    done = subprocess.run(
        [*command, "--bundle", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert re.fullmatch(r"error: [^\n]*bundle.json[^\n]*\n", done.stderr)
    assert done.stdout == ""
