"""What the server says of itself: metrics for Prometheus, and a line of JSON for each request."""

import json
import logging
from datetime import UTC, datetime
from time import perf_counter

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60)
"""Upper bounds of the histograms' buckets."""

log = logging.getLogger(__name__)


class Measures:
    """What is counted; ``registry`` holds it as Prometheus wants it.

    Attributes:
        waiting: requests for a class that came in and are not answered yet.
    """

    def __init__(self) -> None:
        self.waiting = 0
        self.registry = here = CollectorRegistry()
        ProcessCollector(registry=here)
        waiting = Gauge(
            "opam_requests_waiting", "Requests for a class, not answered yet", registry=here
        )
        waiting.set_function(lambda: self.waiting)
        self.requests = Counter("opam_requests", "Answers by status", ["status"], registry=here)
        self.photographs = Counter(
            "opam_photographs_classified", "Photographs classified", registry=here
        )
        self.waiting_seconds = Histogram(
            "opam_waiting_seconds",
            "From a photograph's arrival to the beginning of its batch",
            buckets=SECONDS,
            registry=here,
        )
        self.classifying_seconds = Histogram(
            "opam_classifying_seconds",
            "Of a batch, decoding and proposals included",
            buckets=SECONDS,
            registry=here,
        )
        self.batch_size = Histogram(
            "opam_batch_size", "Photographs a batch", buckets=(1, 2, 4, 8), registry=here
        )


class Observed:
    """An app each of whose answers is counted and logged, and carries the same headers."""

    def __init__(self, app: ASGIApp, measures: Measures, headers: dict[str, str]) -> None:
        self.app = app
        self.measures = measures
        self.headers = [(name.lower().encode(), each.encode()) for name, each in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, as an ASGI app."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status, read = perf_counter(), 500, 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            return message

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *self.headers]
            await send(message)

        try:
            await self.app(scope, counted, noted)
        finally:
            self.measures.requests.labels(status).inc()
            request = {
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "seconds": round(perf_counter() - started, 4),
                "bytes": read,
                "waiting": self.measures.waiting,
            }
            log.info("answered", extra={"request": request})


class JsonLines(logging.Formatter):
    """A record as one line of JSON: a request's own fields, or a message, and its traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": time, "level": record.levelname.lower()}
        line |= getattr(record, "request", None) or {"message": record.getMessage()}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def log_as_json() -> None:
    """Write what is logged, warnings too, to stderr as lines of JSON."""
    lines = logging.StreamHandler()
    lines.setFormatter(JsonLines())
    logging.basicConfig(handlers=[lines], force=True)
    logging.captureWarnings(True)
    log.setLevel(logging.INFO)
