"""Under which UIDs an instance is filed: read from its data set, and compared with the request that brought it."""

import struct
import threading
import zlib
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple, Protocol

from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID, ExplicitVRBigEndian, ImplicitVRLittleEndian

from node.domain.identifiers import is_usable_uid
from node.errors import CannotUnderstand, DataSetMismatch, OutOfResources
from node.intake.bounded import bounded
from node.network.deflate import DEFLATED, LONGEST_INFLATED_BYTES, inflate_head, inflates_beyond
from node.network.malformed import MALFORMED_DATA_SET

_SOP_CLASS_UID: Final = Tag("SOPClassUID")
_SOP_INSTANCE_UID: Final = Tag("SOPInstanceUID")
_STUDY_INSTANCE_UID: Final = Tag("StudyInstanceUID")
_SERIES_INSTANCE_UID: Final = Tag("SeriesInstanceUID")
_PIXELS: Final = Tag(0x7FDFFFFF)
_NEEDED: Final = (_SOP_CLASS_UID, _SOP_INSTANCE_UID, _STUDY_INSTANCE_UID, _SERIES_INSTANCE_UID)
# As plain numbers: pydicom's tags compare in Python.
_NEEDED_KEYS: Final = frozenset(int(tag) for tag in _NEEDED)
_LAST_NEEDED: Final = int(_SERIES_INSTANCE_UID)

HEAD_BYTES: Final = 1 << 22
"""How much of a data set is read to find its UIDs, what is skipped not counted: a few kB can stand for gigabytes."""

# What a sender can make the parser hold is held once, and not once an association; it parses no faster in several threads.
_one_parser: Final = threading.Lock()

_LONGEST_UID_BYTES: Final = 1024
"""What is longer is no UID, and not taken into memory; it may be gigabytes."""

_SHORT_LENGTHS: Final = frozenset(vr.encode() for vr in "AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())
_LONG_LENGTHS: Final = frozenset(vr.encode() for vr in "OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_IMPLICIT_ELEMENT: Final = struct.Struct("<HHI")
_EXPLICIT_ELEMENT: Final = struct.Struct("<HH2sH")
_LONG_LENGTH: Final = struct.Struct("<I")


class StoreRequest(NamedTuple):
    """What a C-STORE request says besides its data set."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    calling_ae_title: str
    association: str
    """Names the association, unlike every other that this node ever had."""


class InstanceUids(NamedTuple):
    """The UIDs under which an instance is filed."""

    sop_class: str
    sop_instance: str
    series: str
    study: str


class Part10Bytes(Protocol):
    """A Part 10 file and where its data set begins."""

    @property
    def path(self) -> Path:
        """Where it lies."""

    @property
    def head_bytes(self) -> int:
        """How long preamble and file meta information are."""

    @property
    def beginning(self) -> bytes | bytearray:
        """The first bytes of the data set, as many as are at hand; may be none."""

    def flush(self) -> None:
        """Sees to it that all of it can be read by its path."""


def read_uids(incoming: Part10Bytes, request: StoreRequest) -> InstanceUids:
    """Answers under which UIDs an instance is to be filed, after comparing it with the request that brought it.

    SOP Class and Instance UID may be absent in the data set: the request has them.
    """
    found = _scan(incoming, request.transfer_syntax_uid) or _parse(incoming, request.transfer_syntax_uid)
    uids = InstanceUids(
        sop_class=found.get(_SOP_CLASS_UID) or request.sop_class_uid,
        sop_instance=found.get(_SOP_INSTANCE_UID) or request.sop_instance_uid,
        series=found.get(_SERIES_INSTANCE_UID, ""),
        study=found.get(_STUDY_INSTANCE_UID, ""),
    )
    for name, uid in (
        ("Study Instance", uids.study),
        ("Series Instance", uids.series),
        ("SOP Instance", uids.sop_instance),
        ("SOP Class", uids.sop_class),
    ):
        if not is_usable_uid(uid):
            raise CannotUnderstand(f"{name} UID is {'no UID' if uid else 'absent'}")
    if uids.sop_instance != request.sop_instance_uid:
        raise DataSetMismatch(f"the data set is SOP instance {uids.sop_instance}")
    if uids.sop_class != request.sop_class_uid:
        raise DataSetMismatch(f"the data set is of SOP class {uids.sop_class}")
    return uids


def _scan(incoming: Part10Bytes, transfer_syntax_uid: str) -> dict[int, str] | None:
    """Answers the four UIDs where they lie in order and in plain sight, as nearly always; None where a parser has to look."""
    if transfer_syntax_uid in DEFLATED or transfer_syntax_uid == ExplicitVRBigEndian:
        return None
    return scan_uids(incoming.beginning, implicit=transfer_syntax_uid == ImplicitVRLittleEndian)


def scan_uids(beginning: bytes | bytearray, *, implicit: bool) -> dict[int, str] | None:
    """Answers the four UIDs in the beginning of a little endian data set, by tag; None where anything is out of the ordinary.

    The slices of a series are nearly always built alike: where every head of an element stands as it stood in the one before, the UIDs
    stand there too, and one look at all the heads replaces the walk from one to the next.
    """
    build = _seen.build
    if (
        build is not None
        and build.implicit is implicit
        and len(beginning) >= build.end
        and build.heads.unpack_from(beginning) == build.values
    ):
        return {tag: _uid_in(beginning, begin, end) for tag, begin, end in build.uids}
    walk = _walk(beginning, implicit=implicit)
    if walk is None:
        return None
    if walk == _seen.walk:
        _seen.build = _build_of(beginning, walk)
    _seen.walk = walk
    return {tag: _uid_in(beginning, begin, end) for tag, begin, end in walk.uids}


class _Walk(NamedTuple):
    """The elements of a data set up to the Series Instance UID: where their heads and where the four UIDs stand."""

    implicit: bool
    heads: tuple[tuple[int, int], ...]
    """First byte and number of bytes of each."""
    uids: tuple[tuple[int, int, int], ...]
    """Tag, first byte and the byte behind each."""


class _Build(NamedTuple):
    """What the heads of elements say, and where the four UIDs are in a data set that says the same in the same places."""

    implicit: bool
    heads: struct.Struct
    values: tuple[bytes, ...]
    uids: tuple[tuple[int, int, int], ...]
    end: int


class _Seen(threading.local):
    """What a thread, and so an association, has seen last."""

    def __init__(self) -> None:
        super().__init__()
        self.walk: _Walk | None = None
        self.build: _Build | None = None


_seen: Final = _Seen()


def _uid_in(beginning: bytes | bytearray, begin: int, end: int) -> str:
    return beginning[begin:end].decode("ascii", "replace").strip("\x00 ")


def _build_of(beginning: bytes | bytearray, walk: _Walk) -> _Build:
    layout, behind = ["<"], 0
    for place, size in walk.heads:
        layout.append(f"{place - behind}x{size}s")
        behind = place + size
    heads = struct.Struct("".join(layout))
    return _Build(walk.implicit, heads, heads.unpack_from(beginning), walk.uids, max(end for _, _, end in walk.uids))


def _walk(beginning: bytes | bytearray, *, implicit: bool) -> _Walk | None:
    """Goes from element to element; answers None where anything is out of the ordinary."""
    heads: list[tuple[int, int]] = []
    uids: list[tuple[int, int, int]] = []
    place, before, held = 0, -1, len(beginning)
    end = held - 8
    while place <= end:
        begin = place
        if implicit:
            group, element, length = _IMPLICIT_ELEMENT.unpack_from(beginning, place)
            place += 8
        else:
            group, element, vr, length = _EXPLICIT_ELEMENT.unpack_from(beginning, place)
            place += 8
            if vr not in _SHORT_LENGTHS:
                if vr not in _LONG_LENGTHS or place + 4 > held:
                    return None
                length = _LONG_LENGTH.unpack_from(beginning, place)[0]
                place += 4
        tag = group << 16 | element
        if tag <= before:
            return None
        heads.append((begin, place - begin))
        if tag in _NEEDED_KEYS:
            if place + length > held or not (implicit or vr == b"UI"):
                return None
            uids.append((tag, place, place + length))
            if tag == _LAST_NEEDED:
                return _Walk(implicit, tuple(heads), tuple(uids)) if len(uids) == len(_NEEDED) else None
        elif tag > _LAST_NEEDED:
            return None
        place += length  # behind all that is held where the length is undefined
        before = tag
    return None


def _parse(incoming: Part10Bytes, transfer_syntax_uid: str) -> dict[int, str]:
    """Answers the UIDs that a parser finds in the data set, by tag."""
    incoming.flush()
    found = _read_needed(incoming, transfer_syntax_uid, stop_after=_SERIES_INSTANCE_UID)
    if not (_STUDY_INSTANCE_UID in found and _SERIES_INSTANCE_UID in found):
        found = _read_needed(incoming, transfer_syntax_uid, stop_after=_PIXELS)  # elements out of order, against PS3.5 7.1
    return {int(tag): _text(found, tag) for tag in _NEEDED}


def _read_needed(incoming: Part10Bytes, transfer_syntax_uid: str, *, stop_after: BaseTag) -> Dataset:
    def is_behind(tag: BaseTag, _vr: str | None, _length: int) -> bool:
        return int(tag) > int(stop_after)

    syntax = UID(transfer_syntax_uid)
    try:
        with _one_parser, incoming.path.open("rb", buffering=0) as file:
            stream = bounded(file, HEAD_BYTES)
            stream.seek(incoming.head_bytes)
            data_set: BinaryIO = BytesIO(inflate_head(stream, HEAD_BYTES)) if syntax in DEFLATED else stream
            return read_dataset(
                data_set,
                syntax.is_implicit_VR,
                syntax.is_little_endian,
                stop_when=is_behind,
                defer_size=_LONGEST_UID_BYTES,
                specific_tags=list(_NEEDED),
            )
    except MALFORMED_DATA_SET as error:
        if isinstance(error, OSError) and error.errno is not None:  # the parser raises one without a number for what is no data set
            raise OutOfResources(f"the spool cannot be read: {error.strerror}") from error
        raise CannotUnderstand(f"no data set of {syntax.name} ({type(error).__name__})") from error


def refuse_bomb(incoming: Part10Bytes, transfer_syntax_uid: str) -> None:
    """Raises CannotUnderstand for a deflated data set that nobody could hold in memory."""
    if transfer_syntax_uid not in DEFLATED:
        return
    incoming.flush()
    try:
        with incoming.path.open("rb") as stream:
            stream.seek(incoming.head_bytes)
            if inflates_beyond(stream, LONGEST_INFLATED_BYTES):
                raise CannotUnderstand(f"the data set inflates to more than {LONGEST_INFLATED_BYTES >> 20} MiB")
    except OSError as error:
        raise OutOfResources(f"the spool cannot be read: {error.strerror}") from error
    except zlib.error as error:
        raise CannotUnderstand("the data set is not deflated as it should be") from error


def _text(dataset: Dataset, tag: BaseTag) -> str:
    """Answers the value of a UID element without converting it: pydicom would warn of what we judge ourselves."""
    try:
        value = dataset.get_item(tag).value
    except MALFORMED_DATA_SET:  # a KeyError where it is absent
        return ""
    if isinstance(value, bytes):
        value = value.decode("ascii", "replace")
    return str(value).strip("\x00 ")
