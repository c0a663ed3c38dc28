"""A page in the browser that labels photographs: ``opam serve``.

One process, one page, one endpoint. A photograph is decoded and classified in memory, one at a
time, and forgotten: nothing is written to disk. Nothing on the page comes from elsewhere.
"""

import base64
import contextlib
import hashlib
import json
import logging
import re
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from opam.app.bundle import ACCEPTED
from opam.app.classifier import Classification, Classifier
from opam.method.fusion import BRANCHES
from opam.photographs.decoding.images import Photograph, decode_photograph
from opam.pipeline.errors import OpamError, cause
from opam.report.panels import COLOURS

try:
    import python_multipart  # noqa: F401
    import uvicorn
    from fastapi import FastAPI, HTTPException, Request, Response
    from fastapi.concurrency import run_in_threadpool
    from fastapi.responses import HTMLResponse
    from starlette.datastructures import UploadFile
    from starlette.formparsers import MultiPartException, MultiPartParser
except ImportError as error:
    raise OpamError(f"{error.name} is not installed; `pip install 'opam[serve]'`") from None

PAGE = Path(__file__).with_name("page.html")

TOP = 5
"""Classes in an answer."""

MEGABYTE = 1_000_000
FRAME = 10_000
"""Bytes that a form may have around the photograph."""

CONCURRENT = 16
"""Requests at once; more are told to come back later."""

log = logging.getLogger(__name__)


def create_app(classifier: Classifier, max_bytes: int) -> FastAPI:
    """The page, and ``POST /predict`` behind it.

    ``/predict`` takes a form (multipart) with one file, and answers with JSON: what `answer`
    gives, or ``detail``, one sentence, and status 400 (no photograph), 413 (too large) or 500.

    Args:
        classifier: a loaded bundle.
        max_bytes: larger photographs are refused.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    page = page_html(max_bytes)
    headers = security_headers(page)
    one_at_a_time = Lock()

    @app.middleware("http")
    async def secured(
        request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        response = await call_next(request)
        response.headers.update(headers)
        return response

    @app.get("/", response_class=HTMLResponse)
    async def index() -> str:
        return page

    @app.post("/predict")
    async def predict(request: Request) -> dict[str, Any]:
        content = await uploaded(request, max_bytes)
        return await run_in_threadpool(classify, content)

    def classify(content: bytes) -> dict[str, Any]:
        with one_at_a_time:  # decoding too: the largest that is let through takes 5 GB
            try:
                side = classifier.steps["max_side"]
                photograph = decode_photograph(content, "The photograph", side)
            except OpamError as error:
                raise HTTPException(400, str(error)) from None
            try:
                return answer(photograph, classifier(photograph), classifier.classes)
            except Exception:
                log.exception("a photograph could not be classified")
                message = "The photograph could not be classified; the server's log says why"
                raise HTTPException(500, message) from None

    return app


async def uploaded(request: Request, max_bytes: int) -> bytes:
    """The one file of a form, never on disk, and never more of it in memory than allowed.

    Raises:
        HTTPException: 413 where it is larger, 400 where there is none.
    """
    most = max_bytes + FRAME
    too_large = HTTPException(
        413, f"The photograph is larger than {max_bytes / MEGABYTE:g} megabytes; scale it down"
    )
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and (len(announced) > 18 or int(announced) > most):
        raise too_large

    async def bounded() -> AsyncGenerator[bytes, None]:
        read = 0
        async for piece in request.stream():
            read += len(piece)
            if read > most:
                raise too_large
            yield piece

    missing = "There is no photograph in the request; send one as a file of a multipart form"
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise HTTPException(400, missing)
    parser = MultiPartParser(request.headers, bounded(), max_files=1, max_fields=10)
    parser.spool_max_size = most + 1  # below this size a file stays in memory
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise HTTPException(400, f"The form cannot be read: {error.message}") from None
    try:
        files = [value for value in form.values() if isinstance(value, UploadFile)]
        content = await files[0].read() if files else b""
    finally:
        await form.close()
    if not content:
        raise HTTPException(400, missing)
    if len(content) > max_bytes:
        raise too_large
    return content


def answer(photograph: Photograph, found: Classification, classes: list[str]) -> dict[str, Any]:
    """One photograph's classification as JSON.

    Args:
        photograph: as it was decoded.
        found: what the classifier says of it.
        classes: names, by label.

    Returns:
        ``class, familiarity, unknown, width, height, object`` (with ``box`` x0, y0, x1, y1 in
        pixels of the upright photograph, and ``fallback``), ``parts`` (each with ``box`` and
        ``cluster``), ``part_fallback``, and ``top``: the most probable classes, each with ``class``
        and its probability by ``fused, original, object`` and ``part``.
    """
    best = np.argsort(-found.probabilities["fused"], kind="stable")[:TOP]
    return {
        "class": found.class_name,
        "familiarity": round(found.familiarity, 6),
        "unknown": found.familiarity <= ACCEPTED,
        "width": photograph.width,
        "height": photograph.height,
        "object": {"box": found.object_box.tolist(), "fallback": found.object_fallback},
        "parts": [
            {"box": box.tolist(), "cluster": int(cluster)}
            for box, cluster in zip(found.parts, found.clusters, strict=True)
        ],
        "part_fallback": found.part_fallback,
        "top": [
            {
                "class": classes[label],
                **{
                    branch: round(float(found.probabilities[branch][label]), 6)
                    for branch in ("fused", *BRANCHES)
                },
            }
            for label in best
        ],
    }


def page_html(max_bytes: int) -> str:
    """The page, with what its script must know."""
    settings = json.dumps({"colours": COLOURS, "maxBytes": max_bytes})
    return PAGE.read_text(encoding="utf-8").replace('"SETTINGS"', settings)


def security_headers(page: str) -> dict[str, str]:
    """Headers of every answer: the browser runs the page's own script and style, nothing else."""
    sources = {
        tag: " ".join(
            f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
            for content in re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        )
        for tag in ("script", "style")
    }
    policy = {
        "default-src": "'none'",
        "script-src": sources["script"],
        "style-src": sources["style"],
        "img-src": "blob: data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return {
        "Content-Security-Policy": "; ".join(f"{name} {each}" for name, each in policy.items()),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cache-Control": "no-store",
    }


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        OpamError: the address is not this machine's, or the port is taken.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise OpamError(
            f"{host}, port {port}: cannot listen there ({cause(error)}); take another --host or "
            "--port"
        ) from None


def serve(bundle: Path, host: str, port: int, device: str, max_megabytes: int) -> None:
    """Load a bundle and answer until interrupted.

    Raises:
        OpamError: the bundle cannot be loaded, or the address is taken.
    """
    with listen(host, port) as listening:
        classifier = Classifier.load(bundle, device)
        config = uvicorn.Config(
            create_app(classifier, max_megabytes * MEGABYTE),
            log_level="warning",
            limit_concurrency=CONCURRENT,
            server_header=False,
        )
        shown = f"[{host}]" if ":" in host else host
        print(f"http://{shown}:{listening.getsockname()[1]}  (stop with Ctrl+C)", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listening])
