"""A network with several inputs gets the best series for each, all in one frame of reference; or nothing, with the reason."""

from dataclasses import replace
from itertools import permutations

import pytest

from node.domain.channels import choose_channels
from node.domain.instance import InstanceHeader, SeriesHeader
from node.domain.modelcard import InputRequirement, ModelCard, Range
from node.domain.routing import Route, decide_study

CARD = ModelCard(
    name="tumour", version="1", title="t", manufacturer="m", intended_use="r", training_data="u", performance="u", licence="MIT", weights=(),
    inputs=(
        InputRequirement(("MR",), channel="T1c", words=("T1",), contrast="with", slices=Range(min=2)),
        InputRequirement(("MR",), channel="T1", words=("T1",), slices=Range(min=2)),
        InputRequirement(("MR",), channel="FLAIR", words=("FLAIR",)),
    ),
    avoid_words=("COR",),
)  # fmt: skip
ROUTE = Route("brain", {}, "tumour", ("pacs",))


def series(uid: str, words: str, *, agent: str = "", frame_of_reference: str = "1.9", slices: int = 4) -> SeriesHeader:
    attributes = {
        "Modality": ("MR",), "SeriesDescription": (words,), "ContrastBolusAgent": (agent,) if agent else (),
        "FrameOfReferenceUID": (frame_of_reference,), "SeriesNumber": (1.0,),
    }  # fmt: skip
    return SeriesHeader(
        uid, tuple(InstanceHeader("1", uid, f"{uid}.{index}", "1.2.840.10008.5.1.4.1.1.4", attributes) for index in range(slices))
    )


STUDY = (series("1.1", "T1 SAG"), series("1.2", "FLAIR TRA"), series("1.3", "T1 SAG KM", agent="Gadovist"), series("1.4", "T1 COR"))


@pytest.mark.parametrize("order", list(permutations(STUDY)))
def test_each_channel_gets_its_best_series_in_whatever_order_they_came(order: tuple[SeriesHeader, ...]) -> None:
    decision = decide_study(order, [ROUTE], {"tumour": CARD})
    assert [selection.series_instance_uids for selection in decision.selections] == [("1.3", "1.1", "1.2")]
    assert "other series" in decision.reason_for("1.4")
    assert {v.reason for v in decision.verdicts if v.accepted} == {"taken as T1c", "taken as T1", "taken as FLAIR"}


def test_asked_again_of_the_chosen_alone_the_answer_is_the_same() -> None:
    chosen = choose_channels(STUDY, CARD)
    assert not isinstance(chosen, str)
    assert choose_channels([*chosen.values()][::-1], CARD) == chosen


def test_a_missing_channel_is_named() -> None:
    decision = decide_study([STUDY[0], STUDY[2]], [ROUTE], {"tumour": CARD})
    assert not decision.selections
    assert decision.reason_for("1.1") == "card tumour: the model needs T1c, T1, FLAIR of one study, and no series suits as FLAIR"


def test_no_series_serves_two_channels() -> None:
    decision = decide_study([STUDY[1], STUDY[2]], [ROUTE], {"tumour": CARD})  # the contrast series suits as T1 too
    assert not decision.selections
    assert "each in a series of its own" in decision.reason_for("1.3")


def test_all_lie_in_one_frame_of_reference() -> None:
    elsewhere = series("1.5", "FLAIR", frame_of_reference="1.8")
    decision = decide_study([STUDY[0], STUDY[2], elsewhere], [ROUTE], {"tumour": CARD})
    assert "in one frame of reference" in decision.reason_for("1.5")
    late = series("1.6", "T1 KM SAG2", agent="x", frame_of_reference="1.8")
    assert choose_channels([*STUDY, elsewhere, late], CARD) == choose_channels(STUDY, CARD)


def test_a_model_of_single_images_takes_every_series_that_suits() -> None:
    card = replace(CARD, reads="images", inputs=(InputRequirement(("MR",), words=("T1",)),))
    decision = decide_study(STUDY, [ROUTE], {"tumour": card})
    assert [set(one.series_instance_uids) for one in decision.selections] == [{"1.1", "1.3", "1.4"}]
    assert decision.reason_for("1.2")
