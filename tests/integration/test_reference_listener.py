"""Our listener beside stock pynetdicom: the same odd senders meet both; answers, ends and what is kept are equal, or stand in a table.

Answers are compared byte for byte. Both listeners have the same admission, spool, journal and answers to requests behind them:
what is compared is negotiation, upper layer and messages (PS3.8, PS3.7).
"""

import random
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from node.network import (
    APPLICATION_CONTEXT,
    COMMAND_FRAGMENT,
    DATA_SET_FOLLOWS,
    LAST_FRAGMENT,
    NO_DATA_SET,
    STORAGE_COMMITMENT,
    STORAGE_COMMITMENT_INSTANCE,
    VERIFICATION,
    CommandElement,
    CommandField,
    PduType,
)
from node.network.command import decode_command, encode_command
from tests.integration.intake_kit import RunningListener, config_for, digest, listening, p_data
from tests.peers import HOST, wait_until

CT, UNKNOWN = "1.2.840.10008.5.1.4.1.1.2", "1.2.826.0.1.3680043.10.999.1"
IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
STORE, ECHO, REFUSED = 1, 3, 5
"""Presentation context IDs; the last one is of a SOP class that nobody knows."""

WHOLE: Final = COMMAND_FRAGMENT | LAST_FRAGMENT
PATIENCE_S: Final = 20.0
SILENCE_S: Final = 2.0
"""After which we believe that the reference says nothing, where it is known to."""

ROOT: Final = "1.2.826.0.1.3680043.10.999.6"


# ── words ───────────────────────────────────────────────────────────────────


def element(tag: int, vr: bytes, value: bytes) -> bytes:
    return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr, len(value)) + value


def padded(uid: str) -> bytes:
    return uid.encode() + b"\x00" * (len(uid) % 2)


def data_set(uid: str, filling: int = 100) -> bytes:
    """What files an instance, and a comment."""
    return b"".join(
        (
            element(0x00080016, b"UI", padded(CT)),
            element(0x00080018, b"UI", padded(uid)),
            element(0x0020000D, b"UI", padded(f"{ROOT}.1")),
            element(0x0020000E, b"UI", padded(f"{ROOT}.1.1")),
            element(0x00204000, b"LT", b"x" * (filling & ~1)),
        )
    )


def command(kind: int, uid: str = "", *, number: int = 7, follows: bool = True, sop_class: str = CT) -> bytes:
    told: dict[int, int | str] = {
        CommandElement.AFFECTED_SOP_CLASS_UID: sop_class,
        CommandElement.COMMAND_FIELD: kind,
        CommandElement.MESSAGE_ID: number,
        CommandElement.DATA_SET_TYPE: DATA_SET_FOLLOWS if follows else NO_DATA_SET,
    }
    if kind == CommandField.C_STORE_RQ:
        told |= {CommandElement.PRIORITY: 0, CommandElement.AFFECTED_SOP_INSTANCE_UID: uid}
    return encode_command(told)


def store_command(uid: str, number: int = 7) -> bytes:
    return p_data((STORE, WHOLE, command(CommandField.C_STORE_RQ, uid, number=number)))


def store(uid: str, number: int = 7) -> bytes:
    return store_command(uid, number) + p_data((STORE, LAST_FRAGMENT, data_set(uid)))


def echo(number: int = 9) -> bytes:
    return p_data((ECHO, WHOLE, command(CommandField.C_ECHO_RQ, number=number, follows=False, sop_class=VERIFICATION)))


def pdu(kind: int, body: bytes = bytes(4)) -> bytes:
    return struct.pack(">BBI", kind, 0, len(body)) + body


def item(kind: int, value: bytes) -> bytes:
    return struct.pack(">BBH", kind, 0, len(value)) + value


def request(*extras: bytes, called: str = "RADNODE", contexts: Sequence[tuple[int, str, str]] | None = None) -> bytes:
    """An A-ASSOCIATE-RQ; `extras` are items of the user information."""
    asked = contexts or ((STORE, CT, EXPLICIT), (ECHO, VERIFICATION, IMPLICIT), (REFUSED, UNKNOWN, IMPLICIT))
    body = struct.pack(">HH16s16s32x", 1, 0, called.ljust(16).encode(), b"TESTER".ljust(16))
    body += item(0x10, APPLICATION_CONTEXT.encode())
    for number, sop_class, syntax in asked:
        body += item(0x20, bytes([number, 0, 0, 0]) + item(0x30, sop_class.encode()) + item(0x40, syntax.encode()))
    user = item(0x51, struct.pack(">I", 16384)) + item(0x52, b"1.2.826.0.1.3680043.8.498.1") + b"".join(extras)
    return pdu(PduType.ASSOCIATE_RQ, body + item(0x50, user))


def with_length(text: bytes) -> bytes:
    return struct.pack(">H", len(text)) + text


# ── a conversation ──────────────────────────────────────────────────────────


class Outcome(NamedTuple):
    """What came of a conversation."""

    heard: tuple[bytes, ...]
    end: str
    kept: frozenset[str]

    def told(self) -> str:
        """In a few words."""
        return ", ".join([*map(words, self.heard), self.end, f"{len(self.kept)} kept"])


def words(heard: bytes) -> str:
    kind, body = heard[0], heard[6:]
    if kind == PduType.DATA:
        answer = decode_command(body[6:])
        return f"{answer[CommandElement.COMMAND_FIELD]:04X} status {answer[CommandElement.STATUS]:04X}"
    if kind == PduType.ASSOCIATE_RJ:
        return f"rejected {body[1]}/{body[2]}/{body[3]}"
    if kind == PduType.ABORT:
        return f"abort {body[2]}/{body[3]}"
    return {PduType.ASSOCIATE_AC: "accepted", PduType.RELEASE_RP: "released"}.get(PduType(kind), f"PDU {kind}")


@dataclass
class Talk:
    """A connection of a sender that says what it likes."""

    port: int
    patience_s: float = PATIENCE_S
    heard: list[bytes] = field(default_factory=list)
    closed: bool = False
    silent: bool = False

    def __post_init__(self) -> None:
        self.link = socket.create_connection((HOST, self.port), timeout=self.patience_s)
        self.link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def say(self, words_of_it: bytes) -> None:
        with suppress(OSError):  # the other side may have had enough
            self.link.sendall(words_of_it)

    def hear(self) -> bytes:
        """Takes the next PDU; nothing when the other side has closed, or says nothing for too long."""
        got = b""
        try:
            while len(got) < 6 or len(got) < 6 + struct.unpack_from(">I", got, 2)[0]:
                wanted = 6 - len(got) if len(got) < 6 else 6 + struct.unpack_from(">I", got, 2)[0] - len(got)
                piece = self.link.recv(wanted)
                if not piece:
                    self.closed = True
                    return b""
                got += piece
        except OSError as error:
            self.silent = isinstance(error, TimeoutError)
            self.closed = not self.silent
            return b""
        self.heard.append(got)
        return got

    def ask(self, words_of_it: bytes) -> bytes:
        self.say(words_of_it)
        return self.hear()

    def finish(self) -> str:
        """Answers whether the association is open: then it answers an echo, and is released."""
        self.say(echo(99))
        while heard := self.hear():
            if heard[0] == PduType.DATA and decode_command(heard[12:])[CommandElement.COMMAND_FIELD] == CommandField.C_ECHO_RSP:
                self.ask(pdu(PduType.RELEASE_RQ))
                return "open"
        return self.end()

    def end(self) -> str:
        return "closed" if self.closed else "silent" if self.silent else "open"


Case = Callable[[Talk, str], str]
CASES: dict[str, Case] = {}


def case(name: str) -> Callable[[Case], Case]:
    def note(found: Case) -> Case:
        CASES[name] = found
        return found

    return note


def opened(*extras: bytes) -> Case:
    """A case that negotiates, stores one instance and goes."""

    def play(talk: Talk, uid: str) -> str:
        talk.ask(request(*extras))
        talk.ask(store(uid))
        return talk.finish()

    return play


def after_opening(*pieces: Callable[[str], bytes], answers: int = 0) -> Case:
    """A case that says something on an association, and hears so many answers."""

    def play(talk: Talk, uid: str) -> str:
        talk.ask(request())
        for piece in pieces:
            talk.say(piece(uid))
        for _ in range(answers):
            talk.hear()
        return talk.finish()

    return play


CASES |= {
    "a plain store": opened(),
    "asynchronous operations proposed": opened(item(0x53, struct.pack(">HH", 8, 8))),
    "roles proposed for a storage class": opened(item(0x54, with_length(CT.encode()) + b"\x01\x01")),
    "the role of an SCP alone proposed": opened(item(0x54, with_length(CT.encode()) + b"\x00\x01")),
    "extended negotiation": opened(item(0x56, with_length(CT.encode()) + bytes([2, 0, 0, 0, 1, 0]))),
    "common extended negotiation": opened(item(0x57, with_length(CT.encode()) + with_length(b"1.2.840.10008.4.2") + with_length(b""))),
    "a user name": opened(item(0x58, b"\x01\x00" + with_length(b"somebody") + with_length(b""))),
    "a user name that asks for an answer": opened(item(0x58, b"\x01\x01" + with_length(b"somebody") + with_length(b""))),
    "all of these": opened(
        item(0x53, struct.pack(">HH", 0, 0)),
        item(0x54, with_length(CT.encode()) + b"\x01\x00"),
        item(0x55, b"ODD_SENDER"),
        item(0x58, b"\x02\x01" + with_length(b"somebody") + with_length(b"secret")),
    ),
    "an item of the user information that nobody knows": opened(item(0x5F, b"what?")),
    "several PDVs in a PDU": after_opening(
        store_command,
        lambda uid: p_data(*((STORE, LAST_FRAGMENT if n == 4 else 0, piece) for n, piece in enumerate(cut(data_set(uid), 5)))),
        answers=1,
    ),
    "command and data set in one PDU": after_opening(
        lambda uid: p_data((STORE, WHOLE, command(CommandField.C_STORE_RQ, uid)), (STORE, LAST_FRAGMENT, data_set(uid))), answers=1
    ),
    "command, data set and an echo in one PDU": after_opening(
        lambda uid: p_data(
            (STORE, WHOLE, command(CommandField.C_STORE_RQ, uid)),
            (STORE, LAST_FRAGMENT, data_set(uid)),
            (ECHO, WHOLE, command(CommandField.C_ECHO_RQ, number=9, follows=False, sop_class=VERIFICATION)),
        ),
        answers=2,
    ),
    "fragments of one byte": after_opening(
        store_command,
        lambda uid: b"".join(
            p_data((STORE, LAST_FRAGMENT if n + 1 == len(data_set(uid)) else 0, data_set(uid)[n : n + 1]))
            for n in range(len(data_set(uid)))
        ),
        answers=1,
    ),
    "a command split over PDVs": after_opening(
        lambda uid: p_data(
            *(
                (STORE, WHOLE if n == 3 else COMMAND_FRAGMENT, piece)
                for n, piece in enumerate(cut(command(CommandField.C_STORE_RQ, uid), 4))
            )
        ),
        lambda uid: p_data((STORE, LAST_FRAGMENT, data_set(uid))),
        answers=1,
    ),
    "a command split over PDUs": after_opening(
        *(
            lambda uid, n=n: p_data((STORE, WHOLE if n == 3 else COMMAND_FRAGMENT, cut(command(CommandField.C_STORE_RQ, uid), 4)[n]))  # type: ignore[misc]
            for n in range(4)
        ),
        lambda uid: p_data((STORE, LAST_FRAGMENT, data_set(uid))),
        answers=1,
    ),
    "an empty last fragment": after_opening(
        store_command, lambda uid: p_data((STORE, 0, data_set(uid))), lambda _uid: p_data((STORE, LAST_FRAGMENT, b"")), answers=1
    ),
    "an empty fragment in the middle": after_opening(
        store_command,
        lambda uid: p_data((STORE, 0, data_set(uid)[:50]), (STORE, 0, b""), (STORE, LAST_FRAGMENT, data_set(uid)[50:])),
        answers=1,
    ),
    "a PDU without any PDV": after_opening(lambda _uid: pdu(PduType.DATA, b""), store, answers=1),
    "echo between stores": after_opening(lambda uid: store(uid, 1), lambda _uid: echo(2), lambda uid: store(f"{uid}.2", 3), answers=3),
    "two stores without waiting for the answer": after_opening(lambda uid: store(uid, 1) + store(f"{uid}.2", 2), answers=2),
    "a PDU longer than was asked for": after_opening(
        store_command,
        lambda uid: p_data((STORE, LAST_FRAGMENT, data_set(uid, 60_000) + element(0x00324000, b"LT", bytes(30_000)))),
        answers=1,
    ),
    "a data set that is noise": after_opening(store_command, lambda _uid: p_data((STORE, LAST_FRAGMENT, b"\xff\x13" * 99)), answers=1),
    "a data set of another instance": after_opening(
        store_command, lambda uid: p_data((STORE, LAST_FRAGMENT, data_set(f"{uid}.9"))), answers=1
    ),
    "a store without a data set": after_opening(
        lambda uid: p_data((STORE, WHOLE, command(CommandField.C_STORE_RQ, uid, follows=False))),
    ),
    "a query on a storage context": after_opening(
        lambda _uid: p_data((STORE, WHOLE, command(CommandField.C_FIND_RQ, follows=False))),
    ),
    "an answer that nobody asked for": after_opening(
        lambda _uid: p_data(
            (
                STORE,
                WHOLE,
                encode_command(
                    {
                        CommandElement.AFFECTED_SOP_CLASS_UID: CT,
                        CommandElement.COMMAND_FIELD: CommandField.C_STORE_RSP,
                        CommandElement.MESSAGE_ID_RESPONDED_TO: 1,
                        CommandElement.DATA_SET_TYPE: NO_DATA_SET,
                        CommandElement.STATUS: 0,
                    }
                ),
            )
        ),
    ),
    "a cancel of nothing": after_opening(
        lambda _uid: p_data(
            (
                STORE,
                WHOLE,
                encode_command(
                    {
                        CommandElement.COMMAND_FIELD: CommandField.C_CANCEL_RQ,
                        CommandElement.MESSAGE_ID_RESPONDED_TO: 1,
                        CommandElement.DATA_SET_TYPE: NO_DATA_SET,
                    }
                ),
            )
        ),
    ),
    "a context that was refused": after_opening(
        lambda _uid: p_data((REFUSED, WHOLE, command(CommandField.C_ECHO_RQ, follows=False, sop_class=VERIFICATION))),
    ),
    "a context that was never proposed": after_opening(
        lambda _uid: p_data((77, WHOLE, command(CommandField.C_ECHO_RQ, follows=False, sop_class=VERIFICATION))),
    ),
    "a PDV that is longer than its PDU": after_opening(lambda _uid: pdu(PduType.DATA, struct.pack(">IBB", 99, STORE, 0) + b"short")),
    "a second request for an association": after_opening(lambda _uid: request()),
    "an acceptance from the requestor": after_opening(lambda _uid: pdu(PduType.ASSOCIATE_AC, request()[6:])),
    "a release response that nobody asked for": after_opening(lambda _uid: pdu(PduType.RELEASE_RP)),
    "release and release response at once": after_opening(lambda _uid: pdu(PduType.RELEASE_RP) + pdu(PduType.RELEASE_RQ)),
}


def cut(content: bytes, pieces: int) -> list[bytes]:
    step = -(-len(content) // pieces)
    return [content[place : place + step] for place in range(0, len(content), step)]


@case("byte by byte")
def _(talk: Talk, uid: str) -> str:
    for byte in request():
        talk.say(bytes([byte]))
    talk.hear()
    for byte in store(uid):
        talk.say(bytes([byte]))
    talk.hear()
    return talk.finish()


@case("a called AE title that is not ours")
def _(talk: Talk, _uid: str) -> str:
    talk.ask(request(called="ANOTHER"))
    return "left"


@case("SOP classes that nobody knows, and no other")
def _(talk: Talk, _uid: str) -> str:
    talk.ask(request(contexts=[(1, UNKNOWN, IMPLICIT)]))
    talk.ask(pdu(PduType.RELEASE_RQ))
    return "released"


@case("a transfer syntax that nobody knows")
def _(talk: Talk, _uid: str) -> str:
    talk.ask(request(contexts=[(1, CT, "1.2.826.0.1.3680043.10.999.2"), (3, VERIFICATION, IMPLICIT)]))
    return talk.finish()


@case("an association without any context")
def _(talk: Talk, _uid: str) -> str:
    body = request()[6:]
    talk.ask(pdu(PduType.ASSOCIATE_RQ, body[: 68 + 4 + len(APPLICATION_CONTEXT)] + body[body.index(b"\x50\x00", 68 + 25) :]))
    talk.ask(pdu(PduType.RELEASE_RQ))
    return "released"


@case("a PDU of a kind that nobody knows")
def _(talk: Talk, _uid: str) -> str:
    talk.ask(request())
    talk.ask(pdu(0x42))
    return "left"


@case("HTTP")
def _(talk: Talk, _uid: str) -> str:
    talk.ask(b"GET / HTTP/1.1\r\nHost: pacs\r\n\r\n")
    return "left"


@case("a data set before the association")
def _(talk: Talk, uid: str) -> str:
    talk.ask(store(uid))
    return talk.finish()


@case("a release in the middle of a data set")
def _(talk: Talk, uid: str) -> str:
    talk.ask(request())
    talk.say(store_command(uid) + p_data((STORE, 0, data_set(uid)[:60])))
    talk.ask(pdu(PduType.RELEASE_RQ))
    return "released"


@case("a store and a release at once")
def _(talk: Talk, uid: str) -> str:
    talk.ask(request())
    talk.ask(store(uid) + pdu(PduType.RELEASE_RQ))
    talk.hear()
    return "released"


@case("a command in the middle of a data set")
def _(talk: Talk, uid: str) -> str:
    talk.ask(request())
    talk.say(store_command(uid) + p_data((STORE, 0, data_set(uid)[:60])))
    return talk.finish()


@case("a data set without a command")
def _(talk: Talk, uid: str) -> str:
    talk.ask(request())
    talk.say(p_data((STORE, LAST_FRAGMENT, data_set(uid))))
    return talk.finish()


def report(transaction_uid: str) -> bytes:
    """The data set of an N-EVENT-REPORT in Implicit VR: one instance is committed."""
    instance = implicit(0x00081150, padded(CT)) + implicit(0x00081155, padded(f"{ROOT}.4"))
    return implicit(0x00081195, padded(transaction_uid)) + implicit(
        0x00081199, struct.pack("<HHI", 0xFFFE, 0xE000, len(instance)) + instance
    )


def implicit(tag: int, value: bytes) -> bytes:
    return struct.pack("<HHI", tag >> 16, tag & 0xFFFF, len(value)) + value


@case("a report on a commitment that nobody asked for")
def _(talk: Talk, _uid: str) -> str:
    role = item(0x54, with_length(STORAGE_COMMITMENT.encode()) + b"\x00\x01")
    talk.ask(request(role, contexts=[(STORE, STORAGE_COMMITMENT, IMPLICIT), (ECHO, VERIFICATION, IMPLICIT)]))
    told: dict[int, int | str] = {
        CommandElement.AFFECTED_SOP_CLASS_UID: STORAGE_COMMITMENT,
        CommandElement.COMMAND_FIELD: CommandField.N_EVENT_REPORT_RQ,
        CommandElement.MESSAGE_ID: 4,
        CommandElement.DATA_SET_TYPE: DATA_SET_FOLLOWS,
        CommandElement.AFFECTED_SOP_INSTANCE_UID: STORAGE_COMMITMENT_INSTANCE,
        CommandElement.EVENT_TYPE_ID: 1,
    }
    talk.ask(p_data((STORE, WHOLE, encode_command(told))) + p_data((STORE, LAST_FRAGMENT, report(f"{ROOT}.5"))))
    return talk.finish()


@case("an abort in the middle of a data set")
def _(talk: Talk, uid: str) -> str:
    talk.ask(request())
    talk.say(store_command(uid) + p_data((STORE, 0, data_set(uid)[:60])) + pdu(PduType.ABORT))
    return "left"


@case("a sender that closes its half in the middle of a data set")
def _(talk: Talk, uid: str) -> str:
    talk.ask(request())
    talk.say(store_command(uid) + p_data((STORE, 0, data_set(uid)[:60])))
    talk.link.shutdown(socket.SHUT_WR)
    while talk.hear():
        pass
    return talk.end()


class Difference(NamedTuple):
    """What ours does, what pynetdicom does, and why that is right."""

    ours: str
    theirs: str
    reason: str
    silent: bool = False
    """Whether pynetdicom says nothing where an answer is waited for."""


_NO_REASON = "an A-ABORT of the provider may say why (PS3.8 Table 9-26): ours does, pynetdicom sends the reason 0"

DIFFERENCES: dict[str, Difference] = {
    "an item of the user information that nobody knows": Difference(
        "accepted, 8001 status 0000, 8030 status 0000, released, open, 1 kept",
        "abort 0/0, closed, 0 kept",
        "pynetdicom's parser stumbles over it; it is to be ignored (PS3.8 D.2)",
    ),
    "command, data set and an echo in one PDU": Difference(
        "accepted, 8001 status 0000, 8030 status 0000, 8030 status 0000, released, open, 1 kept",
        "accepted, 8001 status 0000, 8030 status 0000, released, open, 1 kept",
        "pynetdicom forgets what follows the end of a message within a PDU: the first echo is never answered",
        silent=True,
    ),
    "a query on a storage context": Difference(
        "accepted, 8020 status 0211, 8030 status 0000, released, open, 0 kept",
        "accepted, abort 0/0, closed, 0 kept",
        "pynetdicom stumbles over a C-FIND where it expects a C-STORE; ours answers Unrecognized Operation (PS3.7 C.5.19)",
    ),
    "a PDV that is longer than its PDU": Difference(
        "accepted, abort 0/0, closed, 0 kept", "accepted, abort 2/0, closed, 0 kept", "nothing hangs on who says that it cannot go on"
    ),
    "a PDU of a kind that nobody knows": Difference(
        "accepted, abort 2/2, left, 0 kept",
        "accepted, abort 2/0, left, 0 kept",
        _NO_REASON + "; and it goes on reading, which ours does not",
    ),
    "a second request for an association": Difference(
        "accepted, abort 2/2, closed, 0 kept", "accepted, abort 2/0, closed, 0 kept", _NO_REASON
    ),
    "an acceptance from the requestor": Difference(
        "accepted, abort 2/2, closed, 0 kept", "accepted, abort 2/0, closed, 0 kept", _NO_REASON
    ),
    "a release response that nobody asked for": Difference(
        "accepted, abort 2/2, closed, 0 kept", "accepted, abort 2/0, closed, 0 kept", _NO_REASON
    ),
    "release and release response at once": Difference(
        "accepted, abort 2/2, closed, 0 kept", "accepted, abort 2/0, closed, 0 kept", _NO_REASON
    ),
    "a data set before the association": Difference(
        "abort 2/6, closed, 0 kept", "abort 0/0, closed, 0 kept", "ours says that it is no request, pynetdicom gives no reason"
    ),
    "a data set without a command": Difference(
        "accepted, abort 0/0, closed, 0 kept", "accepted, abort 2/0, closed, 0 kept", "nothing hangs on who says that it cannot go on"
    ),
    "a sender that closes its half in the middle of a data set": Difference(
        "accepted, abort 0/0, closed, 0 kept", "accepted, closed, 0 kept", "ours tells a sender that may still listen"
    ),
}


# ── both ────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningListener]:
    with running(tmp_path_factory.mktemp("ours"), "radnode") as listener:
        yield listener


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningListener]:
    with running(tmp_path_factory.mktemp("theirs"), "pynetdicom") as listener:
        yield listener


@pytest.fixture(scope="module")
def ours_preallocated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningListener]:
    with running(tmp_path_factory.mktemp("preallocated"), "radnode", durability="power-loss", preallocated_mib=8) as listener:
        yield listener


@contextmanager
def running(folder: Path, engine: str, durability: str = "process-crash", preallocated_mib: int = 0) -> Iterator[RunningListener]:
    with listening(config_for(folder, engine=engine, durability=durability, preallocated_mib=preallocated_mib)) as listener:
        yield listener


def outcome(listener: RunningListener, name: str, patience_s: float = PATIENCE_S) -> Outcome:
    """Plays a case; what it stores has UIDs of its own, the same ones on every listener."""
    uid = f"{ROOT}.2.{list(CASES).index(name)}"
    talk = Talk(listener.port, patience_s)
    try:
        end = CASES[name](talk, uid)
    finally:
        talk.link.close()
    wait_until(lambda: not listener.leftovers(), "the settler, or the sweep", PATIENCE_S)
    kept = {found for one, found in listener.recorded().items() if one == uid or one.startswith(f"{uid}.")}
    return Outcome(tuple(map(plain, talk.heard)), end, frozenset(kept))


def plain(heard: bytes) -> bytes:
    """Answers a PDU; the contexts of an acceptance in the order of their IDs: pynetdicom has the accepted ones first."""
    if heard[0] != PduType.ASSOCIATE_AC:
        return heard
    items, place = [], 74
    while place < len(heard):
        length = struct.unpack_from(">H", heard, place + 2)[0]
        items.append(heard[place : place + 4 + length])
        place += 4 + length
    return heard[:74] + b"".join(sorted(items, key=lambda one: (one[0], one[4] if one[0] == 0x21 else 0)))


@pytest.mark.parametrize("name", CASES)
def test_an_odd_sender_meets_the_same_or_the_table_says_why_not(ours: RunningListener, theirs: RunningListener, name: str) -> None:
    expected = DIFFERENCES.get(name)
    patience_s = SILENCE_S if expected is not None and expected.silent else PATIENCE_S
    mine, reference = outcome(ours, name), outcome(theirs, name, patience_s)
    if expected is not None:
        assert (mine.told(), reference.told()) == (expected.ours, expected.theirs)
    else:
        assert mine.told() == reference.told()
        assert mine == reference


def test_the_table_names_cases_and_reasons() -> None:
    assert set(DIFFERENCES) <= set(CASES)
    assert all(found.reason and found.ours != found.theirs for found in DIFFERENCES.values())


def cut_at_random(dice: random.Random, content: bytes, *, echo_behind: bool) -> bytes:
    """A data set in fragments of any length, one or some a PDU, empty ones among them; maybe an echo in the PDU of the last one."""
    pieces, place = [], 0
    while place < len(content):
        size = dice.choice((0, 1, dice.randrange(2, 100), dice.randrange(100, 20_000), dice.randrange(20_000, 300_000)))
        pieces.append(content[place : place + size])
        place += size
    values = [(STORE, LAST_FRAGMENT if number == len(pieces) - 1 else 0, piece) for number, piece in enumerate(pieces)]
    if echo_behind:
        values.append((ECHO, WHOLE, command(CommandField.C_ECHO_RQ, number=9, follows=False, sop_class=VERIFICATION)))
    said = b""
    while values:
        together = dice.randrange(1, 6)
        said += p_data(*values[:together])
        values = values[together:]
    return said


@pytest.mark.parametrize("seed", range(10))
def test_a_long_data_set_is_kept_however_it_is_cut(
    ours: RunningListener, ours_preallocated: RunningListener, theirs: RunningListener, seed: int
) -> None:
    """It is longer than any buffer on its way, and the network cuts it once more where it likes."""
    dice = random.Random(seed)
    uid = f"{ROOT}.6.{seed}"
    content = data_set(uid) + element(0x7FE00010, b"OW", b"") + dice.randbytes(2 * dice.randrange(10_000, 1_200_000))
    for listener, echo_behind in (
        (ours, True),
        (ours_preallocated, True),
        (theirs, False),
    ):  # pynetdicom forgets what follows within a PDU: see the table
        dice.seed(seed)
        talk = Talk(listener.port)
        talk.ask(request())
        said = store_command(uid) + cut_at_random(dice, content, echo_behind=echo_behind)
        place = 0
        while place < len(said):
            step = dice.choice((dice.randrange(1, 50), dice.randrange(50, 5000), dice.randrange(5000, 500_000)))
            talk.say(said[place : place + step])
            place += step
        talk.hear()
        if echo_behind:
            talk.hear()
        assert talk.finish() == "open"
        talk.link.close()
        expected = ["accepted", "8001 status 0000", *(["8030 status 0000"] if echo_behind else []), "8030 status 0000", "released"]
        assert list(map(words, talk.heard)) == expected
        assert listener.recorded()[uid] == digest(content)


def small_conversation(uid: str) -> tuple[bytes, bytes]:
    """A request that is waited for, and all that follows."""
    return request(), store(uid) + pdu(PduType.RELEASE_RQ)


def say_up_to(listener: RunningListener, uid: str, place: int) -> None:
    first, rest = small_conversation(uid)
    talk = Talk(listener.port)
    talk.say(first[:place])
    if place >= len(first):
        assert talk.hear(), "no acceptance"
        talk.say(rest[: place - len(first)])
    talk.link.close()


def test_a_sender_that_goes_at_any_byte_leaves_nothing_or_a_whole_instance(ours: RunningListener, theirs: RunningListener) -> None:
    """Ours at every byte; pynetdicom, whose associations cost a tenth of a second each, at every 40th and where something begins."""
    never = f"{ROOT}.3.100"
    first, rest = small_conversation(never)
    end = len(first) + len(rest)
    whole = end - len(pdu(PduType.RELEASE_RQ))
    begins = (len(first), len(first) + len(store_command(never)))
    uids = {place: f"{ROOT}.3.{200 + place - whole}" for place in range(whole, end + 1)}
    for place in range(end + 1):
        say_up_to(ours, uids.get(place, never), place)
        if place < whole and (place % 40 == 0 or any(abs(place - begin) <= 1 for begin in begins)):
            say_up_to(theirs, never, place)
    wait_until(lambda: not theirs.leftovers() and not ours.leftovers(), "the sweep", PATIENCE_S)
    wait_until(lambda: set(uids.values()) <= set(ours.recorded()), "what arrived whole", PATIENCE_S)
    assert {found for uid, found in ours.recorded().items() if uid in uids.values()} == {digest(data_set(uid)) for uid in uids.values()}
    assert never not in ours.recorded()
    assert never not in theirs.recorded()
