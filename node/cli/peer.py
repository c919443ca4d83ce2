"""`radnode echo` and `radnode send`: does a peer answer, and does it take these images."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from node.cli.common import (
    CONFIG_PLACES,
    ProgressLine,
    Verbs,
    add_config,
    add_json,
    advice_for,
    log_errors_when_there_are_any,
    print_json,
    read_config,
    say,
)
from node.codes import ExitCode
from node.errors import UsageError

if TYPE_CHECKING:
    from node.delivery.sender import SendSummary
    from node.delivery.upper_layer import Peer
    from node.network.tls import ClientTls

DEFAULT_CALLING: str = "RADNODE"
DEFAULT_CALLED: str = "ANY-SCP"
DEFAULT_ASSOCIATIONS: int = 1
MOST_ASSOCIATIONS: int = 16


@dataclass(frozen=True, slots=True)
class Address:
    """Where a peer listens and by which names the two of us go."""

    host: str
    port: int
    called: str
    calling: str
    tls: "ClientTls | None" = None
    """Of a peer of the configuration; HOST:PORT is called without."""
    associations: int | None = None
    async_operations: int | None = None
    """Of a peer of the configuration; None where the defaults hold."""

    def as_peer(self) -> "Peer":
        """Answers the same as whoever calls it needs it."""
        from node.delivery.upper_layer import DEFAULT_OPERATIONS, Peer

        operations = self.async_operations or DEFAULT_OPERATIONS
        return Peer(self.host, self.port, self.called, self.calling, self.tls, async_operations=operations)


def register(verbs: Verbs) -> None:
    """Adds the verbs."""
    echo = verbs.add_parser("echo", help="ask a peer by C-ECHO whether it answers")
    add_peer(echo)
    add_json(echo)
    echo.set_defaults(act=_echo)
    send = verbs.add_parser("send", help="send DICOM files to a peer by C-STORE")
    add_peer(send)
    send.add_argument("paths", type=Path, nargs="+", metavar="DIR", help="folders or files")
    send.add_argument(
        "--associations",
        type=int,
        choices=range(1, MOST_ASSOCIATIONS + 1),
        metavar="N",
        help=f"how many at once, 1 to {MOST_ASSOCIATIONS} (default: of the configuration, else {DEFAULT_ASSOCIATIONS})",
    )
    send.set_defaults(act=_send)


def add_peer(parser: argparse.ArgumentParser) -> None:
    """Adds PEER and the options that go with it."""
    parser.add_argument("peer", metavar="PEER", help="a peer of the configuration, or HOST:PORT")
    parser.add_argument("--called", metavar="AET", help=f"AE title of the peer (with HOST:PORT; default {DEFAULT_CALLED})")
    parser.add_argument("--calling", metavar="AET", help=f"our AE title (default: of the configuration, else {DEFAULT_CALLING})")
    add_config(parser)


def address_of(arguments: argparse.Namespace) -> Address:
    """Answers where PEER is: HOST:PORT as it stands, or a peer of the configuration."""
    configured = arguments.config is not None or any(place.is_file() for place in CONFIG_PLACES)
    host, colon, port = arguments.peer.rpartition(":")
    if colon and port.isdigit() and host:
        calling = arguments.calling or (read_config(arguments).node.ae_title if configured else DEFAULT_CALLING)
        return Address(host.strip("[]"), int(port), arguments.called or DEFAULT_CALLED, calling)
    if not configured:
        raise UsageError(
            f"{arguments.peer!r} is no HOST:PORT, and there is no configuration that could name it → give HOST:PORT or --config"
        )
    config = read_config(arguments)
    peer = config.peers.get(arguments.peer)
    if peer is None:
        raise UsageError(f"there is no peer {arguments.peer!r} → give HOST:PORT, or one of: {', '.join(config.peers) or 'none configured'}")
    from node.delivery.peers import configured_peer

    tls = configured_peer(config, arguments.peer).tls
    names = (arguments.called or peer.ae_title, arguments.calling or config.node.ae_title)
    return Address(peer.host, peer.port, *names, tls, associations=peer.associations, async_operations=peer.async_operations)


def _echo(arguments: argparse.Namespace) -> int:
    from node.delivery.store_scu import echo_peer

    log_errors_when_there_are_any()
    address = address_of(arguments)
    elapsed_s = echo_peer(address.as_peer())
    if arguments.json:
        print_json(
            {"host": address.host, "port": address.port, "called": address.called, "calling": address.calling, "elapsed_s": elapsed_s}
        )
    else:
        print(f"{address.called} at {address.host}:{address.port} answers {address.calling} in {elapsed_s * 1000:.0f} ms")
    return ExitCode.OK


def _send(arguments: argparse.Namespace) -> int:
    from node.delivery.sender import send_paths

    log_errors_when_there_are_any()
    missing = [str(path) for path in arguments.paths if not path.exists()]
    if missing:
        raise UsageError(f"there is no {', no '.join(missing)} → name folders or files with DICOM images")
    address = address_of(arguments)
    associations = arguments.associations or address.associations or DEFAULT_ASSOCIATIONS
    line = ProgressLine()

    def tell(_: object, done: int, total: int) -> None:
        line(f"sending to {address.called}", done / total)

    try:
        summary = send_paths(address.as_peer(), arguments.paths, on_outcome=tell, associations=associations)
    finally:
        line.close()
    return _report(address, summary)


def _report(address: Address, summary: "SendSummary") -> int:
    """Prints how many files went which way; answers 0 only if every DICOM file was stored."""
    if summary.skipped:
        say(f"{len(summary.skipped)} files are no DICOM instances and were passed over")
    if not summary.outcomes:
        raise UsageError("there is nothing to send → name folders or files with DICOM images")
    for status, count in summary.statuses.items():
        print(f"{count} {status}")
    if not summary.failed:
        say(f"{summary.size_bytes / 1e6:.1f} MB in {summary.elapsed_s:.1f} s")
        return ExitCode.OK
    errors = [outcome.error for outcome in summary.failed if outcome.error is not None]
    for text in dict.fromkeys(str(error) for error in errors):
        say(f"radnode: {text}")
    say(f"radnode: {len(errors)} files are not stored at {address.called} ({address.host}:{address.port}) → {advice_for(errors[0])}")
    return errors[0].exit_code
