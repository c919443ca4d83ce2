"""The key image: three planes through what was found, with its outlines, names and volumes, as a PNG.

It shows no patient identity, and says that it is an AI result that nobody has verified.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from node import __version__
from node.domain.result import Result, SegmentResult
from node.domain.states import Outcome
from node.domain.volume import LabelMap, Volume
from node.evidence.fonts import Pen, draw_text, text_length
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
_LARGEST_FLAT: Final = 900
_SCALE_BAR_MM: Final = 50
_LONGEST_SCALE_BAR: Final = 180

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
    name: str
    letters: tuple[str, ...]
    """What lies at the left, right, top and bottom edge; none where it is not known."""
    picture: Image.Image


def render_key_image(volume: Volume, result: Result) -> bytes:
    """Answers a PNG of the planes that show most of the result; without findings, of the middle of the volume."""
    buffer = BytesIO()
    draw_key_image(volume, result, result.label_map).save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()


def draw_key_image(volume: Volume, result: Result, through: LabelMap | None, made_at: str = "") -> Image.Image:
    """Answers the picture: planes that show most of `through`, and in the footer the moment `made_at`, where it is told."""
    box = box_of(volume)
    point_mm = telling_point_mm(through, box)
    pixels_per_mm = _pixels_per_mm(box)
    window = window_of(volume, result)
    frame = (box, point_mm, pixels_per_mm, window)
    panels = [_Panel(view.name, view.letters, _picture(view, volume, result, frame)) for view in VIEWS]
    return _composed(panels, result, made_at, pixels_per_mm)


def draw_flat_image(
    pixels: NDArray[np.float32], result: Result, letters: Sequence[str], made_at: str = "", *, inverted: bool = False
) -> Image.Image:
    """Answers the picture of a single image (a radiograph) with its outlines.

    `letters` are what lies at the left, right, top and bottom edge, or none; `inverted` where low values are bright (MONOCHROME1).
    """
    rows, columns = pixels.shape
    scale = min((WIDTH - 2 * _MARGIN) / columns, _LARGEST_FLAT / rows)
    down = np.minimum((np.arange(max(1, round(rows * scale))) / scale).astype(np.int64), rows - 1)
    across = np.minimum((np.arange(max(1, round(columns * scale))) / scale).astype(np.int64), columns - 1)
    low, high = (float(one) for one in np.percentile(pixels, (0.5, 99.5)))
    gray = np.clip((pixels.astype(np.float64) - low) / max(high - low, 1e-6), 0.0, 1.0) * 255.0
    shown = np.repeat((255.0 - gray if inverted else gray)[np.ix_(down, across)][..., None], 3, axis=2)
    if result.label_map is not None:
        _paint(shown, result.label_map.labels[0][np.ix_(down, across)], result.segments)
    picture = Image.fromarray(np.rint(shown).astype(np.uint8), mode="RGB")
    return _composed([_Panel("Image", tuple(letters), picture)], result, made_at, None)


def _composed(panels: Sequence[_Panel], result: Result, made_at: str, pixels_per_mm: float | None) -> Image.Image:
    found = [segment for segment in result.segments if segment.present]
    lines = max(1, -(-len(found) // _LEGEND_COLUMNS))
    panel_height = max(panel.picture.height for panel in panels)
    height = _HEADER + panel_height + _CAPTION + lines * _LEGEND_LINE + _FOOTER
    image = Image.new("RGB", (WIDTH, height), _BACKGROUND)
    draw = ImageDraw.Draw(image)
    _draw_header(draw, result)
    _draw_panels(image, draw, panels)
    if pixels_per_mm is not None:
        _draw_scale_bar(draw, pixels_per_mm, top=_HEADER + panel_height + 16)
    _draw_legend(draw, result, found, top=_HEADER + panel_height + _CAPTION)
    _draw_footer(draw, result, made_at, top=height - _FOOTER)
    return image


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


def window_of(volume: Volume, result: Result) -> tuple[float, float]:
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


def _draw_header(draw: ImageDraw.ImageDraw, result: Result) -> None:
    card = result.card
    draw_text(draw, (_MARGIN, 20), card.title, Pen(30, _TEXT))
    draw_text(draw, (_MARGIN, 56), f"{card.name} {card.version} · {card.manufacturer}", Pen(16, _QUIET))
    badge = "AI result, not verified"
    width = text_length(draw, badge, 22)
    left = WIDTH - _MARGIN - width - 28
    draw.rounded_rectangle((left, 20, WIDTH - _MARGIN, 58), radius=8, outline=_WARNING, width=2)
    draw_text(draw, (left + 14, 26), badge, Pen(22, _WARNING))


def _draw_panels(image: Image.Image, draw: ImageDraw.ImageDraw, panels: Sequence[_Panel]) -> None:
    total = sum(panel.picture.width for panel in panels) + _GAP * (len(panels) - 1)
    left = (WIDTH - total) // 2
    tallest = max(panel.picture.height for panel in panels)
    for panel in panels:
        width, height = panel.picture.size
        top = _HEADER + (tallest - height) // 2
        draw.rectangle((left, _HEADER, left + width - 1, _HEADER + tallest - 1), fill=_PANEL)
        image.paste(panel.picture, (left, top))
        _draw_letters(draw, panel.letters, (left, _HEADER, left + width, _HEADER + tallest))
        draw_text(draw, (left + width / 2, _HEADER + tallest + 8), panel.name, Pen(16, _QUIET, anchor="ma"))
        left += width + _GAP


def _draw_scale_bar(draw: ImageDraw.ImageDraw, pixels_per_mm: float, top: int) -> None:
    bar_mm = _SCALE_BAR_MM if _SCALE_BAR_MM * pixels_per_mm <= _LONGEST_SCALE_BAR else _SCALE_BAR_MM // 5
    right, length = WIDTH - _MARGIN, bar_mm * pixels_per_mm
    draw.line((right - length, top, right, top), fill=_QUIET, width=2)
    draw_text(draw, (right - length - 8, top), f"{bar_mm // 10} cm", Pen(15, _QUIET, anchor="rm"))


def _draw_letters(draw: ImageDraw.ImageDraw, letters: Sequence[str], frame: tuple[int, int, int, int]) -> None:
    left, top, right, bottom = frame
    middle = ((left + right) / 2, (top + bottom) / 2)
    places = (
        ((left + 8, middle[1]), "lm"),
        ((right - 8, middle[1]), "rm"),
        ((middle[0], top + 6), "ma"),
        ((middle[0], bottom - 6), "md"),
    )
    for letter, (place, anchor) in zip(letters, places, strict=False):
        draw_text(draw, place, letter, Pen(20, _TEXT, anchor=anchor, outline=_PANEL))


def _draw_legend(draw: ImageDraw.ImageDraw, result: Result, found: Sequence[SegmentResult], top: int) -> None:
    if not found:
        draw_text(draw, (_MARGIN, top), _WITHOUT_FINDINGS[result.outcome], Pen(18, _TEXT))
        return
    column_width = (WIDTH - 2 * _MARGIN) // _LEGEND_COLUMNS
    lines = -(-len(found) // _LEGEND_COLUMNS)
    for first in range(0, len(found), lines):
        column = found[first : first + lines]
        left = _MARGIN + first // lines * column_width
        labels = [_shortened(draw, segment.definition.label, column_width - 140) for segment in column]
        values_at = left + 26 + max(text_length(draw, label, 17) for label in labels) + 20
        for line, (segment, label) in enumerate(zip(column, labels, strict=True)):
            y = top + line * _LEGEND_LINE
            draw.rounded_rectangle((left, y + 3, left + 16, y + 19), radius=4, fill=segment.definition.rgb)
            draw_text(draw, (left + 26, y), label, Pen(17, _TEXT))
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
    draw_text(draw, place, text, Pen(17, _QUIET))
    draw_text(draw, (place[0] + text_length(draw, text, 17) + 1, place[1] - 1), power, Pen(11, _QUIET))


def format_number(value: float) -> str:
    """Answers three significant digits, and no fraction from 100 on."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".")


def _draw_footer(draw: ImageDraw.ImageDraw, result: Result, made_at: str, top: int) -> None:
    draw.line((_MARGIN, top + 4, WIDTH - _MARGIN, top + 4), fill=_RULE, width=1)
    parts = [f"radnode {__version__}"]
    if result.provenance is not None:
        parts += [result.provenance.engine, *(f"weights {digest[:12]}" for digest in result.provenance.weights_sha256)]
    draw_text(draw, (_MARGIN, top + 14), " · ".join(parts), Pen(14, _QUIET))
    draw_text(draw, (WIDTH - _MARGIN, top + 14), made_at, Pen(14, _QUIET, anchor="ra"))


def _shortened(draw: ImageDraw.ImageDraw, text: str, room: float) -> str:
    while text and text_length(draw, text, 17) > room:
        text = text[:-2].rstrip() + "…" if len(text) > 2 else ""
    return text
