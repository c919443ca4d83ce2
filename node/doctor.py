"""`radnode doctor`: is this machine fit to run the node, does the node know its peers, and do they know it.

A check is a function that answers what it found; none of them changes anything but a file that it removes again.
"""

import os
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from typing import TYPE_CHECKING, Final

from node.errors import NodeError
from node.phi import scrub_text

if TYPE_CHECKING:
    from node.config import Config

SLOW_FSYNC_MS: Final = 50.0
ECHO_TIMEOUT_S: Final = 5.0


class Health(StrEnum):
    """What a check says."""

    OK = "ok"
    WARNING = "warning"
    FAULT = "fault"


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check; `advice` says what to do where something is wrong."""

    check: str
    health: Health
    text: str
    advice: str = ""


Echo = Callable[[str], float]
"""Called with the name of a peer of the configuration; answers the round trip in seconds or raises a NodeError."""


def examine_machine() -> Iterator[Finding]:
    """Checks what does not depend on a configuration."""
    yield _packages()
    yield _torch()
    yield from _engines()
    yield _decoders()


def examine_node(config: "Config", echo: Echo) -> Iterator[Finding]:
    """Checks the folders, the models, the port and the peers of a configured node."""
    yield _state_dir(config)
    yield from _models(config)
    yield from _wanted_engine(config)
    yield from _tls(config)
    yield _listener(config)
    yield _senders(config)
    yield from _peers(config, echo)


def _packages() -> Finding:
    advice = "install radnode alone in a fresh virtual environment"
    others = sorted(set(packages_distributions().get("node", [])) - {"radnode"})
    if others:
        return Finding("packages", Health.FAULT, f"{', '.join(others)} also installs files under `node`", advice)
    try:
        return Finding("packages", Health.OK, f"radnode {version('radnode')} alone owns the import name `node`")
    except PackageNotFoundError:
        return Finding("packages", Health.FAULT, "radnode is not installed, it only lies here", advice)


def _torch() -> Finding:
    import torch

    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))
        return Finding("torch", Health.OK, f"torch {torch.__version__}, CUDA: {names}")
    return Finding("torch", Health.OK, f"torch {torch.__version__}, CPU only ({torch.get_num_threads()} threads)")


def _engines() -> Iterator[Finding]:
    """Answers each library that networks may run on beside torch; one that is absent is no fault."""
    from node.inference.engines.backends import TORCH

    for name, (version_told, fault) in _backends().items():
        if name != TORCH:
            reason, _, advice = fault.partition(" → ")
            text = f"{version_told} can be used" if not fault else f"{version_told} cannot be used: {reason}" if version_told else reason
            yield Finding(f"engine {name}", Health.OK, text, advice)


def _wanted_engine(config: "Config") -> Iterator[Finding]:
    """A warning where the configuration names a library that cannot be used: networks run on torch then."""
    _, fault = _backends().get(config.worker.engine, ("", ""))
    if fault:
        reason, _, advice = fault.partition(" → ")
        text = f"worker.engine is {config.worker.engine}, which cannot be used: {reason}; networks run on torch"
        yield Finding("worker.engine", Health.WARNING, text, advice or 'worker.engine = "auto"')


def _backends() -> dict[str, tuple[str, str]]:
    """Answers version and fault of each library, on the device where it fares best."""
    from node.inference.engines.backends import find_backends
    from node.inference.engines.hardware import cuda_driver

    devices = ("cpu",) if cuda_driver().fault else ("cpu", "cuda:0")
    found: dict[str, tuple[str, str]] = {}
    for backend in (one for device in devices for one in find_backends(device)):
        if backend.name not in found or not backend.fault:
            found[backend.name] = (backend.version, backend.fault)
    return found


def _decoders() -> Finding:
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless, RLELossless

    wanted = (JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless, RLELossless)
    missing = [uid.name for uid in wanted if not get_decoder(uid).is_available]
    if missing:
        return Finding("decoders", Health.WARNING, f"no decoder for {', '.join(missing)}", "pip install python-gdcm pylibjpeg-openjpeg")
    return Finding("decoders", Health.OK, "compressed images can be read")


def _state_dir(config: "Config") -> Finding:
    folder = config.node.state_dir
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor-") as probe:
            started = time.perf_counter()
            probe.write(b"x" * 4096)
            probe.flush()
            os.fsync(probe.fileno())
            fsync_ms = (time.perf_counter() - started) * 1000
    except OSError as error:
        return Finding(
            "state_dir", Health.FAULT, f"{folder} cannot be written: {error.strerror}", "correct state_dir, or the owner of the folder"
        )
    free_gib = shutil.disk_usage(folder).free / (1 << 30)
    text = f"{folder}: {free_gib:.0f} GiB free, a durable write takes {fsync_ms:.1f} ms"
    if free_gib < config.listener.refuse_below_free_gib:
        return Finding("state_dir", Health.FAULT, text, "free space: below refuse_below_free_gib every image is refused")
    if fsync_ms > SLOW_FSYNC_MS:
        return Finding("state_dir", Health.WARNING, text, "use a faster disk: every image waits for one such write")
    return Finding("state_dir", Health.OK, text)


def _models(config: "Config") -> Iterator[Finding]:
    from node.inference.weights import require_weights
    from node.modelstore import find_card

    for name in dict.fromkeys(route.model for route in config.routes):
        try:
            card = find_card(config.node.models_dir, name)
            require_weights(card, config.node.models_dir / name)
        except NodeError as error:
            yield Finding(f"model {name}", Health.FAULT, str(error), f"radnode model install {name}")
        else:
            yield Finding(f"model {name}", Health.OK, f"version {card.version}, weights as the card says")


def _tls(config: "Config") -> Iterator[Finding]:
    if config.tls is None:
        return
    from node.network.tls import TlsFilesUnusable, listener_context

    try:
        listener_context(config.tls)
    except TlsFilesUnusable as error:
        text, _, advice = str(error).partition(" → ")
        yield Finding("tls", Health.FAULT, text, advice)
        return
    users = [*(["the listener"] if config.listener.tls else []), *(name for name, peer in config.peers.items() if peer.tls)]
    key = config.tls.private_key_file
    if key.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH) and config.tls.private_key_password_file is None:
        yield Finding("tls", Health.WARNING, f"others may read the private key {key}", f"chmod 600 {key}")
    yield Finding("tls", Health.OK, f"certificate, key and authorities can be used; by {', '.join(users) or 'nobody'}")


def _listener(config: "Config") -> Finding:
    host, port = config.listener.host, config.listener.port
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except PermissionError:
            return Finding(
                "listener",
                Health.FAULT,
                f"port {port} needs a right to bind",
                "give CAP_NET_BIND_SERVICE (see radnode.service), or use 11112",
            )
        except OSError as error:
            served = (config.node.state_dir / "run" / "listener.port").exists()
            if served:
                return Finding("listener", Health.OK, f"{host}:{port} is in use, it seems by this very node")
            return Finding(
                "listener", Health.FAULT, f"{host}:{port} cannot be used: {error.strerror}", "stop what holds the port, or choose another"
            )
    return Finding("listener", Health.OK, f"{host}:{port} is free")


def _senders(config: "Config") -> Finding:
    senders = [peer.ae_title for peer in config.peers.values() if peer.may_send]
    if config.listener.accept_unlisted_peers:
        return Finding(
            "senders", Health.WARNING, "anybody may send images", "list the senders as peers and set accept_unlisted_peers = false"
        )
    if not senders:
        return Finding("senders", Health.WARNING, "nobody may send images", "set may_send = true at a peer")
    return Finding("senders", Health.OK, f"images are taken from {', '.join(senders)}")


def _peers(config: "Config", echo: Echo) -> Iterator[Finding]:
    for name, peer in config.peers.items():
        try:
            elapsed_s = echo(name)
        except NodeError as error:
            yield Finding(
                f"peer {name}", Health.FAULT, scrub_text(str(error)), f"check host, port and AE titles; then `radnode echo {name}`"
            )
        else:
            yield Finding(
                f"peer {name}", Health.OK, f"{peer.ae_title} at {peer.host}:{peer.port} answers C-ECHO in {elapsed_s * 1000:.0f} ms"
            )
