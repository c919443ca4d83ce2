"""Which libraries can run a network on this machine, and why the others cannot."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Final

from node.inference.engines.hardware import cuda_driver, gpu_of

TORCH: Final = "torch"
OPENVINO: Final = "openvino"
ONNXRUNTIME: Final = "onnxruntime"
TENSORRT: Final = "tensorrt"
BACKENDS: Final = (TORCH, OPENVINO, ONNXRUNTIME, TENSORRT)

TENSORRT_MODULES: Final = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings")
"""The full library first; of TensorRT-RTX the front module, or, where only its real wheels are installed, what that imports."""

_DISTRIBUTIONS: Final = {
    OPENVINO: ("openvino",),
    ONNXRUNTIME: (
        "onnxruntime", "onnxruntime-gpu", "onnxruntime-migraphx", "onnxruntime-rocm", "onnxruntime-cann", "onnxruntime-openvino",
    ),
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "tensorrt_rtx": ("tensorrt-rtx", "tensorrt-rtx-cu13-bindings"),
    "tensorrt_rtx_bindings": ("tensorrt-rtx-cu13-bindings",),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Backend:
    """A library that may run networks on a device."""

    name: str
    version: str
    fault: str = ""
    """Why it cannot run here, with what to do; '' where it can."""


def find_backends(device: str) -> tuple[Backend, ...]:
    """Answers every library we know, whether it is there, and why it cannot run networks on a device. Imports none of them."""
    return tuple(_look(name, device) for name in BACKENDS)


def export_fault() -> str:
    """Answers why networks cannot be exported for other libraries than torch; '' where they can."""
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    return f"{' and '.join(missing)} not installed → pip install 'radnode[onnx]'" if missing else ""


def export_versions() -> dict[str, str]:
    """Answers the versions of what exports."""
    return {name: installed_version(name) for name in ("torch", "onnx", "onnxscript")}


def installed_version(distribution: str) -> str:
    """Answers the version of an installed distribution without a local part (`2.13.0`); '' where it is not installed."""
    try:
        return version(distribution).partition("+")[0]
    except PackageNotFoundError:
        return ""


def tensorrt_module() -> str:
    """Answers the module of TensorRT that is installed, '' for none."""
    return next((name for name in TENSORRT_MODULES if find_spec(name) is not None), "")


def _look(name: str, device: str) -> Backend:
    if name == TORCH:
        return Backend(TORCH, installed_version("torch"))
    module = tensorrt_module() if name == TENSORRT else name
    if not module or find_spec(module) is None:
        return Backend(name, "", f"not installed → pip install 'radnode[{name}]'")
    found = next((told for one in _DISTRIBUTIONS[module] if (told := installed_version(one))), "")
    told = f"{'tensorrt-rtx ' if module.startswith('tensorrt_rtx') else ''}{found}"
    return Backend(name, told, next((fault for check in _checks(name, device) if (fault := check())), ""))


def _checks(name: str, device: str) -> Iterator[Callable[[], str]]:
    yield export_fault
    if name == OPENVINO:
        yield lambda: "runs on the CPU only; this device is another" if device != "cpu" else ""
    elif name == TENSORRT:
        yield partial(_no_launch, device)


def _no_launch(device: str) -> str:
    """TensorRT builds without a GPU and runs on none but NVIDIA's."""
    if fault := cuda_driver().fault:
        return fault
    return "" if gpu_of(device) is not None else f"the device is {device} → worker.devices names a CUDA device"
