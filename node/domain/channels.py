"""Which series of a study is which input of a network that takes several at once (T1, T1c, T2, FLAIR)."""

from collections.abc import Mapping, Sequence

from node.domain.eligibility import preference, requirement_fault
from node.domain.instance import SeriesHeader
from node.domain.modelcard import ModelCard


def choose_channels(series: Sequence[SeriesHeader], card: ModelCard) -> Mapping[str, SeriesHeader] | str:
    """Answers the best series for each channel of the card, in the order of its channels; or why there is no such set.

    All lie in one frame of reference, since they are laid over each other; none serves twice. The first channel chooses first.
    Asked again of the chosen series alone, the answer is the same.
    """
    suited = {channel: _suited(series, card, channel) for channel in card.channels}
    missing = [channel for channel, found in suited.items() if not found]
    if missing:
        return f"the model needs {', '.join(card.channels)} of one study, and no series suits as {' or '.join(missing)}"
    for first in suited[card.channels[0]]:
        frame_of_reference = _frame_of_reference(first)
        here = {channel: [one for one in found if _frame_of_reference(one) == frame_of_reference] for channel, found in suited.items()}
        here[card.channels[0]] = [first]
        chosen = _assign(card.channels, here, ())
        if chosen is not None:
            return dict(zip(card.channels, chosen, strict=True))
    return f"the model needs {', '.join(card.channels)} in one frame of reference, each in a series of its own: this study has no such set"


def _suited(series: Sequence[SeriesHeader], card: ModelCard, channel: str) -> list[SeriesHeader]:
    requirements = [requirement for requirement in card.inputs if requirement.channel == channel]
    found = [one for one in series if any(not requirement_fault(one, requirement) for requirement in requirements)]
    return sorted(found, key=lambda one: preference(one, card))


def _frame_of_reference(series: SeriesHeader) -> str:
    return series.representative.text("FrameOfReferenceUID")


def _assign(
    channels: Sequence[str], suited: Mapping[str, Sequence[SeriesHeader]], taken: tuple[SeriesHeader, ...]
) -> tuple[SeriesHeader, ...] | None:
    """Answers the best series for the channels that are left, None where they do not suffice."""
    if len(taken) == len(channels):
        return taken
    for one in suited[channels[len(taken)]]:
        if all(one.series_instance_uid != other.series_instance_uid for other in taken):
            chosen = _assign(channels, suited, (*taken, one))
            if chosen is not None:
                return chosen
    return None
