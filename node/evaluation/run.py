"""Runs a model on the cases of a data set and scores what it answers."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from node.domain.findings import Detection, Evaluation, Findings
from node.domain.modelcard import ModelCard
from node.domain.volume import LabelMap, Volume
from node.errors import InputError, UsageError
from node.evaluation.dataset import Case, Lesion
from node.evaluation.measures import Overlap, discriminate, free_response, overlap
from node.evaluation.picture import draw_difference
from node.evaluation.reference import read_reference
from node.evaluation.scorecard import CaseScore, Scorecard
from node.pipeline import Model, describe
from node.study_images import read_study_images

Progress = Callable[[str, int, int], None]
"""Called with the case, its number and how many there are."""


@dataclass
class Collected:
    """What is judged over all cases together."""

    answers: dict[str, list[tuple[Evaluation, str]]] = field(default_factory=dict)
    """By question: what the model said, and what is true."""
    boxes: list[tuple[Sequence[Detection], Sequence[Lesion]]] = field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class Answered:
    """What a model answered on a case, for comparison with another's."""

    label_map: LabelMap | None


def evaluate(model: Model, cases: Sequence[Case], progress: Progress = lambda *_: None) -> tuple[Scorecard, dict[str, Answered]]:
    """Answers the scorecard of a model, and its label maps by case. A case that fails is told in it, never passed over."""
    collected = Collected()
    scores, answered = [], {}
    for number, case in enumerate(cases, start=1):
        progress(case.name, number, len(cases))
        score, label_map = _score(model, case, collected)
        scores.append(score)
        answered[case.name] = Answered(label_map)
    provenance = model.provenance
    return (
        Scorecard(
            model=model.card.name,
            version=model.card.version,
            engine=provenance.engine,
            weights_sha256=provenance.weights_sha256,
            cases=tuple(scores),
            discriminations={
                question: tuple(
                    discriminate(
                        answer.label if len(one.definition.answers) > 1 else "yes",
                        [evaluation.probabilities[index] for evaluation, _ in pairs],
                        [_is_true(evaluation, index, truth) for evaluation, truth in pairs],
                    )
                    for index, answer in enumerate(one.definition.answers)
                )
                for question, pairs in collected.answers.items()
                for one in [pairs[0][0]]
            },
            accuracy={
                question: float(np.mean([_said(evaluation).casefold() == truth.casefold() for evaluation, truth in pairs]))
                for question, pairs in collected.answers.items()
            },
            free_response=free_response(collected.boxes) if collected.boxes else None,
        ),
        answered,
    )


def compare(first: dict[str, Answered], second: dict[str, Answered], card: ModelCard) -> dict[str, dict[str, Overlap]]:
    """Answers how two runs agree: case → structure → overlap of the first with the second as the truth."""
    agreed: dict[str, dict[str, Overlap]] = {}
    for name, one in first.items():
        other = second[name].label_map
        if one.label_map is not None and other is not None:
            agreed[name] = {
                segment.label: overlap(one.label_map.mask(segment.label_value), other.mask(segment.label_value), other.source)
                for segment in card.segments
            }
    return agreed


def _score(model: Model, case: Case, collected: Collected) -> tuple[CaseScore, LabelMap | None]:
    if not case.files:
        return CaseScore(case.name, "not attempted", f"no series was taken: {case.declined}"), None
    began = time.perf_counter()
    try:
        images = read_study_images(case.files, model.card)
        findings = model.predict(images, lambda _: None)
    except InputError as error:
        return CaseScore(case.name, "not attempted", str(error)), None
    except Exception as error:  # noqa: BLE001 - the boundary of a case: whatever it breaks, the others are scored
        return CaseScore(case.name, "failed", describe(error)), None
    latency_s = time.perf_counter() - began
    try:
        overlaps, picture = _overlaps(findings, case, model.card, images[0])
    except UsageError as error:
        return CaseScore(case.name, "not scored", f"its truth cannot be used: {error}", latency_s), findings.label_map
    _collect(findings, case, model.card, collected)
    found = bool(
        findings.evaluations
        or findings.detections
        or findings.landmarks
        or (findings.label_map is not None and findings.label_map.labels.any())
    )
    return (
        CaseScore(
            name=case.name,
            outcome="found" if found else "nothing found",
            latency_s=latency_s,
            overlaps=overlaps,
            answers={one.definition.concept.meaning: _said(one) for one in findings.evaluations},
            boxes=len(findings.detections),
            picture=picture,
        ),
        findings.label_map,
    )


def _overlaps(findings: Findings, case: Case, card: ModelCard, volume: Volume) -> tuple[dict[str, Overlap], bytes | None]:
    label_map = findings.label_map
    if label_map is None or case.reference is None:
        return {}, None
    true = read_reference(case.reference, card, label_map.source)
    scores = {
        one.label: overlap(label_map.mask(one.label_value), true.mask(one.label_value), label_map.source)
        for one in card.segments
        if one.label_value in true.label_values
    }
    return scores, draw_difference(volume, label_map, true)


def _collect(findings: Findings, case: Case, card: ModelCard, collected: Collected) -> None:
    for evaluation in findings.evaluations:
        concept = evaluation.definition.concept.meaning
        truth = case.answers.get(concept) or (case.answers.get("") if len(card.evaluations) == 1 else None)
        if truth is not None:
            collected.answers.setdefault(concept, []).append((evaluation, truth))
    if case.lesions is not None:
        collected.boxes.append((findings.detections, case.lesions))


def _said(evaluation: Evaluation) -> str:
    if len(evaluation.definition.answers) == 1:
        return "yes" if evaluation.present else "no"
    return evaluation.answer.label


def _is_true(evaluation: Evaluation, index: int, truth: str) -> bool:
    answer = evaluation.definition.answers[index]
    return truth.casefold() == (answer.label.casefold() if len(evaluation.definition.answers) > 1 else "yes")
