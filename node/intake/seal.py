"""The seal: 128 bytes in the preamble of an arrived instance that say that it is whole, and was answered for.

Success is answered when the seal is written; the row of the journal follows. After a crash the sealed files are the record of what was
promised: whoever finds one takes it in. PS3.10 7.1 leaves the preamble to the application; a data set never changes by it.
"""

import struct
import zlib
from pathlib import Path
from typing import Final, NamedTuple

SEAL_BYTES: Final = 128
"""As long as the preamble of a Part 10 file (PS3.10 7.1)."""

_MAGIC: Final = b"radnode\x01"
_LAYOUT: Final = struct.Struct("<8sQQd32s16s")
_CHECK: Final = struct.Struct("<I")


class Seal(NamedTuple):
    """What a listener notes of an instance before it answers with success."""

    head_bytes: int
    """Where the data set begins, behind preamble and file meta information."""
    size_bytes: int
    """Of the data set; what the file holds behind it is nothing."""
    sealed_at_s: float
    """Seconds since the epoch."""
    sha256: bytes
    """Of the data set, b'' where that was left for later: such bytes are whole only as long as the machine runs."""
    boot_id: bytes
    """Of the machine's run: what only the kernel had is gone in the next one."""

    def encode(self) -> bytes:
        """Answers the preamble."""
        digest = self.sha256 or bytes(32)
        body = _LAYOUT.pack(_MAGIC, self.head_bytes, self.size_bytes, self.sealed_at_s, digest, self.boot_id)
        return body + bytes(SEAL_BYTES - len(body) - _CHECK.size) + _CHECK.pack(zlib.crc32(body))

    @property
    def end_bytes(self) -> int:
        """How long the file is without what may lie behind the data set."""
        return self.head_bytes + self.size_bytes

    def outlives(self, boot_id: bytes) -> bool:
        """Answers whether the bytes can be judged in this run of the machine: by their digest, or since it is the run they came in."""
        return bool(self.sha256) or (any(boot_id) and self.boot_id == boot_id)


def decode_seal(preamble: bytes) -> Seal | None:
    """Answers the seal in a preamble, None where there is none: the file was still arriving."""
    if len(preamble) < SEAL_BYTES or not preamble.startswith(_MAGIC):
        return None
    body = preamble[: _LAYOUT.size]
    if _CHECK.unpack(preamble[SEAL_BYTES - _CHECK.size : SEAL_BYTES])[0] != zlib.crc32(body):
        return None
    _, head_bytes, size_bytes, sealed_at_s, digest, boot_id = _LAYOUT.unpack(body)
    return Seal(head_bytes, size_bytes, sealed_at_s, b"" if digest == bytes(32) else digest, boot_id)


def this_boot() -> bytes:
    """Answers what is unlike in every run of the machine; nothing where the system does not tell: then only digests count."""
    try:
        told = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")  # Linux
    except OSError:
        return bytes(16)
    return bytes.fromhex(told.strip().replace("-", ""))
