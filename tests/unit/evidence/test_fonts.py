"""Texts are drawn in letters, never in boxes: with the fonts of the system, and without."""

from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from node.evidence import fonts, pdf_fonts
from node.evidence.fonts import Pen, draw_text, text_length

CJK = next((path for path in fonts.FURTHER_FONTS if "dejavu" not in path and Path(path).is_file()), None)


def drawn(text: str) -> bytes:
    image = Image.new("L", (300, 40))
    draw_text(ImageDraw.Draw(image.convert("RGB")), (4, 4), text, Pen(20, (255, 255, 255)))
    picture = image.convert("RGB")
    draw_text(ImageDraw.Draw(picture), (4, 4), text, Pen(20, (255, 255, 255)))
    return picture.tobytes()


def test_without_further_fonts_letters_become_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "FURTHER_FONTS", ())
    assert drawn("Länge 肝 Ж") == drawn("Lange ? ?")
    assert drawn("左肺") == drawn("??")


@pytest.mark.skipif(CJK is None, reason="no CJK font is installed (fonts-droid-fallback, fonts-noto-cjk ...)")
def test_with_a_font_of_the_system_chinese_is_chinese(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "FURTHER_FONTS", (CJK,))
    pictures = {drawn(text) for text in ("左", "右", "肝", "?", "\U0010ffff")}
    assert len(pictures) == 4, "three letters, and the question mark for what no font has"


def test_a_text_is_as_long_as_its_pieces() -> None:
    draw = ImageDraw.Draw(Image.new("RGB", (10, 10)))
    assert text_length(draw, "Liver 肝", 20) == pytest.approx(text_length(draw, "Liver ", 20) + text_length(draw, "肝", 20))


def test_pdf_text_is_escaped_and_falls_back_to_the_readers_own_font(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "FURTHER_FONTS", ())
    assert (
        pdf_fonts.markup("a < b & 肝\nЖ \U0010ffff")
        == 'a &lt; b &amp; <font name="STSong-Light">肝</font><br/><font name="STSong-Light">Ж</font> ?'
    )
