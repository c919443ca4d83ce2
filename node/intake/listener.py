"""The process of the listener: spool, settler, the doors that are configured, until it is told to stop."""

import contextlib
import resource
import threading
from typing import Final

import structlog

from node.config import Config
from node.errors import ConfigError
from node.files import Durability, write_durably
from node.intake.admission import AdmissionRules, KnownSender
from node.intake.association import LEAVING_CONNECTIONS, SPARE_CONNECTIONS, ScpOptions, StorageScp, resolve
from node.intake.reception import Intake
from node.intake.reference import ReferenceScp
from node.intake.spool import Spool
from node.intake.stow.server import start_stow
from node.journal import ReceivedJournal, open_database

TICK_S: Final = 1.0

DESCRIPTORS_AN_ASSOCIATION: Final = 8
"""Its connection, its file, its view of the journal, and some to spare."""

log = structlog.get_logger("radnode")


def run_listener(config: Config, stop: threading.Event) -> None:
    """Receives instances into the spool and the journal until `stop`; the port it got stands in `run/listener.port`."""
    _claim_descriptors(config.listener.max_associations + (config.stow.max_connections if config.stow.port is not None else 0))
    state_dir = config.node.state_dir
    durability = Durability(config.listener.durability)
    limit_bytes = int(config.listener.refuse_below_free_gib * (1 << 30))
    spool = Spool(
        state_dir / "spool",
        refuse_below_free_bytes=limit_bytes,
        durability=durability,
        preallocated_bytes=config.listener.preallocated_mib << 20,
    )
    spool.prepare()
    connection = open_database(state_dir)
    ReceivedJournal(connection).clear_associations()
    connection.close()
    intake = Intake(state_dir, spool, durability)
    recovered = intake.start()
    make_scp = ReferenceScp if config.listener.engine == "pynetdicom" else StorageScp
    scp = make_scp(options_from(config), spool, intake.accept, intake.end_association, intake.record_report)
    port = scp.start()
    stow = start_stow(config, spool, intake.accept, intake.end_association, resolve)
    write_durably(state_dir / "run" / "listener.port", f"{port}\n".encode())
    log.info("listener.ready", ae_title=config.node.ae_title, host=config.listener.host, port=port, recovered=recovered)
    while not stop.wait(TICK_S):
        with contextlib.suppress(OSError):  # the disk does not answer: the next instance finds out
            spool.watermark.look()
    if stow is not None:
        stow.stop()
    scp.stop()
    intake.stop()
    log.info("listener.stopped")


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
