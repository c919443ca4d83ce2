"""A segmentation as highdicom makes it alone: what ours is compared with."""

import numpy as np
from highdicom.seg import Segmentation, SegmentationTypeValues
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from node.evidence import segmentation
from node.evidence.segmentation import images_of_planes, segments_of
from node.evidence.sop_common import equipment
from tests.conformance.cases import Case


def plain_highdicom(case: Case) -> Dataset:
    """What highdicom makes of the whole label map."""
    grid, context = case.label_map.source, case.context
    images = images_of_planes(case.sources, grid)
    segments = segments_of(case.result)
    made = Segmentation(
        source_images=segmentation._stand_ins(images, grid, segmentation._slice_thickness_mm(images[0], grid)),
        pixel_array=segment_numbers(case),
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=[segmentation._description(n, one, case.result, context) for n, one in enumerate(segments, 1)],
        series_instance_uid=context.uid("seg", "series"),
        series_number=1,
        sop_instance_uid=context.uid("seg", "instance"),
        instance_number=1,
        content_label="AI_SEGMENTATION",
        transfer_syntax_uid=ExplicitVRLittleEndian,
        **equipment(context),
    )
    size = -(-int(made.NumberOfFrames) * made.Rows * made.Columns // 8)
    made.PixelData = made.PixelData[:size] + b"\0" * (size % 2)  # it pads with the character 0
    return made


def segment_numbers(case: Case) -> NDArray[np.uint8]:
    number_of_label = np.zeros(256, dtype=np.uint8)
    for number, segment in enumerate(segments_of(case.result), 1):
        number_of_label[segment.label_value] = number
    return number_of_label[case.label_map.labels]


def number_frames(made: Dataset, case: Case) -> None:
    """It counts the frames of the stand-in; the true numbers are those of the planes."""
    numbers = [plane.frame_number for plane in case.label_map.source.planes]
    if numbers[0] is None:
        return
    images = [frame.DerivationImageSequence[0].SourceImageSequence[0] for frame in made.PerFrameFunctionalGroupsSequence]
    for image in {id(image): image for image in images}.values():
        image.ReferencedFrameNumber = numbers[int(image.ReferencedFrameNumber) - 1]
