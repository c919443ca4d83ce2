"""A network as ONNX: what every library but torch takes. The same network gives the same bytes.

The window is of a fixed size (dynamic sizes are slow, and wrong in some versions of TensorRT); the number of windows is free. The
exporter writes stack traces and paths of this machine into the file: they are taken out before it is digested.
"""

import hashlib
import inspect
import io
import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch

from node.errors import EngineError
from node.inference.engines.backends import export_versions

if TYPE_CHECKING:
    import onnx

OPSET: Final = 18
MAX_BATCH: Final = 8
INPUT: Final = "image"
OUTPUT: Final = "scores"
_EXAMPLE_BATCH: Final = 2
"""torch.export takes a dimension of 1 for a constant."""


class NotExportable(EngineError):
    """The network cannot be made into ONNX: torch runs it."""

    retryable = False


@dataclass(frozen=True, slots=True)
class Window:
    """What a network is fed: channels and voxels of one window."""

    channels: int
    patch: tuple[int, ...]

    def batch(self, size: int) -> tuple[int, ...]:
        """Answers the shape of a batch."""
        return (size, self.channels, *self.patch)


def network_digest(network: torch.nn.Module) -> str:
    """Answers a digest of the weights, the structure and the code of a network: whatever changes what it computes changes this."""
    digest = hashlib.sha256(repr(network).encode())
    for kind in sorted({type(module) for module in network.modules()}, key=lambda one: f"{one.__module__}.{one.__qualname__}"):
        digest.update(f"{kind.__module__}.{kind.__qualname__}\n{_source(kind)}".encode())
    for name, value in sorted(network.state_dict().items()):
        if isinstance(value, torch.Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def export_fields(network: str, window: Window) -> dict[str, Any]:
    """Answers what the ONNX file of a network (by its digest) depends on."""
    return {"kind": "onnx", "network": network, "window": list(window.batch(0)), "opset": OPSET, "versions": export_versions()}


def export_onnx(network: torch.nn.Module, window: Window) -> bytes:
    """Answers the network in evaluation mode as an ONNX file.

    Raises
    ------
    NotExportable
        When the exporter cannot, or what it made is no valid ONNX.
    """
    example = torch.zeros(window.batch(_EXAMPLE_BATCH))
    try:
        with _quiet(), torch.inference_mode(mode=False), torch.no_grad():
            _require_tensor(network.eval()(example))
            program = torch.onnx.export(
                network,
                (example,),
                input_names=[INPUT],
                output_names=[OUTPUT],
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
                dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=MAX_BATCH)},),
            )
            assert program is not None  # noqa: S101 - so it is typed; None is answered where a file is named alone
            return _checked(program.model_proto)
    except NotExportable:
        raise
    except Exception as error:
        # The exporter runs the bundle's code and raises whatever that raises.
        raise NotExportable(f"the network cannot be exported to ONNX: {type(error).__name__}") from error


def _require_tensor(answer: object) -> None:
    if not isinstance(answer, torch.Tensor):
        raise NotExportable(f"the network answers a {type(answer).__name__}, not one tensor")


def strip(model: "onnx.ModelProto") -> None:
    """Takes out of a model, in place, what only says where and how it was made."""
    for message in _messages(model):
        for field in ("metadata_props", "doc_string"):
            if field in message.DESCRIPTOR.fields_by_name:
                message.ClearField(field)


def _checked(model: "onnx.ModelProto") -> bytes:
    import onnx

    strip(model)
    model.producer_name = "radnode"
    model.producer_version = ""
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _messages(message: Any) -> Iterator[Any]:
    """Yields a protobuf message and every one inside it, but not into tensors' values."""
    yield message
    for field, value in message.ListFields():
        if field.type != field.TYPE_MESSAGE:
            continue
        inner: Iterable[Any] = [value] if hasattr(value, "DESCRIPTOR") else value
        for one in inner:
            yield from _messages(one)


def _source(kind: type) -> str:
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):  # made at run time, or written in C
        return ""


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporter's chatter away: its warnings, its prints and what it logs of libraries that are not there."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
