"""A TensorRT plan on its GPU. Only plans that `EngineStore` has verified come here: loading one is running native code.

There is one shape, that of a full batch: the buffers lie still, and one CUDA graph serves every run.
"""

from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final, Protocol

import torch

from node.errors import EngineError
from node.inference.engines.hardware import cuda_driver
from node.inference.engines.onnx_export import INPUT, OUTPUT, Window
from node.inference.engines.tensorrt_build import is_rtx, make_logger
from node.inference.engines.windows import require_finite, run_in_batches, told_as_ours

_WARM_UPS: Final = 2


class Launcher(Protocol):
    """Memory and launches on a device."""

    def empty(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Answers uninitialised memory of the device, float32."""

    def run(self, context: Any) -> None:
        """Enqueues the context once and waits for its end; raises EngineError where the library refuses."""


class CudaLauncher:
    """A stream of its own; the first runs are plain, then they are captured into a CUDA graph and replayed."""

    def __init__(self, device: str, *, capture: bool) -> None:
        """`capture` is off where the library captures by itself."""
        if not torch.cuda.is_available():
            raise EngineError("this torch knows no CUDA: TensorRT needs its memory and streams → install a torch with CUDA")
        self._device = torch.device(device)
        self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._capture = capture
        self._runs = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def empty(self, shape: tuple[int, ...]) -> torch.Tensor:
        """On the GPU."""
        return torch.empty(shape, dtype=torch.float32, device=self._device)

    def run(self, context: Any) -> None:
        """Runs after what torch's current stream has queued."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            if self._graph is not None:
                self._graph.replay()
            else:
                _enqueue(context, self._stream.cuda_stream)
        self._runs += 1
        self._stream.synchronize()
        if self._capture and self._graph is None and self._runs == _WARM_UPS:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, stream=self._stream):
                _enqueue(context, self._stream.cuda_stream)


@dataclass(frozen=True, slots=True)
class PlanUse:
    """What a plan was built for."""

    window: Window
    precision: str
    batch: int
    device: str


class TensorRtEngine:
    """A deserialised plan with one context."""

    def __init__(self, trt: ModuleType, plan: bytes, use: PlanUse, *, runtime_cache: bytes = b"", launcher: Launcher | None = None) -> None:
        """`runtime_cache` is what TensorRT-RTX compiled on this GPU before."""
        if launcher is None:
            if fault := cuda_driver().fault:  # a runtime without a driver crashes in some versions
                raise EngineError(f"TensorRT cannot run here: {fault}")
            launcher = CudaLauncher(use.device, capture=not is_rtx(trt))
        self._log: list[str] = []
        self._trt, self._use = trt, use
        self._launcher = launcher
        self._runtime = self._present(trt.Runtime(make_logger(trt, self._log)), "a runtime")
        self._runtime.engine_host_code_allowed = False
        self._engine = self._present(self._runtime.deserialize_cuda_engine(plan), "an engine of the plan")
        self._cache: Any = None
        self._context = self._present(self._make_context(runtime_cache), "a context")
        self._input, self._output = self._bind()

    @property
    def preferred_batch(self) -> int:
        """Windows at once."""
        return self._use.batch

    def infer(self, batch: torch.Tensor) -> torch.Tensor:
        """Answers the output of the network, float32, on the CPU."""
        with told_as_ours(batch, self._use.device):
            return require_finite(run_in_batches(self._run, batch.float(), self._use.batch, whole=True))

    def describe(self) -> str:
        """For example `tensorrt 11.4.0.106 cuda:0 fp16`."""
        flavour = "tensorrt-rtx" if is_rtx(self._trt) else "tensorrt"
        return f"{flavour} {self._trt.__version__} {self._use.device} {self._use.precision}"

    def close(self) -> None:
        """Frees context, engine and buffers, in this order."""
        for name in ("_context", "_engine", "_runtime", "_input", "_output", "_launcher"):
            if hasattr(self, name):
                delattr(self, name)

    def runtime_cache(self) -> bytes:
        """Answers what TensorRT-RTX has compiled on this GPU by now; empty for the full library."""
        if self._cache is None:
            return b""
        serialised = self._cache.serialize()
        return b"" if serialised is None else bytes(serialised)

    def _make_context(self, runtime_cache: bytes) -> Any:
        if not is_rtx(self._trt):
            return self._engine.create_execution_context()
        config = self._present(self._engine.create_runtime_config(), "a runtime configuration")
        config.cuda_graph_strategy = self._trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        self._cache = self._present(config.create_runtime_cache(), "a runtime cache")
        if runtime_cache:
            self._cache.deserialize(runtime_cache)  # one of another driver is refused by the library, and made anew
        config.set_runtime_cache(self._cache)
        return self._engine.create_execution_context(config)

    def _bind(self) -> tuple[torch.Tensor, torch.Tensor]:
        self._must(self._context.set_input_shape(INPUT, self._use.window.batch(self._use.batch)), "the shape of the windows")
        shape = tuple(self._context.get_tensor_shape(OUTPUT))
        if any(size < 0 for size in shape):
            raise EngineError(f"TensorRT knows no shape of the output: {shape}")
        tensors = (self._launcher.empty(self._use.window.batch(self._use.batch)), self._launcher.empty(shape))
        for name, tensor in zip((INPUT, OUTPUT), tensors, strict=True):
            self._must(self._context.set_tensor_address(name, tensor.data_ptr()), f"the memory of {name}")
        return tensors

    def _run(self, batch: torch.Tensor) -> torch.Tensor:
        self._input.copy_(batch)
        self._launcher.run(self._context)
        return self._output.to("cpu", copy=True)  # the next run writes over it

    def _present(self, answer: Any, what: str) -> Any:
        if answer is None:
            raise EngineError(f"TensorRT could not make {what}: {self._log[-1] if self._log else 'it does not say why'}")
        return answer

    def _must(self, done: object, what: str) -> None:
        if not done:
            raise EngineError(f"TensorRT refuses {what}: {self._log[-1] if self._log else 'it does not say why'}")


def _enqueue(context: Any, stream: int) -> None:
    if not context.execute_async_v3(stream):
        raise EngineError("TensorRT could not start the network")
