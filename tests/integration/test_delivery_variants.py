"""A destination gets the richest form of a result that it takes: older classes of reports, segmentations compressed."""

import subprocess
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
from node.delivery.variants import DEFLATED, EXPLICIT, IMPLICIT, Compression
from node.domain.commitment import CommitmentReport
from node.domain.delivery import RetryPolicy, archived_as
from node.domain.states import DeliveryState
from node.evidence.segmentation import encode_label_map
from node.evidence.sop_common import part10_bytes
from node.journal import CommitmentJournal, OutboxJournal, open_database
from node.network import RLE_LOSSLESS
from tests.conformance.cases import Case, make_case
from tests.conformance.validators import decoded_segments, iod_faults, presence_faults, tree_faults
from tests.integration.delivery_kit import QUICK, deliveries, queue
from tests.peers import HOST, orthanc, storescp, tool

SR = "1.2.840.10008.5.1.4.1.1.88."
SEG = "1.2.840.10008.5.1.4.1.1.66.4"
LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.7"


@pytest.fixture
def results(tmp_path: Path) -> tuple[Case, Path]:
    case = make_case(tmp_path / "case", "oblique", 2)
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "seg.dcm").write_bytes(part10_bytes(case.segmentation()))
    (folder / "sr.dcm").write_bytes(part10_bytes(case.report()))
    queue(tmp_path / "state", [folder / "seg.dcm", folder / "sr.dcm"], ["archive"])
    return case, folder


def deliver(state_dir: Path, contexts: dict[str, list[str]], *, deflate: bool = False, rle: bool = False) -> list[Dataset]:
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
        run_courier(state_dir, peer, Compression(deflate=deflate, rle=rle))
    finally:
        server.shutdown()
    return got


def run_courier(state_dir: Path, peer: Peer, compression: Compression) -> None:
    with closing(open_database(state_dir)) as connection:
        destination = Destination("archive", peer, RetryPolicy(), QUICK, compression=compression)
        Courier(OutboxJournal(connection), destination).deliver_due(10.0)


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


@pytest.fixture
def label_map(tmp_path: Path) -> Path:
    """A label map of frames with an odd number of pixels, an odd number of them: its pixels end with a byte that is none."""
    case = make_case(tmp_path / "case", "coronal", 17, slices=11)
    path = tmp_path / "labelmap.dcm"
    made = encode_label_map(case.result, case.sources, case.context)
    assert int(made.NumberOfFrames) * made.Rows * made.Columns % 2, "odd"
    path.write_bytes(part10_bytes(made))
    queue(tmp_path / "state", [path], ["archive"])
    return path


def same_label_map(got: Dataset, path: Path) -> None:
    original = pydicom.dcmread(path)
    assert np.array_equal(got.pixel_array, original.pixel_array)
    for dataset in (got, original):
        del dataset.PixelData
    assert got == original, "the same object, under the same UID"


@pytest.mark.parametrize(
    ("compression", "taken", "syntax"),
    [
        (Compression(rle=True), [RLE_LOSSLESS, EXPLICIT], RLE_LOSSLESS),
        (Compression(rle=True), [EXPLICIT], EXPLICIT),
        (Compression(rle=True), [IMPLICIT], IMPLICIT),
        (Compression(), [RLE_LOSSLESS, EXPLICIT], EXPLICIT),
        (Compression(deflate=True, rle=True), [RLE_LOSSLESS, DEFLATED, EXPLICIT], DEFLATED),
    ],
)
def test_a_label_map_goes_compressed_where_that_is_configured_and_taken(
    tmp_path: Path, label_map: Path, compression: Compression, taken: list[str], syntax: str
) -> None:
    (got,) = deliver(tmp_path / "state", {LABEL_MAP: taken}, deflate=compression.deflate, rle=compression.rle)
    assert got.file_meta.TransferSyntaxUID == syntax
    same_label_map(got, label_map)


@pytest.mark.peer
def test_orthanc_keeps_a_run_length_encoded_label_map(tmp_path: Path, label_map: Path) -> None:
    with orthanc(tmp_path / "orthanc") as archive:
        run_courier(tmp_path / "state", Peer(HOST, archive.dicom_port, "ORTHANC", "RADNODE"), Compression(rle=True))
        (instance,) = archive.instances()
        kept = pydicom.dcmread(archive.download(instance, tmp_path / "kept.dcm"))
    assert kept.file_meta.TransferSyntaxUID == RLE_LOSSLESS
    same_label_map(kept, label_map)


@pytest.mark.peer
def test_dcmtk_receives_and_decodes_a_run_length_encoded_label_map(tmp_path: Path, label_map: Path) -> None:
    with storescp(tmp_path / "got", "--promiscuous") as port:
        run_courier(tmp_path / "state", Peer(HOST, port, "STORESCP", "RADNODE"), Compression(rle=True))
    (got,) = (tmp_path / "got").iterdir()
    assert pydicom.dcmread(got).file_meta.TransferSyntaxUID == RLE_LOSSLESS
    done = subprocess.run([tool("dcmdrle"), got, tmp_path / "decoded.dcm"], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert pydicom.dcmread(tmp_path / "decoded.dcm").PixelData == pydicom.dcmread(label_map).PixelData
    assert [one.voxels.sum() for one in decoded_segments(got, tmp_path / "dcmqi")], "dcmqi reads it as well"
    assert presence_faults(got) == []


def test_what_is_no_label_map_of_bytes_is_not_sent_as_one(tmp_path: Path, label_map: Path) -> None:
    spoiled = pydicom.dcmread(label_map)
    spoiled.PixelData = spoiled.PixelData[:-200]
    label_map.write_bytes(part10_bytes(spoiled))
    assert deliver(tmp_path / "state", {LABEL_MAP: [RLE_LOSSLESS]}, rle=True) == []
    (delivery,) = deliveries(tmp_path / "state")
    assert delivery.state == DeliveryState.REFUSED
    assert "a byte for each pixel" in delivery.reason


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
