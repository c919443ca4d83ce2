"""Weights of others become safetensors, in a confined process; the pickle stays where it was."""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from node.inference.install.sandbox import BASE_MEMORY_BYTES, Limits, run_confined

CHILD: Final = "node.inference.install.convert_child"
_SLACK_BYTES: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class Part:
    """A file of weights, and what stands before its names in the result."""

    path: Path
    prefix: str = ""


@dataclass(frozen=True, slots=True)
class Converted:
    """What came out of a conversion."""

    parameters: int
    kinds: tuple[str, ...]
    """Types of the numbers: float16 stays float16."""
    is_isolated: bool
    """Whether the process had no network."""
    notes: tuple[str, ...]
    kept: dict[str, Any]
    """Plain values of the checkpoint that were asked for."""


def convert(parts: Sequence[Part], output: Path, *, keep: Sequence[str] = ()) -> Converted:
    """Writes the tensors of `parts` into one safetensors file.

    Raises BundleRefused when one of them holds more than tensors, or none.
    """
    with ExitStack() as stack:
        streams = [stack.enter_context(part.path.open("rb")) for part in parts]
        inputs = [
            {"descriptor": stream.fileno(), "name": part.path.name, "prefix": part.prefix}
            for part, stream in zip(parts, streams, strict=True)
        ]
        size = sum(os.fstat(stream.fileno()).st_size for stream in streams)
        output.parent.mkdir(parents=True, exist_ok=True)
        job = {"do": "convert", "inputs": inputs, "output": str(output.resolve()), "keep": list(keep)}
        told = run_confined(CHILD, job, _limits(size), files=[stream.fileno() for stream in streams])
    return Converted(told["parameters"], tuple(told["kinds"]), told["isolated"], tuple(told["notes"]), told["kept"])


def convert_by_bundle(folder: Path, expression: str, weights: Path, output: Path) -> Converted:
    """Writes the weights that a bundle puts into its network by a function of its own, which runs in the confined process.

    Raises BundleRefused when that fails.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    job = {"do": "by_bundle", "folder": str(folder.resolve()), "expression": expression, "output": str(output.resolve())}
    told = run_confined(CHILD, job, _limits(weights.stat().st_size))
    return Converted(told["parameters"], tuple(told["kinds"]), told["isolated"], tuple(told["notes"]), {})


def rewrite(path: Path, output: Path) -> None:
    """Writes a pickle anew with nothing but tensors, arrays and plain values in it.

    Raises BundleRefused when it holds anything else.
    """
    with path.open("rb") as stream:
        output.parent.mkdir(parents=True, exist_ok=True)
        job = {"do": "rewrite", "descriptor": stream.fileno(), "name": path.name, "output": str(output.resolve())}
        run_confined(CHILD, job, _limits(path.stat().st_size), files=[stream.fileno()])


def _limits(size: int) -> Limits:
    """A file of weights is held twice, once as it came and once as it goes; TorchScript three times. A small one never needs gigabytes."""
    return Limits(memory_bytes=BASE_MEMORY_BYTES + 4 * size, file_bytes=2 * size + _SLACK_BYTES)
