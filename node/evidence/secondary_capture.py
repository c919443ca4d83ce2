"""The Secondary Capture: the outlines on three planes as one colour picture, for archives that show nothing else (PS3.3 A.8.1).

It is the single-frame Secondary Capture Image, in RGB: every PACS takes that SOP class, while Multi-frame True Color Secondary
Capture (of 2001) is refused by old archives and played as a film by others. So the planes stand side by side in one picture.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.uid import SecondaryCaptureImageStorage

from node.domain.result import Result
from node.domain.volume import LabelMap, Volume
from node.evidence.base import NOT_VERIFIED, Role, begin, images_used, moment_text, source_references, tell_body_part, tell_losses
from node.evidence.context import EvidenceContext
from node.evidence.key_image import FlatImage, draw_flat_images, draw_key_image, is_flat
from node.evidence.sop_common import finished

SECONDARY_CAPTURE: Final = Role("sc", SecondaryCaptureImageStorage, "OT", 3)
_OPPOSITE: Final = {"L": "R", "R": "L", "A": "P", "P": "A", "H": "F", "F": "H"}


def encode_secondary_capture(
    result: Result, sources: Sequence[Dataset], shown: Volume | Sequence[Volume] | NDArray[np.float32], context: EvidenceContext
) -> Dataset:
    """Answers the picture of a result on the images that were analysed, the planes through its largest structure.

    `shown` is the analysed volume, single images as volumes of one slice, or the stored values (rows, columns) of a single image;
    `sources` are the headers, in any order. The pixels depend on the fonts of the machine, where a text has letters beyond ASCII.

    Raises
    ------
    EvidenceError
        If a source image is missing.
    """
    images = images_used(result, sources)
    made = begin(SECONDARY_CAPTURE, images[0], result, context)
    made.ConversionType = "WSD"
    made.ImageType = ["DERIVED", "SECONDARY"]
    made.DerivationDescription = f"{NOT_VERIFIED}: what {result.card.name} {result.card.version} found"
    made.BurnedInAnnotation = "YES"
    made.PatientOrientation = None
    made.SourceImageSequence = source_references(images)
    tell_body_part(made, images[0])
    tell_losses(made, images)
    capture = finished(made, images[0], result, context)
    capture.DateOfSecondaryCapture, capture.TimeOfSecondaryCapture = capture.ContentDate, capture.ContentTime
    picture = _picture(result, images, shown, moment_text(capture))
    _set_pixels(capture, np.asarray(picture.convert("RGB"), dtype=np.uint8))
    return capture


def _picture(
    result: Result, images: Sequence[Dataset], shown: Volume | Sequence[Volume] | NDArray[np.float32], made_at: str
) -> Image.Image:
    if isinstance(shown, np.ndarray):
        inverted = str(images[0].get("PhotometricInterpretation") or "") == "MONOCHROME1"
        return draw_flat_images([FlatImage(shown, letters=_edges(images[0]), inverted=inverted)], result, made_at)
    volumes = [shown] if isinstance(shown, Volume) else list(shown)
    if not is_flat(volumes):
        return draw_key_image(volumes[0], result, _largest_structure(result), made_at)
    edges = {str(image.SOPInstanceUID): _edges(image) for image in images}
    planes = [volume.source.planes[0] for volume in volumes]
    flat = [
        FlatImage(volume.voxels[0], plane, edges.get(plane.sop_instance_uid, ())) for volume, plane in zip(volumes, planes, strict=True)
    ]
    return draw_flat_images(flat, result, made_at)


def _largest_structure(result: Result) -> LabelMap | None:
    """Answers the label map with the structure of most voxels alone; None where nothing was found."""
    found = [segment for segment in result.segments if segment.present]
    if result.label_map is None or not found:
        return None
    largest = max(found, key=lambda segment: segment.voxels)
    label = np.uint8(largest.definition.label_value)
    return LabelMap(np.where(result.label_map.mask(int(label)), label, np.uint8(0)), result.label_map.source)


def _edges(image: Dataset) -> tuple[str, ...]:
    """Answers what lies at the left, right, top and bottom edge, from Patient Orientation (PS3.3 C.7.6.1.1.1); nothing if it is not told."""
    toward = [str(one) for one in image.get("PatientOrientation") or []]
    if len(toward) != 2 or not all(one and set(one) <= set(_OPPOSITE) for one in toward):
        return ()
    away = ["".join(_OPPOSITE[letter] for letter in one) for one in toward]
    return (away[0], toward[0], away[1], toward[1])


def _set_pixels(capture: Dataset, pixels: NDArray[np.uint8]) -> None:
    """Fills the Image Pixel module (PS3.3 C.7.6.3)."""
    capture.SamplesPerPixel = 3
    capture.PhotometricInterpretation = "RGB"
    capture.PlanarConfiguration = 0
    capture.Rows, capture.Columns = pixels.shape[:2]
    capture.BitsAllocated = capture.BitsStored = 8
    capture.HighBit = 7
    capture.PixelRepresentation = 0
    data = pixels.tobytes()
    capture.PixelData = data + b"\0" * (len(data) % 2)
    capture["PixelData"].VR = "OB"
