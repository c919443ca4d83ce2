"""Letters for a PDF page: Helvetica, and for what it lacks fonts of the system, embedded, or else the reader's own Chinese font.

STSong-Light is a font that PDF readers are to bring themselves (reportlab names it, nothing is embedded): the last resort.
"""

from functools import cache
from typing import Final
from xml.sax.saxutils import escape

from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.cidfonts import UnicodeCIDFont
from reportlab.pdfbase.ttfonts import TTFError, TTFont

from node.evidence.exact import fitted
from node.evidence.fonts import font_paths

LATIN: Final = "Helvetica"
LATIN_BOLD: Final = "Helvetica-Bold"
_READERS_OWN: Final = "STSong-Light"


def markup(text: str) -> str:
    """Answers a text for a paragraph of reportlab, each letter in a font that has it; line breaks stay."""
    parts: list[tuple[str, str]] = []
    for letter in text:
        for font, drawn in _drawn(letter, font_paths()):
            if parts and parts[-1][0] == font:
                parts[-1] = (font, parts[-1][1] + drawn)
            else:
                parts.append((font, drawn))
    return "".join(_tagged(font, run) for font, run in parts)


def _tagged(font: str, run: str) -> str:
    inner = escape(run).replace("\n", "<br/>")
    return f'<font name="{font}">{inner}</font>' if font else inner


@cache
def _drawn(letter: str, paths: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Answers the name of the font that has a letter ('' for the paragraph's own), or what stands for it."""
    if letter.isspace():
        return (("", letter if letter == "\n" else " "),)
    if _is_in(letter, "cp1252") and letter.isprintable():
        return (("", letter),)
    for path in paths:
        font = _embedded(path)
        if font is not None and ord(letter) in font.face.charToGlyph:
            return ((str(font.fontName), letter),)
    if _is_in(letter, "gb2312"):
        return ((_readers_own(), letter),)
    plain = fitted(letter, None)
    return (("", plain if "?" not in plain and plain.isprintable() else "?"),)


def _is_in(letter: str, encoding: str) -> bool:
    try:
        letter.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


@cache
def _embedded(path: str) -> TTFont | None:
    """Answers the font of a file; None where reportlab cannot embed it (PostScript outlines, as those of Noto CJK)."""
    try:
        font = TTFont(f"radnode {path.rsplit('/', 1)[-1].split('.', maxsplit=1)[0]}", path)
    except TTFError:
        return None
    pdfmetrics.registerFont(font)
    return font


@cache
def _readers_own() -> str:
    pdfmetrics.registerFont(UnicodeCIDFont(_READERS_OWN))
    return _READERS_OWN
