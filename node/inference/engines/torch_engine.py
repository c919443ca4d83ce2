"""The reference engine: PyTorch, on the CPU or a CUDA device."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Final

import torch

from node.errors import EngineError
from node.inference.engines.cpu import is_swappable, optimise_for_cpu
from node.inference.engines.windows import Run, require_finite, run_in_batches, told_as_ours

PRECISIONS: Final = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_WARM_UPS: Final = 3
"""Runs before a CUDA graph is captured: libraries choose their kernels in the first ones."""


@dataclass(frozen=True, slots=True)
class Mixed:
    """Mixed precision: what of the network torch thinks safe runs in `precision`, as the parity gate then examines."""

    precision: str
    channels_last: bool = False
    cuda_graph: bool = False


class TorchEngine:
    """A torch module in inference mode.

    Without `mixed`, convolutions run on the CPU in bfloat16 only where all of this holds: the bundle allows it (`cpu_precision`,
    which its author sets after comparing labels with float32), the processor multiplies bfloat16 itself, and every layer is one that
    we swap. Else, and on CUDA devices, everything is float32, without TF32.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        *,
        device: str,
        threads: int = 0,
        cpu_precision: str = "fp32",
        mixed: Mixed | None = None,
        batch: int = 1,
    ) -> None:
        """`threads` limits torch on the CPU; 0 leaves it to torch (one a core). The engine takes `network` over."""
        if threads:
            torch.set_num_threads(threads)
        self._device = _device(device)
        self._mixed = mixed
        self._batch = batch
        self._precision = mixed.precision if mixed else "fp32"
        network = network.eval()
        if mixed is not None and mixed.channels_last:
            network = network.to(memory_format=_channels_last(network))  # type: ignore[call-overload]
        elif mixed is None and self._device.type == "cpu":
            if cpu_precision == "bf16" and multiplies_bf16() and is_swappable(network):
                self._precision = "bf16"
            network = optimise_for_cpu(network, PRECISIONS[self._precision])
        self._network = network.to(self._device)
        self._graph: _Graph | None = None

    @property
    def preferred_batch(self) -> int:
        """Windows at once."""
        return self._batch

    def infer(self, batch: torch.Tensor) -> torch.Tensor:
        """Answers the output of the network, float32, on the CPU."""
        graphed = self._mixed is not None and self._mixed.cuda_graph
        with told_as_ours(batch, str(self._device)), torch.inference_mode():
            if graphed:
                return require_finite(run_in_batches(self._replay, batch, self._batch, whole=True))
            return require_finite(self._forward(batch.to(self._device)).float().cpu())

    def describe(self) -> str:
        """For example `torch 2.13.0 cpu fp32`."""
        how = f"{self._precision} mixed" if self._mixed else self._precision
        graph = ", CUDA graph" if self._mixed and self._mixed.cuda_graph else ""
        return f"torch {torch.__version__.partition('+')[0]} {self._device} {how}{graph}"

    def close(self) -> None:
        """Drops the network."""
        self._graph = None
        self._network = torch.nn.Identity()

    def _forward(self, batch: torch.Tensor) -> torch.Tensor:
        if self._mixed is not None and self._mixed.channels_last:
            last = torch.channels_last_3d if batch.ndim == 5 else torch.channels_last
            batch = batch.contiguous(memory_format=last)
        with self._arithmetic():
            output: torch.Tensor = self._network(batch)
        return output

    def _arithmetic(self) -> AbstractContextManager[None]:
        if self._mixed is not None:
            # The cache of cast weights must not outlive a captured graph.
            return torch.autocast(self._device.type, PRECISIONS[self._mixed.precision], cache_enabled=not self._mixed.cuda_graph)
        if self._device.type == "cuda":
            return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
        return nullcontext()

    def _replay(self, batch: torch.Tensor) -> torch.Tensor:
        if self._graph is None or self._graph.input.shape != batch.shape:
            self._graph = None  # its memory goes first
            self._graph = _Graph(self._forward, batch.to(self._device))
        return self._graph.replay(batch).float().cpu()


class _Graph:
    """A captured run of a network: one input buffer, one output buffer, one launch."""

    def __init__(self, forward: Run, example: torch.Tensor) -> None:
        self.input = example.clone()
        side = torch.cuda.Stream(example.device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(example.device))
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                forward(self.input)
        torch.cuda.current_stream(example.device).wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._output = forward(self.input)

    def replay(self, batch: torch.Tensor) -> torch.Tensor:
        """Answers the output for a batch; it is overwritten by the next one."""
        self.input.copy_(batch)
        self._graph.replay()
        return self._output


def multiplies_bf16() -> bool:
    """Answers whether this processor has instructions for products of bfloat16 (AVX512-BF16, AMX, SVE); emulated they would be slow."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "sve_bf16"))


def require_device(name: str) -> None:
    """Raises EngineError when torch cannot use the device of this name."""
    _device(name)


def _device(name: str) -> torch.device:
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise EngineError(f'the configuration names the device {name}, but torch sees no CUDA device → worker.devices = ["cpu"]')
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise EngineError(f"{name} is no device that torch knows → cpu, cuda:0, …") from error


def _channels_last(network: torch.nn.Module) -> torch.memory_format:
    return torch.channels_last if any(isinstance(one, torch.nn.Conv2d) for one in network.modules()) else torch.channels_last_3d
