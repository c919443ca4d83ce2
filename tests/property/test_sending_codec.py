"""What we write and read by ourselves is what the libraries write and read: association requests, acceptances, file meta information."""

from contextlib import suppress
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydicom import Dataset, FileMetaDataset
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RJ, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    AsynchronousOperationsWindowNegotiation,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
)
from pynetdicom.presentation import PresentationContext

from node.delivery.negotiation import (
    MAX_CONTEXTS,
    OUR_MAX_PDU_BYTES,
    Context,
    MalformedAnswer,
    associate_request,
    read_acceptance,
    read_rejection,
)
from node.delivery.part10 import Part10File, _meta_by_pydicom, _meta_of, read_part10
from node.errors import StoreRefused
from node.network import APPLICATION_CONTEXT, IMPLEMENTATION_VERSION_NAME

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

SHORTEST_ELEMENT_BYTES = 8
uids = st.integers(0, 10**40).map(lambda number: f"1.2.{number}")
contexts = st.lists(st.builds(Context, uids, uids), min_size=1, max_size=8, unique=True)
titles = st.text("ABCXYZ_ 019", min_size=1, max_size=16).filter(lambda title: title.strip() == title)


@quick
@given(contexts, titles, titles, st.sampled_from([1, 0, 16, 1024]))
@example([Context("1.2.3", f"1.2.{number}") for number in range(MAX_CONTEXTS)], "THEM", "US", 16)
def test_our_request_says_to_pynetdicom_what_we_mean(proposed: list[Context], called: str, calling: str, operations: int) -> None:
    request = A_ASSOCIATE_RQ()
    request.decode(associate_request((called, calling), proposed, operations))
    said = request.to_primitive()
    assert (said.called_ae_title, said.calling_ae_title) == (called, calling)
    assert said.application_context_name == APPLICATION_CONTEXT
    found = [(one.context_id, one.abstract_syntax, one.transfer_syntax) for one in said.presentation_context_definition_list]
    assert found == [(2 * place + 1, one.sop_class_uid, [one.transfer_syntax_uid]) for place, one in enumerate(proposed)]
    user = {type(one): one for one in said.user_information}
    assert user[MaximumLengthNotification].maximum_length_received == OUR_MAX_PDU_BYTES
    assert user[ImplementationVersionNameNotification].implementation_version_name == IMPLEMENTATION_VERSION_NAME
    assert ImplementationClassUIDNotification in user
    window = user.get(AsynchronousOperationsWindowNegotiation)
    assert (window is None) is (operations == 1)
    if window is not None:
        assert (window.maximum_number_operations_invoked, window.maximum_number_operations_performed) == (operations, 1)


def acceptance_of(proposed: list[Context], results: list[int], length: int, window: tuple[int, int] | None) -> bytes:
    answer = A_ASSOCIATE()
    answer.application_context_name = APPLICATION_CONTEXT
    answer.calling_ae_title, answer.called_ae_title = "US", "THEM"
    answer.result, answer.result_source = 0, 1
    answered = []
    for place, (context, result) in enumerate(zip(proposed, results, strict=True)):
        one = PresentationContext()
        one.context_id, one.abstract_syntax, one.transfer_syntax = 2 * place + 1, context.sop_class_uid, [context.transfer_syntax_uid]
        one.result = result
        answered.append(one)
    answer.presentation_context_definition_results_list = answered
    longest, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    longest.maximum_length_received, implementation.implementation_class_uid = length, "1.2.3"
    answer.user_information = [longest, implementation]
    if window is not None:
        granted = AsynchronousOperationsWindowNegotiation()
        granted.maximum_number_operations_invoked, granted.maximum_number_operations_performed = window
        answer.user_information.append(granted)
    return bytes(A_ASSOCIATE_AC(answer).encode())


@quick
@given(contexts, st.data(), st.integers(0, (1 << 32) - 1), st.none() | st.tuples(st.integers(0, 65535), st.integers(0, 65535)))
def test_an_acceptance_of_pynetdicom_grants_what_it_says(
    proposed: list[Context], data: st.DataObject, length: int, window: tuple[int, int] | None
) -> None:
    results = data.draw(st.lists(st.integers(0, 4), min_size=len(proposed), max_size=len(proposed)))
    granted = read_acceptance(acceptance_of(proposed, results, length, window)[6:], proposed)
    assert granted.contexts == {
        context: 2 * n + 1 for n, (context, result) in enumerate(zip(proposed, results, strict=True)) if result == 0
    }
    assert granted.max_pdu_bytes == length
    assert granted.operations == (1 if window is None else window[0])


@quick
@given(st.integers(0, 400), st.integers(0, 40), st.binary(max_size=8))
def test_an_acceptance_that_is_broken_is_malformed_or_grants_nothing_that_was_not_proposed(place: int, taken: int, given_: bytes) -> None:
    proposed = [Context("1.2.3", "1.2.4"), Context("1.2.5", "1.2.6")]
    body = bytearray(acceptance_of(proposed, [0, 0], 16384, (5, 5))[6:])
    body[place : place + taken] = given_
    with suppress(MalformedAnswer):
        granted = read_acceptance(bytes(body), proposed)
        assert set(granted.contexts) <= set(proposed)
        assert 0 <= granted.operations <= 65535


@pytest.mark.parametrize("source", [0, 1, 2, 3, 9])
@pytest.mark.parametrize("reason", [0, 1, 2, 3, 4, 7, 200])
def test_rejections_are_told_in_the_words_of_the_standard(source: int, reason: int) -> None:
    rejection = A_ASSOCIATE_RJ()
    rejection.result, rejection.source, rejection.reason_diagnostic = 2, source, reason
    result, words = read_rejection(bytes([0, 2, source, reason]))
    assert result == 2
    try:
        known = rejection.reason_str
    except ValueError:
        known = "Reserved"
    if known == "Reserved":
        assert words == " for a reason that the standard does not know"
    else:
        assert words == f": {known} ({rejection.source_str})"


def test_a_rejection_that_is_cut_off_is_one_all_the_same() -> None:
    assert read_rejection(b"\x00\x01")[0] == 1
    assert read_rejection(b"")[0] == 0


# ── file meta information ───────────────────────────────────────────────────


def file_of(private: int = 0, **changes: str) -> bytes:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = changes.get("sop_class", "1.2.840.10008.5.1.4.1.1.2")
    meta.MediaStorageSOPInstanceUID = changes.get("instance", "1.2.3")
    meta.TransferSyntaxUID = changes.get("syntax", "1.2.840.10008.1.2.1")
    meta.ImplementationVersionName = changes.get("version", "X")
    if private:
        meta.PrivateInformationCreatorUID = "1.2.3"
        meta.PrivateInformation = bytes(private)
    dataset = Dataset()
    dataset.PatientID = "ID"
    dataset.file_meta = meta
    stream = BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


@pytest.mark.parametrize("private", [0, 2, 1000, 1700, 5000, 70_000])
def test_meta_information_of_any_length_is_read(tmp_path: Path, private: int) -> None:
    """Beyond what is read at once, pydicom reads it."""
    path = tmp_path / "a.dcm"
    path.write_bytes(file_of(private))
    found = read_part10(path)
    assert found == Part10File(path, "1.2.840.10008.5.1.4.1.1.2", "1.2.3", "1.2.840.10008.1.2.1", found.offset)
    assert path.read_bytes()[found.offset :][:4] == b"\x10\x00\x20\x00"
    assert (_meta_of(path.read_bytes()[:2048]) is None) is (private > 1700)


@quick
@given(st.integers(130, 360), st.integers(0, 30), st.binary(max_size=12))
@example(144, 4, b"\xff\xff\xff\xff")
@example(132, 12, b"")
@example(277, 4, b"")
def test_what_we_read_of_a_broken_file_is_what_pydicom_reads(tmp_path: Path, place: int, taken: int, given_: bytes) -> None:
    content = bytearray(file_of())
    content[place : place + taken] = given_
    path = tmp_path / "a.dcm"
    path.write_bytes(content)
    found = _meta_of(bytes(content[:2048])) if content[128:132] == b"DICM" else None
    if found is not None:
        assert found[:3] == _meta_by_pydicom(path)[:3]
    with suppress(StoreRefused):
        told = read_part10(path)
        theirs = _meta_by_pydicom(path)
        assert (told.sop_class_uid, told.sop_instance_uid, told.transfer_syntax_uid) == theirs[:3]
        if len(content) - told.offset >= SHORTEST_ELEMENT_BYTES:  # pydicom looks for an element, we believe the length of the group
            assert told.offset == theirs[3]
