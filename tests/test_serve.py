"""`opam serve`: good photographs are labelled, all else is refused in one sentence."""

import asyncio
import io
import re
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from small_project import Undisturbed

from opam import Classifier
from opam.app.serve.app import FRAME, create_app, listen, page_html, uploaded
from opam.photographs.decoding.images import MAX_PIXELS
from opam.pipeline.errors import OpamError
from opam.report.panels import COLOURS

pytestmark = pytest.mark.slow

LIMIT = 300_000
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def bundle(undisturbed: Undisturbed) -> Path:
    return undisturbed.untouched / "data/bundle"


@pytest.fixture(scope="module")
def classifier(bundle: Path) -> Classifier:
    return Classifier.load(bundle, "cpu")


@pytest.fixture(scope="module")
def client(classifier: Classifier) -> Iterator[TestClient]:
    with TestClient(create_app(classifier, LIMIT), raise_server_exceptions=False) as client:
        yield client


def photograph(kind: str = "JPEG", **options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
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
    from fastapi import HTTPException, Request

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
    def fail(_self: object, _image: object) -> None:
        raise RuntimeError(f"inner workings of {__file__}")

    monkeypatch.setattr(Classifier, "__call__", fail)
    client = TestClient(create_app(classifier, LIMIT), raise_server_exceptions=False)
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


def test_one_photograph_at_a_time(classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, most = 0, 0
    classify = Classifier.__call__

    def counted(self: Classifier, image: np.ndarray) -> object:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.05)
        found = classify(self, image)
        inside -= 1
        return found

    monkeypatch.setattr(Classifier, "__call__", counted)
    with TestClient(create_app(classifier, LIMIT)) as client:
        statuses: list[int] = []
        threads = [
            threading.Thread(target=lambda: statuses.append(sent(client, photograph())[0]))
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert statuses == [200] * 3
    assert most == 1


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


def test_the_command_serves_until_interrupted(bundle: Path) -> None:
    program = "from opam.app.cli import main; main()"
    command = [sys.executable, "-c", program, "serve", "--bundle", str(bundle)]
    command += ["--port", "0", "--device", "cpu", "--max-megabytes", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().split()[0]
        with urllib.request.urlopen(address, timeout=60) as response:
            assert b"photograph" in response.read()
        process.terminate()
        _, errors = process.communicate(timeout=60)
        assert "Traceback" not in errors
    finally:
        process.kill()
