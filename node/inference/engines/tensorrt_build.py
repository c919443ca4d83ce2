"""TensorRT plans from ONNX, by the native API of `tensorrt` or `tensorrt_rtx`. TensorRT-RTX builds without a GPU.

Types are those of the graph (strongly typed): half precision is cast in the graph, never asked for by flags, which TensorRT 11 has no
more. The library answers None where it fails and says why in its log alone: every answer is looked at, and the log's end is told.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

from node.errors import EngineError
from node.inference.engines.backends import tensorrt_module
from node.inference.engines.onnx_export import INPUT, Window

_LOG_LINES: Final = 12
_SEVERITIES_KEPT: Final = ("INTERNAL_ERROR", "ERROR", "WARNING")


class BuildFailed(EngineError):
    """TensorRT cannot make a plan of the network."""

    retryable = False


@dataclass(frozen=True, slots=True)
class Plan:
    """A serialised engine: native code for one kind of GPU."""

    content: bytes
    timing_cache: bytes
    """What the builder measured, for the next build on the same GPU; empty for TensorRT-RTX, which measures nothing when it builds."""


@dataclass(frozen=True, slots=True)
class BatchProfile:
    """Windows at once: the least, those to be fast with, and the most."""

    least: int
    best: int
    most: int


def load_tensorrt() -> ModuleType:
    """Imports the TensorRT that is installed."""
    name = tensorrt_module()
    if not name:
        raise EngineError("TensorRT is not installed → pip install 'radnode[tensorrt]' or 'radnode[tensorrt-rtx]'")
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        raise EngineError(f"{name} is installed and cannot be loaded: libraries of it are absent → install it again") from error


def is_rtx(trt: ModuleType) -> bool:
    """Answers whether this is TensorRT-RTX: it compiles the last step on the GPU itself, in its first run."""
    return trt.__name__.startswith("tensorrt_rtx")


def make_logger(trt: ModuleType, lines: list[str]) -> Any:
    """Answers a logger that keeps the last warnings and errors in `lines`."""

    class Log(trt.ILogger):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: object, message: str) -> None:
            if str(severity).rpartition(".")[2] in _SEVERITIES_KEPT:
                lines.append(message)
                del lines[:-_LOG_LINES]

    return Log()


def build_plan(
    trt: ModuleType,
    onnx: bytes,
    window: Window,
    profile: BatchProfile,
    *,
    compute_capabilities: Sequence[str] = (),
    timing_cache: bytes = b"",
) -> Plan:
    """Builds a plan.

    `compute_capabilities` (`SM80`, …) are for TensorRT-RTX alone, which builds for GPUs that are elsewhere; none: for that of this
    machine.

    Raises
    ------
    BuildFailed
        With the end of the library's log.
    """
    log: list[str] = []
    logger = make_logger(trt, log)
    builder = _present(trt.Builder(logger), "a builder", log)
    network = _present(builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)), "a network", log)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(onnx):
        faults = "; ".join(parser.get_error(number).desc() for number in range(parser.num_errors))
        raise BuildFailed(f"TensorRT cannot read the network: {faults or _end(log)}")
    config = _present(builder.create_builder_config(), "a configuration", log)
    if hasattr(trt.BuilderFlag, "TF32"):
        config.clear_flag(trt.BuilderFlag.TF32)  # float32 is float32
    _set_profile(builder, config, window, profile, log)
    if is_rtx(trt):
        _set_capabilities(trt, config, compute_capabilities or ("CURRENT",))
    else:
        cache = _present(config.create_timing_cache(timing_cache), "a timing cache", log)
        config.set_timing_cache(cache, ignore_mismatch=False)
    content = bytes(_present(builder.build_serialized_network(network, config), "a plan", log))
    return Plan(content, b"" if is_rtx(trt) else bytes(_present(config.get_timing_cache(), "a timing cache", log).serialize()))


def _set_profile(builder: Any, config: Any, window: Window, profile: BatchProfile, log: list[str]) -> None:
    shapes = _present(builder.create_optimization_profile(), "a profile", log)
    shapes.set_shape(INPUT, *(window.batch(size) for size in (profile.least, profile.best, profile.most)))
    if config.add_optimization_profile(shapes) < 0:
        raise BuildFailed(f"TensorRT refuses the sizes of the windows: {_end(log)}")


def _set_capabilities(trt: ModuleType, config: Any, names: Sequence[str]) -> None:
    config.num_compute_capabilities = len(names)
    for place, name in enumerate(names):
        capability = getattr(trt.ComputeCapability, name, None)
        if capability is None or not config.set_compute_capability(capability, place):
            raise BuildFailed(f"TensorRT-RTX does not build for GPUs of compute capability {name}")


def _present(answer: Any, what: str, log: list[str]) -> Any:
    if answer is None:
        raise BuildFailed(f"TensorRT could not make {what}: {_end(log)}")
    return answer


def _end(log: list[str]) -> str:
    return log[-1] if log else "it does not say why"
