"""What a report concludes: how the analysis ended, the answers of a classifier, and what was looked for and not found (TID 1500, row 12).

All stands in the Qualitative Evaluations container, apart from the measurements: OHIF shows nothing of a report in which a measurement
group has no place on an image. An answer about a single image names it (INFERRED FROM); by which algorithm it is, the observer of the
report says.

The probability of an answer is a property of it: NUM (122157, DCM, "Probability") in percent, with the question and the answer that it
is of as a modifier of its name: `Probability (Breast composition = Scattered) 62 %`. So the answers that were not given can be told
beside it, and none stands as a value of the question. (111047, DCM, "Probability of cancer") is another thing; (111013, DCM, "Certainty
of Impression") is of one impression, with none beside it.
"""

from collections.abc import Iterator
from typing import Final

from highdicom.sr import (
    CodeContentItem,
    ContainerContentItem,
    ContentItem,
    ContentSequence,
    ImageContentItem,
    NumContentItem,
    RelationshipTypeValues,
    TextContentItem,
)
from pydicom.sr.codedict import codes

from node.codes import (
    ABSENT,
    ANALYSIS_FAILED,
    ANALYSIS_NOT_ATTEMPTED,
    ANALYSIS_SUCCEEDED,
    PRESENT,
    PROBABILITY,
    QUALITATIVE_EVALUATIONS,
    SUMMARY_OF_ANALYSES,
    UCUM_PERCENT,
    Code,
)
from node.domain.findings import Evaluation
from node.domain.result import Result
from node.domain.states import Outcome
from node.domain.volume import Plane
from node.evidence.report_groups import percent
from node.evidence.sop_common import coded

_ENDINGS: Final = {
    Outcome.FOUND: ANALYSIS_SUCCEEDED,
    Outcome.NOTHING_FOUND: ANALYSIS_SUCCEEDED,
    Outcome.NOT_ATTEMPTED: ANALYSIS_NOT_ATTEMPTED,
    Outcome.FAILED: ANALYSIS_FAILED,
}
_SOURCE: Final = Code("260753009", "SCT", "Source")
_NOT_VERIFIED: Final = "AI result, not verified by a person."


def conclusions(result: Result) -> ContainerContentItem:
    """Answers how the analysis ended, what was answered, what was looked for and not found, and what a reader must know."""
    container = ContainerContentItem(name=coded(QUALITATIVE_EVALUATIONS), relationship_type=RelationshipTypeValues.CONTAINS)
    container.ContentSequence = ContentSequence()
    container.ContentSequence.append(_code(SUMMARY_OF_ANALYSES, _ENDINGS[result.outcome]))
    for text in _sentences(result):
        container.ContentSequence.append(_comment(text))
    for evaluation in result.evaluations:
        container.ContentSequence.append(_answer(evaluation))
    for definition in dict.fromkeys(evaluation.definition for evaluation in result.evaluations):
        if len(definition.answers) == 1:
            told = f"{definition.concept.meaning}: Present from a probability of {percent(definition.threshold):g} % on."
            container.ContentSequence.append(_comment(told))
    if result.outcome in {Outcome.FOUND, Outcome.NOTHING_FOUND}:
        for item in _absences(result):
            container.ContentSequence.append(item)
    return container


def answer_of(evaluation: Evaluation) -> Code:
    """Answers the value of an evaluation: of a question with a single answer, whether it is so."""
    if len(evaluation.definition.answers) == 1:
        return PRESENT if evaluation.present else ABSENT
    return evaluation.answer.code


def told_probabilities(evaluation: Evaluation) -> list[tuple[Code, float]]:
    """Answers the probabilities to tell, that of the given answer first, then the others, the most probable first.

    Of a question with a single answer there are two: that it is so, and that it is not.
    """
    given = answer_of(evaluation)
    if len(evaluation.definition.answers) == 1:
        present = evaluation.probabilities[0]
        told = [(PRESENT, present), (ABSENT, 1.0 - present)]
    else:
        told = [(answer.code, share) for answer, share in zip(evaluation.definition.answers, evaluation.probabilities, strict=True)]
    return sorted(told, key=lambda one: (one[0] != given, -one[1]))


def _answer(evaluation: Evaluation) -> CodeContentItem:
    concept = evaluation.definition.concept
    item = _code(concept, answer_of(evaluation))
    item.ContentSequence = ContentSequence()
    for value, share in told_probabilities(evaluation):
        number = NumContentItem(
            name=coded(PROBABILITY),
            value=percent(share),
            unit=coded(UCUM_PERCENT),
            relationship_type=RelationshipTypeValues.HAS_PROPERTIES,
        )
        number.ContentSequence = ContentSequence([_code(concept, value, RelationshipTypeValues.HAS_CONCEPT_MOD)])
        item.ContentSequence.append(number)
    if evaluation.image is not None:
        item.ContentSequence.append(_image(evaluation.image))
    return item


def _image(plane: Plane) -> ImageContentItem:
    return ImageContentItem(
        name=coded(_SOURCE),
        referenced_sop_class_uid=plane.sop_class_uid,
        referenced_sop_instance_uid=plane.sop_instance_uid,
        referenced_frame_numbers=[plane.frame_number] if plane.frame_number is not None else None,
        relationship_type=RelationshipTypeValues.INFERRED_FROM,
    )


def _absences(result: Result) -> Iterator[ContentItem]:
    """Answers what was looked for and not found. A point that was not found is only told: its anatomy is there all the same."""
    for segment in result.segments:
        if not segment.present:
            yield _code(segment.definition.type, ABSENT)
            yield _comment(f"{segment.definition.label}: not outlined by the model in these images.")
    found = {detection.definition.class_index for detection in result.detections}
    for definition in result.card.detections:
        if definition.class_index not in found:
            yield _code(definition.type, ABSENT)
            yield _comment(
                f"{definition.label}: not detected by the model in these images, at a score of {definition.min_score:g} or more."
            )
    located = {landmark.definition.channel for landmark in result.landmarks}
    for point in result.card.landmarks:
        if point.channel not in located:
            yield _comment(f"{point.label}: not located by the model in these images.")


def _sentences(result: Result) -> list[str]:
    texts = [_NOT_VERIFIED]
    if result.outcome is Outcome.NOT_ATTEMPTED:
        texts = [f"The analysis was not attempted: {result.reason}", "Nothing can be concluded about the images."]
    elif result.outcome is Outcome.FAILED:
        texts = [f"The analysis failed: {result.reason}", "Nothing can be concluded about the images."]
    elif result.outcome is Outcome.NOTHING_FOUND:
        texts.append("The analysis ran to its end and found none of the structures it looks for.")
    return [*texts, *(note.text for note in result.notes)]


def _code(name: Code, value: Code, relationship: RelationshipTypeValues = RelationshipTypeValues.CONTAINS) -> CodeContentItem:
    return CodeContentItem(name=coded(name), value=coded(value), relationship_type=relationship)


def _comment(text: str) -> TextContentItem:
    return TextContentItem(name=codes.DCM.Comment, value=text, relationship_type=RelationshipTypeValues.CONTAINS)
