"""The result page: one HTML file that needs nothing else, for a person who asks what the model did and how far to trust it.

It holds no patient identity; UIDs only, so that the objects can be found in the archive.
"""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from pydicom.dataset import Dataset

from node import __version__
from node.domain.result import Result, SegmentResult
from node.domain.states import Outcome
from node.evidence.context import EvidenceContext
from node.evidence.legend import format_number
from node.evidence.sop_common import device_uid
from node.evidence.told import Finding, answers_of, boxes_of, not_detected, not_located, percent_text, points_of

_UNITS: Final = {"cm3": "cm³", "mm3": "mm³"}


@dataclass(frozen=True, slots=True)
class Banner:
    """The first thing to read: how the analysis ended."""

    kind: str
    """found, nothing, declined or failed: the color."""
    headline: str
    text: str


@dataclass(frozen=True, slots=True)
class Row:
    """A structure of the findings table."""

    label: str
    color: str
    present: bool
    values: tuple[str, ...]
    voxels: str


@dataclass(frozen=True, slots=True)
class Share:
    """An answer that a question could have, or the score of a box or point: a bar."""

    label: str
    text: str
    percent: float
    color: str = ""
    image: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """A question of a classifier."""

    question: str
    answer: str
    image: str
    shares: tuple[Share, ...]


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage of the run, with its share of the longest one in percent."""

    name: str
    seconds: str
    share: float


def render_page(
    result: Result,
    evidence: Sequence[Dataset],
    key_image: bytes | None,
    seconds: Mapping[str, float],
    context: EvidenceContext,
) -> str:
    """Answers the page of a result as HTML.

    `evidence` are the objects that were made; `key_image` is a PNG; `seconds` tells how long each stage took, in order.
    """
    analyzed = result.outcome in {Outcome.FOUND, Outcome.NOTHING_FOUND}
    return _TEMPLATE.render(
        card=result.card,
        banner=_banner(result),
        rows=[_row(segment) for segment in result.segments] if analyzed else [],
        measured=_measured_names(result) if analyzed else (),
        analyzed=analyzed,
        questions=_questions(result),
        boxes=[_share(one) for one in boxes_of(result)],
        points=[_share(one) for one in points_of(result)],
        not_detected=not_detected(result) if analyzed else (),
        not_located=not_located(result) if analyzed else (),
        notes=result.notes,
        key_image=b64encode(key_image).decode("ascii") if key_image else "",
        stages=_stages(seconds),
        total=f"{sum(seconds.values()):.1f}",
        provenance=result.provenance,
        device_uid=device_uid(result),
        evidence=evidence,
        study_instance_uid=str(evidence[0].StudyInstanceUID) if evidence else "",
        moment=context.encoded_at.strftime("%Y-%m-%d %H:%M:%S %Z").strip(),
        node=f"radnode {__version__}, {context.ae_title.strip()}",
    )


def _banner(result: Result) -> Banner:
    match result.outcome:
        case Outcome.FOUND:
            return Banner("found", _headline(result), "")
        case Outcome.NOTHING_FOUND:
            verb = "outlined none of the structures" if result.card.segments else "found nothing of what"
            return Banner("nothing", "Nothing found", f"The analysis ran to its end and {verb} it looks for.")
        case Outcome.NOT_ATTEMPTED:
            return Banner("declined", "Not analyzed", f"{result.reason} Nothing can be concluded about the images.")
        case Outcome.FAILED:
            return Banner("failed", "The analysis failed", f"{result.reason} Nothing can be concluded about the images.")


def _headline(result: Result) -> str:
    """Answers what was found, in a few words."""
    parts = []
    if len(result.segments) == 1:
        parts.append(f"{result.segments[0].definition.label} outlined")
    elif result.segments:
        parts.append(f"{sum(segment.present for segment in result.segments)} of {len(result.segments)} structures outlined")
    if result.card.detections:
        parts.append(f"{len(result.detections)} {'detection' if len(result.detections) == 1 else 'detections'}")
    if result.card.landmarks:
        parts.append(f"{len(result.landmarks)} of {len(result.card.landmarks)} points located")
    answers = answers_of(result)
    if len(answers) == 1:
        parts.append(f"{answers[0].question}: {answers[0].answer}")
    elif answers:
        parts.append(f"{len(answers)} answers")
    return ", ".join(parts)


def _questions(result: Result) -> list[Question]:
    found = []
    for one in answers_of(result):
        shares = tuple(Share(answer, percent_text(share), round(100 * share, 1)) for answer, share in one.shares)
        found.append(Question(one.question, one.answer, one.image, shares))
    return found


def _share(finding: Finding) -> Share:
    color = "#{:02x}{:02x}{:02x}".format(*finding.color)
    return Share(finding.label, percent_text(finding.score), round(100 * finding.score, 1), color, finding.image)


def _row(segment: SegmentResult) -> Row:
    definition = segment.definition
    side = f" ({definition.laterality.meaning.lower()})" if definition.laterality else ""
    told = side.strip(" ()") in definition.label.lower()
    return Row(
        label=definition.label if told else definition.label + side,
        color="#{:02x}{:02x}{:02x}".format(*definition.rgb),
        present=segment.present,
        values=tuple(f"{format_number(m.value)} {_UNITS.get(m.unit.value, m.unit.value)}" for m in segment.measurements),
        voxels=f"{segment.voxels:,}".replace(",", "\u202f"),
    )


def _measured_names(result: Result) -> tuple[str, ...]:
    """Answers what the columns of measurements are called."""
    return next((tuple(m.name for m in segment.measurements) for segment in result.segments if segment.measurements), ())


def _stages(seconds: Mapping[str, float]) -> list[Stage]:
    longest = max(seconds.values(), default=0.0) or 1.0
    return [Stage(name, f"{value:.2f}", round(100 * value / longest, 1)) for name, value in seconds.items()]


_TEMPLATE: Final = Environment(
    loader=PackageLoader("node.evidence"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
).get_template("result.html")
