"""The statement says what the code does: contexts, keys, statuses, attributes; and changes with it."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom.datadict import dictionary_description
from pydicom.dataset import Dataset
from pynetdicom.presentation import build_context

from node import __version__
from node.cli import main
from node.codes import StoreStatus
from node.conformance_statement import objects, scp, statement
from node.conformance_statement.configuration import MEANINGS, keys_of_configuration
from node.conformance_statement.ihe import ihe_integration_statement
from node.conformance_statement.scu import store_answers
from node.conformance_statement.statement import conformance_statement
from node.delivery import query
from node.delivery.store_scu import judge_status
from node.domain.commitment import FailureReason
from node.errors import DeliveryError
from node.evidence import sop_common
from node.intake import contexts
from node.intake.contexts import supported_contexts
from node.network import AbortReason, CommandElement, GeneralStatus, Rejection
from tests.conformance.cases import make_case

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def text() -> str:
    return conformance_statement()


def annex(text: str, title: str) -> str:
    """The part of the statement on one kind of object."""
    found = re.search(rf"^## Annex \w {title} IOD$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, title
    return found[1]


# ── services ────────────────────────────────────────────────────────────────


def test_every_context_that_the_listener_accepts_is_in_the_statement(text: str) -> None:
    for context in supported_contexts(reports=True):
        assert f"`{context.abstract_syntax}` |" in text
        for syntax in context.transfer_syntax:
            assert f"`{syntax}` |" in text or str(context.abstract_syntax) in {"1.2.840.10008.1.1", "1.2.840.10008.1.20.1"}


def test_a_context_that_is_added_is_in_the_next_statement(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    new = build_context("1.2.826.0.1.3680043.999.1", "1.2.840.10008.1.2")
    monkeypatch.setattr(contexts, "AllStoragePresentationContexts", [*contexts.AllStoragePresentationContexts, new])
    supported_contexts.cache_clear()
    try:
        changed = scp.acceptor()
    finally:
        supported_contexts.cache_clear()
    told = changed.inside[0].body
    assert "1.2.826.0.1.3680043.999.1" in told
    assert told not in text


def test_every_status_is_in_the_statement(text: str) -> None:
    for status in (*GeneralStatus, *FailureReason):
        assert f"| 0x{status:04X} " in text, status
    answered = {row[0] for row in scp.store_statuses()}
    assert answered == {"0x0000", "0xA700", "0xA900", "0xC000", "0x0110"}
    assert set(scp.GENERAL) == set(GeneralStatus) - {GeneralStatus.DUPLICATE_SOP_INSTANCE}, "that one is only received"


def test_every_rejection_and_abort_is_in_the_statement(text: str) -> None:
    assert set(scp.REJECTIONS) == set(Rejection)
    assert set(scp.ABORTS) == set(AbortReason)
    for rejection in Rejection:
        assert "| {} | {} | {} |".format(*rejection.value) in text


def row_of(status: int) -> str:
    """What the table of answers to C-STORE says of a status."""
    for place, end in store_answers():
        bounds = [int(number, 16) for number in re.findall(r"0x\w+", place)]
        if bounds and bounds[0] <= status <= bounds[-1]:
            return end
    return store_answers()[-1][1]


@pytest.mark.parametrize("status", [*StoreStatus, 0x0110, 0x0111, 0x0212, 0xA7FF, 0xA800, 0xA9FF, 0xB000, 0xB007, 0xCFFF, 0xD000, 0xFF00])
def test_the_table_of_answers_says_what_the_sender_does(status: int) -> None:
    assert row_of(status) == end_of(status)


def end_of(status: int) -> str:
    """What the sender makes of a status."""
    try:
        note = judge_status({CommandElement.STATUS: int(status)})
    except DeliveryError as error:
        return f"{error.code}: {'tried again' if error.retryable else 'REFUSED with the reason, not tried again'}"
    return "stored, with a note" if note else "stored"


def test_what_is_said_of_queries_is_what_the_query_does(text: str) -> None:
    temporary = {status for status in range(1 << 16) if query._judge(status, found=False).temporary}
    assert temporary == {0x0110, *range(0xA700, 0xA800), *range(0xC000, 0xD000)}
    assert "0xA7xx, 0xCxxx and 0x0110: asked again later" in text
    assert {0xFF00, 0xFF01} == query._PENDING


# ── configuration ───────────────────────────────────────────────────────────


def test_every_key_of_the_configuration_is_in_the_statement_and_means_something(text: str) -> None:
    keys = [key for key, _ in keys_of_configuration()]
    assert {"node.ae_title", "peers.NAME.retry.first_s", "routes[].model", "tls.trusted_ca_file", "listener.port"} <= set(keys)
    for key in keys:
        assert f"| `{key}` |" in text
    assert not [key for key in keys if not MEANINGS.get(key)], "say what it means in node/conformance_statement/configuration.py"
    assert not set(MEANINGS) - set(keys)


# ── objects ─────────────────────────────────────────────────────────────────


def keywords_in(dataset: Dataset) -> Iterator[str]:
    for element in dataset:
        if element.keyword in {"ContentSequence", "ConceptNameCodeSequence", "ContentTemplateSequence", "ContinuityOfContent", "ValueType"}:
            continue  # told by the content tree
        if element.keyword not in {"CodeValue", "CodingSchemeDesignator", "CodeMeaning"}:  # told in the line of their sequence
            yield element.keyword
        if element.VR == "SQ":
            for item in element.value:
                yield from keywords_in(item)


def concepts_in(item: Dataset) -> Iterator[tuple[str, str]]:
    for inner in item.get("ContentSequence") or []:
        yield str(inner.ConceptNameCodeSequence[0].CodeMeaning), str(inner.ValueType)
        yield from concepts_in(inner)


@pytest.mark.parametrize("geometry", ["axial", "tilted", "enhanced"])
def test_every_attribute_of_a_real_segmentation_is_in_its_annex(text: str, geometry: str, tmp_path: Path) -> None:
    told = annex(text, "Segmentation")
    for keyword in keywords_in(make_case(tmp_path, geometry, parts=2).segmentation()):
        assert f"{dictionary_description(keyword)} | (" in told, keyword


def test_every_attribute_and_content_item_of_a_real_report_is_in_its_annex(text: str, tmp_path: Path) -> None:
    told = annex(text, "Comprehensive 3D SR")
    report = make_case(tmp_path, parts=2).report()
    for keyword in keywords_in(report):
        assert f"{dictionary_description(keyword)} | (" in told, keyword
    for meaning, value_type in concepts_in(report):
        assert re.search(rf"\| {value_type} \| \([^|]*, {re.escape(meaning)}\) \|", told), meaning
    for template in re.findall(r"^\| \S* ?CONTAINER \|.*?\| (\d{4}) \|", told, re.MULTILINE):
        assert template in objects.TEMPLATES


@pytest.mark.parametrize(
    ("title", "attribute", "presence", "source", "value"),
    [
        ("Segmentation", "Patient's Name", "VNAP", "COPY", ""),
        ("Segmentation", "Issuer of Patient ID", "ANAP", "COPY", ""),
        ("Segmentation", "SOP Instance UID", "ALWAYS", "AUTO", ""),
        ("Segmentation", "Manufacturer", "ALWAYS", "FIXED", "radnode"),
        ("Segmentation", "Device Serial Number", "ALWAYS", "CONFIG", ""),
        ("Segmentation", "Segmentation Type", "ALWAYS", "FIXED", "BINARY"),
        ("Segmentation", "&gt;Segment Label", "ALWAYS", "MODEL", ""),
        ("Segmentation", "Lossy Image Compression Ratio", "ANAP", "COPY", ""),
        ("Segmentation", "Lossy Image Compression", "ALWAYS", "SOURCE", ""),
        ("Segmentation", "Dimension Organization Type", "ANAP", "RESULT", "3D"),
        ("Comprehensive 3D SR", "Completion Flag", "ALWAYS", "RESULT", "COMPLETE, PARTIAL"),
        ("Comprehensive 3D SR", "Verification Flag", "ALWAYS", "FIXED", "UNVERIFIED"),
        ("Comprehensive 3D SR", "Content Qualification", "ALWAYS", "FIXED", "RESEARCH"),
    ],
)
def test_where_values_come_from_is_seen_right(text: str, title: str, attribute: str, presence: str, source: str, value: str) -> None:
    row = next(row for row in annex(text, title).splitlines() if row.startswith(f"| {attribute} |"))
    assert row.split(" | ")[4:7] == [presence, source, f"{value} |"]


def test_what_only_some_reports_have_is_said_to_be_not_always_there(text: str) -> None:
    told = annex(text, "Comprehensive 3D SR")
    for attribute in ("Predecessor Documents Sequence", "Pertinent Other Evidence Sequence", "Referenced Request Sequence"):
        assert re.search(rf"^\| {attribute} \|.*\| ANAP \|", told, re.MULTILINE), attribute
    assert "(111224, DCM, Failed)" in told
    assert "(272519000, SCT, Absent)" in told


# ── the documents ───────────────────────────────────────────────────────────


def test_the_date_of_the_statement_is_that_of_the_changelog() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## {__version__} ({statement.RELEASED})" in changelog


def test_the_command_writes_what_the_reference_holds(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conformance", "--output", str(tmp_path / "statement.md")]) == 0
    assert (tmp_path / "statement.md").read_text(encoding="utf-8") == text
    assert capsys.readouterr().out == ""
    assert main(["conformance", "--ihe"]) == 0
    assert capsys.readouterr().out == ihe_integration_statement()
    assert main(["conformance", "--output", str(tmp_path / "no" / "folder.md")]) == 2


def test_the_integration_statement_claims_what_the_objects_have_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    claimed = ihe_integration_statement()
    assert "not tested at a Connectathon" in claimed
    equipment = next(row for row in claimed.splitlines() if row.startswith("| Contributing Equipment of each algorithm"))
    assert equipment.endswith("| met |")
    assert re.search(r"^\| key images: Image Library \(TID 1600\) in the report \| \*\*no\*\* \|$", claimed, re.MULTILINE)
    assert re.search(r"^\| location: points \(SCOORD, SCOORD3D\) \| yes \|$", claimed, re.MULTILINE)
    monkeypatch.setattr(sop_common, "device_uid", lambda _result: "")
    objects.exhibits.cache_clear()
    try:
        without = ihe_integration_statement()
    finally:
        objects.exhibits.cache_clear()
    assert equipment.replace("| met |", "| **not met** |") in without.splitlines()
