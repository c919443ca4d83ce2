"""Pixel data of one instance: where it lies in the file, its stored values, and the modality LUT.

Native pixel data is read by offset straight into numpy; encapsulated data goes through pydicom's decoders (gdcm, openjpeg, ...).
"""

import importlib
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset, FileDataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian, JPEGExtended12Bit

from node.errors import BrokenPixelData, NotAVolume, UnsupportedTransferSyntax
from node.inference.elements import decimal, integer, item, text

_MONOCHROME: Final = ("MONOCHROME1", "MONOCHROME2")
_NATIVE_BITS_ALLOCATED: Final = (8, 16, 32)
_UNDEFINED_LENGTH: Final = 0xFFFFFFFF
_PIXEL_DATA: Final = (0x7FE0, 0x0010)
_ITEM: Final = (0xFFFE, 0xE000)
_SEQUENCE_DELIMITATION: Final = (0xFFFE, 0xE0DD)

PARSE_ERRORS: Final = (
    InvalidDicomError,
    BytesLengthException,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    NotImplementedError,
    RecursionError,
    struct.error,
    zlib.error,
)
"""What pydicom raises while it reads a file that is no DICOM, or broken."""


@dataclass(frozen=True, slots=True)
class StoredPixels:
    """The monochrome pixel data of an instance and how to read it (PS3.3 C.7.6.3)."""

    name: str
    """How messages call the instance, e.g. `image 12`."""
    path: Path
    transfer_syntax_uid: UID
    offset: int
    """Of the value of Pixel Data in the file; meaningless for a deflated file."""
    frames: int
    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    is_signed: bool
    photometric_interpretation: str

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of a stored value, in the byte order of the file where the pixel data is native."""
        order = ">" if self.transfer_syntax_uid == ExplicitVRBigEndian else "<"
        return np.dtype(f"{order}{'i' if self.is_signed else 'u'}{self.bits_allocated // 8}")

    @property
    def is_compressed(self) -> bool:
        """Whether values must be decoded: where they need not, to read them is the same as to have them."""
        return bool(self.transfer_syntax_uid.is_encapsulated or self.transfer_syntax_uid == DeflatedExplicitVRLittleEndian)

    @property
    def decodes_whole(self) -> bool:
        """Whether a frame cannot be had without decoding all of them."""
        return self.transfer_syntax_uid == DeflatedExplicitVRLittleEndian or _is_jpeg_12bit(self)

    @property
    def frame_bytes(self) -> int:
        """Length of one native frame."""
        return self.rows * self.columns * self.bits_allocated // 8


@dataclass(frozen=True, slots=True)
class Rescale:
    """Output = stored x slope + intercept (PS3.3 C.11.1.1.2)."""

    slope: float
    intercept: float

    def apply(self, stored: NDArray[Any], out: NDArray[np.float32]) -> None:
        """Fills `out` from the stored values of the same shape."""
        np.multiply(stored, np.float32(self.slope), out=out, casting="unsafe")
        if self.intercept:
            out += np.float32(self.intercept)


@dataclass(frozen=True, slots=True, eq=False)
class LookupTable:
    """Modality LUT Sequence: output = table[stored - first], clamped to the table (PS3.3 C.11.1.1)."""

    first: int
    table: NDArray[np.float32]

    def apply(self, stored: NDArray[Any], out: NDArray[np.float32]) -> None:
        """Fills `out` from the stored values of the same shape."""
        index = np.clip(stored.astype(np.int64) - self.first, 0, len(self.table) - 1)
        np.take(self.table, index, out=out)


ModalityTransform = Rescale | LookupTable


def locate_pixels(header: FileDataset, file: BinaryIO, path: Path, name: str) -> StoredPixels:
    """Answers where the pixel data of an instance lies.

    `file` stands where `dcmread(file, stop_before_pixels=True)` left it; `name` is for messages.
    Raises BrokenPixelData, UnsupportedTransferSyntax, or NotAVolume for colour.
    """
    rows, columns, frames = integer(header, "Rows"), integer(header, "Columns"), integer(header, "NumberOfFrames") or 1
    bits_allocated = integer(header, "BitsAllocated")
    if not rows or not columns or not bits_allocated or frames < 1:
        raise BrokenPixelData(f"Rows, Columns or Bits Allocated is absent or malformed in {name}: there is no image.")
    photometric = text(header, "PhotometricInterpretation") or _MONOCHROME[1]
    if (integer(header, "SamplesPerPixel") or 1) != 1 or photometric not in _MONOCHROME:
        raise NotAVolume(f"There is a colour picture ({photometric}) in {name}, no measured values.")
    pixel_representation = integer(header, "PixelRepresentation")
    if pixel_representation not in (0, 1):
        raise BrokenPixelData(f"Pixel Representation is absent in {name}: its values may be signed or unsigned.")
    bits_stored = integer(header, "BitsStored") or bits_allocated
    high_bit = integer(header, "HighBit")
    pixels = StoredPixels(
        name=name,
        path=path,
        transfer_syntax_uid=_transfer_syntax(header, name),
        offset=0,
        frames=frames,
        rows=rows,
        columns=columns,
        bits_allocated=bits_allocated,
        bits_stored=bits_stored,
        high_bit=bits_stored - 1 if high_bit is None else high_bit,
        is_signed=pixel_representation == 1,
        photometric_interpretation=photometric,
    )
    if not 0 < bits_stored <= pixels.high_bit + 1 <= bits_allocated:
        raise BrokenPixelData(
            f"The header of {name} contradicts itself: {bits_stored} bits stored, high bit {high_bit} of {bits_allocated} bits."
        )
    if pixels.transfer_syntax_uid == DeflatedExplicitVRLittleEndian:
        return pixels
    offset = _value_offset(file, pixels)
    return replace(pixels, offset=offset)


def read_frames(pixels: StoredPixels, indices: Sequence[int]) -> Iterator[NDArray[Any]]:
    """Yields the stored values of the frames `indices` (from 0, ascending), each of shape (rows, columns).

    Bits above High Bit (old overlays) and below the stored ones are gone. Raises BrokenPixelData.
    """
    if pixels.transfer_syntax_uid == DeflatedExplicitVRLittleEndian:
        frames = _inflated_frames(pixels, indices)
    elif not pixels.transfer_syntax_uid.is_encapsulated:
        frames = _native_frames(pixels, indices)
    elif _is_jpeg_12bit(pixels):
        frames = _jpeg_12bit_frames(pixels, indices)
    else:
        frames = _decoded_frames(pixels, indices)
    for frame in frames:
        yield _without_unused_bits(frame, pixels)


def modality_transform(dataset: Dataset, name: str) -> ModalityTransform | None:
    """Answers the modality LUT of an instance or of a Pixel Value Transformation item; None where it has none.

    MONOCHROME1 is no part of it: that only asks for an inverted display, the values are the same (PS3.3 C.7.6.3.1.2).
    Raises BrokenPixelData where it is half there or malformed: a guess would be off by a thousand HU.
    """
    table = item(dataset, "ModalityLUTSequence")
    if table is not None:
        return _lookup_table(table, name)
    if not text(dataset, "RescaleSlope") and not text(dataset, "RescaleIntercept"):
        return None
    slope, intercept = decimal(dataset, "RescaleSlope"), decimal(dataset, "RescaleIntercept")
    if slope is None or intercept is None or slope == 0:
        raise BrokenPixelData(f"Rescale Slope or Rescale Intercept is absent or malformed in {name}: the values have no known scale.")
    return Rescale(slope, intercept)


# ── where ───────────────────────────────────────────────────────────────────


def _transfer_syntax(header: FileDataset, name: str) -> UID:
    """Answers the transfer syntax; raises UnsupportedTransferSyntax where nothing here can decode it."""
    uid = UID(text(header.file_meta, "TransferSyntaxUID")) if hasattr(header, "file_meta") else UID("")
    if not uid:
        return ImplicitVRLittleEndian if header.original_encoding[0] else UID("1.2.840.10008.1.2.1")
    try:
        decoder = get_decoder(uid)
    except NotImplementedError:
        decoder = None
    if decoder is None or not decoder.is_available:
        words = uid.name if uid.name != uid else "an unknown transfer syntax"
        raise UnsupportedTransferSyntax(f"No decoder for {words} ({uid}), as in {name}, is installed. Send the series uncompressed.")
    return uid


def _value_offset(file: BinaryIO, pixels: StoredPixels) -> int:
    """Answers the offset of the value of Pixel Data; raises BrokenPixelData where it is absent or ends too early."""
    is_big = pixels.transfer_syntax_uid == ExplicitVRBigEndian
    order = ">" if is_big else "<"
    head = file.read(12)
    if len(head) < 8 or struct.unpack_from(f"{order}HH", head) != _PIXEL_DATA:
        raise BrokenPixelData(f"There is no pixel data in {pixels.name}.")
    is_explicit = head[4:6] in (b"OW", b"OB", b"UN")
    if is_explicit and len(head) < 12:
        raise BrokenPixelData(f"The pixel data of {pixels.name} is truncated.")
    (length,) = struct.unpack_from(f"{order}L", head, 8 if is_explicit else 4)
    offset = file.tell() - (0 if is_explicit else len(head) - 8)
    size = pixels.path.stat().st_size
    if pixels.transfer_syntax_uid.is_encapsulated:
        if length != _UNDEFINED_LENGTH or not _fragments_are_whole(file, size):
            raise BrokenPixelData(f"The compressed pixel data of {pixels.name} is truncated: it does not end within the file.")
        return offset
    needed = pixels.frames * pixels.frame_bytes
    present = min(length, size - offset)
    if pixels.bits_allocated not in _NATIVE_BITS_ALLOCATED:
        raise BrokenPixelData(f"The pixels of {pixels.name} have {pixels.bits_allocated} bits: no image of a volume has.")
    if present < needed:
        raise BrokenPixelData(f"The pixel data of {pixels.name} is truncated: {present} of {needed} bytes.")
    return offset


def _fragments_are_whole(file: BinaryIO, size: int) -> bool:
    """Answers whether the items from here on reach the sequence delimitation item within the file (PS3.5 A.4)."""
    while True:
        head = file.read(8)
        if len(head) < 8:
            return False
        group, element, length = struct.unpack("<HHL", head)
        if (group, element) == _SEQUENCE_DELIMITATION:
            return True
        if (group, element) != _ITEM or file.tell() + length > size:
            return False
        file.seek(length, 1)


# ── stored values ───────────────────────────────────────────────────────────


def _native_frames(pixels: StoredPixels, indices: Sequence[int]) -> Iterator[NDArray[Any]]:
    with pixels.path.open("rb") as file:
        for index in indices:
            file.seek(pixels.offset + index * pixels.frame_bytes)
            data = file.read(pixels.frame_bytes)
            if len(data) != pixels.frame_bytes:
                raise BrokenPixelData(f"The pixel data of {pixels.name} ended while it was read.")
            yield np.frombuffer(data, pixels.dtype).reshape(pixels.rows, pixels.columns)


def _inflated_frames(pixels: StoredPixels, indices: Sequence[int]) -> Iterator[NDArray[Any]]:
    try:
        data = dcmread(pixels.path).get("PixelData") or b""
    except PARSE_ERRORS as error:
        raise BrokenPixelData(f"The deflated data set of {pixels.name} cannot be inflated.") from error
    if len(data) < pixels.frames * pixels.frame_bytes or pixels.bits_allocated not in _NATIVE_BITS_ALLOCATED:
        raise BrokenPixelData(f"The pixel data of {pixels.name} is truncated: {len(data)} of {pixels.frames * pixels.frame_bytes} bytes.")
    for index in indices:
        values = np.frombuffer(data, pixels.dtype, pixels.rows * pixels.columns, index * pixels.frame_bytes)
        yield values.reshape(pixels.rows, pixels.columns)


def _decoded_frames(pixels: StoredPixels, indices: Sequence[int]) -> Iterator[NDArray[Any]]:
    decoder = get_decoder(pixels.transfer_syntax_uid)
    with pixels.path.open("rb") as file:
        file.seek(pixels.offset)
        frames = decoder.iter_array(
            file,
            indices=list(indices),
            raw=True,
            rows=pixels.rows,
            columns=pixels.columns,
            number_of_frames=pixels.frames,
            samples_per_pixel=1,
            photometric_interpretation=pixels.photometric_interpretation,
            bits_allocated=pixels.bits_allocated,
            bits_stored=pixels.bits_stored,
            pixel_representation=int(pixels.is_signed),
            pixel_keyword="PixelData",
        )
        try:
            for frame, _ in frames:
                yield frame
        except (RuntimeError, ValueError, EOFError, NotImplementedError, struct.error) as error:
            raise BrokenPixelData(
                f"The compressed pixel data ({pixels.transfer_syntax_uid.name}) of {pixels.name} cannot be decoded."
            ) from error


def _is_jpeg_12bit(pixels: StoredPixels) -> bool:
    return bool(pixels.transfer_syntax_uid == JPEGExtended12Bit and pixels.bits_stored != 8)


def _jpeg_12bit_frames(pixels: StoredPixels, indices: Sequence[int]) -> Iterator[NDArray[Any]]:
    """Yields frames of 12-bit JPEG Extended, which pydicom's plugins decline but GDCM's own image reader decodes."""
    try:
        gdcm: Any = importlib.import_module("gdcm")
    except ImportError as error:
        raise UnsupportedTransferSyntax("12-bit JPEG Extended needs the package python-gdcm.") from error
    reader = gdcm.ImageReader()
    reader.SetFileName(str(pixels.path))
    data = reader.GetImage().GetBuffer().encode("utf-8", "surrogateescape") if reader.Read() else b""
    if len(data) != pixels.frames * pixels.frame_bytes:
        raise BrokenPixelData(f"The compressed pixel data ({pixels.transfer_syntax_uid.name}) of {pixels.name} cannot be decoded.")
    values = np.frombuffer(data, pixels.dtype).reshape(pixels.frames, pixels.rows, pixels.columns)
    yield from (values[index] for index in indices)


def _without_unused_bits(frame: NDArray[Any], pixels: StoredPixels) -> NDArray[Any]:
    """Answers the stored values alone, sign-extended where they are signed (PS3.5 8.1.1)."""
    bits = frame.dtype.itemsize * 8
    if pixels.bits_stored >= bits:
        return frame
    is_at_bottom = pixels.high_bit == pixels.bits_stored - 1 or pixels.high_bit >= bits
    largest = 2 ** (pixels.bits_stored - pixels.is_signed) - 1
    smallest = -largest - 1 if pixels.is_signed else 0
    if is_at_bottom and frame.min() >= smallest and frame.max() <= largest:
        return frame  # nothing else is there: the usual case, five times faster than to make sure
    above = bits - pixels.bits_stored if is_at_bottom else bits - 1 - pixels.high_bit
    native = frame.astype(frame.dtype.newbyteorder("="), copy=False)
    return np.asarray(np.right_shift(np.left_shift(native, above), bits - pixels.bits_stored))


def _lookup_table(dataset: Dataset, name: str) -> LookupTable:
    try:
        count, first, _ = (int(value) for value in dataset.LUTDescriptor)
        data = dataset.LUTData
        is_bytes = isinstance(data, bytes)
        table = np.frombuffer(data, "<u2").astype(np.float32) if is_bytes else np.asarray(data, dtype=np.float32)
    except (AttributeError, ValueError, TypeError) as error:
        raise BrokenPixelData(f"The Modality LUT Sequence of {name} is malformed: the values have no known scale.") from error
    count = count or 65536
    if len(table) < count:
        raise BrokenPixelData(f"The Modality LUT Sequence of {name} is shorter than its descriptor says.")
    return LookupTable(first, table[:count])
