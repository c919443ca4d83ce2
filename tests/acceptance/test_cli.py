"""The command line as a user types it: what it prints where, what it answers to the shell, what it says when something is wrong."""

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
from pydicom import dcmread

from node.archive import serving_archive
from node.codes import ExitCode
from node.domain.states import JobState, Outcome
from node.journal import JobEnd, JobJournal, NewJob, ReceivedInstance, ReceivedJournal, open_database
from tests.bundles import make_bundle
from tests.factories import make_ct_series

STUDY = "1.2.826.0.1.3680043.8.498.1"
CONFIG = """\
[node]
ae_title = "RADNODE"
state_dir = "state"
models_dir = "models"
[listener]
host = "127.0.0.1"
port = {listener_port}
refuse_below_free_gib = 0
[peers.archive]
ae_title = "ARCHIVE"
host = "127.0.0.1"
port = {port}
may_send = true
[[routes]]
name = "any CT"
when = {{ Modality = "CT" }}
model = "thresholds"
deliver_to = ["archive"]
"""


def radnode(*arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "node", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=120, env={**os.environ, **environment})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a configuration, a model and a study; nothing in it is changed by the tests that share it."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "node.toml").write_text(CONFIG.format(port=1, listener_port=0))
    make_bundle(folder / "models")
    make_ct_series(folder / "ct")
    (folder / "ct" / "notes.txt").write_text("no DICOM")
    return folder


@pytest.fixture
def own_place(tmp_path: Path) -> Path:
    """As `place`, for a test that changes it."""
    (tmp_path / "node.toml").write_text(CONFIG.format(port=1, listener_port=0))
    make_bundle(tmp_path / "models")
    return tmp_path


# ── usage ───────────────────────────────────────────────────────────────────


def test_help_names_every_verb(place: Path) -> None:
    done = radnode("--help", cwd=place)
    assert done.returncode == ExitCode.OK
    verbs = [
        "serve",
        "config",
        "doctor",
        "echo",
        "send",
        "run",
        "explain",
        "job",
        "series",
        "delivery",
        "model",
        "study",
        "archive",
        "demo",
    ]
    assert not [verb for verb in verbs if f"    {verb} " not in done.stdout]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["serv"], "there is no 'serv'; did you mean 'serve'? → radnode --help"),
        (["job", "lits"], "did you mean 'list'? → radnode job --help"),
        ([], "the following arguments are required: VERB → radnode --help"),
        (["run", "ct"], "→ radnode run --help"),
        (["echo", "nowhere"], "there is no peer 'nowhere' → give HOST:PORT, or one of: archive"),
        (["send", "archive", "absent"], "there is no absent → name folders or files"),
        (["explain", "absent"], "there is no folder absent → name a folder of DICOM files"),
        (["model", "show", "absent"], "there is no model 'absent'"),
        (["run", "ct", "--model", "absent", "-o", "out"], "→ models here: thresholds"),
        (["study", "make", "absent.nii", "out"], "absent.nii is not there"),
        (["demo", "--config", "absent.toml"], "there is no absent.toml → run the demo in a checkout"),
    ],
)  # fmt: skip
def test_wrong_usage_says_what_to_do_and_exits_2(place: Path, arguments: list[str], said: str) -> None:
    done = radnode(*arguments, cwd=place)
    assert done.returncode == ExitCode.USAGE, done.stderr
    assert done.stderr.startswith("radnode: ")
    assert said in done.stderr
    assert "→" in done.stderr
    assert not done.stdout
    assert "Traceback" not in done.stderr


def test_without_a_configuration_the_places_are_named(tmp_path: Path) -> None:
    done = radnode("job", "list", cwd=tmp_path)
    assert done.returncode == ExitCode.USAGE
    assert "neither node.toml nor /etc/radnode/node.toml exists → name one with --config" in done.stderr


def test_a_reader_that_goes_away_is_no_error(place: Path) -> None:
    command = [sys.executable, "-m", "node", "model", "list"]
    with subprocess.Popen(command, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert not process.stderr.read()


# ── config ──────────────────────────────────────────────────────────────────


def test_config_check_of_a_right_file(place: Path) -> None:
    done = radnode("config", "check", cwd=place)
    assert done.returncode == ExitCode.OK
    assert "node.toml: no faults. RADNODE listens on 127.0.0.1:0, takes images from ARCHIVE" in done.stdout
    assert "any CT: thresholds → archive" in done.stdout


def test_config_check_of_a_wrong_file_exits_78(own_place: Path) -> None:
    text = (own_place / "node.toml").read_text().replace("may_send", "may_sent").replace('"ARCHIVE"', "5")
    (own_place / "node.toml").write_text(text)
    done = radnode("config", "check", "node.toml", cwd=own_place)
    assert done.returncode == ExitCode.CONFIG
    assert not done.stdout
    assert "node.toml:10: peers.archive.ae_title: must be a text in quotes, not 5\n    ae_title = 5\n" in done.stderr
    assert "node.toml:13: peers.archive.may_sent: unknown key; did you mean 'may_send'?" in done.stderr
    assert "→ correct the file, then `radnode config check`" in done.stderr


def test_every_verb_that_reads_a_wrong_file_exits_78(own_place: Path) -> None:
    (own_place / "node.toml").write_text("[node]\n")
    for arguments in (["serve"], ["job", "list"], ["doctor"], ["config", "show"], ["echo", "archive"]):
        assert radnode(*arguments, cwd=own_place).returncode == ExitCode.CONFIG


def test_config_show_prints_what_can_be_read_again(place: Path) -> None:
    shown = tomllib.loads(radnode("config", "show", cwd=place).stdout)
    assert shown == json.loads(radnode("config", "show", "--json", cwd=place).stdout)
    assert shown["listener"]["max_associations"] == 16
    assert shown["routes"][0]["when"] == {"Modality": "CT"}
    (place / "shown.toml").write_text(radnode("config", "show", cwd=place).stdout)
    assert radnode("config", "check", "shown.toml", cwd=place).returncode == ExitCode.OK


# ── peers ───────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int]]:
    folder = tmp_path_factory.mktemp("archive")
    with serving_archive(folder) as port:
        yield folder, port


def test_echo_of_an_address(place: Path, archive: tuple[Path, int]) -> None:
    done = radnode("echo", f"127.0.0.1:{archive[1]}", "--called", "ARCHIVE", "--json", cwd=place)
    assert done.returncode == ExitCode.OK
    assert json.loads(done.stdout)["elapsed_s"] < 5


def test_echo_and_send_to_a_peer_of_the_configuration(own_place: Path, archive: tuple[Path, int]) -> None:
    folder, port = archive
    (own_place / "node.toml").write_text(CONFIG.format(port=port, listener_port=0))
    images = make_ct_series(own_place / "ct").paths
    assert "ARCHIVE at 127.0.0.1" in radnode("echo", "archive", cwd=own_place).stdout
    (own_place / "ct" / "notes.txt").write_text("no DICOM")
    done = radnode("send", "archive", "ct", cwd=own_place)
    assert done.returncode == ExitCode.OK, done.stderr
    assert done.stdout == f"{len(images)} stored\n"
    assert "1 files are no DICOM instances" in done.stderr
    kept = {str(dcmread(path, stop_before_pixels=True).SOPInstanceUID) for path in folder.rglob("*.dcm")}
    assert kept == {str(dcmread(path, stop_before_pixels=True).SOPInstanceUID) for path in images}


@pytest.mark.parametrize("arguments", [["echo", "archive"], ["send", "archive", "ct"], ["echo", "127.0.0.1:1"]], ids=" ".join)
def test_a_peer_that_is_not_there_exits_69(place: Path, arguments: list[str]) -> None:
    done = radnode(*arguments, cwd=place)
    assert done.returncode == ExitCode.PEER_UNAVAILABLE
    assert "→ check host and port" in done.stderr


def test_a_peer_that_rejects_us_says_why(place: Path, archive: tuple[Path, int]) -> None:
    done = radnode("echo", f"127.0.0.1:{archive[1]}", "--called", "NOBODY", cwd=place)
    assert done.returncode == ExitCode.PEER_UNAVAILABLE
    assert "AE title" in done.stderr


def test_the_archive_command_serves_until_sigterm(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "node", "archive", "--dir", str(tmp_path / "kept"), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        written = tmp_path / "kept" / "archive.port"
        deadline = time.monotonic() + 30
        while not written.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        make_ct_series(tmp_path / "ct")
        sent = radnode("send", f"127.0.0.1:{int(written.read_text())}", "ct", "--called", "ARCHIVE", cwd=tmp_path)
        assert sent.returncode == ExitCode.OK, sent.stderr
        process.send_signal(signal.SIGTERM)
        printed, _ = process.communicate(timeout=20)
    assert process.returncode == ExitCode.OK
    paths = [Path(line) for line in printed.splitlines()]
    assert paths
    assert all(path.is_file() for path in paths)


# ── models, studies, runs ───────────────────────────────────────────────────


def test_models_are_listed_and_shown(place: Path) -> None:
    (listed,) = json.loads(radnode("model", "list", "--json", cwd=place).stdout)
    assert listed == {
        "name": "thresholds",
        "version": "1.0.0",
        "weights": "installed",
        "confirmed": "yes",
        "modality": "CT",
        "title": "Organ and marker by value",
    }
    shown = radnode("model", "show", "thresholds", cwd=place).stdout
    assert "intended use: Tests only." in shown
    assert "accepts CT: slices at least 5" in shown
    assert "Organ" in shown
    assert json.loads(radnode("model", "show", "thresholds", "--json", cwd=place).stdout)["name"] == "thresholds"


def test_wrong_weights_are_found_and_replaced(own_place: Path) -> None:
    weights = own_place / "models" / "thresholds" / "models" / "model.safetensors"
    right = weights.read_bytes()
    (own_place / "mine").mkdir()
    (own_place / "mine" / "model.safetensors").write_bytes(right)
    assert radnode("model", "verify", cwd=own_place).returncode == ExitCode.OK
    weights.write_bytes(right[:-1] + b"x")
    wrong = radnode("model", "verify", "--json", cwd=own_place)
    assert wrong.returncode == ExitCode.FAILED
    assert "the card names" in json.loads(wrong.stdout)[0]["state"]
    assert "→ radnode model install" in wrong.stderr
    assert radnode("model", "install", "thresholds", "--from", "mine", cwd=own_place).returncode == ExitCode.OK
    assert weights.read_bytes() == right


def test_explain_says_which_rule_took_each_series(place: Path) -> None:
    done = radnode("explain", "ct", cwd=place)
    assert done.returncode == ExitCode.OK
    assert "taken by card thresholds: the only eligible series" in done.stdout
    assert "1 files are no DICOM instances" in done.stderr
    (study,) = json.loads(radnode("explain", "ct", "--model", "thresholds", "--json", cwd=place).stdout)
    assert study["selected"][0]["model"] == "thresholds"
    assert study["verdicts"][0]["accepted"] is True


def test_explain_says_why_a_series_is_refused(place: Path, tmp_path: Path) -> None:
    make_ct_series(tmp_path / "few", slices=3)
    done = radnode("explain", tmp_path / "few", cwd=place)
    assert "refused by card thresholds" in done.stdout
    assert "3 slices, the model needs at least 5" in done.stdout


@pytest.fixture(scope="module")
def runs(place: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Path, str]:
    """Two runs of one model on one study, told in JSON and in a table: folder of the results → what was printed."""
    folder = tmp_path_factory.mktemp("runs")
    printed = {}
    for out, how in ((folder / "one", ["--json"]), (folder / "two", [])):
        done = radnode("run", "ct", "--model", "thresholds", "-o", out, *how, cwd=place)
        assert done.returncode == ExitCode.OK, done.stderr
        printed[out] = done.stdout
    return printed


def test_run_writes_the_results_and_says_where(runs: dict[Path, str]) -> None:
    told, table = runs.values()
    said = json.loads(told)
    assert said["outcome"] == "found"
    assert {one["label"] for one in said["segments"] if one["present"]} == {"Organ", "Marker"}
    assert set(said["paths"]) == {"seg", "sr", "key_image", "page"}
    assert all(Path(path).is_file() for path in said["paths"].values())
    assert {"prepare", "infer", "restore", "encode"} <= set(said["stages"])
    assert "thresholds 1.0.0: found" in table
    assert "total" in table


def test_the_same_run_twice_gives_the_same_objects(runs: dict[Path, str]) -> None:
    first, second = ({role: str(dcmread(out / f"{role}.dcm").SOPInstanceUID) for role in ("seg", "sr")} for out in runs)
    assert first == second


def test_run_on_a_study_that_no_model_accepts_says_why(place: Path, tmp_path: Path) -> None:
    make_ct_series(tmp_path / "few", slices=3)
    done = radnode("run", tmp_path / "few", "--model", "thresholds", "-o", tmp_path / "out", cwd=place)
    assert done.returncode == ExitCode.FAILED
    assert "3 slices, the model needs at least 5" in done.stderr
    assert "→" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_study_is_made_of_a_nifti_file(tmp_path: Path) -> None:
    voxels = np.arange(8 * 8 * 8, dtype=np.int16).reshape(8, 8, 8)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([1.0, 1.0, 2.0, 1.0])), tmp_path / "volume.nii.gz")
    done = radnode("study", "make", "volume.nii.gz", "out", "--modality", "MR", cwd=tmp_path)
    assert done.returncode == ExitCode.OK, done.stderr
    assert done.stdout == "out\n"
    assert len(list((tmp_path / "out").glob("*.dcm"))) == 8


# ── the journal ─────────────────────────────────────────────────────────────


@pytest.fixture
def journal(own_place: Path) -> Path:
    """A node that has received one series and ended one job on it as failed."""
    (own_place / "state").mkdir()
    connection = open_database(own_place / "state")
    received, jobs = ReceivedJournal(connection), JobJournal(connection)
    instance = ReceivedInstance(
        f"{STUDY}.1.1", f"{STUDY}.1", STUDY, "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.1", "0" * 64, 10, "PACS"
    )
    received.record_instance(instance, association="a", now_s=1.0)
    job = NewJob("k" * 64, STUDY, f"{STUDY}.1", "any CT", "thresholds", "d" * 64, {f"{STUDY}.1.1": "0" * 64}, ("archive",))
    jobs.open_job(job, last_instance_s=1.0, now_s=2.0)
    claimed = jobs.claim("worker-cpu", now_s=3.0)
    assert claimed is not None
    end = JobEnd(JobState.CANCELED, Outcome.FAILED, "the device broke", (), {"prepare": 0.25})
    assert jobs.end(claimed, end, now_s=4.0)
    connection.close()
    return own_place


def test_jobs_are_listed_shown_and_retried(journal: Path) -> None:
    assert "no job waits or runs" in radnode("job", "list", cwd=journal).stderr
    (job,) = json.loads(radnode("job", "list", "--all", "--json", cwd=journal).stdout)
    assert (job["state"], job["outcome"], job["reason"]) == ("CANCELED", "failed", "the device broke")
    assert not json.loads(radnode("job", "list", "--all", "--json", "--study", "1.2", cwd=journal).stdout)
    assert "the device broke" in radnode("job", "list", "--all", cwd=journal).stdout
    shown = json.loads(radnode("job", "show", "1", "--json", cwd=journal).stdout)
    assert shown["stages"] == {"prepare": 0.25}
    assert [step["after"] for step in shown["history"]] == ["SCHEDULED", "IN PROGRESS", "CANCELED"]
    assert "thresholds" in radnode("job", "show", "1", cwd=journal).stdout
    assert radnode("job", "retry", "1", cwd=journal).returncode == ExitCode.OK
    (job,) = json.loads(radnode("job", "list", "--json", cwd=journal).stdout)
    assert job["state"] == "SCHEDULED"
    again = radnode("job", "retry", "1", cwd=journal)
    assert again.returncode == ExitCode.USAGE
    assert "only a CANCELED job can be retried" in again.stderr


def test_series_and_deliveries_are_listed(journal: Path) -> None:
    (series,) = json.loads(radnode("series", "list", "--json", cwd=journal).stdout)
    assert (series["state"], series["instances"]) == ("RECEIVING", 1)
    assert f"{STUDY}.1" in radnode("series", "list", "--all", cwd=journal).stdout
    assert json.loads(radnode("delivery", "list", "--all", "--json", cwd=journal).stdout) == []
    assert "nothing is on its way" in radnode("delivery", "list", cwd=journal).stderr


@pytest.mark.parametrize("arguments", [["job", "list"], ["series", "list"], ["delivery", "list"], ["job", "show", "1"]], ids=" ".join)
def test_a_node_that_never_ran_says_so(place: Path, arguments: list[str]) -> None:
    done = radnode(*arguments, cwd=place)
    assert done.returncode == ExitCode.FAILED
    assert "has `radnode serve` ever run" in done.stderr
    assert "→" in done.stderr


def test_an_unknown_job_exits_2(journal: Path) -> None:
    done = radnode("job", "show", "7", cwd=journal)
    assert done.returncode == ExitCode.USAGE
    assert "there is no job 7 → see `radnode job list --all`" in done.stderr


# ── doctor ──────────────────────────────────────────────────────────────────


def test_doctor_of_a_machine_without_a_node(tmp_path: Path) -> None:
    done = radnode("doctor", "--json", cwd=tmp_path)
    assert done.returncode == ExitCode.OK, done.stdout
    findings = {one["check"]: one["health"] for one in json.loads(done.stdout)}
    engines = {check for check in findings if check.startswith("engine ")}
    assert engines == {"engine onnxruntime", "engine openvino", "engine tensorrt"}  # ok, or the reason why not: none of them is needed
    assert {check: findings[check] for check in findings.keys() - engines} == {"packages": "ok", "torch": "ok", "decoders": "ok"}


def test_doctor_finds_what_is_wrong_with_a_node(own_place: Path, archive: tuple[Path, int]) -> None:
    (own_place / "node.toml").write_text(CONFIG.format(port=archive[1], listener_port=0))
    assert radnode("doctor", cwd=own_place).returncode == ExitCode.OK
    (own_place / "node.toml").write_text(CONFIG.format(port=1, listener_port=archive[1]).replace("may_send = true", ""))
    (own_place / "models" / "thresholds" / "models" / "model.safetensors").unlink()
    done = radnode("doctor", cwd=own_place)
    assert done.returncode == ExitCode.FAILED
    wrong = {line.split()[1].rstrip(":"): line for line in done.stdout.splitlines() if not line.startswith("ok")}
    assert set(wrong) == {"model", "listener", "senders", "peer"}
    assert all("→" in line for line in wrong.values())
