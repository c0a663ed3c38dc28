"""The page, and what answers behind it.

One process, one page, one question: what is on this photograph? A photograph is decoded and
classified in memory and forgotten: nothing is written to disk. Nothing on the page comes from
elsewhere.
"""

import asyncio
import base64
import hashlib
import json
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from opam.app.bundle import ACCEPTED
from opam.app.classifier import Classification, Classifier
from opam.app.serve.batches import Batches, NotClassified
from opam.app.serve.observing import Observed
from opam.method.fusion import BRANCHES
from opam.photographs.decoding.images import Photograph
from opam.pipeline.errors import OpamError
from opam.report.panels import COLOURS

PAGE = Path(__file__).with_name("page.html")

TOP = 5
"""Classes in an answer."""

MEGABYTE = 1_000_000
FRAME = 10_000
"""Bytes that a form may have around the photograph."""

BODY_SECONDS = 30.0
"""A request's body must be there by then."""

RETRY_AFTER = "1"
"""Seconds until who was turned away may come again."""

LOCAL = ("localhost", "127.0.0.1", "[::1]")
"""Names of the server that are always allowed."""

PROBES = ("/health", "/ready")
"""Answered under any name: who probes knows the server by an address, and learns nothing more."""


def create_app(
    batches: Batches,
    max_bytes: int,
    max_waiting: int,
    allowed_hosts: Sequence[str] = LOCAL,
    stopping: Callable[[], bool] = lambda: False,
) -> Observed:
    """The page, ``POST /predict`` behind it, and what those ask who run it.

    ``/predict`` takes a form (multipart) with one file, and answers with JSON: what `answer`
    gives, or ``detail``, one sentence, and status 400 (no photograph), 408 (too slow), 413 (too
    large), 500, or 503 with ``Retry-After`` (no bundle yet, too many wait, or the server stops).
    ``/health`` answers as long as the process lives, ``/ready`` with 503 where ``/predict`` would
    for other reasons than those who wait; ``/metrics`` is for Prometheus.

    Args:
        batches: what classifies, as soon as it has a bundle.
        max_bytes: larger photographs are refused.
        max_waiting: requests that may wait for an answer.
        allowed_hosts: names of the server; requests for another get 400, but `PROBES`.
        stopping: whether the server is.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(HostCheck, allowed_hosts=allowed_hosts, www_redirect=False)
    page = page_html(max_bytes)
    measures = batches.measures

    @app.get("/", response_class=HTMLResponse)
    async def index() -> str:
        return page

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "alive"}

    def loaded() -> Classifier:
        if stopping():
            raise later("The server is stopping")
        if batches.classifier is None:
            raise later("The bundle is being loaded")
        return batches.classifier

    @app.get("/ready")
    async def ready() -> dict[str, str]:
        loaded()
        return {"status": "ready"}

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(measures.registry), media_type=CONTENT_TYPE_LATEST)

    @app.post("/predict")
    async def predict(request: Request) -> dict[str, Any]:
        classes = loaded().classes
        if measures.waiting >= max_waiting:
            raise later("Too many photographs wait already; try again in a moment")
        measures.waiting += 1
        try:
            content = await in_time(uploaded(request, max_bytes))
            photograph, found = await asyncio.wrap_future(batches.ask(content))
        except OpamError as error:
            raise HTTPException(400, str(error)) from None
        except NotClassified:
            message = "The photograph could not be classified; the server's log says why"
            raise HTTPException(500, message) from None
        except asyncio.CancelledError:  # uvicorn's, where stopping takes too long
            raise later("The server is stopping") from None
        finally:
            measures.waiting -= 1
        return answer(photograph, found, classes)

    return Observed(app, measures, security_headers(page))


class HostCheck(TrustedHostMiddleware):
    """Refuses requests for a server of another name: a site's that points its name here."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, as an ASGI app."""
        if scope.get("path") in PROBES:
            await self.app(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def later(why: str) -> HTTPException:
    """To tell who asks to come again."""
    return HTTPException(503, why, {"Retry-After": RETRY_AFTER})


async def in_time(upload: Awaitable[bytes]) -> bytes:
    """What is uploaded.

    Raises:
        HTTPException: 408 where it takes too long, 400 where who sends it goes away.
    """
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await upload
    except TimeoutError:
        message = f"The photograph did not arrive within {BODY_SECONDS:g} seconds"
        raise HTTPException(408, message, {"Connection": "close"}) from None
    except ClientDisconnect:
        raise HTTPException(400, "The photograph did not arrive") from None


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
