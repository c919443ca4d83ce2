"""What an evaluation says: case by case, and in all. Values that could not be had are None, and cases that failed are counted."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean, median
from typing import Any

from node.evaluation.measures import Discrimination, FreeResponse, Overlap


@dataclass(frozen=True, slots=True)
class CaseScore:
    """One case."""

    name: str
    outcome: str
    """found, nothing found, not attempted, failed."""
    reason: str = ""
    latency_s: float = 0.0
    """From files to findings."""
    overlaps: Mapping[str, Overlap] = field(default_factory=dict)
    """By label of the structure."""
    answers: Mapping[str, str] = field(default_factory=dict)
    """Question → the model's answer."""
    boxes: int = 0
    picture: bytes | None = None
    """PNG: where answer and truth differ most."""


@dataclass(frozen=True, slots=True)
class Summary:
    """A figure over the cases that have it."""

    cases: int
    mean: float
    median: float
    worst: float


@dataclass(frozen=True, slots=True)
class Scorecard:
    """One model on one data set."""

    model: str
    version: str
    engine: str
    weights_sha256: tuple[str, ...]
    cases: tuple[CaseScore, ...]
    discriminations: Mapping[str, tuple[Discrimination, ...]] = field(default_factory=dict)
    """By question."""
    accuracy: Mapping[str, float] = field(default_factory=dict)
    """Share of cases whose most probable answer was the true one, by question."""
    free_response: FreeResponse | None = None

    @property
    def evaluated(self) -> tuple[CaseScore, ...]:
        """The cases that came to an end; the others are failures, not negatives."""
        return tuple(case for case in self.cases if not case.reason)

    def summary(self) -> dict[str, dict[str, Summary]]:
        """Answers structure → figure → summary."""
        labels = dict.fromkeys(label for case in self.cases for label in case.overlaps)
        return {label: _summaries([case.overlaps[label] for case in self.cases if label in case.overlaps]) for label in labels}

    def latency(self) -> Summary | None:
        """Answers the seconds a case, None where none came to an end."""
        return _summary([case.latency_s for case in self.evaluated], worst=max)

    def as_json(self) -> dict[str, Any]:
        """Answers the scorecard as plain values, without pictures."""
        return {
            "model": self.model,
            "version": self.version,
            "engine": self.engine,
            "weights_sha256": list(self.weights_sha256),
            "cases": [{key: value for key, value in _plain(case).items() if key != "picture"} for case in self.cases],
            "evaluated": len(self.evaluated),
            "summary": {label: {name: asdict(one) for name, one in figures.items()} for label, figures in self.summary().items()},
            "latency_s": asdict(latency) if (latency := self.latency()) else None,
            "questions": {question: [asdict(one) for one in answers] for question, answers in self.discriminations.items()},
            "accuracy": dict(self.accuracy),
            "free_response": asdict(self.free_response) if self.free_response else None,
        }


def _plain(case: CaseScore) -> dict[str, Any]:
    return {
        "name": case.name,
        "outcome": case.outcome,
        "reason": case.reason,
        "latency_s": round(case.latency_s, 3),
        "structures": {label: asdict(one) for label, one in case.overlaps.items()},
        "answers": dict(case.answers),
        "boxes": case.boxes,
    }


def _summaries(overlaps: Sequence[Overlap]) -> dict[str, Summary]:
    figures = {
        "dice": ([one.dice for one in overlaps], min),
        "volume_error_percent": ([one.volume_error_percent for one in overlaps], _farthest),
        "surface_distance_mm": ([one.surface_distance_mm for one in overlaps], max),
        "hausdorff95_mm": ([one.hausdorff95_mm for one in overlaps], max),
    }
    found = {name: _summary([value for value in values if value is not None], worst=worst) for name, (values, worst) in figures.items()}
    return {name: summary for name, summary in found.items() if summary is not None}


def _summary(values: Sequence[float], worst: Any) -> Summary | None:
    return Summary(len(values), fmean(values), median(values), worst(values)) if values else None


def _farthest(values: Iterable[float]) -> float:
    return max(values, key=abs)
