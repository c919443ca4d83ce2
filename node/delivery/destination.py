"""A destination: where results go, how patient we are with it, how it confirms."""

from dataclasses import dataclass, field
from typing import Self

from node.config import Config
from node.delivery.peers import configured_peer
from node.delivery.upper_layer import Peer, Timeouts
from node.delivery.variants import Compression
from node.domain.commitment import Confirm, ConfirmationPolicy
from node.domain.delivery import RetryPolicy
from node.journal import DeliveryRecord


@dataclass(frozen=True, slots=True)
class Destination:
    """Where results go, and how patient we are with it."""

    name: str
    peer: Peer
    policy: RetryPolicy
    timeouts: Timeouts = field(default_factory=Timeouts)
    confirm: Confirm = Confirm.AUTO
    confirmation: ConfirmationPolicy = field(default_factory=ConfirmationPolicy)
    compression: Compression = field(default_factory=Compression)
    """How segmentations are offered besides as they are."""
    associations: int = 1
    """How many may be open at once to send."""

    @classmethod
    def of(cls, config: Config, name: str) -> Self:
        """Answers a peer of the configuration as destination."""
        section = config.peers[name]
        policy = section.retry.as_policy()
        return cls(
            name,
            configured_peer(config, name),
            policy,
            compression=Compression(deflate=section.deflate, rle=section.rle),
            associations=section.associations,
            confirm=Confirm(section.confirm),
            confirmation=ConfirmationPolicy(give_up_h=policy.give_up_h),
        )


def facts_of(delivery: DeliveryRecord) -> dict[str, str | int]:
    """Answers what the log says about a delivery."""
    return {
        "destination": delivery.destination,
        "delivery": delivery.delivery_id,
        "sop_instance_uid": delivery.sop_instance_uid,
        "role": delivery.role,
        "job": delivery.job_id,
    }
