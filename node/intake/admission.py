"""Who may open an association: decided by the configuration alone, before anything else is read from the peer."""

import ipaddress
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from node.network import Rejection

Resolve = Callable[[str], frozenset[str]]
"""Answers the IP addresses of a host, none where the name is unknown."""

FRESH_S: Final = 60.0
"""How long the addresses of a host are believed without another look."""


@dataclass(frozen=True, slots=True)
class KnownSender:
    """A peer of the configuration that may send instances, or reports on storage commitments."""

    ae_title: str
    host: str
    may_send: bool = True
    may_report: bool = False


@dataclass(frozen=True, slots=True)
class AdmissionRules:
    """What an association is admitted by."""

    ae_title: str
    max_associations: int
    accept_unlisted_peers: bool = False
    senders: tuple[KnownSender, ...] = ()


@dataclass(frozen=True, slots=True)
class Caller:
    """What an A-ASSOCIATE request says about its sender, and where it comes from."""

    calling_ae_title: str
    called_ae_title: str
    address: str
    reports_only: bool = False
    """Whether all that it wants is to report on storage commitments."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an association is not admitted."""

    rejection: Rejection
    reason: str


def judge_caller(caller: Caller, rules: AdmissionRules, resolve: Resolve) -> Refusal | None:
    """Answers why a caller is not admitted, None where it is. The AE title is no secret: this sorts peers, it protects nothing."""
    if caller.called_ae_title != rules.ae_title:
        return Refusal(Rejection.CALLED_AE_TITLE, f"it calls {caller.called_ae_title}, this node is {rules.ae_title}")
    if rules.accept_unlisted_peers or is_loopback(caller.address):
        return None
    reason = _why_unknown(caller, rules.senders, resolve)
    return Refusal(Rejection.CALLING_AE_TITLE, reason) if reason else None


def judge_load(open_associations: int, rules: AdmissionRules) -> Refusal | None:
    """Answers why another association is not admitted now, None where it is."""
    if open_associations >= rules.max_associations:
        return Refusal(Rejection.LOCAL_LIMIT, f"{open_associations} associations are open, the limit is {rules.max_associations}")
    return None


def _why_unknown(caller: Caller, senders: Iterable[KnownSender], resolve: Resolve) -> str:
    titled = [sender for sender in senders if sender.ae_title == caller.calling_ae_title]
    named = [sender for sender in titled if sender.may_send or (caller.reports_only and sender.may_report)]
    if not named:
        return "the peer of this AE title may not send" if titled else "no peer has this AE title"
    unknown = []
    for sender in named:
        addresses = resolve(sender.host)
        if plain_address(caller.address) in addresses:
            return ""
        if not addresses:
            unknown.append(sender.host)
    if unknown:
        return f"the address of {' or '.join(unknown)}, the peer of this AE title, cannot be looked up, and was never known"
    return f"the peer of this AE title is {' or '.join(sender.host for sender in named)}"


class RememberingResolver:
    """Answers the addresses of hosts, those it had last where a name cannot be looked up: an outage of DNS shuts no known peer out.

    A name that was never found has no addresses. One object serves all threads.
    """

    def __init__(self, look_up: Resolve, clock: Callable[[], float] = time.monotonic) -> None:
        self._look_up = look_up
        self._clock = clock
        self._known: dict[str, tuple[float, frozenset[str]]] = {}

    def __call__(self, host: str) -> frozenset[str]:
        """Answers the IP addresses of a host, none where it was never known."""
        looked_up_s, addresses = self._known.get(host, (0.0, frozenset()))
        if addresses and self._clock() - looked_up_s < FRESH_S:
            return addresses
        addresses = self._look_up(host) or addresses
        self._known[host] = (self._clock(), addresses)  # also over a failure: one caller a minute waits for DNS, not every one
        return addresses

    def learn(self, hosts: Iterable[str]) -> None:
        """Looks hosts up before anybody asks."""
        for host in dict.fromkeys(hosts):
            self(host)


def is_loopback(address: str) -> bool:
    """Answers whether a caller sits on this machine."""
    try:
        return ipaddress.ip_address(plain_address(address)).is_loopback
    except ValueError:
        return False


def plain_address(address: str) -> str:
    """Answers an IP address in its one canonical writing; an IPv4 address inside IPv6 as IPv4."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return str(mapped or parsed)
