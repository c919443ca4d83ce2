"""What may be made ready before a study is complete, and when."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from node.codes import MANUFACTURER_MODEL_NAME
from node.domain.ahead import Load, LoadPolicy, may_work_ahead, wanted_ahead
from node.domain.instance import InstanceHeader, SeriesHeader, Value
from node.domain.modelcard import InputRequirement, ModelCard, Range
from node.domain.routing import Route, decide_study

CARD = ModelCard(
    name="m", version="1", title="M", manufacturer="x", intended_use="x", training_data="x", performance="x", licence="x", weights=(),
    inputs=(InputRequirement(modality=("CT",), slices=Range(min=20, max=500), coverage_mm=Range(min=100.0)),),
)  # fmt: skip
ROUTES = (Route("ct", {"Modality": ("CT", "MR")}, "m", ("archive",)),)


def series(uid: str, slices: int = 3, *, spacing_mm: float = 1.0, **elements: Value) -> SeriesHeader:
    def header(index: int) -> InstanceHeader:
        attributes: Mapping[str, tuple[Value, ...]] = {
            "Modality": ("CT",),
            "ImageOrientationPatient": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
            "ImagePositionPatient": (0.0, 0.0, index * spacing_mm),
            **{keyword: (value,) for keyword, value in elements.items()},
        }
        return InstanceHeader("1.2", uid, f"{uid}.{index}", "1.2.840.10008.5.1.4.1.1.2", attributes)

    return SeriesHeader(uid, tuple(header(index) for index in range(slices)))


def test_a_series_that_has_too_few_slices_yet_is_wanted() -> None:
    assert decide_study([series("1")], ROUTES, {"m": CARD}).selections == ()
    assert wanted_ahead([series("1")], ROUTES, {"m": CARD}) == {"1": True}


@pytest.mark.parametrize(
    "never",
    [
        series("1", Modality="PT"),
        series("1", Modality="SR"),
        series("1", Modality="MR"),
        series("1", 501),
        series("1", ImageType="LOCALIZER"),
        series("1", ManufacturerModelName=MANUFACTURER_MODEL_NAME),
    ],
    ids=["no route", "no images", "not of the card", "too many slices", "localizer", "own result"],
)
def test_what_no_further_image_can_mend_is_not_wanted(never: SeriesHeader) -> None:
    assert wanted_ahead([never], ROUTES, {"m": CARD}) == {}


def test_of_two_series_only_that_is_wanted_which_a_job_would_get() -> None:
    thin, thick = series("1.1", 40, spacing_mm=1.0), series("1.2", 20, spacing_mm=5.0)
    assert wanted_ahead([thick, thin], ROUTES, {"m": CARD}) == {"1.1": True}
    assert wanted_ahead([thick], ROUTES, {"m": CARD}) == {"1.2": True}


def test_what_this_node_made_itself_and_routes_without_a_model_want_nothing() -> None:
    assert wanted_ahead([series("1")], ROUTES, {"m": CARD}, own_series=["1"]) == {}
    assert wanted_ahead([series("1")], ROUTES, {}) == {}


def test_of_a_model_with_channels_every_series_that_suits_one_is_wanted() -> None:
    inputs = tuple(InputRequirement(modality=("MR",), channel=name, words=(name,)) for name in ("T1", "T2"))
    t1, other = series("1", Modality="MR", SeriesDescription="T1 AX"), series("2", Modality="MR", SeriesDescription="SCOUT")
    assert wanted_ahead([t1, other], ROUTES, {"m": replace(CARD, inputs=inputs)}) == {"1": True}


def test_single_images_are_wanted_all_and_not_as_a_volume() -> None:
    card = replace(CARD, reads="images")
    assert wanted_ahead([series("1"), series("2")], ROUTES, {"m": card}) == {"1": False, "2": False}


GIB = 1 << 30


@pytest.mark.parametrize(
    ("load", "while_working", "while_paused"),
    [
        (Load(0.0, 100 * GIB), True, True),
        (Load(0.6, 100 * GIB), True, True),
        (Load(0.7, 100 * GIB), True, False),
        (Load(0.85, 100 * GIB), False, False),
        (Load(1.0, 100 * GIB), False, False),
        (Load(0.0, 2 * GIB), True, True),
        (Load(0.0, 1.5 * GIB), True, False),
        (Load(0.0, 0.9 * GIB), False, False),
        (Load(0.9, 0.5 * GIB), False, False),
    ],
)
def test_under_load_it_stops_and_goes_on_only_when_there_is_clearly_room(load: Load, while_working: bool, while_paused: bool) -> None:
    assert may_work_ahead(load, working=True, policy=LoadPolicy()) is while_working
    assert may_work_ahead(load, working=False, policy=LoadPolicy()) is while_paused
