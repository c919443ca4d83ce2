"""`python -m node.inference.install.convert_child`: opens weights of others and writes tensors. Runs confined (`sandbox.py`).

A pickle is read by torch's own reader of plain tensors (`weights_only=True`), with numpy's arrays and numbers besides: no class of the
file is ever made, no function of it called. What needs more than that is refused.
"""

import io
import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from typing import IO, Any, Final

from node.inference.install.sandbox import answer, read_job, refuse
from node.inference.plain_pickles import numpy_globals

STATE_KEYS: Final = ("network_weights", "state_dict", "model_state_dict", "model", "network", "net", "module", "ema", "params", "weights")
PREFIXES: Final = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before every key."""

ALIASES: Final = "radnode.aliases"
DEPTH: Final = 4


class Refused(Exception):
    """What came must not be opened, or is of no use; the words are for a person."""


def main() -> None:
    """Confines this process, then does its job."""
    job, is_isolated = read_job()
    try:
        done = perform(job)
    except Refused as refused:
        refuse(str(refused))
    else:
        answer({"isolated": is_isolated, **done})


def perform(job: Mapping[str, Any]) -> dict[str, Any]:
    """Converts what the job names: to safetensors, or a pickle to one of plain values. Answers what came of it."""
    if job["do"] == "rewrite":
        _rewrite(job)
        return {}
    if job["do"] == "by_bundle":
        return _write_state(_by_bundle(job), job, ["its weights are named by a function of the bundle's own"], {})
    tensors: dict[str, Any] = {}
    notes: list[str] = []
    kept: dict[str, Any] = {}
    for part in job["inputs"]:
        loaded = _load(part["descriptor"], part["name"])
        kept |= {
            key: loaded[key] for key in job.get("keep", ()) if isinstance(loaded, Mapping) and key in loaded and _is_plain(loaded[key])
        }
        state = _state_of(loaded, part["name"])
        tensors |= {part["prefix"] + key: tensor for key, tensor in _clean(state, part["name"], notes).items()}
    return _write_state(tensors, job, notes, kept)


def _write_state(tensors: Mapping[str, Any], job: Mapping[str, Any], notes: list[str], kept: Mapping[str, Any]) -> dict[str, Any]:
    unique, aliases = _without_shared(tensors)
    _write(unique, aliases, job["output"])
    return {
        "tensors": len(tensors), "aliases": len(aliases), "notes": notes, "kept": kept,
        "parameters": sum(tensor.numel() for tensor in unique.values()),
        "kinds": sorted({str(tensor.dtype).removeprefix("torch.") for tensor in unique.values()}),
    }  # fmt: skip


def _by_bundle(job: Mapping[str, Any]) -> dict[str, Any]:
    """The weights after the bundle's own code has loaded them. It was trusted, and has neither network nor rights here."""
    from pathlib import Path

    from node.errors import NodeError
    from node.inference.configuration import importable, network_key, open_configuration

    folder = Path(job["folder"])
    try:
        with importable(folder):
            parser = open_configuration(folder)
            network = parser.get_parsed_content(str(network_key(parser)))
            parser.get_parsed_content(job["expression"])
            state: dict[str, Any] = network.state_dict()
    except NodeError as error:
        raise Refused(str(error)) from error
    except Exception as error:
        # the bundle's own code can raise anything
        cause = error.__cause__ or error
        raise Refused(f"the bundle's own function does not load its weights: {type(cause).__name__}: {cause}") from error
    return state


def _load(descriptor: int, name: str) -> Any:
    import torch  # here, and not above: only a process of a single thread can leave its namespaces
    from safetensors.torch import load as load_safetensors

    with os.fdopen(descriptor, "rb") as stream:
        start = stream.read(16)
        members = _members(stream)
        stream.seek(0)
        if "constants.pkl" in members:
            script = torch.jit.load(io.BytesIO(stream.read()), map_location="cpu")  # type: ignore[no-untyped-call]
            return script.state_dict()
        if start[8:9] == b"{":  # safetensors: eight bytes of length, then JSON
            return load_safetensors(stream.read())
        try:
            with torch.serialization.safe_globals(numpy_globals()):
                return torch.load(stream, map_location="cpu", weights_only=True)
        except Exception as error:
            # whatever a hostile file makes of the reader, the answer is a refusal
            advice = "ask its author for a state dict, saved by torch.save(network.state_dict(), …)"
            raise Refused(f"{name} holds more than tensors: {_told(error)} → {advice}") from error


def _members(stream: IO[bytes]) -> set[str]:
    """What lies in a zip, which torch's own files are; nothing where it is none."""
    if not zipfile.is_zipfile(stream):
        return set()
    with zipfile.ZipFile(stream) as archive:
        return {member.rpartition("/")[2] for member in archive.namelist()}


def _told(error: Exception) -> str:
    """The fact alone: the advice of torch is to load without safety."""
    words = str(error)
    for line in words.splitlines():
        if "Unsupported" in line or "GLOBAL" in line or "not an allowed global" in line:
            return line.strip().removeprefix("WeightsUnpickler error: ").partition(" Please use")[0][:200].rstrip(".")
    return f"{type(error).__name__}: {words.splitlines()[0][:120] if words else 'no message'}".rstrip(".")


def _state_of(loaded: Any, name: str, depth: int = DEPTH) -> Mapping[str, Any]:
    """The mapping of names to tensors, wherever trainers put it."""
    import torch

    if isinstance(loaded, Mapping):
        if loaded and sum(isinstance(value, torch.Tensor) for value in loaded.values()) * 2 > len(loaded):
            return loaded
        if depth:
            likely = [loaded[key] for key in STATE_KEYS if isinstance(loaded.get(key), Mapping)]
            others = [value for value in loaded.values() if isinstance(value, Mapping)]
            for value in likely or (others if len(others) == 1 else []):
                return _state_of(value, name, depth - 1)
    raise Refused(f"{name} holds no weights by name → save them by torch.save(network.state_dict(), …)")


def _clean(state: Mapping[str, Any], name: str, notes: list[str]) -> dict[str, Any]:
    import torch

    tensors = {str(key): value for key, value in state.items() if isinstance(value, torch.Tensor)}
    left = sorted(str(key) for key in state if str(key) not in tensors)
    if left:
        notes.append(f"{name}: left out, no tensors: {', '.join(left[:5])}{'…' if len(left) > 5 else ''}")
    for prefix in PREFIXES:
        if tensors and all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    odd = [key for key, tensor in tensors.items() if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu"]
    if odd:
        raise Refused(f"{name}: {odd[0]} is a sparse, quantised or empty-shelled tensor, which safetensors cannot hold")
    return tensors


def _without_shared(tensors: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """A tensor that stands under several names is kept once; the other names are told beside it."""
    first: dict[tuple[Any, ...], str] = {}
    unique: dict[str, Any] = {}
    aliases: dict[str, str] = {}
    for key, tensor in tensors.items():
        place = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype)
        if tensor.numel() and place in first:
            aliases[key] = first[place]
        else:
            first[place] = key
            unique[key] = tensor.detach().clone().contiguous()
    return unique, aliases


def _write(unique: Mapping[str, Any], aliases: Mapping[str, str], output: str) -> None:
    from safetensors.torch import save_file

    metadata = {"format": "pt"} | ({ALIASES: json.dumps(aliases)} if aliases else {})
    save_file(dict(unique), output, metadata=metadata)


def _rewrite(job: Mapping[str, Any]) -> None:
    """A pickle that the configuration loads by itself: read as plain values and written anew, so that nothing else is in it."""
    import torch

    loaded = _load(job["descriptor"], job["name"])
    torch.save(loaded, job["output"])


def _is_plain(value: Any) -> bool:
    return all(isinstance(one, str | int | float | bool) or one is None for one in _leaves(value))


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


if __name__ == "__main__":
    main()
