"""What both ends of an association share: who we are, the numbers of PS3.7 and PS3.8, the options of the socket."""

import contextlib
import socket
import ssl
import struct
from enum import Enum, IntEnum
from typing import Final

from node import __version__

IMPLEMENTATION_VERSION_NAME: Final = f"RADNODE_{__version__.replace('.', '_')}"[:16]
"""Implementation Version Name (PS3.7 D.3.3.2.3): with `codes.IMPLEMENTATION_CLASS_UID` in every association and file."""

APPLICATION_CONTEXT: Final = "1.2.840.10008.3.1.1.1"
VERIFICATION: Final = "1.2.840.10008.1.1"
STORAGE_COMMITMENT: Final = "1.2.840.10008.1.20.1"
"""Storage Commitment Push Model (PS3.4 Annex J)."""
STORAGE_COMMITMENT_INSTANCE: Final = "1.2.840.10008.1.20.1.1"
"""The well-known SOP instance of the Storage Commitment Push Model (PS3.4 J.3.5)."""

NATIVE_TRANSFER_SYNTAXES: Final = (
    "1.2.840.10008.1.2.1",  # Explicit VR Little Endian
    "1.2.840.10008.1.2",  # Implicit VR Little Endian
    "1.2.840.10008.1.2.1.99",  # Deflated Explicit VR Little Endian
    "1.2.840.10008.1.2.2",  # Explicit VR Big Endian (retired)
)
"""Transfer syntaxes whose pixels are not compressed, the best first."""
RLE_LOSSLESS: Final = "1.2.840.10008.1.2.5"
"""Run-length encoded (PS3.5 A.4.2)."""


class Rejection(Enum):
    """Why an association is rejected: result, source, reason (PS3.8 Table 9-21)."""

    CALLED_AE_TITLE = (1, 1, 7)
    CALLING_AE_TITLE = (1, 1, 3)
    LOCAL_LIMIT = (2, 3, 2)


REJECTED_TRANSIENT: Final = 2
"""Result of an A-ASSOCIATE-RJ that another attempt may overcome (PS3.8 Table 9-21)."""

CONTEXT_ACCEPTED: Final = 0
"""Result of a presentation context (PS3.8 Table 9-18)."""


class PduType(IntEnum):
    """The first byte of a PDU (PS3.8 9.3.1)."""

    ASSOCIATE_RQ = 1
    ASSOCIATE_AC = 2
    ASSOCIATE_RJ = 3
    DATA = 4
    RELEASE_RQ = 5
    RELEASE_RP = 6
    ABORT = 7


class AbortReason(IntEnum):
    """Why the service provider aborts an association (PS3.8 Table 9-26)."""

    NOT_SPECIFIED = 0
    UNEXPECTED_PDU = 2
    INVALID_PARAMETER = 6


class CommandField(IntEnum):
    """The kind of a command (PS3.7 E.1)."""

    C_STORE_RQ = 0x0001
    C_STORE_RSP = 0x8001
    C_ECHO_RQ = 0x0030
    C_ECHO_RSP = 0x8030
    C_FIND_RQ = 0x0020
    C_FIND_RSP = 0x8020
    N_EVENT_REPORT_RQ = 0x0100
    N_EVENT_REPORT_RSP = 0x8100
    N_ACTION_RQ = 0x0130
    N_ACTION_RSP = 0x8130
    C_CANCEL_RQ = 0x0FFF
    RESPONSE = 0x8000
    """Set in every response."""


class CommandElement(IntEnum):
    """Elements of group 0000 (PS3.7 E.1)."""

    GROUP_LENGTH = 0x0000
    AFFECTED_SOP_CLASS_UID = 0x0002
    REQUESTED_SOP_CLASS_UID = 0x0003
    COMMAND_FIELD = 0x0100
    MESSAGE_ID = 0x0110
    MESSAGE_ID_RESPONDED_TO = 0x0120
    PRIORITY = 0x0700
    DATA_SET_TYPE = 0x0800
    STATUS = 0x0900
    ERROR_COMMENT = 0x0902
    AFFECTED_SOP_INSTANCE_UID = 0x1000
    REQUESTED_SOP_INSTANCE_UID = 0x1001
    EVENT_TYPE_ID = 0x1002
    ACTION_TYPE_ID = 0x1008


class GeneralStatus(IntEnum):
    """Answers to a request that every service may give (PS3.7 Annex C)."""

    PROCESSING_FAILURE = 0x0110
    DUPLICATE_SOP_INSTANCE = 0x0111
    NO_SUCH_EVENT_TYPE = 0x0113
    INVALID_ARGUMENT_VALUE = 0x0115
    NO_SUCH_SOP_CLASS = 0x0118
    UNRECOGNIZED_OPERATION = 0x0211


NO_DATA_SET: Final = 0x0101
"""Data Set Type of a command that no data set follows (PS3.7 E.1); every other value says that one does."""
DATA_SET_FOLLOWS: Final = 0x0001

SHORTEST_WAIT_S: Final = 0.001
"""A timeout of nothing would mean not to wait at all, which is another mode of a socket."""

COMMAND_FRAGMENT: Final = 1
LAST_FRAGMENT: Final = 2
"""Bits of the message control header (PS3.8 E.2)."""


def prepare_socket(link: socket.socket, timeout_s: float) -> None:
    """Sets what an association needs: no waiting for full packets, no waiting for ever, notice of a dead peer."""
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    limit_waits(link, timeout_s)


def limit_waits(link: socket.socket, timeout_s: float) -> None:
    """Makes a call that receives or sends nothing for this long raise BlockingIOError, or TimeoutError over TLS.

    Without TLS the timeouts are the kernel's, not Python's: a call that waits is then one system call, and not two. Over TLS
    they must be Python's: `ssl` takes the kernel's for a call that is to be made again, and would do so for ever.
    """
    if isinstance(link, ssl.SSLSocket):
        link.settimeout(max(SHORTEST_WAIT_S, timeout_s))
        return
    whole_s = int(timeout_s)
    limit = struct.pack("@ll", whole_s, max(1, int((timeout_s - whole_s) * 1e6)))
    link.settimeout(None)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)


_QUICK_ACK: Final[int | None] = getattr(socket, "TCP_QUICKACK", None)  # Linux


def acknowledge_at_once(link: socket.socket) -> None:
    """Makes the kernel acknowledge what has arrived: a sender that leaves Nagle on (DCMTK) waits 40 ms for it otherwise.

    The kernel forgets the option by itself: set it again before every wait.
    """
    if _QUICK_ACK is None:
        return
    try:
        link.setsockopt(socket.IPPROTO_TCP, _QUICK_ACK, 1)
    except OSError:  # the peer has gone: whoever reads or writes next is told
        return


def hang_up(link: socket.socket, how: int = socket.SHUT_RDWR) -> None:
    """Ends a connection from another thread: whoever waits on it wakes up.

    That of TLS is ended below TLS: `SSLSocket.shutdown` drops the layer, and its reader would take ciphertext for what was said.
    """
    with contextlib.suppress(OSError):  # it may be closed already
        socket.socket.shutdown(link, how)
