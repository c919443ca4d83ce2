"""A study that takes its worker process with it costs itself and nothing else: the node lives, the study ends with its reason.

A real node with real processes. The model is code, as every bundle is: at a study with so many slices it does what broken native
code, a failed assertion in C, the kernel's out-of-memory killer and an allocation without end do.
"""

import json
from pathlib import Path

import pytest

from node.domain.states import JobState
from node.journal import JobRecord
from tests.acceptance.harness import RunningNode, running_node, send
from tests.bundles import make_bundle
from tests.factories import SyntheticSeries, make_ct_series

POISON = """
import ctypes, os, resource, signal

class Poisoned:
    def __init__(self, keys): self.keys = keys
    def __call__(self, data):
        slices = data["image"].shape[-1]
        if slices == 7:
            ctypes.string_at(0)
        elif slices == 8:
            os.abort()
        elif slices == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        elif slices == 10:
            used = int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
            resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), resource.RLIM_INFINITY))
            try:
                hoard = [bytearray(16 << 20) for _ in range(100)]
            finally:
                resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        return data
"""
FATES = {7: "segmentation fault", 8: "abort", 9: "killed by the kernel"}
HOARDING = 10
HARMLESS = 6
MAX_ATTEMPTS = 1
"""Each further one costs a start of the worker; test_worker_kills.py has more."""


def poisoned_bundle(models_dir: Path) -> None:
    folder = make_bundle(models_dir)
    (folder / "poison_of_the_tests.py").write_text(POISON)
    path = folder / "configs" / "inference.json"
    configuration = json.loads(path.read_text())
    configuration["preprocessing"]["transforms"].append({"_target_": "poison_of_the_tests.Poisoned", "keys": "@image_key"})
    path.write_text(json.dumps(configuration))


def study(folder: Path, slices: int) -> SyntheticSeries:
    return make_ct_series(folder / f"ct{slices}", slices=slices, rows=32, columns=32, study=f"study {slices}", series=f"series {slices}")


def ended(node: RunningNode, studies: dict[int, SyntheticSeries]) -> dict[int, JobRecord]:
    jobs = {job.study_instance_uid: job for job in node.jobs()}
    return {slices: jobs[series.study_instance_uid] for slices, series in studies.items()}


@pytest.mark.slow
def test_a_study_that_kills_its_worker_ends_failed_and_the_next_study_is_done(tmp_path: Path) -> None:
    poisoned_bundle(tmp_path / "models")
    studies = {slices: study(tmp_path, slices) for slices in (*FATES, HOARDING, HARMLESS)}
    limits = f'deliver_to = ["archive"]\n\n[worker]\nmax_attempts = {MAX_ATTEMPTS}\n'
    with running_node(tmp_path / "node", models_dir=tmp_path / "models", model="thresholds", quiet_s=0.5) as node:
        assert node.stop() == 0
        config = node.folder / "node.toml"
        config.write_text(config.read_text().replace('deliver_to = ["archive"]\n', limits))
        node.start()
        others = {role: node.child_pid(role) for role in ("listener", "dispatcher", "courier")}
        for series in studies.values():
            send(series.paths, node.port)
        node.wait_for_jobs(len(FATES) + 1, JobState.CANCELED, timeout_s=180)
        node.wait_for_jobs(1, JobState.COMPLETED)
        jobs = ended(node, studies)
        for slices, fate in FATES.items():
            job = jobs[slices]
            assert (job.outcome, job.attempt) == ("failed", MAX_ATTEMPTS + 1), fate
            assert f"the worker process died {MAX_ATTEMPTS} times" in job.reason, fate
        assert (jobs[HOARDING].outcome, jobs[HOARDING].attempt) == ("failed", MAX_ATTEMPTS)
        assert jobs[HOARDING].reason.startswith("unexpected fault"), "it was told, and the process went on"
        assert (jobs[HARMLESS].outcome, jobs[HARMLESS].attempt) == ("found", 1)
        reports = [delivery for delivery in node.deliveries() if delivery.role == "sr"]
        assert sorted(delivery.job_id for delivery in reports) == sorted(job.job_id for job in jobs.values()), "each study has its report"
        assert {role: node.child_pid(role) for role in others} == others, "no other process of the node was touched"
        assert node.stop() == 0
