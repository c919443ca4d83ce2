"""The key image: three planes through what was found, with its outlines, names and volumes, as a PNG.

It shows no patient identity, and says that it is an AI result that nobody has verified.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from node import __version__
from node.domain.result import Result, SegmentResult
from node.domain.states import Outcome
from node.domain.volume import Volume
from node.evidence.planes import (
    VIEWS,
    Box,
    PlaneView,
    box_of,
    points_of_plane,
    sample_labels,
    sample_values,
    telling_point_mm,
)

Color = tuple[int, int, int]

WIDTH: Final = 1560
"""Pixels of the whole image."""
_MARGIN: Final = 30
_GAP: Final = 18
_HEADER: Final = 84
_CAPTION: Final = 46
_LEGEND_LINE: Final = 30
_LEGEND_COLUMNS: Final = 4
_FOOTER: Final = 44
_LARGEST_PANEL: Final = 620
_SCALE_BAR_MM: Final = 50

_BACKGROUND: Final[Color] = (16, 20, 26)
_PANEL: Final[Color] = (0, 0, 0)
_TEXT: Final[Color] = (232, 236, 240)
_QUIET: Final[Color] = (140, 150, 160)
_RULE: Final[Color] = (48, 56, 64)
_WARNING: Final[Color] = (255, 190, 80)
_FILL_SHARE: Final = 0.2
_CONTOUR_PIXELS: Final = 2


@dataclass(frozen=True, slots=True)
class _Panel:
    view: PlaneView
    picture: Image.Image


def render_key_image(volume: Volume, result: Result) -> bytes:
    """Answers a PNG of the planes that show most of the result; without findings, of the middle of the volume."""
    box = box_of(volume)
    point_mm = telling_point_mm(result.label_map, box)
    pixels_per_mm = _pixels_per_mm(box)
    window = _window(volume, result)
    panels = [_Panel(view, _picture(view, volume, result, (box, point_mm, pixels_per_mm, window))) for view in VIEWS]
    found = [segment for segment in result.segments if segment.present]
    lines = max(1, -(-len(found) // _LEGEND_COLUMNS))
    panel_height = max(panel.picture.height for panel in panels)
    height = _HEADER + panel_height + _CAPTION + lines * _LEGEND_LINE + _FOOTER
    image = Image.new("RGB", (WIDTH, height), _BACKGROUND)
    draw = ImageDraw.Draw(image)
    _draw_header(draw, result)
    _draw_panels(image, draw, panels, pixels_per_mm)
    _draw_legend(draw, result, found, top=_HEADER + panel_height + _CAPTION)
    _draw_footer(draw, result, top=height - _FOOTER)
    buffer = BytesIO()
    image.save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()


# ── panels ──────────────────────────────────────────────────────────────────


def _pixels_per_mm(box: Box) -> float:
    """Answers the one scale of all three planes."""
    x, y, z = (float(size) for size in box.size_mm)
    room = WIDTH - 2 * _MARGIN - 2 * _GAP
    return min(room / (2 * x + y), _LARGEST_PANEL / max(y, z))


def _picture(
    view: PlaneView, volume: Volume, result: Result, frame: tuple[Box, NDArray[np.float64], float, tuple[float, float]]
) -> Image.Image:
    """Answers a plane with the structures on it; `frame` is box, point, scale and window."""
    box, point_mm, pixels_per_mm, (low, high) = frame
    points = points_of_plane(view, box, float(point_mm[view.through]), pixels_per_mm)
    values = sample_values(volume, points)
    gray = np.nan_to_num(np.clip((values - low) / (high - low), 0.0, 1.0)) * 255.0
    if volume.modality == "PT":
        gray = np.where(np.isnan(values), 0.0, 255.0 - gray)
    pixels = np.repeat(gray[..., None], 3, axis=2)
    if result.label_map is not None:
        _paint(pixels, sample_labels(result.label_map, points), result.segments)
    return Image.fromarray(np.rint(pixels).astype(np.uint8), mode="RGB")


def _paint(pixels: NDArray[np.float64], labels: NDArray[np.uint8], segments: Sequence[SegmentResult]) -> None:
    """Fills every structure thinly and draws its outline."""
    for segment in segments:
        mask = labels == segment.definition.label_value
        if not mask.any():
            continue
        color = np.asarray(segment.definition.rgb, dtype=np.float64)
        pixels[mask] = (1 - _FILL_SHARE) * pixels[mask] + _FILL_SHARE * color
        outline = mask & ~ndimage.binary_erosion(mask, iterations=_CONTOUR_PIXELS, border_value=1)
        pixels[outline] = color


def _window(volume: Volume, result: Result) -> tuple[float, float]:
    """Answers the values that become black and white: in CT after what was found, else after what the volume holds."""
    if volume.modality == "CT":
        low, high = 0.0, 80.0
        if result.label_map is not None and result.label_map.labels.any():
            low, high = _values_of_structures(volume, result)
        center, width = (low + high) / 2, min(max(2.5 * (high - low), 120.0), 2000.0)
        return center - width / 2, center + width / 2
    thinned = volume.voxels[::2, ::3, ::3]
    signal = thinned[thinned > 0]
    if signal.size == 0:
        return 0.0, 1.0
    high = float(np.percentile(signal, 99.5))
    return 0.0, max(1.1 * high, 1e-6)


def _values_of_structures(volume: Volume, result: Result) -> tuple[float, float]:
    """Answers between which values the structures lie, but for a few voxels."""
    box = box_of(volume)
    steps = np.linspace(0.0, 1.0, 48)
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1)
    points = box.lower_mm + grid * box.size_mm
    assert result.label_map is not None  # noqa: S101 - the caller has asked
    values = sample_values(volume, points)[sample_labels(result.label_map, points) > 0]
    values = values[~np.isnan(values)]
    if values.size < 8:
        return 0.0, 80.0
    low, high = np.percentile(values, (10, 90))
    return float(low), float(high)


# ── drawing ─────────────────────────────────────────────────────────────────


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def _draw_header(draw: ImageDraw.ImageDraw, result: Result) -> None:
    card = result.card
    draw.text((_MARGIN, 20), card.title, fill=_TEXT, font=_font(30))
    draw.text((_MARGIN, 56), f"{card.name} {card.version} · {card.manufacturer}", fill=_QUIET, font=_font(16))
    badge = "AI result, not verified"
    width = draw.textlength(badge, font=_font(22))
    left = WIDTH - _MARGIN - width - 28
    draw.rounded_rectangle((left, 20, WIDTH - _MARGIN, 58), radius=8, outline=_WARNING, width=2)
    draw.text((left + 14, 26), badge, fill=_WARNING, font=_font(22))


def _draw_panels(image: Image.Image, draw: ImageDraw.ImageDraw, panels: Sequence[_Panel], pixels_per_mm: float) -> None:
    total = sum(panel.picture.width for panel in panels) + _GAP * (len(panels) - 1)
    left = (WIDTH - total) // 2
    tallest = max(panel.picture.height for panel in panels)
    for panel in panels:
        width, height = panel.picture.size
        top = _HEADER + (tallest - height) // 2
        draw.rectangle((left, _HEADER, left + width - 1, _HEADER + tallest - 1), fill=_PANEL)
        image.paste(panel.picture, (left, top))
        _draw_letters(draw, panel.view, (left, _HEADER, left + width, _HEADER + tallest))
        draw.text((left + width / 2, _HEADER + tallest + 8), panel.view.name, fill=_QUIET, font=_font(16), anchor="ma")
        left += width + _GAP
    length = _SCALE_BAR_MM * pixels_per_mm
    right, bottom = WIDTH - _MARGIN, _HEADER + tallest + 16
    draw.line((right - length, bottom, right, bottom), fill=_QUIET, width=2)
    draw.text((right - length - 8, bottom), f"{_SCALE_BAR_MM // 10} cm", fill=_QUIET, font=_font(15), anchor="rm")


def _draw_letters(draw: ImageDraw.ImageDraw, view: PlaneView, frame: tuple[int, int, int, int]) -> None:
    left, top, right, bottom = frame
    middle = ((left + right) / 2, (top + bottom) / 2)
    places = (
        ((left + 8, middle[1]), "lm"),
        ((right - 8, middle[1]), "rm"),
        ((middle[0], top + 6), "ma"),
        ((middle[0], bottom - 6), "md"),
    )
    for letter, (place, anchor) in zip(view.letters, places, strict=True):
        draw.text(place, letter, fill=_TEXT, font=_font(20), anchor=anchor, stroke_width=2, stroke_fill=_PANEL)


def _draw_legend(draw: ImageDraw.ImageDraw, result: Result, found: Sequence[SegmentResult], top: int) -> None:
    if not found:
        draw.text((_MARGIN, top), _WITHOUT_FINDINGS[result.outcome], fill=_TEXT, font=_font(18))
        return
    column_width = (WIDTH - 2 * _MARGIN) // _LEGEND_COLUMNS
    lines = -(-len(found) // _LEGEND_COLUMNS)
    for first in range(0, len(found), lines):
        column = found[first : first + lines]
        left = _MARGIN + first // lines * column_width
        labels = [_shortened(draw, segment.definition.label, column_width - 140) for segment in column]
        values_at = left + 26 + max(draw.textlength(label, font=_font(17)) for label in labels) + 20
        for line, (segment, label) in enumerate(zip(column, labels, strict=True)):
            y = top + line * _LEGEND_LINE
            draw.rounded_rectangle((left, y + 3, left + 16, y + 19), radius=4, fill=segment.definition.rgb)
            draw.text((left + 26, y), label, fill=_TEXT, font=_font(17))
            _draw_measured(draw, segment, (values_at, y))


_WITHOUT_FINDINGS: Final = {
    Outcome.FOUND: "Found",
    Outcome.NOTHING_FOUND: "Nothing found: the model outlined none of its structures in these images.",
    Outcome.NOT_ATTEMPTED: "Not attempted: the images were not analyzed.",
    Outcome.FAILED: "Failed: the analysis did not end. Nothing can be concluded.",
}


def _draw_measured(draw: ImageDraw.ImageDraw, segment: SegmentResult, place: tuple[float, float]) -> None:
    """Draws the first measurement, e.g. 478 cm3 with its 3 raised: the font at hand has no such letter."""
    if not segment.measurements:
        return
    measurement = segment.measurements[0]
    power = "3" if measurement.unit.value in {"cm3", "mm3"} else ""
    text = f"{format_number(measurement.value)} {measurement.unit.value.removesuffix(power)}"
    draw.text(place, text, fill=_QUIET, font=_font(17))
    draw.text((place[0] + draw.textlength(text, font=_font(17)) + 1, place[1] - 1), power, fill=_QUIET, font=_font(11))


def format_number(value: float) -> str:
    """Answers three significant digits, and no fraction from 100 on."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".")


def _draw_footer(draw: ImageDraw.ImageDraw, result: Result, top: int) -> None:
    draw.line((_MARGIN, top + 4, WIDTH - _MARGIN, top + 4), fill=_RULE, width=1)
    parts = [f"radnode {__version__}"]
    if result.provenance is not None:
        parts += [result.provenance.engine, *(f"weights {digest[:12]}" for digest in result.provenance.weights_sha256)]
    draw.text((_MARGIN, top + 14), " · ".join(parts), fill=_QUIET, font=_font(14))


def _shortened(draw: ImageDraw.ImageDraw, text: str, room: float) -> str:
    while text and draw.textlength(text, font=_font(17)) > room:
        text = text[:-2].rstrip() + "…" if len(text) > 2 else ""
    return text
