"""Study in, SEG and SR back in the archive: through restarts, kills, late slices and loops."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from orthanc_api_client import OrthancApiClient
from pydicom import dcmread

from node.journal import JobRecord, SeriesRecord
from tests.acceptance.harness import RunningNode, frozen_process, has_connection_to, pid_listening, running_node, send, wait_for
from tests.bundles import make_bundle
from tests.factories import SyntheticSeries, make_ct_series
from tests.peers import HOST, OrthancPeer, free_port, orthanc

pytestmark = [pytest.mark.peer, pytest.mark.slow, pytest.mark.timeout(600)]  # each wait below has its own end

SEG_CLASS = "1.2.840.10008.5.1.4.1.1.66.4"
SR_CLASS = "1.2.840.10008.5.1.4.1.1.88.34"


@pytest.fixture
def ct(tmp_path: Path) -> SyntheticSeries:
    return make_ct_series(tmp_path / "ct")


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    make_bundle(tmp_path / "models")
    make_bundle(tmp_path / "models", "slow", slow=True)
    return tmp_path / "models"


@pytest.fixture(scope="module")
def shared_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    """A node for tests that ask for nothing but its answer to a study of their own; its archive cannot be reached."""
    folder = tmp_path_factory.mktemp("shared")
    make_bundle(folder / "models")
    with running_node(folder / "node", models_dir=folder / "models", model="thresholds", archive_port=free_port()) as node:
        yield node


def jobs_of(node: RunningNode, study: SyntheticSeries) -> list[JobRecord]:
    """The jobs on a study, the first first."""
    return sorted((job for job in node.jobs() if job.study_instance_uid == study.study_instance_uid), key=lambda job: job.job_id)


def ended_jobs(node: RunningNode, study: SyntheticSeries, count: int, state: str) -> list[JobRecord]:
    """Waits until there are so many jobs on a study, all of them in a state."""

    def ended() -> list[JobRecord] | None:
        found = jobs_of(node, study)
        return found if [job.state for job in found] == [state] * count else None

    return wait_for(ended, 120, f"{count} jobs {state}", node.log)


def client(archive: OrthancPeer) -> OrthancApiClient:
    """Orthanc's REST interface by its own library."""
    return OrthancApiClient(f"http://{HOST}:{archive.http_port}")


def instances_of(archive: OrthancPeer, modality: str) -> list[str]:
    """Orthanc's names of the instances of a modality."""
    api = client(archive)
    return [
        instance
        for series in api.series.get_all_ids()
        if api.series.get_tags(series)["Modality"] == modality
        for instance in api.series.get_instances_ids(series)
    ]


def results_in(archive: OrthancPeer) -> dict[str, int]:
    """How many SEG and SR the archive holds."""
    return {modality: len(instances_of(archive, modality)) for modality in ("SEG", "SR")}


def settled(node: RunningNode, archive: OrthancPeer, seconds: float = 3.0) -> dict[str, int]:
    """What the archive holds after everything has been quiet for a while."""

    def quiet() -> bool:
        return all(job.state in {"COMPLETED", "CANCELED"} for job in node.jobs()) and all(
            d.state in {"STORED", "COMMITTED"} for d in node.deliveries()
        )

    wait_for(quiet, 120, "quiet", node.log)
    time.sleep(seconds)
    return results_in(archive)


def test_orthanc_routes_a_study_and_gets_seg_and_sr_back(tmp_path: Path, ct: SyntheticSeries, models_dir: Path) -> None:
    """Identity equals the source's byte for byte; Orthanc sending our results back to us starts nothing."""
    with (
        orthanc(tmp_path / "orthanc") as archive,
        running_node(
            tmp_path / "node",
            models_dir=models_dir,
            model="thresholds",
            archive_ae_title=archive.ae_title,
            archive_port=archive.dicom_port,
        ) as node,
    ):
        archive.add_modality("radnode", "RADNODE", node.port)
        api = client(archive)
        api.upload_folder(str(ct.folder))
        (study,) = api.studies.get_all_ids()
        api.modalities.send("radnode", study)
        node.wait_for_deliveries(2)
        assert results_in(archive) == {"SEG": 1, "SR": 1}
        for modality in ("SEG", "SR"):
            made = tmp_path / f"{modality}.dcm"
            made.write_bytes(api.instances.get_file(instances_of(archive, modality)[0]))
            assert_same_identity(made, ct.paths[0])
        # the whole study again, our results with it: the loop every naive node falls into
        for _ in range(2):
            api.modalities.send("radnode", study)
            wait_for(lambda: all(series.state != "RECEIVING" for series in node.series()), 120, "the decision", node.log)
        assert settled(node, archive) == {"SEG": 1, "SR": 1}
        assert len(node.jobs()) == 1
        own = [series for series in node.series() if series.state == "DECLINED"]
        assert len(own) == 2
        assert all("this node made it" in series.reason for series in own)


IDENTITY = (
    "PatientID IssuerOfPatientID PatientName PatientBirthDate PatientSex StudyInstanceUID StudyID StudyDate StudyTime AccessionNumber"
    " ReferringPhysicianName StudyDescription FrameOfReferenceUID"
).split()


def assert_same_identity(made: Path, source: Path) -> None:
    theirs, ours = dcmread(source, stop_before_pixels=True), dcmread(made, stop_before_pixels=True)
    for keyword in IDENTITY:
        if keyword == "FrameOfReferenceUID" and ours.Modality == "SR":
            continue
        assert ours.get(keyword) == theirs.get(keyword), keyword


def test_kill_9_of_the_worker_during_inference_leaves_exactly_one_result(tmp_path: Path, ct: SyntheticSeries, models_dir: Path) -> None:
    """The other steps: tests/faults/test_worker_kills.py."""
    with (
        orthanc(tmp_path / "orthanc") as archive,
        running_node(
            tmp_path / "node", models_dir=models_dir, model="slow", archive_ae_title=archive.ae_title, archive_port=archive.dicom_port
        ) as node,
    ):
        send(ct.paths, node.port)
        wait_for(lambda: any(job.step == "infer" for job in node.jobs()), 120, "inference", node.log)
        node.kill_child("worker")
        (job,) = node.wait_for_jobs(1, "COMPLETED")
        assert job.attempt == 2
        node.wait_for_deliveries(2)
        assert settled(node, archive) == {"SEG": 1, "SR": 1}


def test_kill_9_of_the_supervisor_during_delivery_leaves_exactly_one_result(tmp_path: Path, ct: SyntheticSeries, models_dir: Path) -> None:
    """The archive is frozen, so the kill falls between C-STORE request and response; no process survives its supervisor."""
    with (
        orthanc(tmp_path / "orthanc") as archive,
        running_node(
            tmp_path / "node", models_dir=models_dir, model="thresholds", archive_ae_title=archive.ae_title, archive_port=archive.dicom_port
        ) as node,
    ):
        with frozen_process(pid_listening(archive.dicom_port)):
            send(ct.paths, node.port)
            wait_for(lambda: node.deliveries() and has_connection_to(archive.dicom_port), 120, "the courier at the archive", node.log)
            children = [node.child_pid(role) for role in ("listener", "dispatcher", "worker", "courier")]
            node.kill()
            wait_for(lambda: all(is_gone(pid) for pid in children), 60, "the end of all processes")
        node.start()
        node.wait_for_deliveries(2)
        assert settled(node, archive) == {"SEG": 1, "SR": 1}


def is_gone(pid: int) -> bool:
    try:
        return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


def test_a_clean_stop_in_mid_inference_costs_no_attempt(tmp_path: Path, ct: SyntheticSeries, models_dir: Path) -> None:
    with running_node(tmp_path / "node", models_dir=models_dir, model="slow") as node:
        send(ct.paths, node.port)
        wait_for(lambda: any(job.step == "infer" for job in node.jobs()), 120, "inference", node.log)
        assert node.stop() == 0
        node.start()
        (job,) = node.wait_for_jobs(1, "COMPLETED")
        assert job.attempt == 1


def test_a_late_slice_leads_to_a_new_run_that_names_its_predecessor(tmp_path: Path, shared_node: RunningNode) -> None:
    node, late = shared_node, make_ct_series(tmp_path / "late", study="late", series="late")
    send(late.paths[:-1], node.port)
    ended_jobs(node, late, 1, "COMPLETED")
    send(late.paths[-1:], node.port)
    first, second = ended_jobs(node, late, 2, "COMPLETED")
    assert second.predecessor_job_id == first.job_id
    before = dcmread(node.state_dir / "results" / str(first.job_id) / "0" / "sr.dcm")
    after = dcmread(node.state_dir / "results" / str(second.job_id) / "0" / "sr.dcm")
    referenced = after.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    assert referenced.ReferencedSOPInstanceUID == before.SOPInstanceUID
    # the same study once more changes nothing
    send(late.paths, node.port)
    time.sleep(3)
    assert len(jobs_of(node, late)) == 2


def test_a_series_that_is_no_volume_is_told_not_silent(tmp_path: Path, shared_node: RunningNode) -> None:
    node, broken = shared_node, make_ct_series(tmp_path / "broken", missing=(8, 9, 10, 11), study="broken", series="broken")
    send(broken.paths, node.port)
    (job,) = ended_jobs(node, broken, 1, "CANCELED")
    assert job.outcome == "not attempted"
    assert "missing" in job.reason.lower()
    (delivery,) = (delivery for delivery in node.deliveries() if delivery.job_id == job.job_id)
    assert delivery.role == "sr"
    assert "Not Attempted" in str(dcmread(delivery.path))


@pytest.mark.parametrize("part", ["inferer", "network_def"])
def test_a_model_that_kills_the_worker_ends_failed_and_the_queue_goes_on(
    tmp_path: Path, ct: SyntheticSeries, models_dir: Path, part: str
) -> None:
    """A native crash, when the model runs or already when it is loaded: the worker process goes, the node stays, the study is told."""
    config = models_dir / "thresholds" / "configs" / "inference.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {part: "$__import__('os').abort()" if part == "network_def" else ABORT}))
    with running_node(tmp_path / "node", models_dir=models_dir, model="thresholds") as node:
        send(ct.paths, node.port)
        (job,) = node.wait_for_jobs(1, "CANCELED")
        assert job.outcome == "failed"
        assert "died 3 times" in job.reason
        assert [delivery.role for delivery in node.deliveries()] == ["sr"]
        listener = node.child_pid("listener")
        send(ct.paths, node.port)
        assert node.child_pid("listener") == listener, "the listener never noticed"


ABORT = "$lambda batch, network: __import__('os').abort()"


def test_a_declined_study_says_why(tmp_path: Path, shared_node: RunningNode) -> None:
    node, short = shared_node, make_ct_series(tmp_path / "short", slices=3, study="short", series="short")
    send(short.paths, node.port)

    def verdict() -> SeriesRecord | None:
        return next((s for s in node.series() if s.series_instance_uid == short.series_instance_uid and s.state == "DECLINED"), None)

    assert wait_for(verdict, 120, "the verdict", node.log).reason == "card thresholds: 3 slices, the model needs at least 5"
    assert jobs_of(node, short) == []


def test_two_nodes_cannot_share_one_state_dir(tmp_path: Path, shared_node: RunningNode) -> None:
    second = RunningNode(shared_node.folder)
    second.log = tmp_path / "second.log"
    port = shared_node.port_file.read_text()
    with pytest.raises(AssertionError):
        second.start()
    shared_node.port_file.write_text(port)  # which `start` takes away first
    assert "another radnode serves" in second.log.read_text()
