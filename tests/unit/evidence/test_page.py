"""The page tells how the analysis ended, escapes what it is given, needs nothing from outside, and names no patient."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from node.domain.states import Outcome
from node.domain.volume import QualityNote
from node.evidence.page import render_page
from node.evidence.told import percent_text
from tests.conformance.cases import Case, make_case, with_outcome
from tests.conformance.findings import classified, detected, located, objects_of, radiographs

SECONDS = {"read": 0.5, "infer": 6.25, "encode": 1.0}


def page_of(case: Case, key_image: bytes | None = None) -> str:
    evidence = [case.report()]
    if case.result.outcome is Outcome.FOUND:
        evidence.insert(0, case.segmentation())
    return render_page(case.result, evidence, key_image, SECONDS, case.context)


def test_findings_have_their_volumes_and_uids(tmp_path: Path) -> None:
    case = make_case(tmp_path, parts=2)
    page = page_of(case, b"\x89PNG")
    assert "2 of 2 structures outlined" in page
    assert "AI result, not verified" in page
    for segment in case.result.segments:
        assert segment.definition.label in page
        assert f"{segment.measurements[0].value:#.3g} cm³" in page
    for evidence in (case.segmentation(), case.report()):
        assert evidence.SOPInstanceUID in page
    assert "data:image/png;base64,iVBORw==" in page
    for fact in ("Tests.", "None: a formula.", "Exact.", "6.25 s", "Time: 7.8 s", "none cpu fp32"):
        assert fact in page


@pytest.mark.parametrize(
    ("outcome", "headline", "kind"),
    [
        (Outcome.NOTHING_FOUND, "Nothing found", "nothing"),
        (Outcome.NOT_ATTEMPTED, "Not analyzed", "declined"),
        (Outcome.FAILED, "The analysis failed", "failed"),
    ],
)
def test_other_endings_are_said_clearly(tmp_path: Path, outcome: Outcome, headline: str, kind: str) -> None:
    case = with_outcome(make_case(tmp_path), outcome)
    page = page_of(case)
    assert headline in page
    assert f'class="banner {kind}"' in page
    assert ("at most 8 mm" in page) == bool(case.result.reason)
    assert ("Findings" in page) == (outcome is Outcome.NOTHING_FOUND)
    assert ("AI result, not verified" in page) == (outcome is Outcome.NOTHING_FOUND)
    assert "<img" not in page


def test_no_patient_identity_and_nothing_from_outside(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    page = page_of(case)
    source = case.sources[0]
    for keyword in ("PatientName", "PatientID", "AccessionNumber", "PatientBirthDate"):
        assert str(source[keyword].value) not in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "<script" not in page


def test_markup_in_texts_is_escaped(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    notes = (QualityNote("X", "<script>alert(1)</script>", degraded=True),)
    card = replace(case.result.card, title="<b>bold</b>", intended_use="a & b")
    page = page_of(replace(case, result=replace(case.result, card=card, notes=notes)))
    assert "<script>" not in page
    assert "<b>" not in page
    assert "a &amp; b" in page
    assert 'class="degraded"' in page


class Checker(HTMLParser):
    void = frozenset({"meta", "img", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_html_is_well_formed(tmp_path: Path) -> None:
    checker = Checker()
    checker.feed(page_of(make_case(tmp_path, parts=3)))
    assert checker.open == []


def test_answers_boxes_and_points_are_told_with_their_numbers(tmp_path: Path) -> None:
    told: dict[str, str] = {}
    makers: Mapping[str, Callable[[Path], Case]] = {
        "one": classified,
        "two": lambda path: detected(path, 1),
        "three": located,
        "four": radiographs,
    }
    for folder, make in makers.items():
        case = make(tmp_path / folder)
        page = render_page(case.result, list(objects_of(case).values()), None, SECONDS, case.context)
        told[folder] = re.sub(r"\s+", " ", re.sub("<[^>]*>", " ", page))
        checker = Checker()
        checker.feed(page)
        assert checker.open == []
    assert "Breast composition: Scattered Scattered 62 % Dense 31 % Fatty 7 %" in told["one"]
    assert "Intracranial hemorrhage: present present 85 % absent 15 %" in told["one"]
    assert "2 answers" in told["one"]
    assert "1 detection " in told["two"]
    assert re.search(r"Nodule 1 72 % \d+ / 14 Mass not detected", told["two"])
    assert "1 of 2 points located" in told["three"]
    assert re.search(r"Carina 88 % \d+ / 14 Apex not located", told["three"])
    assert "Breast composition: Fatty image 2 / 2" in told["four"]
    assert all("AI result, not verified" in text for text in told.values())


@pytest.mark.parametrize(("share", "text"), [(0.0, "0 %"), (0.004, "< 1 %"), (0.5, "50 %"), (0.996, "> 99 %"), (1.0, "100 %")])
def test_shares_are_rounded_without_becoming_certain(share: float, text: str) -> None:
    assert percent_text(share) == text
