"""`radnode engine`, and the builder that a worker starts: one build, by a process of its own, looked at from all sides."""

import json
import os
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from node import doctor
from node.cli import main
from node.config import parse_config
from node.errors import UsageError
from node.inference.bundle import Bundle, load_bundle
from node.inference.engines import select
from node.inference.engines.backends import find_backends
from node.inference.engines.hardware import cuda_driver
from node.inference.engines.select import Build, EngineWish
from node.inference.series_reader import read_series
from node.modelstore import load_card
from tests.bundles import make_bundle
from tests.factories import SyntheticSeries, make_ct_series

pytestmark = pytest.mark.skipif(
    any(backend.fault for backend in find_backends("cpu") if backend.name != "tensorrt"),
    reason="onnx, onnxscript, onnxruntime and openvino are needed (pip install 'radnode[test]')",
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("node") / "models"
    make_bundle(folder, "windowed", slow=True)
    make_bundle(folder, "whole")
    return folder


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> SyntheticSeries:
    return make_ct_series(tmp_path_factory.mktemp("ct"), slices=8, rows=24, columns=24)


def load(models: Path, name: str, wish: EngineWish) -> Bundle:
    model = load_bundle(models / name, load_card(models / name), threads=1, engines=wish)
    assert isinstance(model, Bundle)
    return model


def hurry(builder: subprocess.Popen[bytes]) -> int:
    """Waits for a builder; it gives way to everything else, which on a machine full of tests would take minutes."""
    until_s = time.monotonic() + 240
    while builder.poll() is None and time.monotonic() < until_s:
        with suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, builder.pid, 0)
        time.sleep(0.2)
    return builder.wait(timeout=1)


@pytest.fixture(scope="module")
def served(models: Path, study: SyntheticSeries) -> Path:
    """Engines as a worker's builder made them, while the worker went on with torch."""
    engines = models.parent / "engines"
    patch = pytest.MonkeyPatch()
    patch.setattr(select, "_WORTH_S", {"cpu": 0.0})
    volume = read_series(study.paths)
    model = load(models, "windowed", EngineWish("openvino", engines, Build.BACKGROUND))
    patch.undo()
    before = model.predict([volume])
    assert model.provenance.engine.startswith("torch")
    assert model.provenance.parity == ""
    assert hurry(model._engine._look_for_better.__self__._builder) == 0
    after = model.predict([volume])
    assert model.provenance.engine.startswith("openvino")
    assert model.provenance.parity.startswith("gate ")
    assert before.label_map is not None
    assert after.label_map is not None
    assert np.array_equal(before.label_map.labels, after.label_map.labels)
    assert after.label_map.labels.max() == 2
    model.close()
    return engines


def command(*words: object) -> int:
    return main([str(word) for word in words])


def said(capsys: pytest.CaptureFixture[str]) -> object:
    return json.loads(capsys.readouterr().out)


def test_a_worker_changes_to_the_engine_that_its_builder_made_and_a_start_finds_it(models: Path, served: Path) -> None:
    model = load(models, "windowed", EngineWish("openvino", served, Build.BACKGROUND))
    assert model.provenance.engine.startswith("openvino")
    assert model._engine._look_for_better is None


def test_the_list_names_choice_engines_and_onnx(models: Path, served: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("engine", "list", "--engines-dir", served, "--json") == 0
    told = said(capsys)
    assert isinstance(told, list)
    assert {one["kind"] for one in told} == {"choice", "engine", "onnx"}
    assert {one["state"] for one in told} == {"ok"}
    assert "cpu: openvino" in {one["what"] for one in told if one["kind"] == "choice"}.pop()
    assert command("engine", "list", "--models-dir", models) == 0  # beside the folder of models
    assert "windowed" in capsys.readouterr().out


def test_verify_and_prune_find_what_was_touched(served: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engines = tmp_path / "engines"
    shutil.copytree(served, engines)
    assert command("engine", "verify", "--engines-dir", engines) == 0
    victim = next(engines.glob("windowed/*/parity.json"))
    victim.write_bytes(victim.read_bytes() + b" ")
    assert command("engine", "verify", "windowed", "--engines-dir", engines) == 1
    assert "was changed since this node built it" in capsys.readouterr().out
    assert command("engine", "prune", "--engines-dir", engines) == 0
    assert victim.parent.name[:12] in capsys.readouterr().out
    assert command("engine", "verify", "--engines-dir", engines) == 0
    assert command("engine", "prune", "--all", "--engines-dir", engines) == 0
    capsys.readouterr()
    assert command("engine", "list", "--engines-dir", engines, "--json") == 0
    assert said(capsys) == []


def test_a_build_on_the_sites_own_study_is_held_against_it_too(
    models: Path, served: Path, study: SyntheticSeries, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engines = tmp_path / "engines"
    shutil.copytree(served, engines)  # its ONNX file is used again
    words = ("--models-dir", models, "--engines-dir", engines, "--threads", 1, "--engine", "onnxruntime", "--json")
    assert command("engine", "build", "windowed", "--sample", study.paths[0].parent, *words) == 0
    told = said(capsys)
    assert isinstance(told, dict)
    assert {one["engine"] for one in told["engines"]} == {"torch fp32 plain", "onnxruntime fp32 CPUExecutionProvider"}
    parity = [json.loads(path.read_text()) for path in engines.glob("windowed/*/parity.json")]
    sampled = [one for one in parity if one["windows"]["samples"]]
    assert len(sampled) == 2
    assert all(one["figures"]["voxels"].keys() == {"1", "2"} for one in sampled)


def test_a_model_of_whole_volumes_is_told_to_stay_on_torch(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("engine", "build", "whole", "--models-dir", models) == 1
    assert "whole runs on torch: the network takes the whole volume at once" in capsys.readouterr().err
    assert command("engine", "bench", "whole", "--models-dir", models) == 1


def test_doctor_tells_each_library_and_why_one_cannot_be_used(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert command("doctor", "--json") == 0
    told = {one["check"]: one for one in said(capsys)}
    assert told["engine openvino"]["text"].endswith("can be used")
    assert told["engine onnxruntime"]["text"].endswith("can be used")
    if cuda_driver().fault:
        assert cuda_driver().fault in told["engine tensorrt"]["text"] or "not installed" in told["engine tensorrt"]["text"]


def test_doctor_warns_where_the_configured_library_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        doctor, "_backends", lambda: {"tensorrt": ("", "not installed → pip install 'radnode[tensorrt]'"), "torch": ("2.13.0", "")}
    )
    text = '[node]\nae_title = "A"\nstate_dir = "s"\nmodels_dir = "."\n[worker]\nengine = "{}"\n'
    (warning,) = doctor._wanted_engine(parse_config(text.format("tensorrt"), tmp_path / "node.toml"))
    assert warning.health is doctor.Health.WARNING
    assert warning.text.endswith("not installed; networks run on torch")
    assert not list(doctor._wanted_engine(parse_config(text.format("torch"), tmp_path / "node.toml")))
    assert not list(doctor._wanted_engine(parse_config(text.format("auto"), tmp_path / "node.toml")))


def test_an_unknown_model_is_wrong_usage(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("engine", "build", "none", "--models-dir", models) == UsageError.exit_code
    assert "there is no model 'none'" in capsys.readouterr().err


def test_a_bench_prints_every_engine_with_its_figures(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--models-dir", models, "--engine", "torch", "--rounds", 1, "--threads", 1)
    assert command("engine", "bench", "windowed", *words) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split()[:2] == ["ENGINE", "MS/WINDOW"]
    assert printed[1].startswith("torch fp32 plain")
