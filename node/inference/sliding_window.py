"""MONAI's sliding window, batch by batch through a network: in batches that memory allows, smaller ones where it runs short."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Final

import torch
from monai.inferers import SlidingWindowInferer

from node.errors import DeviceOutOfMemory
from node.inference.heap import freed_memory_kept
from node.inference.stitcher import Stitcher
from node.inference.windows import Ranges

BATCH_BYTES: Final = 800 << 20
"""What the output of one batch of windows may take, float32."""

USUAL_BATCH: Final = 4
"""More windows at once gain little on a CPU."""

KEPT_BYTES: Final = 128 << 20
"""Up to this output of a batch freed memory is kept between batches. Larger blocks would leave holes that nothing fits into."""


@dataclass(slots=True)
class Batches:
    """How many windows the network sees at once, and what had to be done about it."""

    wanted: int
    """By bundle and engine. More are taken where memory allows: torch's convolution of a single volume is a slow one on the CPU."""
    size: int = 2
    notes: list[str] = field(default_factory=list)
    network_s: float = 0.0
    _is_settled: bool = False

    def fit(self, output: torch.Tensor) -> None:
        """Chooses the size from the first output."""
        if not self._is_settled:
            fitting = BATCH_BYTES // (output[0].numel() * output.element_size())
            self.size = max(2, min(max(self.wanted, USUAL_BATCH), fitting))
            self._is_settled = True

    def halve(self, error: DeviceOutOfMemory) -> None:
        """Takes half as many windows; raises what came where there is only one."""
        if self.size == 1:
            raise DeviceOutOfMemory(f"{error} ({'; '.join(self.notes) or 'one window at a time'})") from error
        self.size //= 2
        self._is_settled = True
        self.notes.append(f"out of memory: {self.size} {'window' if self.size == 1 else 'windows'} at a time")


class DifferentSize(Exception):
    """The network's output is not as large as its input."""


Network = Callable[[torch.Tensor], torch.Tensor]


def stitch(image: torch.Tensor, inferer: SlidingWindowInferer, network: Network, stitcher: Stitcher, batches: Batches) -> None:
    """Runs `network` on every window of (channels, i, j, k) and gives the outputs to `stitcher`.

    Raises
    ------
    DeviceOutOfMemory
        When not even one window at a time fits.
    DifferentSize
        Before anything was stitched.
    """
    windows = stitcher.windows
    if any(windows.before) or any(windows.after):
        padding = [side for axis in (2, 1, 0) for side in (windows.before[axis], windows.after[axis])]
        image = torch.nn.functional.pad(image[None], padding, mode=str(inferer.padding_mode), value=inferer.cval)[0]
    waiting = list(windows.in_order())
    batches.size = min(batches.size, len(waiting))
    with ExitStack() as stack:
        while waiting:
            taken = waiting[: batches.size]
            try:
                output = _infer(image, taken, network, batches)
            except DeviceOutOfMemory as error:
                batches.halve(error)
                continue
            if tuple(output.shape[2:]) != windows.roi:
                raise DifferentSize
            if len(waiting) == windows.count and output.numel() * output.element_size() <= KEPT_BYTES:
                stack.enter_context(freed_memory_kept())
            batches.fit(output)
            del waiting[: len(taken)]
            stitcher.add(taken, output)
            del output  # as large as all that waits between the windows: the next one must not come on top of it
            stitcher.progress(1 - len(waiting) / windows.count)


def _infer(image: torch.Tensor, taken: Sequence[Ranges], network: Network, batches: Batches) -> torch.Tensor:
    cut = torch.stack([image[:, i0:i1, j0:j1, k0:k1] for (i0, i1), (j0, j1), (k0, k1) in taken])
    began = time.perf_counter()
    output = torch.as_tensor(network(cut)).float()
    batches.network_s += time.perf_counter() - began
    return output
