"""Who may open an association: decided by the configuration alone, before anything else is read from the peer."""

import ipaddress
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from node.network import Rejection

Resolve = Callable[[str], frozenset[str]]
"""Answers the IP addresses of a host, none where the name is unknown."""


@dataclass(frozen=True, slots=True)
class KnownSender:
    """A peer of the configuration that may send."""

    ae_title: str
    host: str


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
    named = [sender for sender in senders if sender.ae_title == caller.calling_ae_title]
    if not named:
        return "no peer with may_send has this AE title"
    for sender in named:
        addresses = resolve(sender.host)
        if not addresses or plain_address(caller.address) in addresses:
            return ""
    return f"the peer of this AE title is {' or '.join(sender.host for sender in named)}"


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
