"""Reads `models/<name>/card.toml`: a table of TOML becomes a card, or every fault is told at once."""

from collections.abc import Mapping
from typing import Any

from node.codes import Code
from node.domain.modelcard import (
    DRAFT_MARK,
    MEASURABLE,
    ORIENTATIONS,
    READABLE,
    WEIGHT_FORMATS,
    AnswerDefinition,
    DetectionDefinition,
    EvaluationDefinition,
    InputRequirement,
    LandmarkDefinition,
    ModelCard,
    Range,
    SegmentDefinition,
    WeightsFile,
)
from node.errors import CardInvalid


def parse_card(table: Mapping[str, Any]) -> ModelCard:
    """Answers the card that a TOML table holds.

    Raises
    ------
    CardInvalid
        Naming every fault: missing or unknown keys, values of the wrong kind.
    """
    reader = _Reader()
    draft = reader.flag(table, "draft")
    card = ModelCard(
        name=reader.text(table, "name"),
        version=reader.text(table, "version"),
        title=(DRAFT_MARK if draft else "") + reader.text(table, "title"),
        manufacturer=reader.text(table, "manufacturer"),
        intended_use=reader.text(table, "intended_use"),
        training_data=reader.text(table, "training_data"),
        performance=reader.text(table, "performance"),
        licence=reader.text(table, "licence"),
        weights=tuple(_weights(reader, item) for item in reader.tables(table, "weights")),
        inputs=tuple(_input(reader, item) for item in reader.tables(table, "inputs")),
        segments=tuple(_segment(reader, item) for item in reader.tables(table, "segments", needed=False)),
        evaluations=tuple(_evaluation(reader, item) for item in reader.tables(table, "evaluations", needed=False)),
        detections=tuple(_detection(reader, item) for item in reader.tables(table, "detections", needed=False)),
        landmarks=tuple(_landmark(reader, item) for item in reader.tables(table, "landmarks", needed=False)),
        reads=reader.text(table, "reads", "volume"),
        prefer_words=reader.words(table, "prefer_words"),
        avoid_words=reader.words(table, "avoid_words"),
        references=reader.words(table, "references", upper=False),
        draft=draft,
    )
    reader.no_more(table, "card")
    reader.expect(
        [segment.label_value for segment in card.segments] == sorted({s.label_value for s in card.segments}),
        "segments: label_value must ascend, each once",
    )
    reader.expect(len({segment.label for segment in card.segments}) == len(card.segments), "segments: a label appears twice")
    reader.expect(
        bool(card.segments or card.evaluations or card.detections or card.landmarks),
        "at least one [[segments]], [[evaluations]], [[detections]] or [[landmarks]] is needed: what the model reports",
    )
    reader.expect(card.reads in READABLE, f"reads: must be one of {', '.join(READABLE)}")
    named = [bool(requirement.channel) for requirement in card.inputs]
    reader.expect(all(named) or not any(named), "inputs: channel must stand in every [[inputs]] or in none")
    if reader.faults:
        raise CardInvalid(f"card.toml of {card.name or '?'}: " + "; ".join(reader.faults))
    return card


def _weights(reader: "_Reader", table: Mapping[str, Any]) -> WeightsFile:
    weights = WeightsFile(
        file=reader.text(table, "file"),
        format=reader.text(table, "format"),
        sha256=reader.text(table, "sha256"),
        source=reader.text(table, "source"),
    )
    reader.expect(weights.format in WEIGHT_FORMATS, f"weights: format must be one of {', '.join(WEIGHT_FORMATS)}")
    reader.expect(len(weights.sha256) == 64, "weights: sha256 must have 64 hexadecimal digits")
    reader.expect(".." not in weights.file.split("/") and not weights.file.startswith("/"), "weights: file must lie in the bundle")
    reader.no_more(table, "weights")
    return weights


def _input(reader: "_Reader", table: Mapping[str, Any]) -> InputRequirement:
    requirement = InputRequirement(
        modality=reader.words(table, "modality"),
        channel=reader.optional_text(table, "channel"),
        body_part=reader.words(table, "body_part"),
        orientation=reader.words(table, "orientation", upper=False),
        slices=reader.range(table, "slices"),
        slice_spacing_mm=reader.range(table, "slice_spacing_mm"),
        pixel_spacing_mm=reader.range(table, "pixel_spacing_mm"),
        coverage_mm=reader.range(table, "coverage_mm"),
        contrast=reader.text(table, "contrast", "any"),
        words=reader.words(table, "words"),
        without_words=reader.words(table, "without_words"),
        when={key: reader.condition(value, key) for key, value in reader.table(table, "when").items()} or None,
    )
    reader.expect(requirement.contrast in {"any", "with", "without"}, "inputs: contrast must be any, with or without")
    reader.expect(set(requirement.orientation) <= set(ORIENTATIONS), f"inputs: orientation must be of {', '.join(ORIENTATIONS)}")
    reader.expect(bool(requirement.modality), "inputs: modality is missing")
    reader.no_more(table, "inputs")
    return requirement


def _evaluation(reader: "_Reader", table: Mapping[str, Any]) -> EvaluationDefinition:
    evaluation = EvaluationDefinition(
        concept=reader.code(table, "concept"),
        answers=tuple(_answer(reader, item) for item in reader.tables(table, "answers")),
        threshold=reader.fraction(table, "threshold", 0.5),
    )
    reader.no_more(table, "evaluations")
    return evaluation


def _answer(reader: "_Reader", table: Mapping[str, Any]) -> AnswerDefinition:
    answer = AnswerDefinition(reader.index(table, "channel"), reader.text(table, "label"), reader.code(table, "code"))
    reader.no_more(table, "evaluations.answers")
    return answer


def _detection(reader: "_Reader", table: Mapping[str, Any]) -> DetectionDefinition:
    detection = DetectionDefinition(
        class_index=reader.index(table, "class_index"),
        label=reader.text(table, "label"),
        category=reader.code(table, "category"),
        type=reader.code(table, "type"),
        anatomic_region=reader.optional_code(table, "anatomic_region"),
        laterality=reader.optional_code(table, "laterality"),
        rgb=reader.rgb(table),
        min_score=reader.fraction(table, "min_score", 0.5),
    )
    reader.no_more(table, "detections")
    return detection


def _landmark(reader: "_Reader", table: Mapping[str, Any]) -> LandmarkDefinition:
    landmark = LandmarkDefinition(
        channel=reader.index(table, "channel"),
        label=reader.text(table, "label"),
        type=reader.code(table, "type"),
        rgb=reader.rgb(table),
        min_score=reader.fraction(table, "min_score", 0.5),
    )
    reader.no_more(table, "landmarks")
    return landmark


def _segment(reader: "_Reader", table: Mapping[str, Any]) -> SegmentDefinition:
    label_value = table.get("label_value", 0)
    reader.used(table, "label_value")
    reader.expect(isinstance(label_value, int) and 1 <= label_value <= 255, "segments: label_value must be 1..255")
    segment = SegmentDefinition(
        label_value=label_value,
        label=reader.text(table, "label"),
        category=reader.code(table, "category"),
        type=reader.code(table, "type"),
        anatomic_region=reader.optional_code(table, "anatomic_region"),
        laterality=reader.optional_code(table, "laterality"),
        rgb=reader.rgb(table),
        measure=reader.words(table, "measure", upper=False) or ("volume",),
    )
    reader.expect(set(segment.measure) <= set(MEASURABLE), f"segments: measure must be of {', '.join(MEASURABLE)}")
    reader.expect(len(segment.label) <= 64, "segments: label is longer than 64 characters (LO)")
    reader.no_more(table, "segments")
    return segment


def _as_word(value: str | float) -> str:
    """As `InstanceHeader.text` writes it: 3, not 3.0."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).upper()


class _Reader:
    """Takes values out of tables and collects every fault on the way."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self._used: dict[int, set[str]] = {}

    def used(self, table: Mapping[str, Any], key: str) -> None:
        self._used.setdefault(id(table), set()).add(key)

    def expect(self, holds: bool, fault: str) -> None:  # noqa: FBT001 - reads as a sentence at every call
        if not holds:
            self.faults.append(fault)

    def no_more(self, table: Mapping[str, Any], where: str) -> None:
        unknown = set(table) - self._used.get(id(table), set())
        self.expect(not unknown, f"{where}: unknown key {', '.join(sorted(unknown))}")

    def text(self, table: Mapping[str, Any], key: str, default: str | None = None) -> str:
        self.used(table, key)
        value = table.get(key, default)
        if isinstance(value, str) and value:
            return value
        self.faults.append(f"{key}: must be a text")
        return ""

    def words(self, table: Mapping[str, Any], key: str, *, upper: bool = True) -> tuple[str, ...]:
        self.used(table, key)
        value = table.get(key, [])
        if isinstance(value, list) and all(isinstance(word, str) for word in value):
            return tuple(word.upper() if upper else word for word in value)
        self.faults.append(f"{key}: must be a list of texts")
        return ()

    def range(self, table: Mapping[str, Any], key: str) -> Range:
        self.used(table, key)
        found = self.condition(table.get(key, {}), key)
        if isinstance(found, Range):
            return found
        self.faults.append(f"{key}: must be a table with min and max")
        return Range()

    def condition(self, value: object, key: str) -> tuple[str, ...] | Range:
        if isinstance(value, dict) and set(value) <= {"min", "max"} and all(isinstance(v, int | float) for v in value.values()):
            return Range(min=value.get("min"), max=value.get("max"))
        if isinstance(value, str | int | float):
            return (_as_word(value),)
        if isinstance(value, list) and value and all(isinstance(item, str | int | float) for item in value):
            return tuple(_as_word(item) for item in value)
        self.faults.append(f"{key}: must be a value, a list of values, or a table with min and max")
        return ()

    def flag(self, table: Mapping[str, Any], key: str) -> bool:
        self.used(table, key)
        value = table.get(key, False)
        self.expect(isinstance(value, bool), f"{key}: must be true or false")
        return value is True

    def optional_text(self, table: Mapping[str, Any], key: str) -> str:
        return self.text(table, key) if key in table else ""

    def index(self, table: Mapping[str, Any], key: str) -> int:
        self.used(table, key)
        value = table.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
        self.faults.append(f"{key}: must be a whole number from 0")
        return 0

    def fraction(self, table: Mapping[str, Any], key: str, default: float) -> float:
        self.used(table, key)
        value = table.get(key, default)
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1:
            return float(value)
        self.faults.append(f"{key}: must be a number from 0 to 1")
        return default

    def rgb(self, table: Mapping[str, Any]) -> tuple[int, int, int]:
        self.used(table, "rgb")
        value = table.get("rgb", [255, 0, 0])
        if isinstance(value, list) and len(value) == 3 and all(isinstance(part, int) and 0 <= part <= 255 for part in value):
            return (value[0], value[1], value[2])
        self.faults.append("rgb: must be three of 0..255")
        return (255, 0, 0)

    def tables(self, table: Mapping[str, Any], key: str, *, needed: bool = True) -> list[Mapping[str, Any]]:
        self.used(table, key)
        value = table.get(key)
        if value is None and not needed:
            return []
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            return value
        self.faults.append(f"{key}: at least one [[{key}]] is needed")
        return []

    def table(self, table: Mapping[str, Any], key: str) -> Mapping[str, Any]:
        self.used(table, key)
        value = table.get(key, {})
        if isinstance(value, dict):
            return value
        self.faults.append(f"{key}: must be a table")
        return {}

    def code(self, table: Mapping[str, Any], key: str) -> Code:
        self.used(table, key)
        value = table.get(key)
        if isinstance(value, dict) and set(value) == {"value", "scheme", "meaning"} and all(isinstance(v, str) for v in value.values()):
            return Code(value["value"], value["scheme"], value["meaning"])
        self.faults.append(f"{key}: must be {{ value, scheme, meaning }}")
        return Code("", "", "")

    def optional_code(self, table: Mapping[str, Any], key: str) -> Code | None:
        self.used(table, key)
        return self.code(table, key) if key in table else None
