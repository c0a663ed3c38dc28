"""A font for every text that is drawn: never the empty boxes of a font that lacks its letters.

Pillow's own font has the letters of ASCII. A text with others is drawn in a font of the system
that has them all; where there is none, letter for letter in Latin ones ("Воробей" as "Vorobey").
"""

import os
import sys
import unicodedata
from functools import cache, lru_cache
from pathlib import Path

from anyascii import anyascii
from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

ENDINGS = {".otf", ".ttc", ".ttf"}
STYLED = ("black", "bold", "condensed", "italic", "light", "mono", "oblique", "serif", "thin")
"""Words in the names of fonts that come after plain ones."""

PLACEHOLDERS = ("lastresort", "blank")
"""Words in the names of fonts that have a box, or nothing, for every letter."""

NO_LETTER = "\U0010ffff"
TRIED = 24
"""Size at which letters are compared with the box."""


def lettering(text: str, size: int) -> tuple[str, Font]:
    """A text as it can be drawn, and the font for it.

    Args:
        text: anything; what is no text in Unicode becomes "?", line breaks stay.
        size: of the font, in pixels.
    """
    text = unicodedata.normalize("NFC", text.encode("utf-8", "replace").decode("utf-8"))
    text = "".join(" " if _is_blank(each) and each != "\n" else each for each in text)
    own = ImageFont.load_default(size)
    letters = frozenset(each for each in text if _is_drawn(each))
    if not isinstance(own, ImageFont.FreeTypeFont):  # Pillow without FreeType has Latin 1
        return text.encode("latin-1", "replace").decode("latin-1"), own
    if letters <= _own_letters(letters):
        return "".join(each for each in text if each in letters or _is_blank(each)), own
    path = _font_with(letters)
    if path is not None:
        return text, ImageFont.truetype(path, size)
    _tell_once()
    known = _own_letters(letters)
    return "".join(each if each in known else _latin(each) for each in text), own


def _latin(letter: str) -> str:
    if _is_drawn(letter):
        return anyascii(letter) or "?"
    return letter if _is_blank(letter) else ""


def _is_blank(letter: str) -> bool:
    return letter.isspace() or unicodedata.category(letter) == "Cc"


def _is_drawn(letter: str) -> bool:
    """Whether a font must have it: no space, and no mark that only steers the layout."""
    return not _is_blank(letter) and unicodedata.category(letter) != "Cf"


@lru_cache(maxsize=4096)
def _own_letters(letters: frozenset[str]) -> frozenset[str]:
    own = ImageFont.load_default(TRIED)
    assert isinstance(own, ImageFont.FreeTypeFont)
    return _covered(own, letters)


@lru_cache(maxsize=4096)
def _font_with(letters: frozenset[str]) -> str | None:
    """The first font of the system that has all of ``letters``."""
    if any(_first_font(frozenset(letter)) is None for letter in sorted(letters)):
        return None
    return _first_font(letters)


@cache
def _first_font(letters: frozenset[str]) -> str | None:
    return next((path for path in _system_fonts() if _has(path, letters)), None)


def _has(path: str, letters: frozenset[str]) -> bool:
    try:
        font = ImageFont.truetype(path, TRIED, layout_engine=ImageFont.Layout.BASIC)
        return _covered(font, letters) == letters
    except (OSError, ValueError):  # damaged, or of fixed size, as with coloured signs
        return False


def _covered(font: ImageFont.FreeTypeFont, letters: frozenset[str]) -> frozenset[str]:
    """Those of ``letters`` that look unlike what the font draws for a letter it lacks."""
    box = _drawn(font, NO_LETTER)
    return frozenset(
        each for each in letters if (drawn := _drawn(font, each)) != box and any(drawn[1])
    )


def _drawn(font: ImageFont.FreeTypeFont, letter: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(letter)
    return mask.size, bytes(mask)


@lru_cache(maxsize=1)
def _system_fonts() -> list[str]:
    """The system's fonts, upright sans serifs first."""
    found = {
        str(Path(place) / file)
        for folder in font_folders()
        for place, _, files in os.walk(folder, followlinks=False)
        for file in files
        if Path(file).suffix.lower() in ENDINGS
        and not any(word in file.lower() for word in PLACEHOLDERS)
    }

    def order(path: str) -> tuple[int, bool, str]:
        name = Path(path).stem.lower().replace("sansserif", "sans").replace("sans serif", "sans")
        return sum(word in name for word in STYLED), "sans" not in name, path

    return sorted(found, key=order)


def font_folders() -> list[Path]:
    """Where this system keeps its fonts."""
    home = Path.home()
    if sys.platform == "win32":
        own = os.environ.get("LOCALAPPDATA", "")
        return [
            Path(os.environ.get("WINDIR", "C:/Windows"), "Fonts"),
            Path(own, "Microsoft/Windows/Fonts"),
        ]
    if sys.platform == "darwin":
        return [Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library/Fonts"]
    data = os.environ.get("XDG_DATA_HOME") or home / ".local/share"
    shared = (os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share").split(":")
    return [Path(data, "fonts"), home / ".fonts", *(Path(each, "fonts") for each in shared if each)]


@lru_cache(maxsize=1)
def _tell_once() -> None:
    print(
        "drawing: no font of this system has all letters of some names, which are drawn in Latin "
        "ones; install one that has them, Noto Sans say",
        file=sys.stderr,
    )
