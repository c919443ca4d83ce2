"""The lines below the picture: what was found, each with its colour and the number that says most of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from PIL import ImageDraw

from node.domain.result import Measurement, Result
from node.domain.states import Outcome
from node.evidence.fonts import Pen, draw_text, text_length
from node.evidence.told import answers_of, boxes_of, percent_text, points_of

Color = tuple[int, int, int]

LINE: Final = 30
"""Pixels from one line to the next."""
_COLUMNS: Final = 4
_COLUMNS_OF_ANSWERS: Final = 2
_TEXT: Final[Color] = (232, 236, 240)
_QUIET: Final[Color] = (140, 150, 160)
_BAR: Final[Color] = (77, 119, 153)
_TROUGH: Final[Color] = (40, 48, 57)
_BAR_WIDTH: Final = 90
_WITHOUT_FINDINGS: Final = {
    Outcome.FOUND: "Found",
    Outcome.NOTHING_FOUND: "Nothing found: the model outlined none of its structures in these images.",
    Outcome.NOT_ATTEMPTED: "Not attempted: the images were not analyzed.",
    Outcome.FAILED: "Failed: the analysis did not end. Nothing can be concluded.",
}
_NOTHING_DETECTED: Final = "Nothing found: the model found none of what it looks for in these images."


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the legend."""

    label: str
    color: Color | None = None
    value: str = ""
    power: str = ""
    """Raised behind the value: cm³ with its 3, a letter that the font at hand lacks."""
    share: float | None = None
    """0..1, drawn as a bar."""


def legend_lines(result: Result) -> list[Line]:
    """Answers the lines of a result: structures, boxes, points, answers."""
    lines = []
    for segment in result.segments:
        if segment.present:
            value, power = _measured(segment.measurements[0]) if segment.measurements else ("", "")
            lines.append(Line(segment.definition.label, segment.definition.rgb, value, power))
    findings = (*boxes_of(result), *points_of(result))
    lines += [Line(finding.label, finding.color, percent_text(finding.score), share=finding.score) for finding in findings]
    for answer in answers_of(result):
        image = f" ({answer.image})" if answer.image else ""
        share = answer.shares[0][1]
        lines.append(Line(f"{answer.question}: {answer.answer}{image}", None, percent_text(share), share=share))
    return lines


def legend_height(lines: Sequence[Line], result: Result) -> int:
    """Answers the pixels that a legend needs."""
    return max(1, -(-len(lines) // _columns(result))) * LINE


def draw_legend(draw: ImageDraw.ImageDraw, result: Result, lines: Sequence[Line], left: int, top: int, width: int) -> None:
    """Draws the lines in columns; where there are none, how the analysis ended."""
    if not lines:
        text = _WITHOUT_FINDINGS[result.outcome]
        if result.outcome is Outcome.NOTHING_FOUND and not result.card.segments:
            text = _NOTHING_DETECTED
        draw_text(draw, (left, top), text, Pen(18, _TEXT))
        return
    columns = _columns(result)
    column_width = width // columns
    rows = -(-len(lines) // columns)
    for first in range(0, len(lines), rows):
        _draw_column(draw, lines[first : first + rows], left + first // rows * column_width, top, column_width)


def _draw_column(draw: ImageDraw.ImageDraw, lines: Sequence[Line], left: int, top: int, width: int) -> None:
    bar = _BAR_WIDTH + 10 if any(line.share is not None for line in lines) else 0
    labels = [_shortened(draw, line.label, width - 140 - bar) for line in lines]
    values_at = left + 26 + max(text_length(draw, label, 17) for label in labels) + 20
    for number, (line, label) in enumerate(zip(lines, labels, strict=True)):
        y = top + number * LINE
        if line.color is not None:
            draw.rounded_rectangle((left, y + 3, left + 16, y + 19), radius=4, fill=line.color)
        draw_text(draw, (left + 26, y), label, Pen(17, _TEXT))
        if line.share is not None:
            draw.rounded_rectangle((values_at, y + 6, values_at + _BAR_WIDTH, y + 15), radius=4, fill=_TROUGH)
            end = values_at + max(3, round(line.share * _BAR_WIDTH))
            draw.rounded_rectangle((values_at, y + 6, end, y + 15), radius=4, fill=line.color or _BAR)
        place = (values_at + bar, y)
        draw_text(draw, place, line.value, Pen(17, _QUIET))
        draw_text(draw, (place[0] + text_length(draw, line.value, 17) + 1, y - 1), line.power, Pen(11, _QUIET))


def format_number(value: float) -> str:
    """Answers three significant digits, and no fraction from 100 on."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".")


def _columns(result: Result) -> int:
    return _COLUMNS_OF_ANSWERS if result.evaluations else _COLUMNS


def _measured(measurement: Measurement) -> tuple[str, str]:
    """Answers e.g. 478 cm, and the 3 that is raised behind it."""
    power = "3" if measurement.unit.value in {"cm3", "mm3"} else ""
    return f"{format_number(measurement.value)} {measurement.unit.value.removesuffix(power)}", power


def _shortened(draw: ImageDraw.ImageDraw, text: str, room: float) -> str:
    while text and text_length(draw, text, 17) > room:
        text = text[:-2].rstrip() + "…" if len(text) > 2 else ""
    return text
