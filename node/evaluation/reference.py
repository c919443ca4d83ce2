"""True label maps, read by other people's readers (highdicom, NiBabel) and laid on the grid of the images."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset

from node.domain.modelcard import ModelCard
from node.domain.volume import SourceGrid
from node.errors import UsageError

_RAS_FROM_LPS: Final = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, slots=True, eq=False)
class TrueMasks:
    """Where each structure truly lies, on the grid of the images: label value of the card → mask of shape `source.shape`."""

    masks: dict[int, NDArray[np.bool_]]


def read_reference(path: Path, card: ModelCard, source: SourceGrid) -> TrueMasks:
    """Answers the true masks of the structures of a card; those that the reference does not know are left out.

    A NIfTI file holds label values of the card. Of a SEG, segments are those of the card with the same type and side, or label.

    Raises
    ------
    UsageError
        When the file cannot be read, or holds none of the card's structures.
    """
    masks = _from_nifti(path, card, source) if path.name.endswith((".nii", ".nii.gz")) else _from_seg(path, card, source)
    if not masks:
        raise UsageError(f"{path} holds none of the structures of {card.name}: {', '.join(one.label for one in card.segments)}")
    return TrueMasks(masks)


def _from_nifti(path: Path, card: ModelCard, source: SourceGrid) -> dict[int, NDArray[np.bool_]]:
    import nibabel

    try:
        image: Any = nibabel.load(path)
        values = np.rint(np.asanyarray(image.dataobj)).astype(np.int32)
        affine = np.asarray(image.affine, dtype=np.float64)
    except (nibabel.filebasedimages.ImageFileError, OSError, ValueError, EOFError) as error:
        raise UsageError(f"{path} is no readable NIfTI file ({type(error).__name__})") from error
    if values.ndim != 3:
        raise UsageError(f"{path} has the shape {values.shape}: a label map has three axes")
    sampled = sample_nearest(values, _RAS_FROM_LPS @ affine, source)
    return {one.label_value: sampled == one.label_value for one in card.segments}


def _from_seg(path: Path, card: ModelCard, source: SourceGrid) -> dict[int, NDArray[np.bool_]]:
    from highdicom.seg import Segmentation

    try:
        segmentation = Segmentation.from_dataset(dcmread(path), copy=False)
        found = {number: _label_value(segmentation.get_segment_description(number), card) for number in segmentation.segment_numbers}
        numbers = [number for number, value in found.items() if value]
        if not numbers:
            return {}
        volume = segmentation.get_volume(segment_numbers=numbers, combine_segments=False)
    except (ValueError, RuntimeError, AttributeError, KeyError, OSError) as error:
        raise UsageError(f"{path} is no readable segmentation ({type(error).__name__}: {error})") from error
    array = np.asarray(volume.array)
    return {
        found[number]: sample_nearest(array[..., index].astype(np.int32), np.asarray(volume.affine), source) > 0
        for index, number in enumerate(numbers)
    }


def _label_value(description: Dataset, card: ModelCard) -> int:
    """Answers which structure of the card a segment is, 0 where none."""
    of_type = description.segmented_property_type
    for one in card.segments:
        side = one.laterality.value if one.laterality else None
        if (of_type.value, of_type.scheme_designator) == (one.type.value, one.type.scheme) and side in (None, _side(description)):
            return one.label_value
    label = str(description.get("SegmentLabel") or "").casefold()
    return next((one.label_value for one in card.segments if one.label.casefold() == label), 0)


def _side(description: Dataset) -> str | None:
    types = description.get("SegmentedPropertyTypeCodeSequence")
    modifiers = types[0].get("SegmentedPropertyTypeModifierCodeSequence") if types else None
    return str(modifiers[0].CodeValue) if modifiers else None


def sample_nearest(values: NDArray[np.int32], patient_from_index: NDArray[np.float64], source: SourceGrid) -> NDArray[np.int32]:
    """Answers the value nearest to each pixel of the source grid, 0 beyond; shape `source.shape`."""
    index_from_patient = np.linalg.inv(patient_from_index)
    rows, columns = np.meshgrid(np.arange(source.rows), np.arange(source.columns), indexing="ij")
    pixels = np.stack([rows.ravel(), columns.ravel(), np.ones(rows.size)])
    result = np.zeros(source.shape, np.int32)
    for plane in range(len(source.planes)):
        index = np.rint((index_from_patient @ source.patient_from_pixel(plane) @ pixels)[:3]).astype(np.intp)
        inside = np.all((index >= 0) & (index < np.array(values.shape)[:, None]), axis=0)
        flat = result[plane].reshape(-1)
        flat[inside] = values[tuple(index[:, inside])]
    return result
