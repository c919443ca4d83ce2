"""What a result says besides its structures, in words and shares for people: the picture, the page and the PDF tell the same."""

from dataclasses import dataclass

from node.codes import ABSENT, PRESENT
from node.domain.findings import Evaluation
from node.domain.result import Result
from node.domain.volume import Plane
from node.evidence.places import grids_of, ordered_detections, place_of_finding
from node.evidence.report_conclusions import answer_of, told_probabilities

Color = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one question, with the probability of each that it could have."""

    question: str
    answer: str
    """`present` and `absent` of a question with a single answer: words that are translated."""
    shares: tuple[tuple[str, float], ...]
    """Answer → its probability, that of the given answer first."""
    image: str
    """Which image was judged, '' where the whole series was."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A box or a point."""

    label: str
    color: Color
    score: float
    image: str
    """The image, or the slice, that it is shown on."""


def answers_of(result: Result) -> tuple[Answer, ...]:
    """Answers the evaluations, in their order."""
    return tuple(_answer(evaluation, result) for evaluation in result.evaluations)


def boxes_of(result: Result) -> tuple[Finding, ...]:
    """Answers the detections, the surest first, with the number that their Tracking Identifier has."""
    return tuple(
        Finding(f"{one.definition.label} {number}", one.definition.rgb, one.score, _number(place_of_finding(result, one).plane, result))
        for number, one in enumerate(ordered_detections(result), 1)
    )


def points_of(result: Result) -> tuple[Finding, ...]:
    """Answers the landmarks, in their order."""
    return tuple(
        Finding(one.definition.label, one.definition.rgb, one.score, _number(place_of_finding(result, one).plane, result))
        for one in result.landmarks
    )


def not_detected(result: Result) -> tuple[str, ...]:
    """Answers what a detector looked for and did not find."""
    found = {one.definition.class_index for one in result.detections}
    return tuple(one.label for one in result.card.detections if one.class_index not in found)


def not_located(result: Result) -> tuple[str, ...]:
    """Answers which points were looked for and not found."""
    found = {one.definition.channel for one in result.landmarks}
    return tuple(one.label for one in result.card.landmarks if one.channel not in found)


def percent_text(share: float) -> str:
    """Answers `93 %`; a small probability is not told as none, nor a large one as certainty."""
    value = 100.0 * share
    if 0 < value < 1:
        return "< 1 %"
    if 99 < value < 100:
        return "> 99 %"
    return f"{value:.0f} %"


def _answer(evaluation: Evaluation, result: Result) -> Answer:
    words = {PRESENT: "present", ABSENT: "absent"}
    if len(evaluation.definition.answers) > 1:
        words = {answer.code: answer.label for answer in evaluation.definition.answers}
    shares = tuple((words[code], share) for code, share in told_probabilities(evaluation))
    image = _number(evaluation.image, result) if evaluation.image is not None else ""
    return Answer(evaluation.definition.concept.meaning, words[answer_of(evaluation)], shares, image)


def _number(plane: Plane, result: Result) -> str:
    """Answers which of the analysed images one is: `3 / 40`."""
    planes = [one for grid in grids_of(result) for one in grid.planes]
    here = (plane.sop_instance_uid, plane.frame_number)
    places = [number for number, one in enumerate(planes, 1) if (one.sop_instance_uid, one.frame_number) == here]
    return f"{places[0]} / {len(planes)}" if places else ""
