"""What an engine is wanted for: a network, the windows it is fed, how its scores become labels, and where it runs."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from monai.inferers import SlidingWindowInferer

from node.inference.engines.backends import TORCH
from node.inference.engines.onnx_export import Window

AUTO: Final = "auto"
WANTED: Final = (AUTO, TORCH, "openvino", "onnxruntime", "tensorrt")

_CONVOLUTIONS: Final = (torch.nn.Conv2d, torch.nn.Conv3d)


@dataclass(frozen=True, slots=True)
class NetworkTask:
    """A network as its bundle uses it."""

    model: str
    folder: Path
    """Of the bundle."""
    window: Window | None
    """None: the network takes images of any size, or is no plain module; torch runs it."""
    why_no_window: str = ""
    score: Callable[[torch.Tensor], torch.Tensor] = lambda output: output
    """The activations of the bundle on (channels, …), such as a sigmoid."""
    threshold: float | None = None
    """Of a score, where structures may overlap; None: the class with the highest score."""
    cpu_precision: str = "fp32"
    """What the bundle's author allows torch on the CPU."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a network runs."""

    device: str = "cpu"
    threads: int = 0
    """Of the CPU; 0: all cores."""


def window_of(network: torch.nn.Module, inferer: object, channels: int) -> tuple[Window | None, str]:
    """Answers the window that an inferer feeds a network, or None and the reason why there is no fixed one."""
    if any(isinstance(module, torch.jit.ScriptModule) for module in network.modules()):
        return None, "the network is TorchScript, which cannot be exported"
    if not isinstance(inferer, SlidingWindowInferer):
        return None, "the network takes the whole volume at once, of whatever size it is"
    sizes = inferer.roi_size if isinstance(inferer.roi_size, tuple | list) else (inferer.roi_size,)
    rank = next((3 if isinstance(one, torch.nn.Conv3d) else 2 for one in network.modules() if isinstance(one, _CONVOLUTIONS)), 3)
    patch = tuple(int(size) if size else -1 for size in (sizes * rank if len(sizes) == 1 else sizes))
    if len(patch) != rank or min(patch) < 1:
        return None, "the windows are as large as the volume in some direction"
    first = next((one for one in network.modules() if isinstance(one, _CONVOLUTIONS)), None)
    return Window(int(first.in_channels) if first is not None else channels, patch), ""
