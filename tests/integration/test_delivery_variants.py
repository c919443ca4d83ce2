"""A destination gets the richest form of a result that it takes: older classes of reports, segmentations deflated."""

from contextlib import closing
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, evt

from node.delivery.destination import Destination
from node.delivery.outbox import Courier
from node.delivery.upper_layer import Peer
from node.delivery.variants import DEFLATED, EXPLICIT, IMPLICIT
from node.domain.commitment import CommitmentReport
from node.domain.delivery import RetryPolicy, archived_as
from node.domain.states import DeliveryState
from node.evidence.sop_common import part10_bytes
from node.journal import CommitmentJournal, OutboxJournal, open_database
from tests.conformance.cases import Case, make_case
from tests.conformance.validators import iod_faults, tree_faults
from tests.integration.delivery_kit import QUICK, deliveries, queue
from tests.peers import HOST

SR = "1.2.840.10008.5.1.4.1.1.88."
SEG = "1.2.840.10008.5.1.4.1.1.66.4"


@pytest.fixture
def results(tmp_path: Path) -> tuple[Case, Path]:
    case = make_case(tmp_path / "case", "oblique", 2)
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "seg.dcm").write_bytes(part10_bytes(case.segmentation()))
    (folder / "sr.dcm").write_bytes(part10_bytes(case.report()))
    queue(tmp_path / "state", [folder / "seg.dcm", folder / "sr.dcm"], ["archive"])
    return case, folder


def deliver(state_dir: Path, contexts: dict[str, list[str]], *, deflate: bool = False) -> list[Dataset]:
    """Runs a pass against an archive that takes these SOP classes in these transfer syntaxes; answers what it got."""
    got: list[Dataset] = []

    def on_store(event: Any) -> int:
        dataset = event.dataset
        dataset.file_meta = event.file_meta
        assert dataset.SOPInstanceUID == event.request.AffectedSOPInstanceUID
        assert dataset.SOPClassUID == event.request.AffectedSOPClassUID
        got.append(dataset)
        return 0

    entity = AE("ARCHIVE")
    for sop_class, syntaxes in contexts.items():
        entity.add_supported_context(sop_class, syntaxes)
    server = entity.start_server((HOST, 0), block=False, evt_handlers=[(evt.EVT_C_STORE, on_store)])
    assert server is not None
    try:
        peer = Peer(HOST, server.server_address[1], "ARCHIVE", "RADNODE")
        with closing(open_database(state_dir)) as connection:
            destination = Destination("archive", peer, RetryPolicy(), QUICK, deflate=deflate)
            Courier(OutboxJournal(connection), destination).deliver_due(10.0)
    finally:
        server.shutdown()
    return got


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
@pytest.mark.parametrize("older", ["33", "22"])
def test_an_archive_without_comprehensive_3d_gets_the_report_in_the_richest_class_it_takes(
    tmp_path: Path, results: tuple[Case, Path], older: str, syntax: str
) -> None:
    classes = {SEG: [EXPLICIT], SR + older: [syntax]}
    if older == "33":
        classes[SR + "22"] = [syntax]
    seg, report = deliver(tmp_path / "state", classes)
    original = pydicom.dcmread(results[1] / "sr.dcm")
    assert report.SOPClassUID == SR + older
    assert report.SOPInstanceUID != original.SOPInstanceUID, "another class, another object"
    for dataset in (report, original):
        del dataset.SOPClassUID, dataset.SOPInstanceUID
    assert report == original, "and the same content"
    one, two = deliveries(tmp_path / "state")
    assert (one.state, two.state) == (DeliveryState.STORED, DeliveryState.STORED)
    assert (one.archived_as, two.archived_as[0]) == ((str(seg.SOPClassUID), str(seg.SOPInstanceUID)), SR + older)
    assert "takes no richer class" in two.reason


def test_an_older_report_passes_the_validators(tmp_path: Path, results: tuple[Case, Path]) -> None:
    for older in ("33", "22"):
        from node.delivery.variants import older_report

        dataset = pydicom.filereader.read_dataset(BytesIO(older_report(results[1] / "sr.dcm", SR + older, EXPLICIT)), False, True)
        dataset.file_meta = pydicom.dcmread(results[1] / "sr.dcm").file_meta
        dataset.file_meta.MediaStorageSOPClassUID, dataset.file_meta.MediaStorageSOPInstanceUID = (
            dataset.SOPClassUID,
            dataset.SOPInstanceUID,
        )
        dataset.save_as(tmp_path / f"{older}.dcm")
        assert iod_faults(tmp_path / f"{older}.dcm") == []
        assert tree_faults(tmp_path / f"{older}.dcm") == []
        names = archived_as(SR + "34", str(pydicom.dcmread(results[1] / "sr.dcm").SOPInstanceUID), SR + older)
        assert names == (str(dataset.SOPClassUID), str(dataset.SOPInstanceUID)), "the same each time it is sent"


def test_an_archive_that_takes_no_report_at_all_refuses_it(tmp_path: Path, results: tuple[Case, Path]) -> None:
    (seg,) = deliver(tmp_path / "state", {SEG: [EXPLICIT]})
    assert seg.SOPClassUID == SEG
    _, report = deliveries(tmp_path / "state")
    assert report.state == DeliveryState.REFUSED
    assert "accepts no presentation context" in report.reason


@pytest.mark.parametrize("deflate", [True, False])
def test_a_segmentation_goes_deflated_where_that_is_configured_and_taken(tmp_path: Path, results: tuple[Case, Path], deflate: bool) -> None:
    seg, _ = deliver(tmp_path / "state", {SEG: [DEFLATED, EXPLICIT], SR + "34": [EXPLICIT]}, deflate=deflate)
    assert seg.file_meta.TransferSyntaxUID == (DEFLATED if deflate else EXPLICIT)
    original = pydicom.dcmread(results[1] / "seg.dcm")
    assert np.array_equal(np.frombuffer(seg.PixelData, np.uint8), np.frombuffer(original.PixelData, np.uint8))
    assert seg == original


def test_a_report_in_its_own_class_keeps_its_uid(tmp_path: Path, results: tuple[Case, Path]) -> None:
    _, report = deliver(tmp_path / "state", {SEG: [EXPLICIT], SR + "34": [EXPLICIT], SR + "33": [EXPLICIT]})
    assert report.SOPInstanceUID == pydicom.dcmread(results[1] / "sr.dcm").SOPInstanceUID


def test_the_archive_confirms_it_under_the_uid_that_it_has_there(tmp_path: Path, results: tuple[Case, Path]) -> None:
    _, report = deliver(tmp_path / "state", {SEG: [EXPLICIT], SR + "33": [EXPLICIT]})
    with closing(open_database(tmp_path / "state")) as connection:
        journal = CommitmentJournal(connection)
        awaited = journal.awaited("archive", now_s=1e12, until_s=1e12)
        (sr,) = [one.delivery for one in awaited if one.delivery.role == "sr"]
        assert sr.archived_as == (str(report.SOPClassUID), str(report.SOPInstanceUID))
        journal.open_request("1.2.3", "archive", {sr.delivery_id: 2e12}, now_s=1e12)
        assert journal.record_report(CommitmentReport("1.2.3", frozenset({str(report.SOPInstanceUID)})), now_s=1e12 + 1)
    _, told = deliveries(tmp_path / "state")
    assert told.state == DeliveryState.COMMITTED
