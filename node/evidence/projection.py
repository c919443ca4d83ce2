"""Segmentations of images that lie nowhere in the patient: radiographs, mammograms, photographs (PS3.3 A.51.3, A.51.5).

highdicom demands a frame of reference, so it gets one for the while, and what follows from it is taken out again. Such a frame is
what it was derived from, pixel for pixel: Derivation Image says of which image.
"""

from typing import Final

from pydicom.dataset import Dataset
from pydicom.tag import Tag

from node.domain.identifiers import derive_uid
from node.evidence.exact import copy_exactly

STAND_IN: Final = derive_uid("frame of reference", "none")
"""Where highdicom must be told a frame of reference, and there is none."""

_POSITION: Final = Tag("ImagePositionPatient")


def leave_out_place(made: Dataset, image: Dataset) -> None:
    """Takes out of a Segmentation what says where it lies; its frames are told apart by their place in a stack instead.

    Which way up they are is told by the source `image`, where it knows (PS3.3 C.7.6.1: Patient Orientation is type 2C then).
    """
    made.PatientOrientation = None
    copy_exactly(made, image, "PatientOrientation")
    for keyword in ("FrameOfReferenceUID", "PositionReferenceIndicator", "DimensionOrganizationType"):
        if keyword in made:
            del made[keyword]
    dimensions = made.DimensionIndexSequence
    (place,) = [number for number, item in enumerate(dimensions) if item.DimensionIndexPointer == _POSITION]
    dimensions[place].DimensionIndexPointer = Tag("InStackPositionNumber")
    dimensions[place].FunctionalGroupPointer = Tag("FrameContentSequence")
    dimensions[place].DimensionDescriptionLabel = "In-Stack Position Number"
    shared = made.SharedFunctionalGroupsSequence[0]
    for groups in (shared, *made.PerFrameFunctionalGroupsSequence):
        for keyword in ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence"):
            if keyword in groups:
                del groups[keyword]
    for groups in made.PerFrameFunctionalGroupsSequence:
        content = groups.FrameContentSequence[0]
        values = content.DimensionIndexValues
        content.StackID = "1"
        content.InStackPositionNumber = values if isinstance(values, int) else values[place]
