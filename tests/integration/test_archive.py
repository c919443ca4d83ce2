"""The small archive of the demo: files by UID below a folder, readable, for anybody who sends."""

import threading
from pathlib import Path

import pytest
from pydicom import dcmread

from node.archive import PORT_FILE, StoredInstance, run_archive, safe_name, serving_archive
from node.delivery.sender import send_paths
from node.delivery.store_scu import echo
from node.intake.door import CannotListen
from tests.factories import SyntheticSeries, make_ct_series
from tests.integration.intake_kit import data_set_of, peer_of
from tests.peers import HOST, echoscu, storescu, wait_until


@pytest.fixture
def ct(tmp_path: Path) -> SyntheticSeries:
    return make_ct_series(tmp_path / "ct", slices=3)


def test_instances_lie_by_study_and_series(tmp_path: Path, ct: SyntheticSeries) -> None:
    told: list[StoredInstance] = []
    with serving_archive(tmp_path / "archive", on_stored=told.append) as port:
        assert send_paths(peer_of(port, called="ARCHIVE"), ct.paths).stored == 3
        assert send_paths(peer_of(port, called="ARCHIVE"), ct.paths[:1]).stored == 1
    folder = tmp_path / "archive" / ct.study_instance_uid / ct.series_instance_uid
    assert {path.name for path in folder.iterdir()} == {f"{uid}.dcm" for uid in ct.sop_instance_uids}
    for uid, source in zip(ct.sop_instance_uids, ct.paths, strict=True):
        assert data_set_of(folder / f"{uid}.dcm") == data_set_of(source)
        assert dcmread(folder / f"{uid}.dcm").SOPInstanceUID == uid
    assert len(told) == 4
    assert {instance.path.parent for instance in told} == {folder}
    assert not list((tmp_path / "archive" / ".spool").rglob("*.dcm"))


@pytest.mark.peer
def test_dcmtk_may_use_it(tmp_path: Path, ct: SyntheticSeries) -> None:
    with serving_archive(tmp_path / "archive", ae_title="DEMO") as port:
        assert echoscu(port, called="DEMO") == 0
        assert echoscu(port, called="OTHER") != 0
        assert storescu(port, ct.paths, called="DEMO").returncode == 0
    assert len(list((tmp_path / "archive").glob("*/*/*.dcm"))) == 3


def test_uids_that_are_none_never_become_paths(tmp_path: Path, ct: SyntheticSeries) -> None:
    assert safe_name("1.2.840.1") == "1.2.840.1"
    for evil in ("../../x", "", ".", "..", "1.2/3", "1" * 65, "01.2"):
        assert safe_name(evil).isalnum()
        assert len(safe_name(evil)) == 32
    odd = tmp_path / "odd.dcm"
    dataset = dcmread(ct.paths[0])
    dataset.StudyInstanceUID = "1.2.03"  # against PS3.5 9.1, but hospitals send it
    dataset.save_as(odd)
    with serving_archive(tmp_path / "archive") as port:
        assert send_paths(peer_of(port, called="ARCHIVE"), [odd]).stored == 1
    (kept,) = (tmp_path / "archive").glob("*/*/*.dcm")
    assert kept.parent.parent.name == safe_name("1.2.03")


def test_it_runs_until_it_is_told_and_says_where(tmp_path: Path) -> None:
    stop = threading.Event()
    thread = threading.Thread(target=run_archive, args=(tmp_path,), kwargs={"port": 0, "stop": stop}, daemon=True)
    thread.start()
    port = int(wait_until(lambda: (tmp_path / PORT_FILE).exists() and (tmp_path / PORT_FILE).read_text(), "the port"))
    assert echo(HOST, port, "ARCHIVE", "TESTER") < 5
    stop.set()
    thread.join(5)
    assert not thread.is_alive()


def test_a_port_that_is_taken_is_told(tmp_path: Path) -> None:
    with (
        serving_archive(tmp_path / "one") as port,
        pytest.raises(CannotListen, match=str(port)),
        serving_archive(tmp_path / "two", port=port),
    ):
        pass
