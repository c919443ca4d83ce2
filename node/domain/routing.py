"""Which series goes to which model, and why every other does not. Rules are data; deciding is pure."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from node.codes import MANUFACTURER_MODEL_NAME
from node.domain.channels import choose_channels
from node.domain.eligibility import Condition, condition_fault, preference, requirement_fault, slice_spacing_mm
from node.domain.instance import NOT_IMAGES, SeriesHeader
from node.domain.modelcard import ModelCard
from node.domain.states import Priority


@dataclass(frozen=True, slots=True)
class Route:
    """A line of the configuration: series for which all of `when` holds go to `model`, its results to `deliver_to`."""

    name: str
    when: Mapping[str, Condition]
    model: str
    deliver_to: tuple[str, ...]
    priority: Priority = Priority.MEDIUM


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one route says to one series, and by which rule."""

    series_instance_uid: str
    route: str
    accepted: bool
    rule: str
    """Where the rule stands: `route thin-ct`, `card brain-extraction`, `choice`, `node`."""
    reason: str


@dataclass(frozen=True, slots=True)
class Selection:
    """What a route sends to a model: a series; or one for each channel of its network; or every series of single images."""

    route: Route
    series_instance_uids: tuple[str, ...]

    @property
    def series_instance_uid(self) -> str:
        """The series whose grid the result has: the first."""
        return self.series_instance_uids[0]


@dataclass(frozen=True, slots=True)
class StudyDecision:
    """The end of every series of a study: selected by a route, or declined with reasons."""

    selections: tuple[Selection, ...]
    verdicts: tuple[Verdict, ...]

    def reason_for(self, series_instance_uid: str) -> str:
        """Answers why a series was declined, in one text for a person."""
        reasons = dict.fromkeys(
            f"{verdict.rule}: {verdict.reason}"
            for verdict in self.verdicts
            if verdict.series_instance_uid == series_instance_uid and not verdict.accepted
        )
        return "; ".join(reasons) or "no route is configured"


def decide_study(
    series: Sequence[SeriesHeader], routes: Sequence[Route], cards: Mapping[str, ModelCard], own_series: Iterable[str] = ()
) -> StudyDecision:
    """Answers which series of a study each route takes, at most one a route, with a verdict on every series.

    `own_series` are Series Instance UIDs that this node has emitted itself: they never start a job.
    """
    own = frozenset(own_series)
    verdicts: list[Verdict] = []
    selections: list[Selection] = []
    candidates: list[SeriesHeader] = []
    for one in series:
        never = _never_analysed(one, own)
        if never:
            verdicts.append(Verdict(one.series_instance_uid, "", accepted=False, rule="node", reason=never))
        else:
            candidates.append(one)
    for route in routes:
        card = cards.get(route.model)
        if card is None:
            reason = f"the model {route.model} cannot be used: its card is absent or has faults, see the log"
            verdicts.extend(Verdict(one.series_instance_uid, route.name, accepted=False, rule="node", reason=reason) for one in candidates)
            continue
        selection, told = _decide_route(route, card, candidates)
        verdicts.extend(told)
        if selection is not None:
            selections.append(selection)
    return StudyDecision(tuple(selections), tuple(verdicts))


def _decide_route(route: Route, card: ModelCard, candidates: Sequence[SeriesHeader]) -> tuple[Selection | None, list[Verdict]]:
    """Answers what one route takes, and its verdict on every candidate."""
    verdicts: list[Verdict] = []

    def tell(one: SeriesHeader, reason: str, *, rule: str = f"card {card.name}", accepted: bool = False) -> None:
        verdicts.append(Verdict(one.series_instance_uid, route.name, accepted=accepted, rule=rule, reason=reason))

    eligible: list[SeriesHeader] = []
    for one in candidates:
        rule, reason = _objection(one, route, card)
        if reason:
            tell(one, reason, rule=rule)
        else:
            eligible.append(one)
    if not eligible:
        return None, verdicts
    ranked = sorted(eligible, key=lambda one: preference(one, card))
    if card.reads == "images":
        for one in ranked:
            tell(one, f"one of {len(ranked)} eligible series of single images", accepted=True)
        return Selection(route, tuple(one.series_instance_uid for one in ranked)), verdicts
    if card.channels:
        return _decide_channels(route, card, ranked, tell), verdicts
    best, *others = ranked
    tell(best, _praise(best, others), accepted=True)
    for one in others:
        tell(one, f"{_named(best)} suits {card.name} better ({_difference(best, one, card)})", rule="choice")
    return Selection(route, (best.series_instance_uid,)), verdicts


def _decide_channels(route: Route, card: ModelCard, ranked: Sequence[SeriesHeader], tell: Callable[..., None]) -> Selection | None:
    chosen = choose_channels(ranked, card)
    if isinstance(chosen, str):
        for one in ranked:
            tell(one, chosen)
        return None
    channel_of = {one.series_instance_uid: channel for channel, one in chosen.items()}
    for one in ranked:
        if channel := channel_of.get(one.series_instance_uid):
            tell(one, f"taken as {channel}", accepted=True)
        else:
            tell(one, f"other series of this study suit the inputs of {card.name} better", rule="choice")
    return Selection(route, tuple(channel_of))


def _named(series: SeriesHeader) -> str:
    return f"series number {series.representative.text('SeriesNumber') or '?'} of this study"


def _never_analysed(series: SeriesHeader, own: frozenset[str]) -> str:
    header = series.representative
    if series.series_instance_uid in own:
        return "this node made it: own results never start a job"
    if header.text("ManufacturerModelName") == MANUFACTURER_MODEL_NAME.upper():
        return "a radnode node made it: AI results never start a job"
    if header.text("Modality") in NOT_IMAGES:
        return f"modality {header.text('Modality')} holds no images to analyse"
    if not header.text("Modality"):
        return "Modality is absent: cannot tell what kind of images these are"
    return ""


def _objection(series: SeriesHeader, route: Route, card: ModelCard) -> tuple[str, str]:
    for keyword, condition in route.when.items():
        fault = condition_fault(series.representative, keyword, condition, absent_fails=True)
        if fault:
            return f"route {route.name}", fault
    faults = [requirement_fault(series, requirement) for requirement in card.inputs]
    if any(not fault for fault in faults):
        return "", ""
    same_modality = [
        fault
        for fault, requirement in zip(faults, card.inputs, strict=True)
        if series.representative.text("Modality") in requirement.modality
    ]
    return f"card {card.name}", " / ".join(dict.fromkeys(same_modality or faults))


def _praise(best: SeriesHeader, others: Sequence[SeriesHeader]) -> str:
    spacing_mm = slice_spacing_mm(best)
    facts = f"{best.slices} slices" + (f" at {spacing_mm:.2f} mm" if spacing_mm is not None else "")
    return f"best of {len(others) + 1} eligible series: {facts}" if others else f"the only eligible series: {facts}"


def _difference(best: SeriesHeader, other: SeriesHeader, card: ModelCard) -> str:
    mine, theirs = preference(best, card), preference(other, card)
    if mine[0] != theirs[0]:
        return "this description holds words that the card avoids"
    if mine[1] != theirs[1]:
        return "its description holds words that the card prefers"
    if mine[2] != theirs[2]:
        return f"slice spacing {mine[2]:g} mm against {theirs[2]:g} mm"
    return f"{best.slices} slices against {other.slices}"
