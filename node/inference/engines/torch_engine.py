"""The reference engine: PyTorch, on the CPU or a CUDA device."""

from typing import Final

import torch

from node.errors import DeviceOutOfMemory, EngineError, NonFiniteOutput
from node.inference.engines.cpu import is_swappable, optimise_for_cpu

PRECISIONS: Final = {"fp32": torch.float32, "bf16": torch.bfloat16}


class TorchEngine:
    """A torch module in inference mode.

    On the CPU convolutions run in bfloat16 only where all of this holds: the bundle allows it (`cpu_precision`, which its author
    sets after comparing labels with float32), the processor multiplies bfloat16 itself, and every layer is one that we swap.
    Else, and on CUDA devices, everything is float32.
    """

    def __init__(self, network: torch.nn.Module, *, device: str, threads: int = 0, cpu_precision: str = "fp32") -> None:
        """`threads` limits torch on the CPU; 0 leaves it to torch (one a core). The engine takes `network` over."""
        if threads:
            torch.set_num_threads(threads)
        self._device = _device(device)
        self._precision = "fp32"
        network = network.eval()
        if self._device.type == "cpu":
            if cpu_precision == "bf16" and multiplies_bf16() and is_swappable(network):
                self._precision = "bf16"
            network = optimise_for_cpu(network, PRECISIONS[self._precision])
        self._network = network.to(self._device)

    def infer(self, batch: torch.Tensor) -> torch.Tensor:
        """Answers the output of the network, float32, on the CPU."""
        try:
            with torch.inference_mode():
                output: torch.Tensor = self._network(batch.to(self._device)).float().cpu()
        except torch.OutOfMemoryError as error:
            raise DeviceOutOfMemory(f"{self._device} has too little memory for a batch of shape {tuple(batch.shape)}") from error
        except RuntimeError as error:
            if "can't allocate memory" in str(error):
                raise DeviceOutOfMemory(f"too little memory for a batch of shape {tuple(batch.shape)}") from error
            raise EngineError(f"the network failed on a batch of shape {tuple(batch.shape)} ({type(error).__name__})") from error
        if not torch.isfinite(output).all():
            raise NonFiniteOutput("the network answered NaN or infinity")
        return output

    def describe(self) -> str:
        """For example `torch 2.13.0 cpu fp32`."""
        return f"torch {torch.__version__.partition('+')[0]} {self._device} {self._precision}"

    def close(self) -> None:
        """Drops the network."""
        self._network = torch.nn.Identity()


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
