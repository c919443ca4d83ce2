"""The process of the listener: spool, settler, the doors that are configured, until it is told to stop.

With `listener.processes` above one it files, and receives over STOW-RS; what comes over DICOM is received by processes that it forks.
"""

import contextlib
import resource
import threading
from functools import partial
from typing import Final

import structlog

from node.config import Config
from node.errors import ConfigError
from node.files import Durability, write_durably
from node.intake.acceptors import Acceptors, Post, how_many
from node.intake.admission import AdmissionRules, KnownSender
from node.intake.association import ScpOptions, StorageScp, resolve
from node.intake.contexts import supported_contexts
from node.intake.door import LEAVING_CONNECTIONS, SPARE_CONNECTIONS, open_port
from node.intake.handover import Handover
from node.intake.reception import Intake
from node.intake.reference import ReferenceScp
from node.intake.settler import Settler
from node.intake.spool import Spool
from node.intake.stow.server import StowServer, start_stow
from node.journal import ReceivedJournal, open_database
from node.network.tls import listener_context

TICK_S: Final = 1.0

DESCRIPTORS_AN_ASSOCIATION: Final = 8
"""Its connection, its file, its view of the journal, and some to spare."""

log = structlog.get_logger("radnode")


def run_listener(config: Config, stop: threading.Event) -> None:
    """Receives instances into the spool and the journal until `stop`; the port it got stands in `run/listener.port`.

    Raises
    ------
    AcceptorDied
        When a process that takes connections is gone: whoever runs this is to run it again.
    CannotListen
        When an address cannot be had.
    """
    _claim_descriptors(config.listener.max_associations + (config.stow.max_connections if config.stow.port is not None else 0))
    spool = _spool(config)
    spool.prepare()
    with spool.claimed():
        with contextlib.closing(open_database(config.node.state_dir)) as connection:
            ReceivedJournal(connection).clear_associations()
        processes = how_many(config.listener.processes)
        if processes > 1 and config.listener.engine == "radnode":
            _run_with_acceptors(config, stop, Acceptors(processes))
        else:
            _run_alone(config, stop, spool)
    log.info("listener.stopped")


def _run_alone(config: Config, stop: threading.Event, spool: Spool) -> None:
    """Receives and files in this process."""
    intake = Intake(config.node.state_dir, spool, Durability(config.listener.durability))
    recovered = intake.start()
    make_scp = ReferenceScp if config.listener.engine == "pynetdicom" else StorageScp
    scp = make_scp(options_from(config), spool, intake.accept, intake.end_association, intake.record_report)
    port = scp.start()
    stow = start_stow(config, spool, intake.accept, intake.end_association, resolve)
    _tell_ready(config, port, recovered)
    while not stop.wait(TICK_S):
        _look(spool)
    if stow is not None:
        stow.stop()
    scp.stop()
    intake.stop()


def _run_with_acceptors(config: Config, stop: threading.Event, acceptors: Acceptors) -> None:
    """Receives in processes of their own, and files in this one, which serves STOW-RS besides."""
    state_dir, durability = config.node.state_dir, Durability(config.listener.durability)
    has_stow = config.stow.port is not None
    shares = acceptors.count + has_stow
    spool = _spool(config, shares if has_stow else 0)
    settler = Settler(state_dir, spool, durability, acceptors.tell_trouble)
    recovered = settler.recover()
    options = options_from(config)
    if options.tls is not None:
        listener_context(options.tls)  # what is wrong with it is told here, and not by each of them
    supported_contexts(reports=True)  # shared by all of them, and ready
    intake = Intake(state_dir, spool, durability, settler)
    server = open_port(options.host, options.port)
    stow: StowServer | None = None
    try:
        acceptors.fork(server, partial(_accept, config, options, shares))
        port = int(server.getsockname()[1])
        server.close()  # theirs from here on
        settler.begin()
        acceptors.start(settler)
        stow = start_stow(config, spool, intake.accept, intake.end_association, resolve)
        _tell_ready(config, port, recovered)
        while not stop.wait(TICK_S):
            acceptors.require_all()
            if has_stow:
                _look(spool)
    finally:
        acceptors.tell_to_stop()
        if stow is not None:
            stow.stop()
        acceptors.stop()
        intake.stop()


def _accept(config: Config, options: ScpOptions, shares: int, post: Post, stop: threading.Event) -> None:
    """Is what a process does that takes connections: receives and seals, and hands over what is sealed."""
    spool = _spool(config, shares)
    durability = Durability(config.listener.durability)
    intake = Intake(config.node.state_dir, spool, durability, Handover(spool, post.pipe, post.desk.census))
    intake.start()
    scp = StorageScp(options, spool, intake.accept, intake.end_association, intake.record_report, post.desk)
    scp.start(post.server)
    while not stop.wait(TICK_S):
        _look(spool)
    scp.stop()
    intake.stop()


def _spool(config: Config, shares: int = 1) -> Spool:
    """Answers a view of the spool, with its share of what is preallocated; 0: nothing arrives through it."""
    listener = config.listener
    return Spool(
        config.node.state_dir / "spool",
        refuse_below_free_bytes=int(listener.refuse_below_free_gib * (1 << 30)),
        durability=Durability(listener.durability),
        preallocated_bytes=(listener.preallocated_mib << 20) // shares if shares else 0,
    )


def _tell_ready(config: Config, port: int, recovered: int) -> None:
    write_durably(config.node.state_dir / "run" / "listener.port", f"{port}\n".encode())
    log.info("listener.ready", ae_title=config.node.ae_title, host=config.listener.host, port=port, recovered=recovered)


def _look(spool: Spool) -> None:
    with contextlib.suppress(OSError):  # the disk does not answer: the next instance finds out
        spool.watermark.look()


def _claim_descriptors(max_associations: int) -> None:
    """Raises the limit of open files to what so many associations need, as far as the system lets us."""
    wanted = 256 + SPARE_CONNECTIONS + LEAVING_CONNECTIONS + DESCRIPTORS_AN_ASSOCIATION * max_associations
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    granted = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (granted, hard))
    if granted < wanted:
        log.warning("listener.few_descriptors", limit=granted, wanted=wanted, max_associations=max_associations)


def options_from(config: Config) -> ScpOptions:
    """Answers what the listener of a node is told."""
    senders = tuple(
        KnownSender(peer.ae_title.strip(), peer.host, may_send=peer.may_send, may_report=peer.confirm in {"auto", "commitment"})
        for peer in config.peers.values()
    )
    if config.listener.tls and config.tls is None:
        raise ConfigError("listener.tls is set, and there is no section [tls] → add it")
    rules = AdmissionRules(
        ae_title=config.node.ae_title.strip(),
        max_associations=config.listener.max_associations,
        accept_unlisted_peers=config.listener.accept_unlisted_peers,
        senders=senders,
    )
    return ScpOptions(
        rules=rules,
        host=config.listener.host,
        port=config.listener.port,
        network_timeout_s=config.listener.network_timeout_s,
        max_pdu_bytes=config.listener.max_pdu_bytes,
        tls=config.tls if config.listener.tls else None,
    )
