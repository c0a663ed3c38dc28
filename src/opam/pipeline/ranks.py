"""Which of the processes that train together this is; `torchrun` tells by the environment."""

import os


def rank() -> int:
    """This process's number; 0 does what only one may do. 0 where it is alone."""
    return int(os.environ.get("RANK", "0"))


def processes() -> int:
    """How many train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))
