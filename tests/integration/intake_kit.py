"""A listener in this process, its spool and its journal in view; a sender that can misbehave."""

import hashlib
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pynetdicom.dsutils import split_dataset

from node.config import Config
from node.delivery.store_scu import StoreScu
from node.delivery.upper_layer import Context, Peer, RequestedAssociation, Timeouts
from node.intake.listener import run_listener
from node.intake.seal import SEAL_BYTES, decode_seal
from node.intake.spool import spooled_path
from node.journal import open_database
from tests.peers import HOST, wait_until


def config_for(state_dir: Path, *, peers: dict[str, Any] | None = None, ae_title: str = "RADNODE", **listener: Any) -> Config:
    """Answers a configuration with its state in `state_dir` and a port of the OS's choice; it receives in one process, which has threads."""
    state_dir.mkdir(parents=True, exist_ok=True)
    settings = {"host": HOST, "port": 0, "refuse_below_free_gib": 0.0, "processes": 1, **listener}
    table = {
        "node": {"ae_title": ae_title, "state_dir": str(state_dir), "models_dir": str(state_dir)},
        "listener": settings,
        "peers": peers or {},
    }
    return Config.model_validate(table, context={"folder": state_dir})


def leftovers(state_dir: Path) -> list[Path]:
    """The files of the incoming folder that hold something."""
    found = []
    for path in (state_dir / "spool" / "incoming").iterdir():
        with suppress(FileNotFoundError):
            if path.stat().st_size:
                found.append(path)
    return found


def is_sealed(path: Path) -> bool:
    """Whether a file of the incoming folder has been answered for."""
    try:
        with path.open("rb") as stream:
            return decode_seal(stream.read(SEAL_BYTES)) is not None
    except FileNotFoundError:
        return False


def sealed_in(state_dir: Path) -> set[str]:
    """The digests of the data sets that have been answered for and have no row yet."""
    folder = state_dir / "spool" / "incoming"
    return {digest(data_set_of(path)) for path in (folder.iterdir() if folder.exists() else ()) if is_sealed(path)}


@dataclass
class RunningListener:
    """A listener that answers on `port`."""

    state_dir: Path
    port: int

    def settled(self) -> None:
        """Waits until everything that was answered with success has its row."""
        wait_until(lambda: not any(is_sealed(path) for path in self.leftovers()), "the settler")

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Reads its journal, when everything that was answered with success stands in it."""
        self.settled()
        connection = open_database(self.state_dir)
        try:
            return [tuple(row) for row in connection.execute(query, values)]
        finally:
            connection.close()

    def recorded(self) -> dict[str, str]:
        """Digests of the first bytes of every instance, by SOP Instance UID."""
        return dict(self.rows("SELECT sop_instance_uid, sha256 FROM instance WHERE revision = 0"))

    def kept(self) -> dict[str, bytes]:
        """The data sets of all recorded instances, as they lie on the disk."""
        return {uid: data_set_of(spooled_path(self.state_dir, digest)) for uid, digest in self.recorded().items()}

    def leftovers(self) -> list[Path]:
        """What has begun to arrive and has no row yet; places made ahead are empty."""
        return leftovers(self.state_dir)

    def spooled(self) -> list[Path]:
        """All kept files."""
        self.settled()
        return list((self.state_dir / "spool").glob("??/*.dcm"))

    def open_associations(self) -> int:
        """How many studies are held open by associations."""
        return int(self.rows("SELECT count(*) FROM open_association")[0][0])


@contextmanager
def listening(config: Config) -> Iterator[RunningListener]:
    """Runs a listener in a thread while the block runs; it must end within five seconds."""
    port_file = config.node.state_dir / "run" / "listener.port"
    port_file.unlink(missing_ok=True)
    stop = threading.Event()
    thread = threading.Thread(target=run_listener, args=(config, stop), daemon=True)
    thread.start()
    wait_until(lambda: port_file.exists() or not thread.is_alive(), "the listener")
    try:
        yield RunningListener(config.node.state_dir, int(port_file.read_text()))
    finally:
        stop.set()
        thread.join(5)
        assert not thread.is_alive(), "the listener does not stop"


def data_set_of(path: Path) -> bytes:
    """Answers the bytes of a Part 10 file behind the file meta information."""
    _, offset = split_dataset(path)
    return path.read_bytes()[offset:]


def on_the_wire(path: Path) -> bytes:
    """Answers the same with the NULL that a deflated data set of odd length gets: fragments are even (PS3.8 9.3.5.1)."""
    data = data_set_of(path)
    return data + b"\x00" * (len(data) % 2)


def digest(data: bytes) -> str:
    """Answers the sha256."""
    return hashlib.sha256(data).hexdigest()


def peer_of(port: int, *, called: str = "RADNODE", calling: str = "TESTER") -> Peer:
    """Answers a peer on this machine."""
    return Peer(HOST, port, called, calling)


def open_scu(port: int, contexts: Sequence[Context], **names: str) -> StoreScu:
    """Opens an association to a listener of this machine."""
    return StoreScu(peer_of(port, **names), contexts, Timeouts(10, 60))


class RawSender(RequestedAssociation):
    """An association whose P-DATA the test writes byte by byte."""

    def __init__(self, port: int, contexts: Sequence[Context]) -> None:
        super().__init__(peer_of(port), contexts, Timeouts(10, 60))

    @property
    def link(self) -> socket.socket:
        """The connection."""
        return self._link.socket

    def send_values(self, *values: tuple[int, int, bytes]) -> None:
        """Sends presentation data values, each (context ID, flags, bytes), in one PDU."""
        self.link.sendall(p_data(*values))

    def vanish(self) -> None:
        """Breaks the connection without a word."""
        self.link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._link.close()


def p_data(*values: tuple[int, int, bytes]) -> bytes:
    """Answers a P-DATA-TF PDU (PS3.8 9.3.5)."""
    body = b"".join(struct.pack(">IBB", len(data) + 2, context_id, flags) + data for context_id, flags, data in values)
    return struct.pack(">BBI", 4, 0, len(body)) + body
