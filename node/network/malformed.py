"""What the parsers of pydicom and pynetdicom raise when they meet bytes that are not what they expect."""

import struct
import zlib
from typing import Final

from pydicom.errors import BytesLengthException, InvalidDicomError

MALFORMED_PDU: Final = (
    ValueError, TypeError, LookupError, AttributeError, NotImplementedError, AssertionError, RuntimeError, struct.error,
)  # fmt: skip
"""What pynetdicom's codecs raise when they meet what is no PDU."""

MALFORMED_DATA_SET: Final = (
    ValueError, TypeError, LookupError, AttributeError, NotImplementedError, ArithmeticError, EOFError, OSError,
    RuntimeError, AssertionError, struct.error, zlib.error, BytesLengthException, InvalidDicomError,
)  # fmt: skip
"""What pydicom's parsers raise when they meet what is no data set."""
