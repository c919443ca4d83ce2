"""Headers of Part 10 files as domain values: everything plain that a rule may ask for, nothing that can raise later."""

import math
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Final

from pydicom.datadict import keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset, read_file_meta_info, read_partial
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag

from node.domain.identifiers import is_usable_uid
from node.domain.instance import InstanceHeader, SeriesHeader, Value, group_into_series
from node.errors import CannotUnderstand
from node.intake.bounded import bounded
from node.network.deflate import deflated_from, inflate_head
from node.network.malformed import MALFORMED_DATA_SET

LONGEST_VALUE_BYTES: Final = 4096
"""An element that is longer holds no fact that a rule asks for (tables, private reports): left out."""

LONGEST_HEADER_BYTES: Final = 1 << 24
"""What an enhanced object says of 10 000 frames; where more comes before the pixels, the file is not understood."""

MOST_ELEMENTS: Final = 20_000
"""Of a data set itself, those inside its sequences not counted: real ones have hundreds, and millions would take half a minute."""

FIRST_PIXEL_TAG: Final = 0x7FE00008
"""Float Pixel Data, Double Float Pixel Data and Pixel Data follow from here."""

_NUMERIC: Final = frozenset({"DS", "IS", "US", "SS", "UL", "SL", "UV", "SV", "FL", "FD"})
_TEXTUAL: Final = frozenset({"AE", "AS", "CS", "DA", "DT", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT"})

# `warnings.catch_warnings` swaps a global: one reader at a time.
_one_reader: Final = threading.Lock()

Skipped = Callable[[Path, str], None]
"""Called with a file that was skipped, and why."""


def read_header(path: Path) -> InstanceHeader:
    """Answers the header of a Part 10 file.

    An element that is absent, empty or malformed is an absent key: hospitals send all of these.

    Raises
    ------
    CannotUnderstand
        When the file is no DICOM file, or no SOP Instance, Series or Study Instance UID can be had from it.
    """
    with _one_reader, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dataset, file_meta = _read(path)
        except MALFORMED_DATA_SET as error:
            raise CannotUnderstand(f"not a DICOM file ({type(error).__name__})") from error
        attributes = dict(_plain_elements(dataset))
        if "ContrastBolusAgent" not in attributes and _items(dataset, "ContrastBolusAgentSequence"):
            attributes["ContrastBolusAgent"] = ("by Contrast/Bolus Agent Sequence",)  # as enhanced objects say it
        first_frame = _first_frame(dataset)
        meta = dict(_plain_elements(file_meta))
    return InstanceHeader(
        study_instance_uid=_uid("StudyInstanceUID", attributes),
        series_instance_uid=_uid("SeriesInstanceUID", attributes),
        sop_instance_uid=_uid("SOPInstanceUID", attributes, meta.get("MediaStorageSOPInstanceUID", ())),
        sop_class_uid=str(next(iter(attributes.get("SOPClassUID") or meta.get("MediaStorageSOPClassUID", ())), "")),
        attributes=attributes,
        frames=_frames(attributes),
        first_frame=first_frame,
    )


def _read(path: Path) -> tuple[Dataset, Dataset]:
    """Answers data set, up to the pixels, and file meta information of a file."""
    with path.open("rb", buffering=0) as file:
        stream = bounded(file, LONGEST_HEADER_BYTES)
        deflated_from_byte = deflated_from(stream)
        if deflated_from_byte is None:
            dataset = read_partial(stream, stop_when=_end_of_header())
            return dataset, dataset.file_meta
        stream.seek(deflated_from_byte)
        head = BytesIO(inflate_head(stream, LONGEST_HEADER_BYTES))
    return read_dataset(head, is_implicit_VR=False, is_little_endian=True, stop_when=_end_of_header()), read_file_meta_info(path)


def _end_of_header() -> Callable[[BaseTag, str | None, int], bool]:
    """Answers what tells a parser to stop: at the pixels; it raises where there are more elements than anybody means."""
    elements = 0

    def is_end(tag: BaseTag, _vr: str | None, _length: int) -> bool:
        nonlocal elements
        elements += 1
        if elements > MOST_ELEMENTS:
            raise ValueError(f"more than {MOST_ELEMENTS} elements")
        return int(tag) >= FIRST_PIXEL_TAG

    return is_end


def read_series_headers(
    paths: Iterable[Path], on_skipped: Skipped | None = None, read: Callable[[Path], InstanceHeader] = read_header
) -> tuple[SeriesHeader, ...]:
    """Answers the headers of files, grouped into series in order of appearance; each series in order of Instance Number.

    What is no DICOM instance is skipped, and told to `on_skipped`. Of several files with one SOP Instance UID the first counts.
    `read` answers as `read_header` does, for those who have some of them already.
    """
    headers = []
    for path in paths:
        try:
            headers.append(read(path))
        except CannotUnderstand as error:
            if on_skipped is not None:
                on_skipped(path, str(error))
    return group_into_series(headers)


def _uid(keyword: str, attributes: dict[str, tuple[Value, ...]], otherwise: tuple[Value, ...] = ()) -> str:
    for values in (attributes.get(keyword, ()), otherwise):
        if len(values) == 1 and is_usable_uid(str(values[0])):
            return str(values[0])
    raise CannotUnderstand(f"{keyword} is absent or no UID")


def _frames(attributes: dict[str, tuple[Value, ...]]) -> int:
    stated = attributes.get("NumberOfFrames", ())
    return max(1, int(stated[0])) if stated and isinstance(stated[0], float) else 1


def _first_frame(dataset: Dataset) -> dict[str, tuple[Value, ...]] | None:
    """Answers the plain elements of every functional group of the first frame; what all frames share yields to what it says."""
    found: dict[str, tuple[Value, ...]] = {}
    for keyword in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for groups in _items(dataset, keyword)[:1]:
            for group in groups.keys():  # noqa: SIM118 - a Dataset iterates over converted elements: any could be malformed
                for item in _items(groups, keyword_for_tag(group))[:1]:
                    found.update(_plain_elements(item))
    return found or None


def _items(dataset: Dataset, keyword: str) -> list[Dataset]:
    try:
        value = dataset.get(keyword)
        return list(value) if isinstance(value, Sequence) else []
    except MALFORMED_DATA_SET:
        return []


def _plain_elements(dataset: Dataset) -> Iterator[tuple[str, tuple[Value, ...]]]:
    for tag in sorted(dataset.keys()):
        keyword = keyword_for_tag(tag)
        if keyword and (values := _values(dataset, tag)):
            yield keyword, values


def _values(dataset: Dataset, tag: BaseTag) -> tuple[Value, ...]:
    try:
        raw = dataset.get_item(tag).value
        if isinstance(raw, bytes) and len(raw) > LONGEST_VALUE_BYTES:
            return ()
        element = dataset[tag]
        several = element.value if isinstance(element.value, MultiValue | list) else [element.value]
        if element.VR in _NUMERIC:
            numbers = tuple(float(value) for value in several)
            return numbers if all(math.isfinite(number) for number in numbers) else ()
        if element.VR in _TEXTUAL:
            texts = tuple("" if value is None else str(value).strip() for value in several)
            return texts if any(texts) else ()
    except MALFORMED_DATA_SET:
        return ()
    return ()
