"""The error a person sees: what is wrong, where, and what to do about it."""

import errno
import sys
import textwrap
from collections.abc import Callable

CANNOT_WRITE = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
}
"""Disk full, quota exceeded, file larger than allowed; no permission; mounted read-only."""


class OpamError(Exception):
    """Bad input or a missing prerequisite, told in one line: file or parameter, cause, remedy."""


def one_line(error: BaseException) -> str:
    """What an exception of a library says, without line breaks; its name if it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def cause(error: BaseException) -> str:
    """`one_line` of bounded length."""
    return textwrap.shorten(one_line(error), 200, placeholder=" ...")


def run(main: Callable[[], None]) -> None:
    """Call ``main``; an `OpamError` or a full disk is told in one line on stderr, exit code 1."""
    try:
        main()
    except OpamError as error:
        problem = str(error)
    except OSError as error:
        if error.errno not in CANNOT_WRITE:
            raise
        where = error.filename or "disk"
        problem = (
            f"{where}: {error.strerror}; free space or correct the permissions, then run again"
        )
    else:
        return
    print(f"error: {problem}", file=sys.stderr)
    sys.exit(1)
