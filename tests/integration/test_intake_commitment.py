"""Reports on storage commitments: taken from whoever an archive is, answered when they are recorded (PS3.4 Annex J, PS3.7 D.3.3.4)."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, build_role
from pynetdicom.dsutils import encode

from node.delivery.store_scu import contexts_for, read_part10
from node.delivery.upper_layer import Context, RequestedAssociation, Timeouts
from node.domain.commitment import CommitmentReport, FailureReason
from node.errors import PeerUnreachable
from node.intake.admission import AdmissionRules
from node.intake.association import ScpOptions, StorageScp
from node.intake.spool import Spool
from node.journal import CommitmentJournal, Recorded, open_database
from node.network import (
    DATA_SET_FOLLOWS,
    NO_DATA_SET,
    STORAGE_COMMITMENT,
    STORAGE_COMMITMENT_INSTANCE,
    CommandElement,
    CommandField,
)
from node.network.commitment import (
    LONGEST_REPORT_BYTES,
    TRANSFER_SYNTAXES,
    MalformedReport,
    decode_commitment_report,
    encode_commitment_request,
)
from tests.factories import SyntheticSeries, make_ct_series
from tests.integration.intake_kit import config_for, listening, open_scu, peer_of
from tests.peers import HOST, orthanc, wait_until

IMPLICIT, EXPLICIT = str(ImplicitVRLittleEndian), str(ExplicitVRLittleEndian)
PUSH = Context(STORAGE_COMMITMENT, IMPLICIT)
ALL_COMMITTED, SOME_FAILED = 1, 2
SUCCESS, PROCESSING_FAILURE, NO_SUCH_EVENT_TYPE, INVALID_ARGUMENT, UNRECOGNIZED = 0x0000, 0x0110, 0x0113, 0x0115, 0x0211


def report(transaction_uid: str = "1.2.3", committed: tuple[str, ...] = (), failed: dict[str, int] | None = None) -> Dataset:
    """The data set of an N-EVENT-REPORT."""
    data_set = Dataset()
    data_set.TransactionUID = transaction_uid
    data_set.ReferencedSOPSequence = [referenced(uid) for uid in committed]
    if failed:
        data_set.FailedSOPSequence = [referenced(uid, reason) for uid, reason in failed.items()]
    return data_set


def referenced(uid: str, reason: int | None = None) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    item.ReferencedSOPInstanceUID = uid
    if reason is not None:
        item.FailureReason = reason
    return item


def encoded(data_set: Dataset, syntax: str) -> bytes:
    found = encode(data_set, syntax == IMPLICIT, is_little_endian=True)
    assert found is not None
    return found


def never_taken(*_: Any) -> Recorded:
    raise AssertionError("no instance is sent here")


@contextmanager
def scp(state_dir: Path, on_report: Callable[[CommitmentReport], bool] | None) -> Iterator[int]:
    """A listener whose reports go to the test."""
    spool = Spool(state_dir / "spool")
    spool.prepare()
    server = StorageScp(ScpOptions(AdmissionRules("RADNODE", 8), HOST, 0, 5.0), spool, never_taken, on_report=on_report)
    try:
        yield server.start()
    finally:
        server.stop()


@pytest.fixture(scope="module")
def ct(tmp_path_factory: pytest.TempPathFactory) -> SyntheticSeries:
    return make_ct_series(tmp_path_factory.mktemp("ct"), slices=2)


# ── data sets ───────────────────────────────────────────────────────────────


@pytest.mark.parametrize("syntax", TRANSFER_SYNTAXES)
def test_a_report_says_what_is_kept_and_what_is_not(syntax: str) -> None:
    said = report("1.2.3", ("1.1", "1.2", "1.3"), {"1.3": 0x0112, "1.4": 0x0213})
    found = decode_commitment_report(encoded(said, syntax), syntax)
    assert found == CommitmentReport("1.2.3", frozenset({"1.1", "1.2"}), {"1.3": 0x0112, "1.4": 0x0213}), "what has failed is not kept"
    del said.FailedSOPSequence[0].FailureReason
    assert decode_commitment_report(encoded(said, syntax), syntax).failed["1.3"] == FailureReason.PROCESSING_FAILURE
    assert decode_commitment_report(encoded(report(), syntax), syntax) == CommitmentReport("1.2.3")


def test_a_request_names_every_object_in_implicit_vr() -> None:
    references = [("1.2.840.10008.5.1.4.1.1.2", f"1.2.{number}") for number in (7, 77, 777)]
    read = read_dataset(BytesIO(encode_commitment_request("1.2.3.4", references)), is_implicit_VR=True, is_little_endian=True)
    assert read.TransactionUID == "1.2.3.4"
    assert [(item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID) for item in read.ReferencedSOPSequence] == references
    assert set(read.keys()) == {0x00081195, 0x00081199}


def test_what_is_no_report_is_refused() -> None:
    wrong_object = report("1.2.3", ("1.1",))
    wrong_object.ReferencedSOPSequence[0].ReferencedSOPInstanceUID = ""
    for data, syntax in (
        (b"", IMPLICIT),
        (b"\xff" * 100, IMPLICIT),
        (b"\xff" * 100, EXPLICIT),
        (encoded(report(""), EXPLICIT), EXPLICIT),
        (encoded(wrong_object, EXPLICIT), EXPLICIT),
        (encoded(report(), EXPLICIT), "1.2.840.10008.1.2.2"),
    ):
        with pytest.raises(MalformedReport):
            decode_commitment_report(data, syntax)


# ── roles ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("roles", "accepted"),
    [
        (None, True),
        ((False, True), True),
        ((True, True), True),
        ((True, False), False),
    ],
    ids=["no role item", "the requestor is SCP", "the requestor is both", "the requestor is SCU"],
)
def test_the_roles_of_storage_commitment_are_negotiated(tmp_path: Path, roles: tuple[bool, bool] | None, accepted: bool) -> None:
    with scp(tmp_path, lambda _: True) as port:
        ae = AE("ARCHIVE")
        ae.add_requested_context(STORAGE_COMMITMENT, [IMPLICIT, EXPLICIT])
        items = [] if roles is None else [build_role(STORAGE_COMMITMENT, scu_role=roles[0], scp_role=roles[1])]
        association = ae.associate(HOST, port, ae_title="RADNODE", ext_neg=items)
        try:
            assert bool(association.is_established and association.accepted_contexts) is accepted
            if accepted and roles is not None:
                answer = {item.sop_class_uid: item for item in association.acceptor.user_information if hasattr(item, "scp_role")}
                assert (answer[STORAGE_COMMITMENT].scu_role, answer[STORAGE_COMMITMENT].scp_role) == (False, True)
                assert association.accepted_contexts[0].as_scp
                status, _ = association.send_n_event_report(
                    report(committed=("1.1",)), ALL_COMMITTED, STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE
                )
                assert status.Status == SUCCESS
        finally:
            association.release() if association.is_established else association.abort()


def test_without_anybody_to_record_reports_none_are_accepted(tmp_path: Path) -> None:
    with scp(tmp_path, None) as port, RequestedAssociation(peer_of(port), [PUSH], Timeouts(5, 5)) as association:
        assert not association.accepted


# ── answers ─────────────────────────────────────────────────────────────────


def say(association: RequestedAssociation, data_set: bytes, *, event: int = ALL_COMMITTED, sop_class: str = STORAGE_COMMITMENT) -> Any:
    """Reports; answers the response."""
    request: dict[int, int | str] = {
        CommandElement.AFFECTED_SOP_CLASS_UID: sop_class,
        CommandElement.COMMAND_FIELD: CommandField.N_EVENT_REPORT_RQ,
        CommandElement.MESSAGE_ID: 7,
        CommandElement.DATA_SET_TYPE: DATA_SET_FOLLOWS if data_set else NO_DATA_SET,
        CommandElement.AFFECTED_SOP_INSTANCE_UID: STORAGE_COMMITMENT_INSTANCE,
        CommandElement.EVENT_TYPE_ID: event,
    }
    association.send_message(next(iter(association.accepted.values())), request, data_set)
    return association.receive_response(CommandField.N_EVENT_REPORT_RSP, 7)


def test_each_report_is_answered_by_what_became_of_it(tmp_path: Path) -> None:
    recorded: list[CommitmentReport] = []

    def on_report(one: CommitmentReport) -> bool:
        if one.transaction_uid == "9.9":
            raise OSError("the journal is gone")
        recorded.append(one)
        return one.transaction_uid == "1.2.3"

    good = encoded(report("1.2.3", ("1.1",), {"1.2": 0x0112}), IMPLICIT)
    with scp(tmp_path, on_report) as port, RequestedAssociation(peer_of(port), [PUSH], Timeouts(5, 5)) as association:
        answer = say(association, good, event=SOME_FAILED)
        assert answer[CommandElement.STATUS] == SUCCESS
        assert answer[CommandElement.AFFECTED_SOP_CLASS_UID] == STORAGE_COMMITMENT
        assert answer[CommandElement.AFFECTED_SOP_INSTANCE_UID] == STORAGE_COMMITMENT_INSTANCE
        assert answer[CommandElement.EVENT_TYPE_ID] == SOME_FAILED
        assert answer[CommandElement.DATA_SET_TYPE] == NO_DATA_SET
        assert recorded == [CommitmentReport("1.2.3", frozenset({"1.1"}), {"1.2": 0x0112})]
        assert say(association, encoded(report("4.5.6"), IMPLICIT))[CommandElement.STATUS] == INVALID_ARGUMENT, "no request of ours"
        assert say(association, encoded(report("9.9"), IMPLICIT))[CommandElement.STATUS] == PROCESSING_FAILURE
        assert say(association, b"")[CommandElement.STATUS] == INVALID_ARGUMENT
        assert say(association, b"\xff" * 100)[CommandElement.STATUS] == INVALID_ARGUMENT
        assert say(association, good, event=3)[CommandElement.STATUS] == NO_SUCH_EVENT_TYPE
        assert say(association, good, sop_class="1.2.840.10008.1.1")[CommandElement.STATUS] != SUCCESS
        assert say(association, good)[CommandElement.STATUS] == SUCCESS, "the association has outlived them all"


def test_a_report_without_end_is_ended(tmp_path: Path) -> None:
    with scp(tmp_path, lambda _: True) as port:
        association = RequestedAssociation(peer_of(port), [PUSH], Timeouts(5, 5))
        with pytest.raises(PeerUnreachable):
            say(association, bytes(LONGEST_REPORT_BYTES + (1 << 20)))
        with RequestedAssociation(peer_of(port), [PUSH], Timeouts(5, 5)) as another:
            assert say(another, encoded(report(), IMPLICIT))[CommandElement.STATUS] == SUCCESS


def test_a_storage_context_takes_no_reports(tmp_path: Path, ct: SyntheticSeries) -> None:
    contexts = contexts_for([read_part10(ct.paths[0])])
    with scp(tmp_path, None) as port, RequestedAssociation(peer_of(port), contexts, Timeouts(5, 5)) as association:
        assert say(association, encoded(report(), IMPLICIT))[CommandElement.STATUS] == UNRECOGNIZED


# ── a real archive ──────────────────────────────────────────────────────────


def ask(port: int, called: str, transaction_uid: str, references: list[tuple[str, str]]) -> None:
    """Asks an archive for a commitment, as our courier does."""
    request: dict[int, int | str] = {
        CommandElement.REQUESTED_SOP_CLASS_UID: STORAGE_COMMITMENT,
        CommandElement.COMMAND_FIELD: CommandField.N_ACTION_RQ,
        CommandElement.MESSAGE_ID: 1,
        CommandElement.DATA_SET_TYPE: DATA_SET_FOLLOWS,
        CommandElement.REQUESTED_SOP_INSTANCE_UID: STORAGE_COMMITMENT_INSTANCE,
        CommandElement.ACTION_TYPE_ID: 1,
    }
    with RequestedAssociation(peer_of(port, called=called, calling="RADNODE"), [PUSH], Timeouts(5, 10)) as association:
        association.send_message(association.accepted[PUSH], request, encode_commitment_request(transaction_uid, references))
        assert association.receive_response(CommandField.N_ACTION_RSP, 1)[CommandElement.STATUS] == SUCCESS
        assert association.receive_message(0.05) is None, "an archive may say nothing more for now"


@pytest.mark.peer
def test_orthanc_commits_what_it_has_and_says_what_it_has_not(tmp_path: Path, ct: SyntheticSeries) -> None:
    files = [read_part10(path) for path in ct.paths]
    config = config_for(tmp_path / "state")
    reports: list[CommitmentReport] = []
    with orthanc(tmp_path / "orthanc") as archive, scp(tmp_path / "scp", lambda one: reports.append(one) is None) as port:
        archive.add_modality("radnode", "RADNODE", port)
        with open_scu(archive.dicom_port, contexts_for(files), called="ORTHANC") as scu:
            assert scu.store(files[0]) == ""
        ask(archive.dicom_port, "ORTHANC", "2.25.1", [(file.sop_class_uid, file.sop_instance_uid) for file in files])
        wait_until(lambda: reports, "the report")
        lost = {files[1].sop_instance_uid: int(FailureReason.NO_SUCH_OBJECT_INSTANCE)}
        assert reports == [CommitmentReport("2.25.1", frozenset({files[0].sop_instance_uid}), lost)]
        with listening(config) as listener:  # the same, into the journal
            archive.add_modality("radnode", "RADNODE", listener.port)
            with closing(open_database(listener.state_dir)) as connection:
                CommitmentJournal(connection).open_request("2.25.2", "pacs", {}, now_s=1.0)
            ask(archive.dicom_port, "ORTHANC", "2.25.2", [(files[0].sop_class_uid, files[0].sop_instance_uid)])
            wait_until(lambda: listener.rows("SELECT reported_at FROM commitment WHERE reported_at IS NOT NULL"), "the report")
