"""Text of any script is drawn in letters: never in the box of a font that lacks them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from opam.report import fonts
from opam.report.fonts import lettering
from opam.report.panels import Panel, bars, remark, sheet

NAMES = {
    "Cyrillic": "Домовый воробей",
    "Greek": "Σπουργίτι",
    "Japanese": "スズメ 雀",
    "Arabic": "عصفور دوري",
    "Devanagari": "गौरैया",
    "Korean": "참새",
    "Hebrew": "דרור הבית",
    "German": "Grünfink \u2013 „Zaunkönig“",
    "signs": "🐦 5 µm \u00d7 3",
    "private": "\ue000\U000f0000 and \uffff",
    "spaces": "a\tb\x00c\u200d\u3000d\u00a0e\u00adf\ufeff",
    "no text": "a\udce9b",
    "Latin": "House sparrow",
}


def boxes(text: str, font: fonts.Font) -> list[str]:
    """Letters that the font draws as what it lacks."""
    box = font.getmask("\U0010ffff")
    assert any(bytes(box))
    return [
        letter
        for letter in text
        if (mask := font.getmask(letter)).size == box.size and bytes(mask) == bytes(box)
    ]


@pytest.mark.parametrize("script", NAMES)
@pytest.mark.usefixtures("system_fonts")
def test_without_a_font_of_the_system_names_are_drawn_in_latin_letters(script: str) -> None:
    text, font = lettering(NAMES[script], 20)
    assert text.strip()
    assert not boxes(text, font)
    assert font.getlength(text) > 0


@pytest.mark.parametrize("script", NAMES)
def test_with_the_fonts_of_this_system_there_are_no_boxes_either(script: str) -> None:
    text, font = lettering(NAMES[script], 20)
    assert not boxes(text, font)


@pytest.mark.usefixtures("system_fonts")
def test_it_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert lettering("Воробей", 20)[0] == "Vorobey"
    lettering("雀", 20)
    assert capsys.readouterr().err.count("\n") == 1


def test_latin_names_are_drawn_as_before() -> None:
    text, font = lettering("House sparrow 98%", 20)
    assert text == "House sparrow 98%"
    before = ImageFont.load_default(20)
    assert bytes(font.getmask(text)) == bytes(before.getmask(text))


def test_a_font_of_the_system_that_has_the_letters_is_taken(
    tmp_path: Path, system_fonts: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged font, and one that lacks them, are passed over."""
    system_fonts.append(tmp_path)
    (tmp_path / "a-sans.ttf").write_bytes(b"no font")
    own = ImageFont.load_default(20)
    assert isinstance(own, ImageFont.FreeTypeFont)
    (tmp_path / "b-sans.ttf").write_bytes(own.font_bytes)
    assert lettering("Воробей", 20)[0] == "Vorobey"

    monkeypatch.setattr(fonts, "_own_letters", lambda _letters: frozenset())
    text, font = lettering("Sparrow", 20)
    assert text == "Sparrow"
    assert font.path == str(tmp_path / "b-sans.ttf")  # type: ignore[union-attr]


@pytest.mark.usefixtures("system_fonts")
def test_panels_draw_names_of_any_script() -> None:
    def drawn(name: str) -> list[np.ndarray]:
        panel = Panel(name, bars([(name, [0.5])], ["red"]), name)
        return [np.asarray(each) for each in (panel.picture, remark(name), sheet(name, [panel]))]

    for ours, expected in zip(drawn("Воробей"), drawn("Vorobey"), strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_line_breaks_stay() -> None:
    pen = ImageDraw.Draw(Image.new("L", (200, 200)))
    text, font = lettering("one\ntwo", 20)
    assert pen.textbbox((0, 0), text, font=font)[3] > 30
