"""The reference engine: PyTorch, on the CPU or a CUDA device."""

import torch

from node.errors import DeviceOutOfMemory, EngineError, NonFiniteOutput


class TorchEngine:
    """A torch module in inference mode."""

    def __init__(self, network: torch.nn.Module, *, device: str, threads: int = 0) -> None:
        """`threads` limits torch on the CPU; 0 leaves it to torch (one a core)."""
        if threads:
            torch.set_num_threads(threads)
        self._device = _device(device)
        self._network = network.eval().to(self._device)

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
        return f"torch {torch.__version__.partition('+')[0]} {self._device} fp32"

    def close(self) -> None:
        """Drops the network."""
        self._network = torch.nn.Identity()


def _device(name: str) -> torch.device:
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise EngineError(f'the configuration names the device {name}, but torch sees no CUDA device → worker.devices = ["cpu"]')
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise EngineError(f"{name} is no device that torch knows → cpu, cuda:0, …") from error
