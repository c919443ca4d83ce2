"""Tries engines against plain torch: each must agree before its speed counts. All are measured in turn, so that none has the quiet hour."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Final

import torch

from node.errors import EngineError
from node.inference.engines import Engine
from node.inference.engines.candidates import Candidate, Material
from node.inference.engines.parity import Comparison, Verdict, judge

ROUNDS: Final = 3
BUDGET_S: Final = 120.0
"""After this much measuring no further round begins."""

Progress = Callable[[str], None]
"""Called with a line for a person."""


@dataclass
class Contestant:
    """A candidate with its engine, or with the reason why it has none."""

    candidate: Candidate
    engine: Engine | None
    fault: str = ""
    verdict: Verdict | None = None
    wall_s: list[float] = field(default_factory=list)
    """A window, in each round."""
    cpu_s: list[float] = field(default_factory=list)
    overflowed: bool = False

    @property
    def passed(self) -> bool:
        """Whether it may serve."""
        return self.engine is not None and self.verdict is not None and self.verdict.passed

    @property
    def window_ms(self) -> float:
        """Milliseconds a window, the median of the rounds; infinite where it was not measured."""
        return 1000 * median(self.wall_s) if self.wall_s else float("inf")

    @property
    def cpu_ms(self) -> float:
        """Processor milliseconds of this process a window, all cores together."""
        return 1000 * median(self.cpu_s) if self.cpu_s else float("inf")

    @property
    def why_not(self) -> str:
        """Why it may not serve, '' where it may."""
        return self.fault or ("; ".join(self.verdict.faults) if self.verdict is not None else "")

    def as_record(self) -> dict[str, Any]:
        """Answers the outcome for a file or a program."""
        figures = self.verdict.figures if self.verdict is not None else None
        return {
            "engine": self.candidate.name,
            "describes_itself": self.engine.describe() if self.engine is not None else "",
            "window_ms": round(self.window_ms, 3) if self.wall_s else None,
            "cpu_ms": round(self.cpu_ms, 3) if self.cpu_s else None,
            "relative_l2": figures.relative_l2 if figures is not None else None,
            "agreement": figures.agreement if figures is not None else None,
            "least_dice": figures.least_dice if figures is not None else None,
            "structures": len(figures.dice) if figures is not None else None,
            "passed": self.passed,
            "why_not": self.why_not,
        }


def compare(reference: torch.Tensor, contestant: Contestant, windows: torch.Tensor, material: Material) -> None:
    """Runs the gate: the first run of every engine, so that the timed ones are warm."""
    if contestant.engine is None:
        return
    comparison = Comparison(material.task.score, material.task.threshold)
    try:
        for start in range(0, len(windows), contestant.engine.preferred_batch):
            piece = slice(start, start + contestant.engine.preferred_batch)
            comparison.add(reference[piece], contestant.engine.infer(windows[piece]))
    except EngineError as error:
        contestant.fault = str(error)
        contestant.overflowed = error.code == "NonFiniteOutput"
        return
    contestant.verdict = judge(comparison.figures(), contestant.candidate.precision)


def measure(contestants: Sequence[Contestant], windows: torch.Tensor, *, rounds: int = ROUNDS, budget_s: float = BUDGET_S) -> None:
    """Times the engines in turn, round by round."""
    began = time.monotonic()
    for number in range(rounds):
        if number and time.monotonic() - began > budget_s:
            return
        for contestant in contestants:
            if contestant.engine is not None and not contestant.fault:
                _time(contestant, contestant.engine, windows)


def _time(contestant: Contestant, engine: Engine, windows: torch.Tensor) -> None:
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    try:
        for start in range(0, len(windows), engine.preferred_batch):
            engine.infer(windows[start : start + engine.preferred_batch])
    except EngineError as error:
        contestant.fault = str(error)
        return
    contestant.wall_s.append((time.perf_counter() - wall_s) / len(windows))
    contestant.cpu_s.append((time.process_time() - cpu_s) / len(windows))
