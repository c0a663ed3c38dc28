"""`opam serve` under a hundred clients, each of which asks again as soon as it is answered.

Run: ``python benchmarks/serving.py``; it takes the bundle of the run in ``data/``, or another that
is named: ``python benchmarks/serving.py BUNDLE``.
"""

import io
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from tempfile import TemporaryFile
from threading import Thread
from typing import IO, NamedTuple

import numpy as np
from PIL import Image

BUNDLE = Path("data/bundle")
CLIENTS = 100
SECONDS = 60
"""As long before, unmeasured: until then memory is taken for the first time."""
ENDS = 10
MEGABYTE = 1_000_000
SERVE = "from opam.app.cli import main; main()"
NONE = 0
"""In place of a status: no answer."""


class Answer(NamedTuple):
    """What a client was told: status, after how long, and when it may come again."""

    status: int
    seconds: float
    retry_after: str | None


class Load(NamedTuple):
    """All answers, and the server's resident memory in bytes, before, each second, and behind."""

    answers: list[Answer]
    memory: list[int]

    def statuses(self) -> Counter[int]:
        """Answers by status."""
        return Counter(answer.status for answer in self.answers)

    def faults(self) -> Counter[int]:
        """Statuses other than 200, and than 503 that says when to come again."""
        wrong = (each for each in self.answers if each.status != 200)
        return Counter(each.status for each in wrong if not (each.status == 503 and each[2]))


def form(content: bytes) -> bytes:
    """A photograph as a form."""
    start = b'--x\r\nContent-Disposition: form-data; name="p"; filename="p"\r\n\r\n'
    return start + content + b"\r\n--x--\r\n"


def photographs() -> list[bytes]:
    """JPEGs of several sizes and shapes: clouds of colour."""
    rng = np.random.default_rng(0)
    found = []
    for width, height in ((640, 480), (480, 640), (800, 600), (500, 500), (1024, 768)):
        small = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        stream = io.BytesIO()
        Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(
            stream, "JPEG"
        )
        found.append(stream.getvalue())
    return found


class Served(NamedTuple):
    """A server that runs: its port, its process, and what it writes to stderr."""

    port: int
    process: subprocess.Popen[str]
    log: IO[bytes]


@contextmanager
def served(bundle: Path, *options: str, program: str = SERVE) -> Iterator[Served]:
    """Run the server as a process of its own, until the block ends."""
    command = [sys.executable, "-c", program, "serve", "--bundle", str(bundle), "--port", "0"]
    with TemporaryFile() as log:
        process = subprocess.Popen(
            [*command, *options], stdout=subprocess.PIPE, stderr=log, text=True
        )
        try:
            assert process.stdout is not None
            told = re.match(r"http://.*:(\d+) ", process.stdout.readline())
            if told is None:
                log.seek(0)
                sys.exit(log.read().decode())
            yield Served(int(told[1]), process, log)
        finally:
            process.terminate()
            process.wait()


def resident(port: int) -> int:
    """The server's memory, bytes, as it says itself."""
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return int(float(text.split("\nprocess_resident_memory_bytes ")[1].split()[0]))


def ask(port: int, body: bytes, until: float) -> list[Answer]:
    """One client: asks once, and again until then; it waits as long as it is told to."""
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    answers: list[Answer] = []
    while not answers or time.monotonic() < until:
        started = time.monotonic()
        status, again = NONE, None
        try:
            connection.request("POST", "/predict", body, headers)
            response = connection.getresponse()
            response.read()
            status, again = response.status, response.headers["Retry-After"]
        except (OSError, HTTPException):
            connection.close()
        answers.append(Answer(status, time.monotonic() - started, again))
        if status != 200:
            time.sleep(float(again or 1))
    connection.close()
    return answers


def load(port: int, clients: int, seconds: float) -> Load:
    """Clients at once, as long as that."""
    bodies = [form(each) for each in photographs()]
    memory = [resident(port)]
    until = time.monotonic() + seconds

    def watch() -> None:
        while time.monotonic() < until:
            time.sleep(1)
            memory.append(resident(port))

    watching = Thread(target=watch)
    watching.start()
    with ThreadPoolExecutor(clients) as pool:
        asked = [
            pool.submit(ask, port, bodies[number % len(bodies)], until) for number in range(clients)
        ]
    watching.join()
    return Load([answer for each in asked for answer in each.result()], [*memory, resident(port)])


def measure(bundle: Path = BUNDLE) -> list[dict[str, object]]:
    """Rows of rates, of the time until an answer, and of memory."""
    if not (bundle / "bundle.json").exists():
        return [{"what": "serving", "value": "not measured: wants `make repro`", "ratio": ""}]
    with served(bundle) as server:
        load(server.port, CLIENTS, SECONDS)
        found = load(server.port, CLIENTS, SECONDS)
    classified = [each.seconds for each in found.answers if each.status == 200]
    half, most, all_but_one = np.percentile(classified, [50, 90, 99])
    refused = sorted(each.seconds for each in found.answers if each.status == 503)
    statuses = ", ".join(f"{count} of {status}" for status, count in found.statuses().items())
    before, after = (
        np.median(each) / MEGABYTE for each in (found.memory[:ENDS], found.memory[-ENDS:])
    )
    who = f"{CLIENTS} clients at once, {SECONDS} s"
    return [
        {
            "what": f"{who}: answers by status; neither 200 nor 503 with Retry-After",
            "value": f"{statuses}; {sum(found.faults().values())}",
            "ratio": "",
            "goal": "0",
        },
        {
            "what": f"{who}: photographs classified",
            "value": f"{len(classified) / SECONDS:.1f} a second",
            "ratio": "",
        },
        {
            "what": f"{who}: until 50, 90 and 99 of 100 classes are there; half of the 503",
            "value": f"{half:.1f}, {most:.1f}, {all_but_one:.1f} s; "
            + (f"{1000 * refused[len(refused) // 2]:.0f} ms" if refused else "none"),
            "ratio": "",
        },
        {
            "what": f"{who}: resident memory, median of the last {ENDS} s over the first",
            "value": f"{after:.0f}; {before:.0f} MB, at most {max(found.memory) / MEGABYTE:.0f}",
            "ratio": round(float(after / before), 3),
            "goal": 1.1,
        },
    ]


if __name__ == "__main__":
    for row in measure(*map(Path, sys.argv[1:])):
        print(row)
