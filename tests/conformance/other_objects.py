"""How the tests of the further objects make them, and read contours back: not with the code that wrote them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import ComputedRadiographyImageStorage

from node.codes import UCUM_HOUNSFIELD
from node.domain.result import Result, SegmentResult
from node.domain.states import Outcome
from node.domain.volume import LabelMap, Plane, SourceGrid, Volume, VolumeGeometry
from node.evidence.encapsulated_pdf import encode_pdf_report
from node.evidence.key_image import render_key_image
from node.evidence.key_objects import encode_key_objects
from node.evidence.parametric_map import encode_parametric_map
from node.evidence.presentation_state import encode_presentation_state
from node.evidence.secondary_capture import encode_secondary_capture
from node.evidence.structure_set import encode_structure_set
from tests.conformance.cases import Case, make_card
from tests.factories import SyntheticSeries

ROLES: Final = ("sc", "kos", "gsps", "rtstruct", "pdf", "pm")
WINDOW: Final = (40.0, 400.0)


def encode(role: str, case: Case) -> Dataset:
    """Answers the object of a role for a case that found something."""
    result, sources, context = case.result, case.sources, case.context
    match role:
        case "sc":
            return encode_secondary_capture(result, sources, volume_of(case), context)
        case "kos":
            return encode_key_objects(result, sources, context)
        case "gsps":
            return encode_presentation_state(result, sources, context, WINDOW)
        case "rtstruct":
            return encode_structure_set(result, sources, context)
        case "pdf":
            return encode_pdf_report(result, sources, context, key_image=render_key_image(volume_of(case), result))
        case _:
            structure = result.card.segments[0]
            return encode_parametric_map(result, sources, probabilities_of(case.label_map), case.label_map.source, structure, context)


def volume_of(case: Case) -> Volume:
    """Answers a small regular volume of the scene of the case."""
    return volume_of_series(case.series, case.label_map.source)


def volume_of_series(series: SyntheticSeries, source: SourceGrid) -> Volume:
    """Answers a small regular volume of the scene of a series."""
    scene, plan = series.scene, series.plan
    step = plan.extent_mm / 24
    shape = (24, 26, 28)
    matrix = np.eye(4)
    matrix[:3, :3] = np.array([[0, 0, step], [0, step, 0], [step, 0, 0]])
    matrix[:3, 3] = np.asarray(scene.body.centre_mm) - np.array([14, 13, 12]) * step
    indices = np.stack(np.meshgrid(*(np.arange(size) for size in shape), indexing="ij"), axis=-1)
    voxels = scene.values(indices @ matrix[:3, :3].T + matrix[:3, 3], edge_mm=step).astype(np.float32)
    return Volume(voxels, VolumeGeometry(shape, matrix), source, "CT", UCUM_HOUNSFIELD)


def probabilities_of(label_map: LabelMap) -> NDArray[np.float32]:
    """Answers a probability that changes from pixel to pixel."""
    labels = label_map.labels
    ramp = np.linspace(0.0, 1.0, labels.size, dtype=np.float32).reshape(labels.shape)
    return np.where(labels > 0, ramp, ramp / 8).astype(np.float32)


# ── a radiograph ────────────────────────────────────────────────────────────


def radiograph(folder: Path) -> tuple[Dataset, NDArray[np.float32]]:
    """Writes a CR image without any place in space, and answers its header and its pixels."""
    rows, columns = 90, 70
    pixels = np.add.outer(np.arange(rows), 2 * np.arange(columns)).astype(np.uint16)
    image = Dataset()
    image.file_meta = pydicom.dataset.FileMetaDataset()
    image.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    values: Mapping[str, Any] = {
        "SOPClassUID": ComputedRadiographyImageStorage, "SOPInstanceUID": "1.2.3.4.1", "StudyInstanceUID": "1.2.3.4",
        "SeriesInstanceUID": "1.2.3.4.0", "Modality": "CR", "PatientName": "DOE^JANE", "PatientID": "R1", "PatientBirthDate": "",
        "PatientSex": "F", "StudyDate": "20240229", "StudyTime": "1011", "StudyID": "", "AccessionNumber": "A1",
        "ReferringPhysicianName": "", "Manufacturer": "x", "SeriesNumber": 1, "InstanceNumber": 1, "BodyPartExamined": "CHEST",
        "ViewPosition": "PA", "PatientOrientation": ["L", "F"], "ImagerPixelSpacing": ["0.2", "0.2"], "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME1", "Rows": rows, "Columns": columns, "BitsAllocated": 16, "BitsStored": 12,
        "HighBit": 11, "PixelRepresentation": 0, "WindowCenter": "100", "WindowWidth": "200", "Laterality": "",
    }  # fmt: skip
    for keyword, value in values.items():
        setattr(image, keyword, value)
    image.PixelData = pixels.tobytes()
    image["PixelData"].VR = "OW"
    folder.mkdir(parents=True, exist_ok=True)
    image.save_as(folder / "cr.dcm", enforce_file_format=True)
    return pydicom.dcmread(folder / "cr.dcm", stop_before_pixels=True), pixels.astype(np.float32)


def radiograph_result(image: Dataset, *, outlined: bool) -> Result:
    """Answers what a model found on the radiograph: a disc with a hole, or only that something is there."""
    card = make_card(1)
    if not outlined:
        return Result(card=card, outcome=Outcome.FOUND)
    plane = Plane(str(image.SOPClassUID), str(image.SOPInstanceUID), (0.0, 0.0, 0.0))
    grid = SourceGrid(image.Rows, image.Columns, 0.2, 0.2, (1.0, 0.0, 0.0, 0.0, 1.0, 0.0), (plane,), "")
    distance = np.hypot(*np.mgrid[-40 : image.Rows - 40, -30 : image.Columns - 30])
    labels = np.where((distance < 20) & (distance > 6), 2, 0).astype(np.uint8)[None]
    segment = SegmentResult(card.segments[0], present=True, voxels=int((labels > 0).sum()))
    return Result(card=card, outcome=Outcome.FOUND, segments=(segment,), label_map=LabelMap(labels, grid))


# ── contours, read back ─────────────────────────────────────────────────────


def filled(polygons: Sequence[NDArray[np.float64]], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Answers the pixels whose centres lie in one of the polygons (column, row), each filled by the even-odd rule, line by line."""
    mask = np.zeros(shape, dtype=bool)
    columns = np.arange(shape[1])
    for polygon in polygons:
        x0, y0 = polygon.T
        x1, y1 = np.roll(x0, -1), np.roll(y0, -1)
        for row in range(shape[0]):
            cut = (y0 <= row) != (y1 <= row)
            meetings = x0[cut] + (row - y0[cut]) / (y1[cut] - y0[cut]) * (x1[cut] - x0[cut])
            mask[row] |= (meetings[None, :] > columns[:, None]).sum(axis=1) % 2 == 1
    return mask


def masks_of(structures: Dataset, grid: SourceGrid) -> dict[int, NDArray[np.bool_]]:
    """Answers the mask of every ROI, by ROI Number: its contours, brought to the plane on which they lie."""
    pixel_from_patient = np.linalg.pinv(
        np.column_stack([grid.row_cosine * grid.column_spacing_mm, grid.column_cosine * grid.row_spacing_mm])
    )
    places = {(plane.sop_instance_uid, plane.frame_number): index for index, plane in enumerate(grid.planes)}
    masks = {}
    for roi in structures.ROIContourSequence:
        polygons: dict[int, list[NDArray[np.float64]]] = {}
        for contour in roi.ContourSequence:
            points = np.asarray(contour.ContourData, dtype=np.float64).reshape(-1, 3)
            image = contour.ContourImageSequence[0]
            index = places[(image.ReferencedSOPInstanceUID, image.get("ReferencedFrameNumber"))]
            offset = points - grid.positions_mm[index]
            assert np.abs(offset @ grid.normal).max() < 1e-3
            polygons.setdefault(index, []).append(offset @ pixel_from_patient.T)
        shape = (grid.rows, grid.columns)
        masks[int(roi.ReferencedROINumber)] = np.stack([filled(polygons.get(k, []), shape) for k in range(len(grid.planes))])
    return masks
