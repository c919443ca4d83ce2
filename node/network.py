"""What both ends of an association share: who we are, the numbers of PS3.8, the options of the socket."""

import contextlib
import socket
from enum import Enum
from typing import Final

from node import __version__

IMPLEMENTATION_VERSION_NAME: Final = f"RADNODE_{__version__.replace('.', '_')}"[:16]
"""Implementation Version Name (PS3.7 D.3.3.2.3): with `codes.IMPLEMENTATION_CLASS_UID` in every association and file."""

NATIVE_TRANSFER_SYNTAXES: Final = (
    "1.2.840.10008.1.2.1",  # Explicit VR Little Endian
    "1.2.840.10008.1.2",  # Implicit VR Little Endian
    "1.2.840.10008.1.2.1.99",  # Deflated Explicit VR Little Endian
    "1.2.840.10008.1.2.2",  # Explicit VR Big Endian (retired)
)
"""Transfer syntaxes whose pixels are not compressed, the best first."""


class Rejection(Enum):
    """Why an association is rejected: result, source, reason (PS3.8 Table 9-21)."""

    CALLED_AE_TITLE = (1, 1, 7)
    CALLING_AE_TITLE = (1, 1, 3)
    LOCAL_LIMIT = (2, 3, 2)


REJECTED_TRANSIENT: Final = 2
"""Result of an A-ASSOCIATE-RJ that another attempt may overcome (PS3.8 Table 9-21)."""


def prepare_socket(link: socket.socket, timeout_s: float) -> None:
    """Sets what an association needs: no waiting for full packets, no waiting for ever, notice of a dead peer."""
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    link.settimeout(timeout_s)


def acknowledge_at_once(link: socket.socket) -> None:
    """Makes the kernel acknowledge what has arrived: a sender that leaves Nagle on (DCMTK) waits 40 ms for it otherwise.

    The kernel forgets the option by itself: set it again with every message.
    """
    if hasattr(socket, "TCP_QUICKACK"):  # Linux
        with contextlib.suppress(OSError):  # the peer may have gone
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
