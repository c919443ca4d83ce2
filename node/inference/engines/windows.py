"""Windows through a function that takes only so many at once: cut, filled up, put together again; and what every output is asked."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from node.errors import DeviceOutOfMemory, EngineError, NodeError, NonFiniteOutput

Run = Callable[[torch.Tensor], torch.Tensor]


def run_in_batches(run: Run, batch: torch.Tensor, size: int, *, whole: bool) -> torch.Tensor:
    """Answers `run` of all windows, at most `size` at once; with `whole` never fewer: windows of zeros fill up."""
    outputs = []
    for piece in torch.split(batch, size):
        missing = size - len(piece) if whole else 0
        full = torch.cat([piece, piece.new_zeros(missing, *piece.shape[1:])]) if missing else piece
        outputs.append(run(full)[: len(piece)])
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def require_finite(output: torch.Tensor) -> torch.Tensor:
    """Answers the output; raises NonFiniteOutput where it holds NaN or infinity."""
    if not torch.isfinite(output).all():
        raise NonFiniteOutput("the network answered NaN or infinity")
    return output


@contextmanager
def told_as_ours(batch: torch.Tensor, where: str) -> Iterator[None]:
    """Turns what a library raises into an error of ours; its words stay away, they may hold paths."""
    try:
        yield
    except NodeError:
        raise
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise DeviceOutOfMemory(f"{where} has too little memory for a batch of shape {tuple(batch.shape)}") from error
    except Exception as error:
        # The libraries raise types of their own, RuntimeError the most; each is a failed run of the network.
        if "allocate memory" in str(error) or "out of memory" in str(error).lower() or "bad_alloc" in str(error):
            raise DeviceOutOfMemory(f"{where} has too little memory for a batch of shape {tuple(batch.shape)}") from error
        raise EngineError(f"the network failed on a batch of shape {tuple(batch.shape)} ({type(error).__name__})") from error
