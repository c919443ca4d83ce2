"""True label maps, read by other people's readers (highdicom, NiBabel) and laid on the grid of the images."""

from collections.abc import Callable
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
    """Where each structure truly lies, on the grid of the images. A mask is made when it is asked for: there may be a hundred."""

    label_values: tuple[int, ...]
    """Of the card's structures, those that the reference knows."""
    mask: Callable[[int], NDArray[np.bool_]]
    """Answers where one of them lies, shape `source.shape`."""


def read_reference(path: Path, card: ModelCard, source: SourceGrid) -> TrueMasks:
    """Answers the true masks of the structures of a card; those that the reference does not know are left out.

    A NIfTI file holds label values of the card. Of a SEG, segments are those of the card with the same type and side, or label.

    Raises
    ------
    UsageError
        When the file cannot be read, or holds none of the card's structures.
    """
    true = _from_nifti(path, card, source) if path.name.endswith((".nii", ".nii.gz")) else _from_seg(path, card, source)
    if not true.label_values:
        raise UsageError(f"{path} holds none of the structures of {card.name} → one of {', '.join(one.label for one in card.segments)}")
    return true


def _from_nifti(path: Path, card: ModelCard, source: SourceGrid) -> TrueMasks:
    import nibabel

    try:
        image: Any = nibabel.load(path)
        values = np.rint(np.asanyarray(image.dataobj)).astype(np.int32)
        affine = np.asarray(image.affine, dtype=np.float64)
    except (nibabel.filebasedimages.ImageFileError, OSError, ValueError, EOFError) as error:
        raise UsageError(f"{path} is no readable NIfTI file ({type(error).__name__}) → a label map with the card's values") from error
    if values.ndim != 3:
        raise UsageError(f"{path} has the shape {values.shape} → a label map with three axes")
    sampled = sample_nearest(values, _RAS_FROM_LPS @ affine, source)
    return TrueMasks(tuple(one.label_value for one in card.segments), lambda label_value: np.asarray(sampled == label_value))


def _from_seg(path: Path, card: ModelCard, source: SourceGrid) -> TrueMasks:
    from highdicom.seg import Segmentation

    try:
        segmentation = Segmentation.from_dataset(dcmread(path), copy=False)
        numbers = {_label_value(segmentation.get_segment_description(number), card): number for number in segmentation.segment_numbers}
        numbers.pop(0, None)
        packed = {}
        for label_value, number in numbers.items():
            volume = segmentation.get_volume(segment_numbers=[number], combine_segments=False)
            array = np.asarray(volume.array)[..., 0].astype(np.int32)
            packed[label_value] = np.packbits(sample_nearest(array, np.asarray(volume.affine), source) > 0)
    except (ValueError, RuntimeError, AttributeError, KeyError, OSError) as error:
        # its words may be out of the header: only the kind of fault is told
        raise UsageError(f"{path} is no readable segmentation ({type(error).__name__}) → radnode check {path}") from error
    count = int(np.prod(source.shape))
    return TrueMasks(
        tuple(packed), lambda label_value: np.unpackbits(packed[label_value], count=count).reshape(source.shape).astype(np.bool_)
    )


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
