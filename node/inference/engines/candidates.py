"""The engines that may be tried for a network on this machine, what each depends on, and how each is made."""

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch

from node.inference.engines import Engine
from node.inference.engines.backends import ONNXRUNTIME, OPENVINO, TENSORRT, TORCH, Backend, find_backends
from node.inference.engines.half_precision import to_half
from node.inference.engines.hardware import cpu_identity, cuda_driver, gpu_of
from node.inference.engines.onnx_export import MAX_BATCH, Window
from node.inference.engines.task import AUTO, NetworkTask, Place
from node.inference.engines.torch_engine import Mixed, TorchEngine, multiplies_bf16

CODE_VERSION: Final = 1
"""Of what is made out of a network here: counted up when the same library would be asked otherwise."""

PLAN: Final = "engine.plan"
RUNTIME_CACHE: Final = "runtime.cache"
TIMING_CACHE: Final = "timing.cache"

_OUTPUT_BYTES: Final = 1 << 30
"""What the outputs of one batch may take."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to run a network."""

    backend: str
    precision: str
    variant: str = ""
    batch: int = 1

    @property
    def name(self) -> str:
        """For a person: `torch bf16 channels-last, 4 at once`."""
        how = " ".join(one for one in (self.backend, self.precision, self.variant) if one)
        return how if self.batch == 1 else f"{how}, {self.batch} at once"

    @property
    def takes_onnx(self) -> bool:
        """Whether it is made of the ONNX file."""
        return self.backend != TORCH


PLAIN: Final = Candidate(TORCH, "fp32", "plain")
"""The reference itself."""


@dataclass(frozen=True, slots=True)
class Material:
    """All that an engine can be made of."""

    network: torch.nn.Module
    """Stays as it is: engines take copies."""
    task: NetworkTask
    place: Place
    window: Window
    onnx: bytes = b""


def reference_engine(material: Material, batch: int = 1) -> Engine:
    """Answers plain torch in float32, without anything of ours: what every other is held against."""
    return _Plain(copy.deepcopy(material.network).eval(), material.place, batch)


class _Plain(TorchEngine):
    """The bundle's own network, untouched."""

    def __init__(self, network: torch.nn.Module, place: Place, batch: int) -> None:
        super().__init__(torch.nn.Identity(), device=place.device, threads=place.threads, batch=batch)
        self._network = network.to(place.device)

    def describe(self) -> str:
        """For example `torch 2.13.0 cpu fp32 plain`."""
        return f"{super().describe()} plain"


def hardware_of(place: Place) -> dict[str, Any]:
    """Answers what compiled code depends on: processor, or GPU and driver."""
    if place.device == "cpu":
        return dict(cpu_identity())
    gpu = gpu_of(place.device)
    if gpu is not None:
        return {**gpu.identity(), "driver": cuda_driver().version}
    return {"name": torch.cuda.get_device_name(place.device)}  # one that torch alone knows: AMD


def environment_of(place: Place) -> dict[str, Any]:
    """Answers all that a choice between engines depends on: when it changes, the choice is made again."""
    usable = {backend.name: backend.version for backend in find_backends(place.device) if not backend.fault}
    return {"backends": usable, "hardware": hardware_of(place), "threads": place.threads, "code": CODE_VERSION}


def engine_fields(candidate: Candidate, network: str, onnx_sha256: str, material: Material) -> dict[str, Any]:
    """Answers what one engine depends on; `network` is the digest of the network."""
    versions = {backend.name: backend.version for backend in find_backends(material.place.device)}
    return {
        "kind": "engine",
        "network": network,
        "onnx": onnx_sha256 if candidate.takes_onnx else "",
        "window": list(material.window.batch(0)),
        "threshold": material.task.threshold,
        "candidate": asdict(candidate),
        "versions": {name: versions[name] for name in {TORCH, candidate.backend}},
        "hardware": hardware_of(material.place),
        "code": CODE_VERSION,
    }


def candidates_for(place: Place, window: Window, output_channels: int, wanted: str = AUTO) -> Iterator[Candidate]:
    """Yields the engines to try, those of absent libraries left out."""
    most = max(1, min(4, _OUTPUT_BYTES // (4 * output_channels * math.prod(window.patch))))
    for backend in find_backends(place.device):
        if not backend.fault and wanted in {AUTO, backend.name}:
            yield from _of(backend, place, most)


def _of(backend: Backend, place: Place, most: int) -> Iterator[Candidate]:
    on_cpu = place.device == "cpu"
    if backend.name == TORCH:
        yield PLAIN
        yield Candidate(TORCH, "fp32", batch=min(2, most))
        if not on_cpu:
            yield Candidate(TORCH, "fp16", "channels-last", most)
            yield Candidate(TORCH, "fp16", "channels-last graph", most)
            yield Candidate(TORCH, "fp16", "graph", most)
        elif multiplies_bf16():
            yield Candidate(TORCH, "bf16", "channels-last", most)
    elif backend.name == OPENVINO:
        yield Candidate(OPENVINO, "fp32")
        if multiplies_bf16():
            yield Candidate(OPENVINO, "bf16")
    elif backend.name == ONNXRUNTIME:
        from node.inference.engines.onnxruntime_engine import CPU_PROVIDER, available_providers

        for provider in available_providers():
            if (provider == CPU_PROVIDER) == on_cpu or provider.startswith("CANN"):
                yield Candidate(ONNXRUNTIME, "fp32", provider, 1 if on_cpu else most)
    else:
        yield Candidate(TENSORRT, "fp16", batch=most)
        yield Candidate(TENSORRT, "fp32", batch=most)


def after_overflow(candidate: Candidate) -> Candidate:
    """Answers what is tried where half precision overflows: bfloat16 reaches as far as float32, with fewer digits."""
    return Candidate(candidate.backend, "bf16", candidate.variant, candidate.batch)


def make_engine(candidate: Candidate, material: Material, files: Mapping[str, bytes]) -> Engine:
    """Makes an engine; `files` are those that `build_files` answered for it, verified.

    Raises
    ------
    EngineError
        When its library refuses the network or the device.
    """
    place, window = material.place, material.window
    if candidate.backend == TORCH:
        return _torch_engine(candidate, material)
    if candidate.backend == OPENVINO:
        from node.inference.engines.openvino_engine import OpenVinoEngine

        return OpenVinoEngine(material.onnx, window, precision=candidate.precision, batch=candidate.batch, threads=place.threads)
    if candidate.backend == ONNXRUNTIME:
        from node.inference.engines.onnxruntime_engine import OnnxRuntimeEngine

        return OnnxRuntimeEngine(
            material.onnx, provider=candidate.variant, device=place.device, batch=candidate.batch, threads=place.threads
        )
    from node.inference.engines.tensorrt_build import load_tensorrt
    from node.inference.engines.tensorrt_engine import PlanUse, TensorRtEngine

    use = PlanUse(window, candidate.precision, candidate.batch, place.device)
    return TensorRtEngine(load_tensorrt(), files[PLAN], use, runtime_cache=files.get(RUNTIME_CACHE, b""))


def build_files(candidate: Candidate, material: Material, timing_cache: bytes = b"") -> dict[str, bytes]:
    """Answers the files that an engine needs beside the ONNX file: a plan for TensorRT, none for the others."""
    if candidate.backend != TENSORRT:
        return {}
    from node.inference.engines.tensorrt_build import BatchProfile, build_plan, load_tensorrt

    onnx = material.onnx if candidate.precision == "fp32" else to_half(material.onnx, candidate.precision)
    profile = BatchProfile(1, candidate.batch, min(MAX_BATCH, 2 * candidate.batch))
    plan = build_plan(load_tensorrt(), onnx, material.window, profile, timing_cache=timing_cache)
    return {PLAN: plan.content} | ({TIMING_CACHE: plan.timing_cache} if plan.timing_cache else {})


def late_files(engine: Engine) -> dict[str, bytes]:
    """Answers what an engine has made while it ran, to be kept beside it: kernels that TensorRT-RTX compiled in its first runs."""
    make = getattr(engine, "runtime_cache", None)
    content: bytes = make() if make is not None else b""
    return {RUNTIME_CACHE: content} if content else {}


def _torch_engine(candidate: Candidate, material: Material) -> Engine:
    if candidate.variant == PLAIN.variant:
        return reference_engine(material, candidate.batch)
    if candidate.precision == "fp32":
        mixed = None
    else:
        words = candidate.variant.split()
        mixed = Mixed(candidate.precision, channels_last="channels-last" in words, cuda_graph="graph" in words)
    network = copy.deepcopy(material.network)
    return TorchEngine(network, device=material.place.device, threads=material.place.threads, mixed=mixed, batch=candidate.batch)
