"""The page tells how the analysis ended, escapes what it is given, needs nothing from outside, and names no patient."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from node.domain.states import Outcome
from node.domain.volume import QualityNote
from node.evidence.page import render_page
from tests.conformance.cases import Case, make_case, with_outcome

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


def test_the_html_is_well_formed(tmp_path: Path) -> None:
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

    checker = Checker()
    checker.feed(page_of(make_case(tmp_path, parts=3)))
    assert checker.open == []
