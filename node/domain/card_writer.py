"""Writes `models/<name>/card.toml`: a card as a person reads and corrects it. What is written is read back as the same card."""

import json
from collections.abc import Iterator, Mapping

from node.codes import Code
from node.domain.modelcard import DRAFT_MARK, InputRequirement, ModelCard, Range, SegmentDefinition

DRAFT_LINE = "draft = true"


def write_card(card: ModelCard, *, head: str = "", remarks: Mapping[str, str] | None = None) -> str:
    """Answers the text of card.toml; `head` stands above it as comments, a remark of `remarks` above what carries this label."""
    said = remarks or {}
    lines = [f"# {line}".rstrip() for line in head.splitlines()]
    if card.draft:
        lines += [f"{DRAFT_LINE}  # until `radnode model confirm {card.name}`: no route may name this model before", ""]
    for key in ("name", "version", "title", "manufacturer", "licence", "intended_use", "training_data", "performance"):
        value = getattr(card, key)
        lines.append(f"{key} = {_text(value.removeprefix(DRAFT_MARK) if key == 'title' else value)}")
    if card.reads != "volume":
        lines.append(f"reads = {_text(card.reads)}")
    for key in ("references", "prefer_words", "avoid_words"):
        if getattr(card, key):
            lines.append(f"{key} = {_list(getattr(card, key))}")
    for weights in card.weights:
        lines += ["", "[[weights]]", *(f"{key} = {_text(getattr(weights, key))}" for key in ("file", "format", "sha256", "source"))]
    for requirement in card.inputs:
        lines += ["", *_remark(said, requirement.channel), "[[inputs]]", *_input(requirement)]
    for segment in card.segments:
        lines += ["", *_remark(said, segment.label), "[[segments]]", *_segment(segment)]
    lines += _questions(card, said)
    for detection in card.detections:
        lines += ["", *_remark(said, detection.label), "[[detections]]", f"class_index = {detection.class_index}"]
        lines += [f"label = {_text(detection.label)}", *_coded(detection), f"rgb = {list(detection.rgb)}"]
        lines.append(f"min_score = {detection.min_score}")
    for landmark in card.landmarks:
        lines += ["", *_remark(said, landmark.label), "[[landmarks]]", f"channel = {landmark.channel}", f"label = {_text(landmark.label)}"]
        lines += [f"type = {_code(landmark.type)}", f"rgb = {list(landmark.rgb)}", f"min_score = {landmark.min_score}"]
    return "\n".join(lines) + "\n"


def _questions(card: ModelCard, said: Mapping[str, str]) -> list[str]:
    lines = []
    for evaluation in card.evaluations:
        lines += ["", *_remark(said, evaluation.concept.meaning), "[[evaluations]]", f"concept = {_code(evaluation.concept)}"]
        lines.append(f"threshold = {evaluation.threshold}")
        for answer in evaluation.answers:
            lines += ["", *_remark(said, answer.label), "[[evaluations.answers]]", f"channel = {answer.channel}"]
            lines += [f"label = {_text(answer.label)}", f"code = {_code(answer.code)}"]
    return lines


def _input(requirement: InputRequirement) -> Iterator[str]:
    if requirement.channel:
        yield f"channel = {_text(requirement.channel)}"
    for key in ("modality", "body_part", "orientation"):
        if getattr(requirement, key):
            yield f"{key} = {_list(getattr(requirement, key))}"
    for key in ("slices", "slice_spacing_mm", "pixel_spacing_mm", "coverage_mm"):
        if getattr(requirement, key) != Range():
            yield f"{key} = {_range(getattr(requirement, key))}"
    if requirement.contrast != "any":
        yield f"contrast = {_text(requirement.contrast)}"
    for key in ("words", "without_words"):
        if getattr(requirement, key):
            yield f"{key} = {_list(getattr(requirement, key))}"
    if requirement.when:
        parts = (
            f"{keyword} = {_range(value) if isinstance(value, Range) else _list(value)}" for keyword, value in requirement.when.items()
        )
        yield f"when = {{ {', '.join(parts)} }}"


def _segment(segment: SegmentDefinition) -> Iterator[str]:
    yield f"label_value = {segment.label_value}"
    yield f"label = {_text(segment.label)}"
    yield from _coded(segment)
    yield f"rgb = {list(segment.rgb)}"
    yield f"measure = {_list(segment.measure)}"


def _coded(definition: object) -> Iterator[str]:
    for key in ("category", "type", "anatomic_region", "laterality"):
        code = getattr(definition, key)
        if code is not None:
            yield f"{key} = {_code(code)}"


def _code(code: Code) -> str:
    return f"{{ value = {_text(code.value)}, scheme = {_text(code.scheme)}, meaning = {_text(code.meaning)} }}"


def _range(limits: Range) -> str:
    parts = [f"{name} = {value}" for name, value in (("min", limits.min), ("max", limits.max)) if value is not None]
    return f"{{ {', '.join(parts)} }}"


def _list(values: tuple[str, ...]) -> str:
    return f"[{', '.join(_text(value) for value in values)}]"


def _text(value: str) -> str:
    """A basic string of TOML: JSON's escapes are TOML's too, but for DEL, which JSON leaves bare."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _remark(said: Mapping[str, str], about: str) -> list[str]:
    return [f"# {said[about]}"] if about in said else []
