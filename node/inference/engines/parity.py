"""Does an engine answer what float32 torch answers? What does not agree never serves.

Compared are the network's outputs (relative L2), the labels where something lies or nearly does (agreement in the band around the
foreground of the reference), and every structure by itself (Dice).
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import torch
from torch.nn import functional

from node.inference.engines.store import canonical

MAX_RELATIVE_L2: Final = {"fp32": 1e-4, "fp16": 2e-3, "bf16": 1e-2}
MIN_AGREEMENT: Final = 0.9995
MIN_DICE: Final = 0.999
MIN_DICE_SMALL: Final = 0.99
SMALL_VOXELS: Final = 1000
"""A structure with fewer voxels is small."""
FREE_VOXELS: Final = 2
"""So many voxels of a small structure may differ whatever its Dice is: of a hundred voxels two are 0.99 already."""

_BAND: Final = 7
"""Width of the neighbourhood, in voxels, that makes the foreground a band."""


@dataclass(frozen=True, slots=True)
class Figures:
    """How an engine's answers compare with those of the reference."""

    finite: bool
    relative_l2: float
    agreement: float
    """Share of the voxels of the band that have the same label."""
    band_voxels: int
    dice: Mapping[str, float]
    """Of each structure (channel) that either of the two has found."""
    voxels: Mapping[str, int]
    """Of each of them, in the reference."""
    differing: Mapping[str, int]
    """Of each of them: voxels that the one calls so and the other does not."""
    windows: int

    @property
    def least_dice(self) -> float:
        """1 where there is no structure."""
        return min(self.dice.values(), default=1.0)


@dataclass
class Comparison:
    """Adds up window by window."""

    score: Callable[[torch.Tensor], torch.Tensor]
    threshold: float | None
    finite: bool = True
    windows: int = 0
    _squares: float = 0.0
    _reference_squares: float = 0.0
    _band: int = 0
    _same: int = 0
    _overlap: dict[int, int] = field(default_factory=dict)
    _mine: dict[int, int] = field(default_factory=dict)
    _theirs: dict[int, int] = field(default_factory=dict)

    def add(self, reference: torch.Tensor, output: torch.Tensor) -> None:
        """Takes the outputs of both for the same windows, (N, channels, …)."""
        for expected, found in zip(reference, output, strict=True):
            self.windows += 1
            if expected.shape != found.shape or not torch.isfinite(found).all():
                self.finite = False
                continue
            self._squares += float((found.double() - expected).square_().sum())
            self._reference_squares += float(expected.double().square_().sum())
            if self.threshold is None:
                self._add_classes(self.score(expected.clone()), self.score(found.clone()))
            else:
                self._add_masks(self.score(expected.clone()) >= self.threshold, self.score(found.clone()) >= self.threshold)

    def figures(self) -> Figures:
        """Answers the sums so far as figures."""
        dice = {
            one: 2 * self._overlap.get(one, 0) / total
            for one in sorted({*self._mine, *self._theirs})
            if (total := self._mine.get(one, 0) + self._theirs.get(one, 0))
        }
        return Figures(
            finite=self.finite,
            relative_l2=(self._squares / (self._reference_squares or 1.0)) ** 0.5,
            agreement=self._same / self._band if self._band else 1.0,
            band_voxels=self._band,
            dice={str(one): value for one, value in dice.items()},
            voxels={str(one): self._theirs.get(one, 0) for one in dice},
            differing={str(one): self._mine.get(one, 0) + self._theirs.get(one, 0) - 2 * self._overlap.get(one, 0) for one in dice},
            windows=self.windows,
        )

    def _add_classes(self, expected: torch.Tensor, found: torch.Tensor) -> None:
        """Label 0 is background: it has no Dice of its own."""
        classes = len(expected)
        wanted, given = expected.argmax(dim=0), found.argmax(dim=0)
        band = _band_of(wanted > 0)
        self._band += int(band.sum())
        self._same += int((wanted == given)[band].sum())
        both = wanted[wanted == given]
        for counts, labels in ((self._theirs, wanted), (self._mine, given), (self._overlap, both)):
            for one, count in enumerate(torch.bincount(labels.flatten(), minlength=classes).tolist()):
                if one and count:
                    counts[one] = counts.get(one, 0) + count

    def _add_masks(self, expected: torch.Tensor, found: torch.Tensor) -> None:
        for one, (wanted, given) in enumerate(zip(expected, found, strict=True)):
            band = _band_of(wanted)
            self._band += int(band.sum())
            self._same += int((wanted == given)[band].sum())
            for counts, mask in ((self._theirs, wanted), (self._mine, given), (self._overlap, wanted & given)):
                counts[one] = counts.get(one, 0) + int(mask.sum())


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an engine may serve, and why not."""

    figures: Figures
    faults: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """True when nothing is wrong."""
        return not self.faults


def judge(figures: Figures, precision: str) -> Verdict:
    """Holds figures against what the precision allows."""
    faults = []
    if not figures.finite:
        faults.append("it answers NaN, infinity or another shape")
    limit = MAX_RELATIVE_L2[precision]
    if not figures.relative_l2 <= limit:
        faults.append(f"relative L2 {figures.relative_l2:.1e}, at most {limit:.0e} is allowed for {precision}")
    if figures.agreement < MIN_AGREEMENT:
        faults.append(f"{figures.agreement:.5f} of the voxels in the band agree, at least {MIN_AGREEMENT} must")
    if precision != "fp32" and not any(figures.voxels.values()):
        faults.append("the reference finds no structure in the windows, which says little of half precision → build with --sample DIR")
    wrong = [(one, dice) for one, dice in figures.dice.items() if not _dice_holds(figures, one, dice)]
    if wrong:
        worst, dice = min(wrong, key=lambda pair: pair[1])
        faults.append(f"Dice of channel {worst} is {dice:.4f} at {figures.voxels[worst]} voxels ({len(wrong)} channels are too different)")
    return Verdict(figures, tuple(faults))


def record_of(verdict: Verdict, told: Mapping[str, Any]) -> dict[str, Any]:
    """Answers what is kept of a comparison: `told` (which engine, which windows), the figures, the limits and the verdict."""
    limits = {"relative_l2": MAX_RELATIVE_L2, "agreement": MIN_AGREEMENT, "dice": MIN_DICE, "dice_small": MIN_DICE_SMALL}
    record = {**told, "figures": asdict(verdict.figures), "limits": limits, "passed": verdict.passed, "faults": list(verdict.faults)}
    return {"gate": hashlib.sha256(canonical(record)).hexdigest()[:12], **record}


def sentence_of(record: Mapping[str, Any]) -> str:
    """Answers a comparison that was passed, for the report: `gate 0f3a…, relative L2 2.9e-03, …`."""
    figures = record["figures"]
    least = min(figures["dice"].values(), default=1.0)
    return (
        f"gate {record['gate']} against {record['reference']}: relative L2 {figures['relative_l2']:.1e}, "
        f"labels {figures['agreement']:.5f}, least Dice {least:.4f}, {figures['windows']} windows"
    )


def _dice_holds(figures: Figures, one: str, dice: float) -> bool:
    if figures.voxels[one] >= SMALL_VOXELS:
        return dice >= MIN_DICE
    return dice >= MIN_DICE_SMALL or figures.differing[one] <= FREE_VOXELS


def _band_of(foreground: torch.Tensor) -> torch.Tensor:
    """Answers the foreground and what lies near it; everything, where there is no foreground."""
    if not foreground.any():
        return torch.ones_like(foreground)
    pool = functional.max_pool3d if foreground.ndim == 3 else functional.max_pool2d
    return pool(foreground[None, None].float(), _BAND, stride=1, padding=_BAND // 2)[0, 0] > 0
