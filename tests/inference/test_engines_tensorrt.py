"""TensorRT: what can be shown without a GPU is shown with the real library (TensorRT-RTX builds without one); launches with a stand-in."""

import ctypes
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from node.errors import EngineError
from node.inference.engines import tensorrt_engine
from node.inference.engines.hardware import Driver, cuda_driver
from node.inference.engines.onnx_export import Window, export_onnx
from node.inference.engines.store import EngineRefused, EngineStore
from node.inference.engines.tensorrt_build import BatchProfile, BuildFailed, build_plan, is_rtx, load_tensorrt
from node.inference.engines.tensorrt_engine import PlanUse, TensorRtEngine

WINDOW = Window(1, (16, 16, 16))
PROFILE = BatchProfile(1, 2, 4)
BUILT_FOR = ("SM80",)


def make_network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv3d(1, 4, 3, padding=1), torch.nn.InstanceNorm3d(4), torch.nn.ReLU(), torch.nn.Conv3d(4, 3, 1)
    ).eval()


@pytest.fixture(scope="module")
def trt() -> types.ModuleType:
    try:
        module = load_tensorrt()
    except EngineError as error:
        pytest.skip(str(error))
    if not is_rtx(module):
        pytest.skip("the full TensorRT builds on its GPU only")
    return module


@pytest.fixture(scope="module")
def onnx_file() -> bytes:
    pytest.importorskip("onnxscript", reason="onnxscript is not installed (pip install 'radnode[onnx]')")
    return export_onnx(make_network(), WINDOW)


@pytest.fixture(scope="module")
def plan(trt: types.ModuleType, onnx_file: bytes) -> bytes:
    return build_plan(trt, onnx_file, WINDOW, PROFILE, compute_capabilities=BUILT_FOR).content


def test_a_plan_is_built_without_a_gpu(plan: bytes) -> None:
    assert len(plan) > 10_000


def test_half_precision_is_cast_in_the_graph_and_builds(trt: types.ModuleType, onnx_file: bytes) -> None:
    from node.inference.engines.half_precision import to_half

    for precision in ("fp16", "bf16"):
        half = build_plan(trt, to_half(onnx_file, precision), WINDOW, PROFILE, compute_capabilities=BUILT_FOR)
        assert len(half.content) > 10_000


def test_a_plan_is_kept_and_refused_when_one_bit_of_it_changes(plan: bytes, tmp_path: Path) -> None:
    store, fields = EngineStore(tmp_path / "engines"), {"kind": "engine", "built_for": list(BUILT_FOR)}
    entry = store.put("tiny", fields, {"engine.plan": plan})
    assert entry.read("engine.plan") == plan
    path = entry.folder / "engine.plan"
    content = bytearray(plan)
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    found = store.find("tiny", fields)
    assert found is not None
    with pytest.raises(EngineRefused, match="was changed since this node built it"):
        found.read("engine.plan")


def test_what_is_no_network_is_refused_with_the_parsers_words(trt: types.ModuleType) -> None:
    with pytest.raises(BuildFailed, match="cannot read the network"):
        build_plan(trt, b"no onnx at all", WINDOW, PROFILE, compute_capabilities=BUILT_FOR)


def test_a_gpu_that_the_library_does_not_know_is_refused(trt: types.ModuleType, onnx_file: bytes) -> None:
    with pytest.raises(BuildFailed, match="compute capability SM10"):
        build_plan(trt, onnx_file, WINDOW, PROFILE, compute_capabilities=("SM10",))


def test_a_build_for_this_machine_fails_in_words_where_there_is_no_gpu(trt: types.ModuleType, onnx_file: bytes) -> None:
    """The library answers None and raises nothing."""
    if not cuda_driver().fault:
        pytest.skip("this machine has a GPU")
    with pytest.raises(BuildFailed, match="could not make a plan: "):
        build_plan(trt, onnx_file, WINDOW, PROFILE)


def test_no_runtime_is_made_where_the_driver_does_not_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lean runtime answers an object there, and the process dies when it is used."""

    def forbidden(*_: object) -> None:
        raise AssertionError("a runtime was made without a driver")

    monkeypatch.setattr(tensorrt_engine, "cuda_driver", lambda: Driver(fault="there is no NVIDIA driver"))
    module = types.SimpleNamespace(__name__="tensorrt", Runtime=forbidden)
    with pytest.raises(EngineError, match="there is no NVIDIA driver"):
        TensorRtEngine(module, b"", PlanUse(WINDOW, "fp32", 2, "cuda:0"))  # type: ignore[arg-type]


def test_a_driver_that_does_not_start_is_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    library = types.SimpleNamespace(cuInit=lambda _: 100)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)
    assert cuda_driver.__wrapped__().fault == "the NVIDIA driver does not start (cuInit answers 100)"


# ── launches, with a stand-in for the library ───────────────────────────────


class StandIn:
    """As much of the library's API as a launch uses; the network triples its input. `broken` names a call that answers None or False."""

    def __init__(self, broken: str = "") -> None:
        self.broken = broken
        self.__name__ = "tensorrt_rtx"
        self.__version__ = "0.0"
        self.addresses: dict[str, int] = {}
        self.shape: tuple[int, ...] = ()
        self.launches = 0
        self.host_code: object = None
        self.cached = b""
        self.CudaGraphStrategy = types.SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole")
        self.ILogger = type("ILogger", (), {"__init__": lambda _: None})

    def answer(self, call: str, value: Any) -> Any:
        return None if call == self.broken else value

    def Runtime(self, logger: Any) -> Any:
        logger.log("Severity.ERROR", "the library's own words")
        outer = self

        class Runtime:
            engine_host_code_allowed = True

            def deserialize_cuda_engine(self, plan: bytes) -> Any:
                outer.host_code = self.engine_host_code_allowed
                return outer.answer("deserialize_cuda_engine", outer if plan == b"plan" else None)

        return self.answer("Runtime", Runtime())

    def create_runtime_config(self) -> Any:
        cache = types.SimpleNamespace(serialize=lambda: b"kernels", deserialize=self.take_cache)
        return types.SimpleNamespace(create_runtime_cache=lambda: cache, set_runtime_cache=lambda _: None)

    def take_cache(self, content: bytes) -> None:
        self.cached = content

    def create_execution_context(self, *_: Any) -> Any:
        return self.answer("create_execution_context", self)

    def set_input_shape(self, _: str, shape: tuple[int, ...]) -> Any:
        self.shape = shape
        return self.answer("set_input_shape", True)

    def get_tensor_shape(self, _: str) -> tuple[int, ...]:
        return self.shape

    def set_tensor_address(self, name: str, address: int) -> Any:
        self.addresses[name] = address
        return self.answer("set_tensor_address", True)

    def execute_async_v3(self, _: int) -> Any:
        self.launches += 1
        count = torch.Size(self.shape).numel()
        views = {name: (ctypes.c_float * count).from_address(address) for name, address in self.addresses.items()}
        views["scores"][:] = [3 * value for value in views["image"]]
        return self.answer("execute_async_v3", True)


class CpuLauncher:
    def empty(self, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.empty(shape)

    def run(self, context: Any) -> None:
        if not context.execute_async_v3(0):
            raise EngineError("TensorRT could not start the network")


def open_stand_in(library: StandIn, plan: bytes = b"plan", cache: bytes = b"") -> TensorRtEngine:
    return TensorRtEngine(
        library,  # type: ignore[arg-type]
        plan,
        PlanUse(Window(1, (2, 2, 2)), "fp16", 2, "cuda:0"),
        runtime_cache=cache,
        launcher=CpuLauncher(),
    )


@pytest.mark.parametrize(("windows", "launches"), [(1, 1), (2, 1), (5, 3)])
def test_every_launch_has_the_same_shape_and_every_window_its_own_answer(windows: int, launches: int) -> None:
    library = StandIn()
    engine = open_stand_in(library)
    batch = torch.randn(windows, 1, 2, 2, 2)
    assert torch.allclose(engine.infer(batch), 3 * batch)
    assert library.launches == launches
    assert engine.preferred_batch == 2
    assert engine.describe() == "tensorrt-rtx 0.0 cuda:0 fp16"


def test_a_plan_may_bring_no_host_code() -> None:
    library = StandIn()
    open_stand_in(library)
    assert library.host_code is False


def test_what_was_compiled_on_the_gpu_is_kept_and_used_again() -> None:
    library = StandIn()
    assert open_stand_in(library, cache=b"of yesterday").runtime_cache() == b"kernels"
    assert library.cached == b"of yesterday"


@pytest.mark.parametrize(
    "broken",
    ["Runtime", "deserialize_cuda_engine", "create_execution_context", "set_input_shape", "set_tensor_address", "execute_async_v3"],
)
def test_every_refusal_of_the_library_is_an_error_of_ours(broken: str) -> None:
    with pytest.raises(EngineError):
        open_stand_in(StandIn(broken)).infer(torch.zeros(1, 1, 2, 2, 2))


def test_the_librarys_own_words_are_told() -> None:
    with pytest.raises(EngineError, match="the library's own words"):
        open_stand_in(StandIn(), plan=b"of another version")


@pytest.mark.gpu
def test_a_plan_answers_what_torch_answers_on_the_gpu(trt: types.ModuleType, onnx_file: bytes) -> None:
    if cuda_driver().fault or not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    built = build_plan(trt, onnx_file, WINDOW, PROFILE)
    engine = TensorRtEngine(trt, built.content, PlanUse(WINDOW, "fp32", 2, "cuda:0"))
    batch = torch.rand(WINDOW.batch(5))
    with torch.inference_mode():
        reference = make_network()(batch)
    for _ in range(4):  # plain, captured, replayed
        output = engine.infer(batch)
        assert float((output - reference).norm() / reference.norm()) < 1e-4
