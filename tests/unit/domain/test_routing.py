"""Every series gets a verdict with a rule and a reason; at most one series a route is taken."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from node.codes import MANUFACTURER_MODEL_NAME, Code
from node.domain.eligibility import orientation_of, slice_spacing_mm
from node.domain.instance import InstanceHeader, SeriesHeader, Value
from node.domain.modelcard import InputRequirement, ModelCard, Range, SegmentDefinition
from node.domain.routing import Route, decide_study

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
CT_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
ANATOMY = Code("91723000", "SCT", "Anatomical Structure")
CARD = ModelCard(
    name="brain",
    version="1",
    title="Brain",
    manufacturer="m",
    intended_use="research",
    training_data="unknown",
    performance="unknown",
    licence="MIT",
    weights=(),
    inputs=(
        InputRequirement(
            modality=("CT",),
            body_part=("HEAD", "BRAIN"),
            orientation=("axial",),
            slices=Range(min=10),
            slice_spacing_mm=Range(max=8),
            coverage_mm=Range(min=50),
            without_words=("ANGIO*",),
        ),
        InputRequirement(modality=("MR",), words=("T1", "MPRAGE"), without_words=("T2",)),
    ),
    segments=(SegmentDefinition(1, "Brain", ANATOMY, Code("12738006", "SCT", "Brain")),),
    prefer_words=("SOFT",),
    avoid_words=("BONE",),
)
ROUTE = Route("head", {"Modality": ("CT", "MR")}, "brain", ("pacs",))


def make_series(uid: str = "1.1", slices: int = 20, spacing_mm: float = 5.0, **attributes: Value | tuple[Value, ...]) -> SeriesHeader:
    """An axial head CT, changed by `attributes`; None-like '' takes an element away."""
    common: dict[str, Value | tuple[Value, ...]] = {
        "Modality": "CT",
        "BodyPartExamined": "HEAD",
        "ImageOrientationPatient": AXIAL,
        "ImageType": ("ORIGINAL", "PRIMARY", "AXIAL"),
        "SeriesNumber": 2.0,
    }
    merged = {**common, **attributes}

    def attributes_of(index: int) -> Mapping[str, tuple[Value, ...]]:
        values = {key: value if isinstance(value, tuple) else (value,) for key, value in merged.items() if value != ""}
        return {**values, "ImagePositionPatient": (0.0, 0.0, spacing_mm * index)}

    return SeriesHeader(uid, tuple(InstanceHeader("1", uid, f"{uid}.{index}", CT_STORAGE, attributes_of(index)) for index in range(slices)))


def reason(series: SeriesHeader, route: Route = ROUTE, card: ModelCard = CARD) -> str:
    decision = decide_study([series], [route], {"brain": card})
    return decision.reason_for(series.series_instance_uid) if not decision.selections else ""


def test_a_fitting_series_is_taken() -> None:
    decision = decide_study([make_series()], [ROUTE], {"brain": CARD})
    assert [(s.route.name, s.series_instance_uid) for s in decision.selections] == [("head", "1.1")]
    assert decision.verdicts[0].reason == "the only eligible series: 20 slices at 5.00 mm"


@pytest.mark.parametrize(
    ("series", "words"),
    [
        (make_series(Modality="US"), "route head: Modality is US, not CT or MR"),
        (make_series(Modality="SR"), "modality SR holds no images"),
        (make_series(Modality=""), "Modality is absent"),
        (make_series(ImageType=("ORIGINAL", "PRIMARY", "LOCALIZER")), "LOCALIZER"),
        (make_series(ImageType=("DERIVED", "SECONDARY")), "DERIVED"),
        (make_series(BodyPartExamined="CHEST"), "Body Part Examined is CHEST and no description names one of HEAD, BRAIN"),
        (make_series(BodyPartExamined=""), "Body Part Examined is absent"),
        (make_series(BodyPartExamined="CHEST", StudyDescription="CT HEAD NECK CHEST"), "Body Part Examined is CHEST"),
        (make_series(ImageType=("DERIVED", "SECONDARY", "MIP", "NORM")), "Image Type says MIP"),
        (make_series(ImageType=("DERIVED", "PRIMARY", "DIFFUSION", "ADC")), "Image Type says ADC"),
        (make_series(slices=9), "9 slices, the model needs at least 10"),
        (make_series(spacing_mm=9), "slice spacing 9.00 mm, the model needs at most 8 mm"),
        (make_series(spacing_mm=1), "covers 20 mm, the model needs at least 50 mm"),
        (make_series(ImageOrientationPatient=(0.0, 1.0, 0.0, 0.0, 0.0, -1.0)), "orientation is sagittal, not axial"),
        (make_series(ImageOrientationPatient=""), "orientation is unknown"),
        (make_series(SeriesDescription="Angiography"), "the description says ANGIO*"),
        (make_series(Modality="MR", SeriesDescription="T2 tse"), "name none of T1, MPRAGE"),
        (make_series(Modality="MR", SeriesDescription="T1 from T2"), "the description says T2"),
        (make_series(ManufacturerModelName=MANUFACTURER_MODEL_NAME), "AI results never start a job"),
    ],
)
def test_refusals_say_what_is_wrong(series: SeriesHeader, words: str) -> None:
    assert words in reason(series)


def test_a_description_stands_in_for_an_absent_body_part() -> None:
    assert reason(make_series(BodyPartExamined="", StudyDescription="CT^Head routine")) == ""


def test_any_one_input_of_the_card_is_enough() -> None:
    assert reason(make_series(Modality="MR", ImageOrientationPatient=(0.0, 1.0, 0.0, 0.0, 0.0, -1.0), SeriesDescription="t1_mprage")) == ""


@pytest.mark.parametrize(
    ("condition", "taken"),
    [
        ({"KVP": Range(min=100, max=140)}, True),
        ({"KVP": Range(min=121)}, False),
        ({"KVP": ("120",)}, True),
        ({"KVP": ("80", "100")}, False),
        ({"StationName": ("CT1",)}, False),
    ],
)
def test_route_conditions(condition: dict[str, Range | tuple[str, ...]], taken: bool) -> None:
    assert (reason(make_series(KVP=120.0), replace(ROUTE, when=condition)) == "") is taken


def test_route_condition_on_an_absent_element_fails_and_says_so() -> None:
    assert reason(make_series(), replace(ROUTE, when={"StationName": ("CT1",)})) == "route head: StationName is absent"


def test_the_better_series_is_chosen_and_the_others_hear_why() -> None:
    thick, thin, bone = (
        make_series("1.1", 20, 5.0, SeriesNumber=3.0),
        make_series("1.2", 100, 1.0, SeriesNumber=4.0),
        make_series("1.3", 100, 1.0, SeriesDescription="BONE"),
    )
    decision = decide_study([thick, bone, thin], [ROUTE], {"brain": CARD})
    assert [s.series_instance_uid for s in decision.selections] == ["1.2"]
    assert decision.reason_for("1.1") == "choice: series number 4 of this study suits brain better (slice spacing 1 mm against 5 mm)"
    assert "words that the card avoids" in decision.reason_for("1.3")


def test_the_choice_does_not_depend_on_the_order() -> None:
    a, b = make_series("1.1"), make_series("1.2")
    chosen = {decide_study(order, [ROUTE], {"brain": CARD}).selections[0].series_instance_uid for order in ([a, b], [b, a])}
    assert chosen == {"1.1"}


def test_own_results_never_start_a_job() -> None:
    decision = decide_study([make_series()], [ROUTE], {"brain": CARD}, own_series=["1.1"])
    assert decision.selections == ()
    assert "this node made it" in decision.reason_for("1.1")


def test_two_routes_may_take_one_series() -> None:
    routes = [ROUTE, replace(ROUTE, name="again", deliver_to=("research",))]
    assert len(decide_study([make_series()], routes, {"brain": CARD}).selections) == 2


def test_without_routes_every_series_still_has_a_reason() -> None:
    assert decide_study([make_series()], [], {}).reason_for("1.1") == "no route is configured"


def test_orientation_and_spacing_without_headers_are_unknown() -> None:
    bare = SeriesHeader("1", (InstanceHeader("1", "1", "1", CT_STORAGE, {}), InstanceHeader("1", "1", "2", CT_STORAGE, {})))
    assert orientation_of(bare.representative) == ""
    assert slice_spacing_mm(bare) is None


def test_a_series_description_overrides_a_body_part_that_is_wrong() -> None:
    assert reason(make_series(BodyPartExamined="CHEST", SeriesDescription="Head 5.0")) == ""


@pytest.mark.parametrize(
    ("agent", "has_contrast"), [("", False), ("NONE", False), ("Iomeprol", True), ("by Contrast/Bolus Agent Sequence", True)]
)
def test_contrast(agent: str, has_contrast: bool) -> None:
    without = replace(CARD, inputs=(InputRequirement(modality=("CT",), contrast="without"),))
    needed = replace(CARD, inputs=(InputRequirement(modality=("CT",), contrast="with"),))
    series = make_series(ContrastBolusAgent=agent)
    assert (reason(series, card=without) != "") is has_contrast
    assert (reason(series, card=needed) == "") is has_contrast


def test_a_reason_never_holds_what_names_a_person() -> None:
    told = reason(make_series(PatientName="RADNODE^SYNTHETIC"), replace(ROUTE, when={"PatientName": ("PHANTOM^QA",)}))
    assert told == "route head: PatientName is another than the rule names"


def test_a_model_that_cannot_be_used_costs_its_own_route_alone() -> None:
    decision = decide_study([make_series()], [replace(ROUTE, model="broken"), ROUTE], {"brain": CARD})
    assert [selection.route.model for selection in decision.selections] == ["brain"]
    assert "the model broken cannot be used" in next(v.reason for v in decision.verdicts if not v.accepted)


def test_words_beyond_ascii_are_words() -> None:
    card = replace(CARD, inputs=(InputRequirement(modality=("CT",), words=("SCHÄDEL",)),))
    assert reason(make_series(SeriesDescription="Schädel nativ"), card=card) == ""


def test_several_multi_frame_objects_tell_their_own_spacing() -> None:
    instances = tuple(
        InstanceHeader("1", "1.1", f"1.1.{n}", CT_STORAGE, {"SpacingBetweenSlices": (5.0,), "ImageOrientationPatient": AXIAL}, frames=20)
        for n in range(2)
    )
    assert slice_spacing_mm(SeriesHeader("1.1", instances)) == 5.0
