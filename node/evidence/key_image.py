"""The key image: three planes through what was found, or single images, with outlines, boxes, points, names and numbers, as a PNG.

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
from node.domain.result import Result
from node.domain.volume import LabelMap, Plane, Volume
from node.evidence.fonts import Pen, draw_text, text_length
from node.evidence.legend import draw_legend, legend_height, legend_lines
from node.evidence.places import cut_by_plane, ordered_detections, outline_of, pixel_of, place_of_finding
from node.evidence.planes import (
    VIEWS,
    Box,
    PlaneView,
    box_of,
    pixels_on_plane,
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
_ARM: Final = 9
"""Pixels from the middle of a cross to its ends."""
_AROUND_POINT_MM: Final = 20.0
_NEAR_MM: Final = 5.0
"""A point further off than this from a plane is drawn half as bright."""
_MOST_IMAGES: Final = 4
"""Single images side by side; further ones are not shown."""


@dataclass(frozen=True, slots=True)
class _Panel:
    name: str
    letters: tuple[str, ...]
    """What lies at the left, right, top and bottom edge; none where it is not known."""
    picture: Image.Image


@dataclass(frozen=True, slots=True, eq=False)
class FlatImage:
    """A single image (a radiograph)."""

    pixels: NDArray[np.float32]
    plane: Plane | None = None
    """What findings name it by; None where there is but one image."""
    letters: tuple[str, ...] = ()
    """What lies at the left, right, top and bottom edge, where that is known."""
    inverted: bool = False
    """Whether low values are bright (MONOCHROME1)."""


def render_key_image(shown: Volume | Sequence[Volume], result: Result) -> bytes:
    """Answers a PNG of the planes that show most of the result; without findings, of the middle of the volume.

    `shown` is the analysed volume, or the single images as volumes of one slice.
    """
    buffer = BytesIO()
    volumes = [shown] if isinstance(shown, Volume) else list(shown)
    if is_flat(volumes):
        picture = draw_flat_images([FlatImage(one.voxels[0], one.source.planes[0]) for one in volumes], result)
    else:
        picture = draw_key_image(volumes[0], result, result.label_map)
    picture.save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()


def is_flat(volumes: Sequence[Volume]) -> bool:
    """Answers whether there are no planes to lay through a volume: single images."""
    return len(volumes[0].voxels) == 1


def draw_key_image(volume: Volume, result: Result, through: LabelMap | None, made_at: str = "") -> Image.Image:
    """Answers the picture: planes that show most of `through`, or of the surest box, or of the first point.

    In the footer stands the moment `made_at`, where it is told.
    """
    box = box_of(volume)
    pixels_per_mm = _pixels_per_mm(box)
    frame = (box, _shown_point_mm(result, through, box), pixels_per_mm, window_of(volume, result))
    panels = [_Panel(view.name, view.letters, _picture(view, volume, result, frame)) for view in VIEWS]
    return _composed(panels, result, made_at, pixels_per_mm)


def _shown_point_mm(result: Result, through: LabelMap | None, box: Box) -> NDArray[np.float64]:
    if (through is None or not through.labels.any()) and result.detections:
        return np.asarray(ordered_detections(result)[0].centre_mm)
    if (through is None or not through.labels.any()) and result.landmarks:
        return np.asarray(result.landmarks[0].position_mm)
    return telling_point_mm(through, box)


def draw_flat_images(images: Sequence[FlatImage], result: Result, made_at: str = "") -> Image.Image:
    """Answers the picture of single images with what was found on them, side by side."""
    images = images[:_MOST_IMAGES]
    names = ["Image"] if len(images) == 1 else [f"Image {number}" for number in range(1, len(images) + 1)]
    room = (WIDTH - 2 * _MARGIN - _GAP * (len(images) - 1)) // len(images)
    panels = [_Panel(name, image.letters, _flat_picture(image, result, room)) for name, image in zip(names, images, strict=True)]
    return _composed(panels, result, made_at, None)


def _flat_picture(image: FlatImage, result: Result, room: int) -> Image.Image:
    rows, columns = image.pixels.shape
    scale = min(room / columns, _LARGEST_FLAT / rows)
    down = np.minimum((np.arange(max(1, round(rows * scale))) / scale).astype(np.int64), rows - 1)
    across = np.minimum((np.arange(max(1, round(columns * scale))) / scale).astype(np.int64), columns - 1)
    low, high = (float(one) for one in np.percentile(image.pixels, (0.5, 99.5)))
    gray = np.clip((image.pixels.astype(np.float64) - low) / max(high - low, 1e-6), 0.0, 1.0) * 255.0
    shown = np.repeat((255.0 - gray if image.inverted else gray)[np.ix_(down, across)][..., None], 3, axis=2)
    if result.label_map is not None and (image.plane is None or image.plane in result.label_map.source.planes):
        plane = result.label_map.source.planes.index(image.plane) if image.plane is not None else 0
        _paint(shown, result.label_map.labels[plane][np.ix_(down, across)], result)
    picture = Image.fromarray(np.rint(shown).astype(np.uint8), mode="RGB")
    draw = ImageDraw.Draw(picture)
    for number, detection in enumerate(ordered_detections(result), 1):
        place = place_of_finding(result, detection)
        if image.plane is None or place.plane == image.plane:
            _draw_box(draw, (outline_of(detection, place) + 0.5) * scale, detection.definition.rgb, str(number))
    for landmark in result.landmarks:
        place = place_of_finding(result, landmark)
        if image.plane is None or place.plane == image.plane:
            _draw_cross(draw, (pixel_of(landmark, place) + 0.5) * scale, landmark.definition.rgb)
    return picture


def _composed(panels: Sequence[_Panel], result: Result, made_at: str, pixels_per_mm: float | None) -> Image.Image:
    lines = legend_lines(result)
    panel_height = max(panel.picture.height for panel in panels)
    height = _HEADER + panel_height + _CAPTION + legend_height(lines, result) + _FOOTER
    image = Image.new("RGB", (WIDTH, height), _BACKGROUND)
    draw = ImageDraw.Draw(image)
    _draw_header(draw, result)
    _draw_panels(image, draw, panels)
    if pixels_per_mm is not None:
        _draw_scale_bar(draw, pixels_per_mm, top=_HEADER + panel_height + 16)
    draw_legend(draw, result, lines, _MARGIN, _HEADER + panel_height + _CAPTION, WIDTH - 2 * _MARGIN)
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
        _paint(pixels, sample_labels(result.label_map, points), result)
    picture = Image.fromarray(np.rint(pixels).astype(np.uint8), mode="RGB")
    _mark(picture, view, result, frame)
    return picture


def _mark(
    picture: Image.Image, view: PlaneView, result: Result, frame: tuple[Box, NDArray[np.float64], float, tuple[float, float]]
) -> None:
    """Draws the boxes that a plane cuts, and all points: those beside the plane less bright."""
    box, point_mm, pixels_per_mm, _ = frame
    draw, at_mm = ImageDraw.Draw(picture), float(point_mm[view.through])
    for number, detection in enumerate(ordered_detections(result), 1):
        cut = cut_by_plane(detection, np.eye(3)[view.through], at_mm)
        if len(cut):
            _draw_box(draw, pixels_on_plane(view, box, cut, pixels_per_mm), detection.definition.rgb, str(number))
    for landmark in result.landmarks:
        is_near = abs(landmark.position_mm[view.through] - at_mm) <= _NEAR_MM
        (place,) = pixels_on_plane(view, box, np.asarray([landmark.position_mm]), pixels_per_mm)
        red, green, blue = landmark.definition.rgb
        _draw_cross(draw, place, (red, green, blue) if is_near else (red // 2, green // 2, blue // 2))


def _draw_box(draw: ImageDraw.ImageDraw, ring: NDArray[np.float64], color: Color, name: str) -> None:
    draw.line([tuple(point) for point in (*ring.tolist(), *ring[:1].tolist())], fill=color, width=_CONTOUR_PIXELS, joint="curve")
    right, top = float(ring[:, 0].max()), float(ring[:, 1].min())
    draw_text(draw, (right + 4, max(top - 4, 0.0)), name, Pen(20, color))


def _draw_cross(draw: ImageDraw.ImageDraw, place: NDArray[np.float64], color: Color) -> None:
    x, y = (float(value) for value in place)
    for arm in ((x - _ARM, y, x + _ARM, y), (x, y - _ARM, x, y + _ARM)):
        draw.line(arm, fill=color, width=_CONTOUR_PIXELS)


def _paint(pixels: NDArray[np.float64], labels: NDArray[np.uint8], result: Result) -> None:
    """Fills every structure thinly and draws its outline."""
    assert result.label_map is not None  # noqa: S101 - the caller has asked
    boxes = ndimage.find_objects(labels, max_label=255)
    for segment in result.segments:
        is_its_value = result.label_map.values_of(segment.definition.label_value)
        around = [boxes[value - 1] for value in np.flatnonzero(is_its_value) if value and boxes[value - 1] is not None]
        if not around:
            continue
        part = tuple(
            slice(max(0, min(box[axis].start for box in around) - _CONTOUR_PIXELS), max(box[axis].stop for box in around) + _CONTOUR_PIXELS)
            for axis in (0, 1)
        )
        mask, shown = is_its_value[labels[part]], pixels[part]
        color = np.asarray(segment.definition.rgb, dtype=np.float64)
        shown[mask] = (1 - _FILL_SHARE) * shown[mask] + _FILL_SHARE * color
        outline = mask & ~ndimage.binary_erosion(mask, iterations=_CONTOUR_PIXELS, border_value=1)
        shown[outline] = color


def window_of(volume: Volume, result: Result) -> tuple[float, float]:
    """Answers the values that become black and white: in CT after what was found, else after what the volume holds."""
    if volume.modality == "CT":
        low, high = _spread(_values_found(volume, result))
        center, width = (low + high) / 2, min(max(2.5 * (high - low), 120.0), 2000.0)
        return center - width / 2, center + width / 2
    thinned = volume.voxels[::2, ::3, ::3]
    signal = thinned[thinned > 0]
    if signal.size == 0:
        return 0.0, 1.0
    high = float(np.percentile(signal, 99.5))
    return 0.0, max(1.1 * high, 1e-6)


def _values_found(volume: Volume, result: Result) -> NDArray[np.float64]:
    """Answers values of what was found: in the structures, else in the boxes and half as far around them, else around the points."""
    steps = np.linspace(0.0, 1.0, 48)
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1)
    if result.label_map is not None and result.label_map.labels.any():
        box = box_of(volume)
        points = box.lower_mm + grid * box.size_mm
        return sample_values(volume, points)[sample_labels(result.label_map, points) > 0]
    coarse = 2 * grid[::4, ::4, ::4] - 1
    around = [np.asarray(one.centre_mm) + 1.5 * coarse @ np.asarray(one.half_axes_mm) for one in result.detections]
    around += [np.asarray(one.position_mm) + _AROUND_POINT_MM * coarse for one in result.landmarks]
    return sample_values(volume, np.stack(around)) if around else np.empty(0)


def _spread(values: NDArray[np.float64]) -> tuple[float, float]:
    """Answers between which values all lie, but for a few; those of soft tissue where there are too few to tell."""
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


def _draw_footer(draw: ImageDraw.ImageDraw, result: Result, made_at: str, top: int) -> None:
    draw.line((_MARGIN, top + 4, WIDTH - _MARGIN, top + 4), fill=_RULE, width=1)
    parts = [f"radnode {__version__}"]
    if result.provenance is not None:
        parts += [result.provenance.engine, *(f"weights {digest[:12]}" for digest in result.provenance.weights_sha256)]
    draw_text(draw, (_MARGIN, top + 14), " · ".join(parts), Pen(14, _QUIET))
    draw_text(draw, (WIDTH - _MARGIN, top + 14), made_at, Pen(14, _QUIET, anchor="ra"))
