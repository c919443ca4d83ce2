"""The engine that serves: it can be changed for a better one between studies, and does again in float32 what overflowed."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from node.errors import NonFiniteOutput
from node.inference.engines import Engine


@dataclass(frozen=True, slots=True)
class Chosen:
    """An engine and what is known of its agreement with the reference."""

    engine: Engine
    parity: str = ""
    """The gate that it passed, for the report; '' for the reference itself."""
    is_full: bool = True
    """It computes in float32: what it answers NaN for has no better answer."""


class ServingEngine:
    """What a bundle runs its network on."""

    def __init__(
        self,
        chosen: Chosen,
        *,
        make_reference: Callable[[], Engine] | None = None,
        look_for_better: Callable[[], Chosen | None] | None = None,
    ) -> None:
        """`look_for_better` is asked between studies until it answers one."""
        self._chosen = chosen
        self._make_reference = make_reference
        self._reference: Engine | None = None
        self._look_for_better = look_for_better
        self._done_again = 0

    @property
    def preferred_batch(self) -> int:
        """Of the engine at work."""
        return self._chosen.engine.preferred_batch

    @property
    def parity(self) -> str:
        """The gate that the engine at work has passed; '' for the reference itself."""
        return self._chosen.parity

    def refresh(self) -> None:
        """Takes a better engine where one has been built meanwhile: called between studies, so that one study has one engine."""
        if self._look_for_better is None:
            return
        better = self._look_for_better()
        if better is not None:
            self._chosen.engine.close()
            self._chosen, self._look_for_better = better, None

    def infer(self, batch: torch.Tensor) -> torch.Tensor:
        """Answers the output of the network, float32, on the CPU."""
        try:
            return self._chosen.engine.infer(batch)
        except NonFiniteOutput:
            if self._chosen.is_full or self._make_reference is None:
                raise
        self._reference = self._reference or self._make_reference()
        self._done_again += len(batch)
        return self._reference.infer(batch)

    def take_notes(self) -> tuple[str, ...]:
        """Answers what was done otherwise than planned since this was asked last."""
        count, self._done_again = self._done_again, 0
        return (f"{count} windows were done again in float32: half precision overflowed",) if count else ()

    def describe(self) -> str:
        """Of the engine at work."""
        return self._chosen.engine.describe()

    def close(self) -> None:
        """Frees both engines."""
        self._look_for_better = None
        self._chosen.engine.close()
        if self._reference is not None:
            self._reference.close()


class Recorder:
    """An engine that keeps the windows in which the network finds the most, to hold other engines against."""

    def __init__(self, engine: Engine, count: int) -> None:
        self._engine = engine
        self._count = count
        self._kept: list[tuple[int, torch.Tensor]] = []

    @property
    def preferred_batch(self) -> int:
        """As below."""
        return self._engine.preferred_batch

    @property
    def windows(self) -> list[torch.Tensor]:
        """Those kept, the richest first."""
        return [window for _, window in self._kept]

    def infer(self, batch: torch.Tensor) -> torch.Tensor:
        """As below."""
        output = self._engine.infer(batch)
        for window, scores in zip(batch, output, strict=True):
            found = int((scores.argmax(dim=0) > 0).sum()) if len(scores) > 1 else int((scores > 0).sum())
            self._kept.append((found, window.detach().cpu().clone()))
            self._kept.sort(key=lambda pair: -pair[0])
            del self._kept[self._count :]
        return output

    def describe(self) -> str:
        """As below."""
        return self._engine.describe()

    def close(self) -> None:
        """As below."""
        self._engine.close()
