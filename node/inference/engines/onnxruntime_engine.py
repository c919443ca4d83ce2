"""ONNX Runtime, by an execution provider. All but that of the CPU are experimental: nobody has run them here."""

from typing import Final

import torch

from node.errors import EngineError
from node.inference.engines.onnx_export import INPUT
from node.inference.engines.windows import require_finite, run_in_batches, told_as_ours

CPU_PROVIDER: Final = "CPUExecutionProvider"
EXPERIMENTAL_PROVIDERS: Final = {
    "CUDAExecutionProvider": "NVIDIA, CUDA",
    "MIGraphXExecutionProvider": "AMD, MIGraphX",
    "ROCMExecutionProvider": "AMD, ROCm",
    "CANNExecutionProvider": "Huawei Ascend, CANN",
}

_ERRORS_ONLY: Final = 3


def available_providers() -> tuple[str, ...]:
    """Answers the providers of the installed build that we know."""
    import onnxruntime

    known = (*EXPERIMENTAL_PROVIDERS, CPU_PROVIDER)
    return tuple(name for name in known if name in onnxruntime.get_available_providers())


class OnnxRuntimeEngine:
    """A session; the number of windows at once is free."""

    def __init__(self, onnx: bytes, *, provider: str = CPU_PROVIDER, device: str = "cpu", batch: int = 1, threads: int = 0) -> None:
        """`threads` 0: as many as torch would take."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        options.log_severity_level = _ERRORS_ONLY
        ordinal = {"device_id": int(device.partition(":")[2] or 0)}
        providers = [CPU_PROVIDER] if provider == CPU_PROVIDER else [(provider, ordinal), CPU_PROVIDER]
        try:
            self._session = onnxruntime.InferenceSession(onnx, options, providers=providers)
        except Exception as error:
            # Its errors have no common type of their own.
            raise EngineError(f"ONNX Runtime cannot load the network by {provider}") from error
        if provider not in self._session.get_providers():  # it falls to the CPU without a word
            raise EngineError(f"ONNX Runtime does not run the network by {provider}: its libraries or its device are absent")
        self._version = onnxruntime.__version__
        self._provider = provider
        self._batch = batch

    @property
    def preferred_batch(self) -> int:
        """Windows at once."""
        return self._batch

    def infer(self, batch: torch.Tensor) -> torch.Tensor:
        """Answers the output of the network, float32, on the CPU."""
        with told_as_ours(batch, self._provider):
            return require_finite(run_in_batches(self._run, batch.float().contiguous(), self._batch, whole=False))

    def describe(self) -> str:
        """For example `onnxruntime 1.31.1 CPU fp32`."""
        name = self._provider.removesuffix("ExecutionProvider")
        experimental = " (experimental)" if self._provider in EXPERIMENTAL_PROVIDERS else ""
        return f"onnxruntime {self._version} {name} fp32{experimental}"

    def close(self) -> None:
        """Drops the session."""
        del self._session

    def _run(self, batch: torch.Tensor) -> torch.Tensor:
        (output,) = self._session.run(None, {INPUT: batch.numpy()})
        return torch.from_numpy(output)
