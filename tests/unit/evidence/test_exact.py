"""Our own texts fit the character set of the source; equipment texts fit their value representation."""

import pytest
from pydicom.dataset import Dataset

from node.evidence.exact import copy_exactly, exact_item, fitted
from node.evidence.sop_common import long_string, series_description, series_number
from tests.conformance.cases import make_card


@pytest.mark.parametrize(
    ("text", "character_set", "expected"),
    [
        ("plain", None, "plain"),
        ("Größe", None, "Grosse"),
        ("Größe", "", "Grosse"),
        ("Größe", "ISO_IR 6", "Grosse"),
        ("Größe", "ISO_IR 100", "Größe"),
        ("10 µm – Ω", "ISO_IR 192", "10 µm – Ω"),
        ("a – b × c → d", "ISO_IR 100", "a - b x c -> d"),
        ("大脑", "GB18030", "大脑"),
        ("大脑", "ISO_IR 100", "??"),
        ("Größe", ["", "ISO 2022 IR 87"], "Grosse"),
        ("Größe", "FOO", "Grosse"),
    ],
)
def test_texts_are_fitted_to_the_character_set(text: str, character_set: str | list[str] | None, expected: str) -> None:
    assert fitted(text, character_set) == expected


def test_an_absent_element_is_not_copied() -> None:
    target = Dataset()
    assert not copy_exactly(target, Dataset(), "PatientID")
    assert len(target) == 0


def test_items_are_copied_in_depth_and_apart() -> None:
    inner, item = Dataset(), Dataset()
    inner.CodeValue = "1"
    item.RequestedProcedureCodeSequence = [inner]
    item.PregnancyStatus = 4
    copy = exact_item(item, "ISO_IR 100")
    inner.CodeValue = "2"
    assert copy.RequestedProcedureCodeSequence[0].CodeValue == "1"
    assert copy.PregnancyStatus == 4


def test_long_strings_fit_readers_that_count_bytes() -> None:
    assert long_string("x" * 70) == "x" * 64
    assert long_string("x" * 63 + "ß") == "x" * 63
    assert long_string("  padded  ") == "padded"


def test_a_long_title_gives_way_in_the_series_description() -> None:
    from dataclasses import replace

    card = replace(make_card(1), title="A very long title of a model " * 5, version="12.34.56")
    description = series_description(card, "SEG")
    assert len(description) <= 64
    assert description.startswith("AI A very long title")
    assert description.endswith(" 12.34.56 SEG")


@pytest.mark.parametrize(("stated", "expected"), [("3", 301), (None, 1), ("", 1), ("x", 1), ("2147483647", 1), ("-4", 1)])
def test_series_numbers_sort_behind_the_source(stated: str | None, expected: int) -> None:
    source = Dataset()
    if stated is not None:
        source.add_new("SeriesNumber", "LO", stated)
    assert series_number(source, 1) == expected
