"""``opam serve``: a socket, a bundle, and a process that stops when it is told to."""

import asyncio
import os
import re
import signal
import socket
from collections.abc import Sequence
from pathlib import Path

import uvicorn

from opam.app.classifier import Classifier
from opam.app.serve.app import LOCAL, MEGABYTE, create_app
from opam.app.serve.batches import Batches
from opam.app.serve.observing import Measures, log_as_json
from opam.pipeline.errors import OpamError, cause

STOP_SECONDS = 25
"""What is under way when the server is told to stop is answered by then, or not at all."""

EVERYWHERE = ("0.0.0.0", "::")


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


def names_of(host: str, others: Sequence[str]) -> list[str]:
    """The names under which requests may ask for the server.

    Args:
        host: the address it listens on.
        others: ``--allowed-host``.

    Raises:
        OpamError: a name with a port or a scheme, which no request would match.
    """
    for name in others:
        if not re.fullmatch(r"\*|(\*\.)?[\w.-]+|\[[\da-fA-F:.]+\]", name):
            raise OpamError(
                f"--allowed-host: '{name}' is no name; give one without scheme and port, such as "
                "birds.example.org, *.example.org or [::1]"
            )
    own = [] if host in EVERYWHERE else [shown(host)]
    return [*LOCAL, *own, *others]


def shown(host: str) -> str:
    """A name or address as it stands in an URL."""
    return f"[{host}]" if ":" in host else host


def serve(
    bundle: Path,
    host: str,
    port: int,
    device: str,
    max_megabytes: int,
    max_waiting: int,
    allowed_hosts: Sequence[str],
) -> None:
    """Load a bundle and answer until SIGINT or SIGTERM; what is under way then is answered.

    Raises:
        OpamError: the bundle cannot be loaded, the address is taken, or a name is none.
    """
    names = names_of(host, allowed_hosts)
    with listen(host, port) as listening:
        log_as_json()
        batches = Batches(Measures())
        app = create_app(
            *(batches, max_megabytes * MEGABYTE, max_waiting, names),
            stopping=lambda: server.should_exit,
        )
        config = uvicorn.Config(
            app,
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=STOP_SECONDS,
        )
        server = uvicorn.Server(config)

        def stop(*_: object) -> None:
            server.should_exit = True

        # uvicorn has handlers of its own while it runs, and raises what they caught again behind.
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, stop)

        async def run() -> None:
            serving = asyncio.create_task(server.serve(sockets=[listening]))
            try:
                batches.start(await asyncio.to_thread(Classifier.load, bundle, device))
                address = f"http://{shown(host)}:{listening.getsockname()[1]}"
                print(f"{address}  (stop with Ctrl+C)", flush=True)
                if host in EVERYWHERE and not allowed_hosts:
                    print(
                        "Only requests for localhost are answered; name the server with "
                        "--allowed-host NAME for others, as they call it",
                        flush=True,
                    )
            except BaseException:
                server.should_exit = True
                raise
            finally:
                await serving

        asyncio.run(run())
        if batches.working:
            os._exit(0)  # past its time; torch aborts a process that ends while it computes
