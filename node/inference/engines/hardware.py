"""What this machine is, as far as a compiled network depends on it: the processor, and the GPUs as the driver itself names them."""

import ctypes
import hashlib
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

_CPU_INFO: Final = Path("/proc/cpuinfo")
_NVIDIA_VERSION: Final = Path("/proc/driver/nvidia/version")
_DRIVER_LIBRARY: Final = "libcuda.so.1"
_SUCCESS: Final = 0
_NAME_BYTES: Final = 256
_MULTIPROCESSORS, _CC_MAJOR, _CC_MINOR = 16, 75, 76  # CUdevice_attribute


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU, as the CUDA driver describes it."""

    name: str
    compute_capability: tuple[int, int]
    multiprocessors: int
    memory_gib: int

    def identity(self) -> dict[str, str | int]:
        """What an engine built for this GPU depends on."""
        major, minor = self.compute_capability
        return {
            "name": self.name,
            "compute_capability": f"{major}.{minor}",
            "multiprocessors": self.multiprocessors,
            "memory_gib": self.memory_gib,
        }


@dataclass(frozen=True, slots=True)
class Driver:
    """The CUDA driver: its version and GPUs, or the reason why there are none."""

    version: str = ""
    gpus: tuple[Gpu, ...] = ()
    fault: str = ""


@cache
def cpu_identity() -> Mapping[str, str]:
    """Answers the processor's name and the digest of its instruction sets."""
    try:
        text = _CPU_INFO.read_text(encoding="ascii", errors="replace")
    except OSError:
        text = ""
    name = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.MULTILINE)
    sets = " ".join(sorted((flags[1] if flags else platform.processor()).split()))
    return {"cpu": name[1].strip() if name else platform.machine(), "flags": hashlib.sha256(sets.encode()).hexdigest()[:16]}


@cache
def cuda_driver() -> Driver:
    """Answers the CUDA driver. Nothing of TensorRT may be started where this has a fault: some of its versions crash then."""
    try:
        library = ctypes.CDLL(_DRIVER_LIBRARY)
    except OSError:
        return Driver(fault=f"there is no NVIDIA driver ({_DRIVER_LIBRARY} cannot be opened)")
    status = library.cuInit(0)
    if status != _SUCCESS:
        return Driver(fault=f"the NVIDIA driver does not start (cuInit answers {status})")
    count, version = ctypes.c_int(), ctypes.c_int()
    if library.cuDeviceGetCount(ctypes.byref(count)) or library.cuDriverGetVersion(ctypes.byref(version)) or not count.value:
        return Driver(fault="the NVIDIA driver knows no GPU")
    return Driver(f"{_installed_driver()}CUDA {version.value}", tuple(_gpu(library, ordinal) for ordinal in range(count.value)))


def gpu_of(device: str) -> Gpu | None:
    """Answers the GPU that a device name of torch (`cuda`, `cuda:1`) means; None where it means none."""
    gpus = cuda_driver().gpus if device.startswith("cuda") else ()
    ordinal = int(device.partition(":")[2] or 0)
    return gpus[ordinal] if ordinal < len(gpus) else None


def _gpu(library: ctypes.CDLL, ordinal: int) -> Gpu:
    device, value, size = ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
    name = ctypes.create_string_buffer(_NAME_BYTES)
    library.cuDeviceGet(ctypes.byref(device), ordinal)
    library.cuDeviceGetName(name, _NAME_BYTES, device)
    library.cuDeviceTotalMem_v2(ctypes.byref(size), device)

    def attribute(number: int) -> int:
        library.cuDeviceGetAttribute(ctypes.byref(value), number, device)
        return value.value

    capability = (attribute(_CC_MAJOR), attribute(_CC_MINOR))
    return Gpu(name.value.decode(errors="replace"), capability, attribute(_MULTIPROCESSORS), size.value >> 30)


def _installed_driver() -> str:
    """`580.65.06, ` where the kernel module says its version."""
    try:
        found = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", _NVIDIA_VERSION.read_text(encoding="ascii", errors="replace"))
    except OSError:
        return ""
    return f"{found[1]}, " if found else ""
