"""What may be made ready before a study is complete, and when: by the headers so far, and by what else the machine does. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from node.domain.instance import SeriesHeader
from node.domain.modelcard import InputRequirement, ModelCard
from node.domain.routing import Route, decide_study


def wanted_ahead(
    series: Sequence[SeriesHeader], routes: Sequence[Route], cards: Mapping[str, ModelCard], own_series: Iterable[str] = ()
) -> dict[str, bool]:
    """Answers which series of a study that is still arriving a job would want, each with whether as a volume.

    It is what `decide_study` would select now, but nothing is held against a series that more images may still mend: too few
    slices, too little covered. Of a model with several channels every series that suits one of them counts: the others may follow.
    """
    patient = {name: _patient(card) for name, card in cards.items()}
    wanted: dict[str, bool] = {}
    for selection in decide_study(series, routes, patient, own_series).selections:
        as_volume = cards[selection.route.model].reads != "images"
        for uid in selection.series_instance_uids:
            wanted[uid] = wanted.get(uid, False) or as_volume
    return wanted


def _patient(card: ModelCard) -> ModelCard:
    """Answers the card as it reads while images arrive; one with channels takes every series that suits one, as one of images does."""
    return replace(card, inputs=tuple(_waiting(one) for one in card.inputs), reads="images" if card.channels else card.reads)


def _waiting(requirement: InputRequirement) -> InputRequirement:
    slices, coverage_mm = replace(requirement.slices, min=None), replace(requirement.coverage_mm, min=None)
    return replace(requirement, slices=slices, coverage_mm=coverage_mm, channel="")


@dataclass(frozen=True, slots=True)
class Load:
    """What else goes on in the machine."""

    busy: float
    """Share of all cores that others use, 0 to 1."""
    available_bytes: float
    """Memory that can be had without hurting anybody."""


@dataclass(frozen=True, slots=True)
class LoadPolicy:
    """When to stop working ahead, and when to take it up again: apart, so that nothing flutters between the two."""

    stop_at_busy: float = 0.85
    resume_at_busy: float = 0.6
    stop_below_bytes: int = 1 << 30
    resume_above_bytes: int = 2 << 30


def may_work_ahead(load: Load, *, working: bool, policy: LoadPolicy) -> bool:
    """Answers whether there is room for what nobody waits for; `working` is what was answered before."""
    if working:
        return load.busy < policy.stop_at_busy and load.available_bytes >= policy.stop_below_bytes
    return load.busy <= policy.resume_at_busy and load.available_bytes >= policy.resume_above_bytes
