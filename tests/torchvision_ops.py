"""torchvision beside a PyTorch without CUDA: its compiled part does not load there, and its Python part then misses two names.

A site has matching builds of both. MONAI imports torchvision when it is itself imported, so tests/conftest.py calls this first.
"""

import importlib.util
from pathlib import Path

import pytest

_kept: list[object] = []


def declare_missing_operators() -> None:
    """Makes `import torchvision` work where only its Python part can be used; does nothing where it is absent or whole."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or _kept:
        return
    import torch

    try:
        for library in Path(spec.origin).parent.glob("_C*.so"):
            torch.ops.load_library(str(library))
    except OSError:
        names = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            names.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _kept.append(names)  # a library that is collected takes its names along


def require_torchvision() -> None:
    """Skips the test where torchvision is not installed."""
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed: it comes with radnode[torchvision]")
