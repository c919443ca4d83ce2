"""OpenVINO on the CPU, from the bytes of an ONNX file."""

from importlib.metadata import version
from typing import Final

import numpy as np
import torch

from node.errors import EngineError
from node.inference.engines.onnx_export import Window
from node.inference.engines.windows import require_finite, run_in_batches, told_as_ours

_HINTS: Final = {"fp32": "f32", "bf16": "bf16"}


class OpenVinoEngine:
    """A compiled model with a fixed number of windows at once."""

    def __init__(self, onnx: bytes, window: Window, *, precision: str, batch: int, threads: int = 0) -> None:
        """`threads` 0: as many as torch would take."""
        import openvino

        self._batch = batch
        self._precision = precision
        try:
            core = openvino.Core()
            model = core.read_model(onnx, b"")
            model.reshape(list(window.batch(batch)))
            # Pinned threads of two workers would share cores while others stand idle.
            hints = {
                "INFERENCE_PRECISION_HINT": _HINTS[precision],
                "INFERENCE_NUM_THREADS": threads or torch.get_num_threads(),
                "PERFORMANCE_HINT": "LATENCY",
                "ENABLE_CPU_PINNING": False,
            }
            self._request = core.compile_model(model, "CPU", hints).create_infer_request()
        except RuntimeError as error:
            raise EngineError("OpenVINO cannot compile the network") from error

    @property
    def preferred_batch(self) -> int:
        """Windows at once."""
        return self._batch

    def infer(self, batch: torch.Tensor) -> torch.Tensor:
        """Answers the output of the network, float32, on the CPU."""
        with told_as_ours(batch, "the CPU"):
            require_finite(batch)  # its ReLU makes 0 of NaN: what went wrong before would not be seen in the output
            return require_finite(run_in_batches(self._run, batch.float().contiguous(), self._batch, whole=True))

    def describe(self) -> str:
        """For example `openvino 2026.4.1 cpu bf16`."""
        return f"openvino {version('openvino')} cpu {self._precision}"

    def close(self) -> None:
        """Drops the compiled model."""
        del self._request

    def _run(self, batch: torch.Tensor) -> torch.Tensor:
        self._request.infer({0: batch.numpy()}, share_inputs=True)
        # The library writes the next output over this one.
        return torch.from_numpy(np.array(self._request.get_output_tensor(0).data, dtype=np.float32))
