"""What is tried when a device has too little memory for a study: each rung needs less than the one before and costs more time."""

from enum import StrEnum


class Rung(StrEnum):
    """How a study is run; the value is what the result says of it."""

    AS_PLANNED = ""
    ALONE = "other models were set aside for memory"
    HALF_PRECISION = "the network ran in half precision for want of memory"
    ON_CPU = "the network ran on the CPU for want of device memory"


def rungs(device: str) -> tuple[Rung, ...]:
    """Answers the rungs of a device, the first first. A batch of windows has been halved before, by whoever runs them."""
    if device.startswith("cpu"):
        return (Rung.AS_PLANNED, Rung.ALONE)
    return (Rung.AS_PLANNED, Rung.ALONE, Rung.HALF_PRECISION, Rung.ON_CPU)


def surplus(held_bytes: dict[str, int], *, in_use: str, budget_bytes: int) -> tuple[str, ...]:
    """Answers which models to set aside so that the rest fits; `held_bytes` has the one used longest ago first.

    The one in use stays, even where it alone is too large.
    """
    excess = sum(held_bytes.values()) - budget_bytes
    leaving = []
    for name, size in held_bytes.items():
        if excess <= 0:
            break
        if name != in_use:
            leaving.append(name)
            excess -= size
    return tuple(leaving)
