"""The rooms of the package and which room imports which, as a Mermaid graph.

``python tests/rooms.py`` prints the graph that CONTRIBUTING.md shows.
"""

from pathlib import Path

import grimp

ROOT = Path(__file__).parents[1]
ORDER = (
    "pipeline",
    "networks",
    "photographs",
    "method",
    "engine",
    "systems",
    "evaluation",
    "report",
    "app",
)
"""Each room imports only rooms before it; `method` and `engine` do not import each other."""


def imports() -> dict[str, set[str]]:
    """The other rooms that each room's modules import."""
    graph = grimp.build_graph("opam", cache_dir=None, exclude_type_checking_imports=True)
    found: dict[str, set[str]] = {}
    for module in graph.modules - {"opam"}:
        room = module.split(".")[1]
        imported = graph.find_modules_directly_imported_by(module) - {"opam"}
        found.setdefault(room, set()).update({each.split(".")[1] for each in imported} - {room})
    return found


def diagram() -> str:
    """A line a room, the last in `ORDER` first, with the rooms that it imports."""
    found = imports()
    lines = [
        f"    {room} --> {' & '.join(each for each in ORDER if each in found[room])}"
        for room in reversed(ORDER)
        if found[room]
    ]
    return "\n".join(["graph TD", *lines])


if __name__ == "__main__":
    print(diagram())
