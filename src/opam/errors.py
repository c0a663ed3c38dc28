"""The error a person sees: what is wrong, where, and what to do about it."""

import sys
from collections.abc import Callable


class OpamError(Exception):
    """Bad input or a missing prerequisite, told in one line: file or parameter, cause, remedy."""


def run(main: Callable[[], None]) -> None:
    """Call ``main``; an `OpamError` becomes one line on stderr and exit code 1."""
    try:
        main()
    except OpamError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
