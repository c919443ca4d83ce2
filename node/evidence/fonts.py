"""Letters for pictures: Pillow's own font, and for what it lacks (accents, Cyrillic, Chinese ...) those that the system has.

No text is ever drawn as empty boxes: a letter that no font at hand has becomes its nearest ASCII, at worst a question mark.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from PIL import ImageDraw, ImageFont

from node.evidence.exact import fitted

FURTHER_FONTS: Final = (
    "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf",
    "/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc",
    "/usr/share/fonts/truetype/wqy/wqy-zenhei.ttc",
    "/usr/share/fonts/truetype/wqy/wqy-microhei.ttc",
    "/usr/share/fonts/truetype/droid/DroidSansFallbackFull.ttf",
    "/usr/share/fonts/truetype/droid/DroidSansFallback.ttf",
    "/usr/share/fonts/truetype/arphic/uming.ttc",
    "/usr/share/fonts/truetype/arphic/ukai.ttc",
    "/usr/share/fonts/truetype/arphic-gbsn00lp/gbsn00lp.ttf",
    "/usr/share/fonts/opentype/ipafont-gothic/ipag.ttf",
    "/usr/share/fonts/truetype/nanum/NanumGothic.ttf",
)
"""Where Debian's packages put them (fonts-dejavu-core, then fonts-noto-cjk, fonts-wqy-zenhei, fonts-droid-fallback, fonts-arphic-uming, ...)."""

_NOBODY: Final = "\U0010ffff"
"""A code point that no font has: it is drawn as the box of missing letters."""

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Color = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Pen:
    """How a text is drawn."""

    size: int
    fill: Color
    anchor: str = "la"
    """Pillow's: the first letter places the text along the line (l, m, r)."""
    outline: Color | None = None


def draw_text(draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, pen: Pen) -> None:
    """Draws a line of text, each letter in a font that has it."""
    x, y = place
    length = text_length(draw, text, pen.size)
    x -= {"l": 0.0, "m": length / 2, "r": length}[pen.anchor[0]]
    for path, run in _runs(text):
        font = _font(path, pen.size)
        width = 2 if pen.outline is not None else 0
        draw.text((x, y), run, fill=pen.fill, font=font, anchor=f"l{pen.anchor[1]}", stroke_width=width, stroke_fill=pen.outline)
        x += draw.textlength(run, font=font)


def text_length(draw: ImageDraw.ImageDraw, text: str, size: int) -> float:
    """Answers how many pixels a line of text is long."""
    return sum(draw.textlength(run, font=_font(path, size)) for path, run in _runs(text))


def font_paths() -> tuple[str, ...]:
    """Answers the fonts beside Pillow's own that the system has, in the order in which they are asked."""
    return tuple(path for path in FURTHER_FONTS if Path(path).is_file())


def _runs(text: str) -> list[tuple[str, str]]:
    """Answers the text in pieces of one font each: its path, '' for Pillow's own."""
    runs: list[tuple[str, str]] = []
    paths = ("", *font_paths())
    for letter in text:
        for path, drawn in _drawn(letter, paths):
            if runs and runs[-1][0] == path:
                runs[-1] = (path, runs[-1][1] + drawn)
            else:
                runs.append((path, drawn))
    return runs


@cache
def _drawn(letter: str, paths: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Answers the font that has a letter, or what stands for it in Pillow's own."""
    for path in paths:
        if _has(path, letter):
            return ((path, letter),)
    return (("", fitted(letter, None) if "?" not in fitted(letter, None) else "?"),)


def _has(path: str, letter: str) -> bool:
    """Answers whether a font has a letter: missing ones all look alike."""
    if letter.isspace():
        return True
    font = _font(path, 24)
    return bytes(font.getmask(letter)) != bytes(font.getmask(_NOBODY)) and font.getbbox(letter) != (0, 0, 0, 0)


@cache
def _font(path: str, size: int) -> Font:
    return ImageFont.truetype(path, size) if path else ImageFont.load_default(size=size)
