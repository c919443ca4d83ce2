"""Which engine serves: built, held against torch, kept, found again; refused when it was touched; never one that does not agree."""

import json
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from monai.inferers import SimpleInferer, SlidingWindowInferer

from node.errors import DeviceOutOfMemory, EngineError, NonFiniteOutput
from node.inference.engines import candidates, select
from node.inference.engines.backends import ONNXRUNTIME, OPENVINO, TENSORRT, TORCH, Backend, find_backends
from node.inference.engines.build import ONNX, PARITY, Trial, bench_engines, build_engines, read_choice, superfluous
from node.inference.engines.candidates import PLAIN, Candidate, Material, engine_fields, make_engine
from node.inference.engines.select import Build, EngineWish, open_engine
from node.inference.engines.serving import Chosen, Recorder, ServingEngine
from node.inference.engines.store import EngineStore, Kept
from node.inference.engines.task import NetworkTask, Place, window_of
from node.inference.engines.torch_engine import TorchEngine
from node.inference.engines.tournament import Contestant

ROI = (16, 16, 16)
PLACE = Place("cpu", 1)
MODEL = "tiny"

needs_libraries = pytest.mark.skipif(
    any(backend.fault for backend in find_backends("cpu") if backend.name in {OPENVINO, ONNXRUNTIME}),
    reason="onnx, onnxscript, onnxruntime and openvino are needed (pip install 'radnode[test]')",
)


@pytest.fixture(scope="module", autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_network(seed: int = 0) -> torch.nn.Module:
    """Tells classes apart by wide margins, as a trained network does: half precision agrees too."""
    torch.manual_seed(seed)
    network = torch.nn.Sequential(
        torch.nn.Conv3d(1, 8, 3, padding=1), torch.nn.BatchNorm3d(8), torch.nn.ReLU(), torch.nn.Conv3d(8, 3, 1)
    ).eval()
    with torch.no_grad():
        network[3].bias.copy_(torch.tensor([0.5, 0.0, -0.5]))
    return network


def task_of(network: torch.nn.Module, inferer: object | None = None) -> NetworkTask:
    window, reason = window_of(network, inferer or SlidingWindowInferer(ROI, 2), 1)
    return NetworkTask(MODEL, Path("/models") / MODEL, window, reason)


def trial_of(network: torch.nn.Module) -> Trial:
    return Trial(network, task_of(network), PLACE, "auto")


def opened(folder: Path, network: torch.nn.Module | None = None, wish: EngineWish | None = None) -> ServingEngine:
    network = network or make_network()
    return open_engine(network, task_of(network), PLACE, wish or EngineWish("auto", folder))


def entries(folder: Path, kind: str) -> list[Kept]:
    return [kept for kept in EngineStore(folder).contents() if kept.entry is not None and kept.entry.fields["kind"] == kind]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Engines of the tiny network, made once; read only."""
    folder = tmp_path_factory.mktemp("built") / "engines"
    build_engines(trial_of(make_network()), EngineStore(folder))
    return folder


@pytest.fixture
def engines(built: Path, tmp_path: Path) -> Path:
    """A copy to be harmed; with the key, so it is this node's."""
    shutil.copytree(built, tmp_path / "engines")
    return tmp_path / "engines"


# ── which networks ──────────────────────────────────────────────────────────


def test_a_network_for_windows_of_one_size_has_engines() -> None:
    window, reason = window_of(make_network(), SlidingWindowInferer((16, 24, 32), 2), 1)
    assert window is not None
    assert (window.channels, window.patch, reason) == (1, (16, 24, 32), "")
    window, _ = window_of(make_network(), SlidingWindowInferer(16, 2), 1)
    assert window is not None
    assert window.patch == ROI


@pytest.mark.parametrize(
    ("inferer", "reason"), [(SimpleInferer(), "whole volume at once"), (SlidingWindowInferer((16, 16, -1), 2), "as large as the volume")]
)
def test_another_network_stays_on_torch_with_the_reason(inferer: object, reason: str, tmp_path: Path) -> None:
    network = make_network()
    task = task_of(network, inferer)
    assert reason in task.why_no_window
    engine = open_engine(network, task, PLACE, EngineWish("auto", tmp_path, Build.BACKGROUND))
    assert engine.describe().startswith("torch ")
    with pytest.raises(EngineError, match="does not run on openvino"):
        open_engine(make_network(), task, PLACE, EngineWish("openvino", tmp_path, Build.NOW))


def test_torchscript_stays_on_torch() -> None:
    script = torch.jit.trace(make_network(), torch.zeros(1, 1, *ROI))
    assert window_of(script, SlidingWindowInferer(ROI, 2), 1) == (None, "the network is TorchScript, which cannot be exported")


# ── building and finding again ──────────────────────────────────────────────


@needs_libraries
def test_every_library_is_tried_and_those_that_agree_are_ranked_by_speed(built: Path) -> None:
    (kept,) = entries(built, "choice")
    assert kept.entry is not None
    choice = read_choice(kept.entry)
    tried = {one["engine"].partition(" ")[0] for one in choice.results}
    assert tried == {TORCH, OPENVINO, ONNXRUNTIME}
    passed = {one["engine"]: one["window_ms"] for one in choice.results if one["passed"]}
    assert [candidate.name for candidate in choice.ranking] == sorted(passed, key=lambda name: passed[name])
    assert {"torch fp32 plain", "openvino fp32"} <= set(passed)
    assert all(one["relative_l2"] < 1e-4 for one in choice.results if one["passed"] and "fp32" in one["engine"])


@needs_libraries
def test_a_start_finds_the_choice_and_names_its_gate(built: Path) -> None:
    (kept,) = entries(built, "choice")
    assert kept.entry is not None
    best = read_choice(kept.entry).ranking[0]
    began = time.process_time()
    engine = opened(built)
    assert time.process_time() - began < 5  # it neither exports nor measures
    assert engine.describe().startswith(best.backend)
    batch = torch.rand(3, 1, *ROI)
    with torch.inference_mode():
        reference = make_network()(batch)
    assert torch.equal(engine.infer(batch).argmax(1), reference.argmax(1))
    if best != PLAIN:
        gates = [json.loads((one.folder / PARITY).read_text())["gate"] for one in entries(built, "engine")]
        assert engine.parity.split()[1] in gates


@needs_libraries
@pytest.mark.parametrize("candidate", [Candidate(OPENVINO, "fp32"), Candidate(OPENVINO, "fp32", batch=3), Candidate(ONNXRUNTIME, "fp32", "CPUExecutionProvider", 2),
                                       Candidate(TORCH, "fp32", batch=2), PLAIN], ids=lambda one: one.name)  # fmt: skip
@pytest.mark.parametrize("windows", [1, 5])
def test_every_engine_answers_for_any_number_of_windows(built: Path, candidate: Candidate, windows: int) -> None:
    network = make_network()
    (onnx,) = entries(built, "onnx")
    trial = trial_of(network)
    material = Material(network, trial.material.task, PLACE, trial.material.window, (onnx.folder / ONNX).read_bytes())
    engine = make_engine(candidate, material, {})
    batch = torch.rand(windows, 1, *ROI)
    with torch.inference_mode():
        reference = network(batch)
    output = engine.infer(batch)
    again = engine.infer(batch * 0)  # what was answered before stays as it was
    assert not torch.equal(again, output)
    assert float((output - reference).norm() / reference.norm()) < 1e-4
    assert output.shape == reference.shape
    assert candidate.backend in engine.describe()
    with pytest.raises(NonFiniteOutput):
        engine.infer(batch * float("nan"))
    engine.close()


@needs_libraries
def test_another_network_finds_nothing(built: Path) -> None:
    engine = opened(built, make_network(seed=1))
    assert engine.parity == ""
    assert engine.describe().startswith("torch")


@needs_libraries
@pytest.mark.parametrize("kind", ["choice", "engine", "onnx"])
def test_what_was_touched_is_refused_and_built_anew_on_request(engines: Path, kind: str) -> None:
    for kept in entries(engines, kind):
        for file in kept.folder.iterdir():
            if file.name != "manifest.json":
                content = bytearray(file.read_bytes())
                content[len(content) // 2] ^= 1
                file.write_bytes(bytes(content))
    engine = opened(engines)
    batch = torch.rand(2, 1, *ROI)
    with torch.inference_mode():
        assert torch.equal(engine.infer(batch).argmax(1), make_network()(batch).argmax(1))
    if kind != "onnx":
        assert engine.describe().startswith("torch")
        assert opened(engines, wish=EngineWish("auto", engines, Build.NOW)).parity or not entries(engines, "engine")
        assert not [kept.fault for kept in EngineStore(engines).contents() if kept.fault]


def test_engines_of_another_version_are_not_used_and_the_last_good_one_serves(engines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO was updated: its engines wait for the next build, those of torch still hold."""

    def updated(device: str) -> tuple[Backend, ...]:
        return tuple(Backend(one.name, "9999.1" if one.name == OPENVINO else one.version, one.fault) for one in find_backends(device))

    monkeypatch.setattr(candidates, "find_backends", updated)
    monkeypatch.setattr(select, "_WORTH_S", {"cpu": 3600.0})
    engine = opened(engines, wish=EngineWish("auto", engines, Build.BACKGROUND))
    assert not engine.describe().startswith("openvino")


def test_prune_keeps_what_the_newest_choice_needs(engines: Path) -> None:
    store = EngineStore(engines)
    needed = {kept.key for kept in store.contents()}
    old = store.put(MODEL, {"kind": "engine", "network": "another", "versions": {}, "hardware": {}}, {PARITY: b"{}"})
    (store.put(MODEL, {"kind": "onnx", "network": "broken"}, {ONNX: b"x"}).folder / ONNX).write_bytes(b"y")
    doomed = list(superfluous(store))
    assert old.key in {kept.key for kept in doomed}
    assert len(doomed) == 2
    assert not {kept.key for kept in doomed} & needed


def test_a_bench_measures_and_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trial = Trial(make_network(), task_of(make_network()), PLACE, TORCH)
    results = bench_engines(trial, rounds=1)
    assert results[0]["engine"] == "torch fp32 plain"
    assert all(one["window_ms"] > 0 and one["cpu_ms"] >= 0 for one in results if not one["why_not"])
    assert not list(tmp_path.iterdir())


# ── the gate decides ────────────────────────────────────────────────────────


class Wrong(TorchEngine):
    """Fast, and another network."""

    def infer(self, batch: torch.Tensor) -> torch.Tensor:
        return super().infer(batch).flip(1)


def test_an_engine_that_does_not_agree_never_serves_however_fast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = candidates.make_engine

    def make(candidate: Candidate, material: Material, files: dict[str, bytes]) -> object:
        if candidate.precision == "fp32" and candidate != PLAIN:
            return Wrong(make_network(), device="cpu")
        return real(candidate, material, files)

    monkeypatch.setattr("node.inference.engines.build.make_engine", make)
    monkeypatch.setattr(candidates, "multiplies_bf16", lambda: False)
    trial = Trial(make_network(), task_of(make_network()), PLACE, TORCH)
    choice = build_engines(trial, EngineStore(tmp_path / "engines"))
    assert choice.ranking == (PLAIN,)
    (refused,) = [one for one in choice.results if not one["passed"]]
    assert "relative L2" in refused["why_not"]


def test_an_engine_that_overflows_is_followed_by_one_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    from node.inference.engines import build

    seen = []
    monkeypatch.setattr(build, "candidates_for", lambda *_: iter([Candidate(TENSORRT, "fp16", batch=4)]))
    monkeypatch.setattr(build, "_make", lambda candidate, *_: Contestant(candidate, None))
    trial = trial_of(make_network())
    for contestant in build._enter(build._candidates(trial, 3), trial, (None, {}), lambda _: None):
        seen.append(contestant.candidate)
        contestant.overflowed = contestant.candidate.precision == "fp16"
    assert seen == [PLAIN, Candidate(TENSORRT, "fp16", batch=4), Candidate(TENSORRT, "bf16", batch=4)]


# ── serving ─────────────────────────────────────────────────────────────────


class Fixed:
    """An engine that answers one number, or NaN."""

    preferred_batch = 2

    def __init__(self, value: float) -> None:
        self.value = value
        self.is_closed = False

    def infer(self, batch: torch.Tensor) -> torch.Tensor:
        if math.isnan(self.value):
            raise NonFiniteOutput("the network answered NaN or infinity")
        return batch * 0 + self.value

    def describe(self) -> str:
        return f"fixed {self.value}"

    def close(self) -> None:
        self.is_closed = True


def test_what_overflows_in_half_precision_is_done_again_in_float32_and_told_once() -> None:
    engine = ServingEngine(Chosen(Fixed(float("nan")), "gate", is_full=False), make_reference=lambda: Fixed(2.0))
    assert float(engine.infer(torch.zeros(3, 1)).mean()) == 2.0
    assert engine.take_notes() == ("3 windows were done again in float32: half precision overflowed",)
    assert engine.take_notes() == ()


def test_float32_that_is_not_finite_has_no_better_answer() -> None:
    engine = ServingEngine(Chosen(Fixed(float("nan"))), make_reference=lambda: Fixed(2.0))
    with pytest.raises(NonFiniteOutput):
        engine.infer(torch.zeros(1, 1))


def test_a_better_engine_takes_over_between_studies_alone() -> None:
    waiting, better = Fixed(1.0), Fixed(2.0)
    answers: list[Chosen | None] = [None, Chosen(better, "gate x")]
    engine = ServingEngine(Chosen(waiting), look_for_better=lambda: answers.pop(0))
    engine.refresh()
    assert float(engine.infer(torch.zeros(1, 1))) == 1.0
    assert not waiting.is_closed
    engine.refresh()
    assert (engine.describe(), engine.parity, waiting.is_closed) == ("fixed 2.0", "gate x", True)
    engine.refresh()  # nothing is looked for any more


def test_half_precision_for_want_of_memory_is_one_that_passed_or_none(tmp_path: Path) -> None:
    with pytest.raises(DeviceOutOfMemory, match="half precision has passed the gate"):
        opened(tmp_path, wish=EngineWish("auto", tmp_path, half=True))


def test_the_recorder_keeps_the_windows_in_which_most_is_found() -> None:
    recorder = Recorder(TorchEngine(torch.nn.Identity(), device="cpu"), count=2)
    windows = torch.zeros(5, 2, 4, 4, 4)
    for number, richness in enumerate([3, 0, 9, 1, 5]):
        windows[number, 1].view(-1)[:richness] = 1
    recorder.infer(windows[:3])
    recorder.infer(windows[3:])
    assert [int(window[1].sum()) for window in recorder.windows] == [9, 5]


def test_a_network_that_is_fast_as_it_is_gets_no_builder(tmp_path: Path) -> None:
    engine = opened(tmp_path / "engines", wish=EngineWish("auto", tmp_path / "engines", Build.BACKGROUND))
    assert engine.describe().startswith("torch")
    assert not list((tmp_path / "engines").glob("*/*"))


def test_a_library_that_is_absent_is_told_on_the_command_line_and_waited_for_in_a_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(select, "find_backends", lambda _: (Backend(OPENVINO, "", "not installed → pip install 'radnode[openvino]'"),))
    with pytest.raises(EngineError, match="not installed"):
        opened(tmp_path, wish=EngineWish("openvino", tmp_path, Build.NOW))
    assert opened(tmp_path, wish=EngineWish("openvino", tmp_path, Build.BACKGROUND)).describe().startswith("torch")


def test_what_an_engine_depends_on_is_in_its_key() -> None:
    trial = trial_of(make_network())
    base = engine_fields(Candidate(OPENVINO, "bf16"), trial.digest, "ab", trial.material)
    assert engine_fields(Candidate(OPENVINO, "fp32"), trial.digest, "ab", trial.material) != base
    assert engine_fields(Candidate(OPENVINO, "bf16"), trial.digest, "cd", trial.material) != base
    assert set(base["versions"]) == {TORCH, OPENVINO}
    assert set(base["hardware"]) == {"cpu", "flags"}
