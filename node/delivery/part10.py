"""Files to send: what a Part 10 file says about itself, and the presentation contexts that it needs."""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from node.delivery.negotiation import MAX_CONTEXTS, Context
from node.delivery.variants import Compression, compressed_contexts, older_contexts
from node.domain.identifiers import is_usable_uid
from node.errors import StoreRefused
from node.network import NATIVE_TRANSFER_SYNTAXES

_EXPLICIT, _IMPLICIT, _DEFLATED, _ = NATIVE_TRANSFER_SYNTAXES

_HEAD_BYTES: Final = 2048
"""Holds the file meta information of nearly all files; others are read by pydicom."""
_PREFIX: Final = struct.Struct("<128s4sHH2sHI")
"""Preamble, prefix, and the first element: File Meta Information Group Length (PS3.10 7.1)."""
_SHORT: Final = struct.Struct("<HH2sH")
_LONG: Final = struct.Struct("<HH2sHI")
_LONG_VRS: Final = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
"""Value representations whose length has four bytes (PS3.5 Table 7.1-1)."""
_SHORT_VRS: Final = frozenset(vr.encode() for vr in "AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())
_SOP_CLASS_UID, _SOP_INSTANCE_UID, _TRANSFER_SYNTAX_UID = 0x0002, 0x0003, 0x0010


@dataclass(frozen=True, slots=True)
class Part10File:
    """A DICOM file to send."""

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    offset: int
    """Where the data set begins, behind the file meta information."""

    @property
    def contexts(self) -> tuple[Context, ...]:
        """What to propose for the file, the best first: as it is; native data also in what every peer must take (PS3.5 10.1)."""
        return _contexts_of(self.sop_class_uid, self.transfer_syntax_uid)


@lru_cache
def _contexts_of(sop_class_uid: str, transfer_syntax_uid: str) -> tuple[Context, ...]:
    own = Context(sop_class_uid, transfer_syntax_uid)
    if transfer_syntax_uid not in {_EXPLICIT, _IMPLICIT, _DEFLATED}:
        return (own,)
    return tuple(dict.fromkeys((own, Context(sop_class_uid, _EXPLICIT), Context(sop_class_uid, _IMPLICIT))))


def read_part10(path: Path) -> Part10File:
    """Answers what a file says about itself.

    Raises
    ------
    StoreRefused
        When it is no DICOM file, or does not say what it is: it can never be sent.
    """
    try:
        with path.open("rb", buffering=0) as stream:
            head = stream.read(_HEAD_BYTES) or b""
    except OSError as error:
        raise StoreRefused(f"the file cannot be read: {error.strerror or type(error).__name__}") from error
    if head[128:132] != b"DICM":
        raise StoreRefused("not a DICOM file")
    found = _meta_of(head)
    if found is None:  # unusual, or no DICOM: whoever knows every habit judges
        found = _meta_by_pydicom(path)
    sop_class_uid, sop_instance_uid, transfer_syntax_uid, offset = found
    if not (is_usable_uid(sop_class_uid) and is_usable_uid(sop_instance_uid) and is_usable_uid(transfer_syntax_uid)):
        raise StoreRefused("the file meta information lacks a usable UID of SOP class, SOP instance or transfer syntax")
    return Part10File(path, sop_class_uid, sop_instance_uid, transfer_syntax_uid, offset)


def _meta_of(head: bytes) -> tuple[str, str, str, int] | None:
    """Answers the three UIDs and where the data set begins; None where the file is not written by the book, or longer in this than usual."""
    if len(head) < _PREFIX.size:
        return None
    _, _, group, element, vr, length, group_length = _PREFIX.unpack_from(head)
    end = _PREFIX.size + group_length
    if (group, element, vr, length) != (2, 0, b"UL", 4) or len(head) < end:
        return None
    values: dict[int, bytes] = {}
    place = _PREFIX.size
    while place + _SHORT.size <= end:
        group, element, vr, length = _SHORT.unpack_from(head, place)
        begin = place + _SHORT.size
        if vr in _LONG_VRS:
            begin = place + _LONG.size
            if begin > end:
                return None
            *_, length = _LONG.unpack_from(head, place)
        elif vr not in _SHORT_VRS:
            return None
        if group != 2:
            return None
        place = begin + length
        values[element] = head[begin:place]
    uids = [values.get(one, b"").rstrip(b"\x00 ") for one in (_SOP_CLASS_UID, _SOP_INSTANCE_UID, _TRANSFER_SYNTAX_UID)]
    if place != end or head[end : end + 2] == b"\x02\x00" or not all(uid.isascii() and is_usable_uid(uid.decode()) for uid in uids):
        return None
    sop_class_uid, sop_instance_uid, transfer_syntax_uid = (uid.decode() for uid in uids)
    return sop_class_uid, sop_instance_uid, transfer_syntax_uid, end


def _meta_by_pydicom(path: Path) -> tuple[str, str, str, int]:
    from pynetdicom.dsutils import split_dataset

    try:
        meta, offset = split_dataset(path)
        wanted = ("MediaStorageSOPClassUID", "MediaStorageSOPInstanceUID", "TransferSyntaxUID")
        sop_class_uid, sop_instance_uid, transfer_syntax_uid = (str(meta.get(keyword) or "") for keyword in wanted)
    except OSError as error:
        raise StoreRefused(f"the file cannot be read: {error.strerror or type(error).__name__}") from error
    except Exception as error:  # pydicom raises whatever its parsers meet in a file that is no DICOM
        raise StoreRefused(f"not a DICOM file ({type(error).__name__})") from error
    return sop_class_uid, sop_instance_uid, transfer_syntax_uid, int(offset)


def contexts_for(files: Iterable[Part10File]) -> tuple[Context, ...]:
    """Answers the contexts to propose for files: those that they need, each once."""
    return tuple(dict.fromkeys(context for file in files for context in file.contexts))


def contexts_for_results(files: Iterable[Part10File], offered: Compression | None = None) -> tuple[Context, ...]:
    """Answers the contexts to propose for results of ours: also older classes of reports, and segmentations compressed."""
    found: dict[Context, None] = {}
    for file in files:
        found.update(dict.fromkeys(compressed_contexts(file.sop_class_uid, file.transfer_syntax_uid, offered or Compression())))
        found.update(dict.fromkeys((*file.contexts, *older_contexts(file.sop_class_uid))))
    return tuple(found)


def batches(files: Iterable[Part10File], largest: int = MAX_CONTEXTS) -> Iterable[tuple[Part10File, ...]]:
    """Answers the files in order, cut where an association could not propose the contexts of one more."""
    batch: list[Part10File] = []
    needed: set[Context] = set()
    for file in files:
        if batch and len(needed.union(file.contexts)) > largest:
            yield tuple(batch)
            batch, needed = [], set()
        batch.append(file)
        needed.update(file.contexts)
    if batch:
        yield tuple(batch)
