"""A draft of a card from what a MONAI bundle says of itself: metadata.json and the inference configuration, as they stand in the files.

Everything here is a proposal. What could not be read out of the bundle is told in `Draft.notes`, one sentence each.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from node.codes import Code
from node.domain.bundle_inputs import channel_keys, switched_steps
from node.domain.label_codes import FindInStandard, Proposal, distinct_rgb, is_background, organ_in, placeholder, propose
from node.domain.label_values import label_values, prompts
from node.domain.modelcard import (
    DRAFT_MARK,
    AnswerDefinition,
    DetectionDefinition,
    EvaluationDefinition,
    InputRequirement,
    LandmarkDefinition,
    ModelCard,
    SegmentDefinition,
    WeightsFile,
)
from node.domain.snomed_labels import BREAST_COMPOSITION, BREAST_DENSITY, MORPHOLOGICALLY_ABNORMAL

NOT_STATED: Final = "Not stated by the author."

_MODALITIES: Final[Mapping[str, tuple[str, ...]]] = {
    "CT": ("CT",), "MR": ("MR",), "MRI": ("MR",), "MG": ("MG",), "MAMMO": ("MG",), "PET": ("PT",), "PT": ("PT",), "NM": ("NM",),
    "US": ("US",), "ULTRASOUND": ("US",), "ECHO": ("US",), "XA": ("XA",), "ANGIO": ("XA",), "FLUORO": ("RF",),
    "X-RAY": ("CR", "DX"), "XRAY": ("CR", "DX"), "CXR": ("CR", "DX"), "CR": ("CR", "DX"), "DX": ("CR", "DX"), "RADIOGRAPH": ("CR", "DX"),
    "ENDOSCOP": ("ES",), "RGB": ("ES",), "OCT": ("OPT",), "FUNDUS": ("OP",), "PATHOLOGY": ("SM",), "HISTO": ("SM",), "WSI": ("SM",),
}  # fmt: skip

_T1_WORDS: Final = ("T1*", "MPRAGE*", "BRAVO*", "FSPGR*", "SPGR*", "MP2RAGE*")
_AGENT_WORDS: Final = ("POST*", "GD*", "GAD*", "CE", "KM", "T1C*", "T1CE*", "T1GD*", "CONTRAST*")
_CHANNELS: Final[Mapping[str, tuple[str, InputRequirement]]] = {
    "t1c": ("T1c", InputRequirement(("MR",), words=_T1_WORDS, contrast="with", without_words=("FLAIR*", "PRE"))),
    "t1": ("T1", InputRequirement(("MR",), words=_T1_WORDS, contrast="without", without_words=("FLAIR*", *_AGENT_WORDS))),
    "t2": ("T2", InputRequirement(("MR",), words=("T2*",), without_words=("FLAIR*", "T2STAR*", "GRE", "SWI*", "TIRM*", "DARK*"))),
    "flair": ("FLAIR", InputRequirement(("MR",), words=("FLAIR*", "TIRM*", "DARKFLUID*", "T2FLAIR*"), without_words=("T1*",))),
    "adc": ("ADC", InputRequirement(("MR",), words=("ADC*",))),
    "dwi": ("DWI", InputRequirement(("MR",), words=("DWI*", "DIFF*", "EP2D*", "TRACE*"), without_words=("ADC*",))),
}
_CHANNEL_NAMES: Final = {
    "t1c": "t1c", "t1ce": "t1c", "t1gd": "t1c", "t1 gd": "t1c", "t1 post": "t1c", "t1": "t1", "t1w": "t1", "t1n": "t1", "t2": "t2", "t2w": "t2",
    "flair": "flair", "t2 flair": "flair", "t2f": "flair", "adc": "adc", "dwi": "dwi",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Draft:
    """A card for a person to confirm."""

    card: ModelCard
    notes: tuple[str, ...]
    """What a person has to look at: sentences for the report of the installation."""
    remarks: Mapping[str, str]
    """For the file: a comment above what carries this label."""


@dataclass(slots=True)
class _Notebook:
    find_in_standard: FindInStandard
    organ: Code | None = None
    """What the whole model is about, where its title names a structure: the region of findings that name none."""
    notes: list[str] = field(default_factory=list)
    remarks: dict[str, str] = field(default_factory=dict)

    def code(self, label: str) -> Proposal:
        proposal = propose(label, self.find_in_standard)
        if proposal.is_placeholder:
            self.notes.append(
                f"no code is known for {label!r}: {proposal.type.value} of {proposal.type.scheme} stands there → put the right one"
            )
            self.remarks[label] = "no code is known for this: find it, for example at browser.ihtsdotools.org"
        else:
            self.remarks[label] = f"proposed from {proposal.source}"
        if proposal.category == MORPHOLOGICALLY_ABNORMAL and proposal.anatomic_region is None:
            return replace(proposal, anatomic_region=self.organ)
        return proposal


def draft_card(
    name: str,
    metadata: Mapping[str, Any],
    configuration: Mapping[str, Any],
    weights: Sequence[WeightsFile],
    find_in_standard: FindInStandard = lambda _: None,
) -> Draft:
    """Answers a draft of the card of a bundle: what it takes, what it reports, with codes as far as they are known."""
    about = " ".join(_sentence(metadata.get(key), "") for key in ("name", "task", "description"))
    book = _Notebook(find_in_standard, organ_in(about))
    entry = _first(metadata, "inputs")
    task = task_of(metadata, configuration)
    book.notes += [
        f"{name} before the network is switched on or off by {by} → see what the author's README says of images from a scanner; "
        f"radnode model install … --set {by}=VALUE sets it"
        for name, by in switched_steps(configuration)
    ]
    card = ModelCard(
        name=name,
        version=_sentence(metadata.get("version"), "0"),
        title=DRAFT_MARK + _sentence(metadata.get("name") or metadata.get("task"), name)[:64],
        manufacturer=_sentence(metadata.get("authors"), "not stated"),
        intended_use=". ".join(
            _sentence(metadata.get(key), otherwise).rstrip(".") for key, otherwise in (("intended_use", NOT_STATED), ("description", name))
        ),
        training_data=_sentence(metadata.get("data_source"), NOT_STATED),
        performance=_performance(metadata.get("eval_metrics")),
        licence=_sentence(metadata.get("license") or metadata.get("copyright"), "see LICENSE of the bundle"),
        weights=tuple(weights),
        inputs=_inputs(entry, book, channel_keys(configuration), is_segmentation=task == "segmentation"),
        segments=_segments(metadata, configuration, book) if task == "segmentation" else (),
        evaluations=_evaluations(metadata, name, book) if task == "classification" else (),
        detections=_detections(metadata, configuration, book) if task == "detection" else (),
        landmarks=_landmarks(metadata, book) if task == "landmarks" else (),
        reads="images" if task in {"classification", "landmarks"} and len(entry.get("spatial_shape", (0, 0, 0))) == 2 else "volume",
        references=tuple(str(reference) for reference in metadata.get("references") or ()),
        draft=True,
    )
    return Draft(card, tuple(book.notes), book.remarks)


def task_of(metadata: Mapping[str, Any], configuration: Mapping[str, Any]) -> str:
    """Answers what a bundle is for: segmentation, classification, detection or landmarks."""
    network = configuration.get("network_def") or configuration.get("network") or {}
    target = str(network.get("_target_", "") if isinstance(network, Mapping) else network).lower()
    given, answered = _first(metadata, "inputs"), _first(metadata, "outputs")
    kind, form = str(answered.get("type", "")).lower(), str(answered.get("format", "")).lower()
    if "retinanet" in target or "detector" in configuration or form in {"dict", "boxes", "box", "detection"} or kind == "object":
        return "detection"
    if form in {"points", "landmarks", "keypoints"}:
        return "landmarks"
    is_flat = len(answered.get("spatial_shape", ())) < len(given.get("spatial_shape", ())) or 1 in answered.get("spatial_shape", ())
    if kind in {"probabilities", "classes"} or (form in {"labels", "classes", "classification", "probabilities", "logits"} and is_flat):
        return "classification"
    return "segmentation"


def _first(metadata: Mapping[str, Any], side: str) -> Mapping[str, Any]:
    """Answers what `network_data_format` says of the first input or output."""
    entries = (metadata.get("network_data_format") or {}).get(side) or {}
    first: object = entries.get("image" if side == "inputs" else "pred") or next(iter(entries.values()), {})
    return first if isinstance(first, Mapping) else {}


def _sentence(value: object, otherwise: str) -> str:
    text = re.sub(r"\s+", " ", str(value)).strip() if value else ""
    return text or otherwise


def _performance(metrics: object) -> str:
    if not isinstance(metrics, Mapping) or not metrics:
        return NOT_STATED
    told = (f"{key} {value}" if not isinstance(value, Mapping) else f"{key}: {_performance(value)}" for key, value in metrics.items())
    return f"As the author states: {', '.join(told)}."


def _modality(entry: Mapping[str, Any], book: _Notebook) -> tuple[str, ...]:
    stated = str(entry.get("modality", "")).upper()
    for word, modalities in _MODALITIES.items():
        if re.search(rf"\b{re.escape(word)}{'' if len(word) < 4 else '[A-Z]*'}\b", stated):
            return modalities
    if entry.get("format") == "hounsfield":
        return ("CT",)
    book.notes.append(f"the modality {stated or 'that it takes'!r} is not known: OT stands there → put the DICOM modality")
    return ("OT",)


def _inputs(entry: Mapping[str, Any], book: _Notebook, loaded: Sequence[str], *, is_segmentation: bool) -> tuple[InputRequirement, ...]:
    """`loaded`: the images that the bundle loads apart, each an input of its own."""
    modality = _modality(entry, book)
    names = dict(enumerate(loaded)) or _channel_names(entry)
    count = len(loaded) or int(entry.get("num_channels") or len(names) or 1)
    if count < 2 or len(names) < 2:
        if count > 1 and is_segmentation:
            book.notes.append(
                f"the network has {count} inputs and one image is named: the bundle's own preprocessing makes the others; "
                "where it does not → write an [[inputs]] with a channel for each"
            )
        elif count == 3:
            book.notes.append("the network has three inputs of one image: radnode repeats a grey image three times")
        elif count > 1:
            book.notes.append(f"the network has {count} inputs and does not name them → write an [[inputs]] with a channel for each")
        return (InputRequirement(modality),)
    requirements = []
    for name in names.values():
        key = _CHANNEL_NAMES.get(re.sub(r"[^a-z0-9]+", " ", name.lower()).strip(), "")
        if key and modality == ("MR",):
            channel, known = _CHANNELS[key]
            requirements.append(
                InputRequirement(modality, channel, words=known.words, without_words=known.without_words, contrast=known.contrast)
            )
            book.remarks[channel] = "by words of Series and Protocol Description, and Contrast/Bolus Agent: adapt them to your scanners"
        else:
            requirements.append(InputRequirement(modality, name, words=(re.sub(r"\W+", "", name).upper() + "*",)))
            book.notes.append(f"which series is the input {name!r} is not known: a word of its name stands there → say how to tell it")
    return tuple(requirements)


def _channel_names(entry: Mapping[str, Any]) -> dict[int, str]:
    defined = entry.get("channel_def") or {}
    pairs = [(int(key), str(value).strip()) for key, value in defined.items() if str(key).isdigit()] if isinstance(defined, Mapping) else []
    return dict(sorted(pairs))


def _colour(proposal: Proposal, index: int) -> tuple[int, int, int]:
    return proposal.rgb or distinct_rgb(index)


def _segments(metadata: Mapping[str, Any], configuration: Mapping[str, Any], book: _Notebook) -> tuple[SegmentDefinition, ...]:
    names = _channel_names(_first(metadata, "outputs"))
    count = int(_first(metadata, "outputs").get("num_channels") or len(names) or 2)
    if not [name for name in names.values() if not is_background(name)]:
        names = {channel: f"structure {channel}" for channel in range(1, max(count, 2))}
        book.notes.append("the bundle does not name what it outlines → write the labels and their codes")
    labels = label_values(names, configuration.get("postprocessing") or {})
    askable = prompts(labels, configuration)
    if askable is not None:
        labels = {value: name for value, name in labels.items() if value in askable}
        book.notes.append(f"the network is asked for the {len(labels)} structures of the card → take out those that you do not want")
    segments: list[SegmentDefinition] = []
    for index, (value, name) in enumerate(sorted(labels.items())):
        if is_background(name):
            continue
        if not 1 <= value <= 255:
            book.notes.append(f"the label value {value} of {name!r} is outside 1 to 255: left out")
            continue
        label = _free(name[:64], {segment.label for segment in segments})
        proposal = book.code(label)
        kind = (proposal.category, proposal.type, proposal.anatomic_region, proposal.laterality)
        segments.append(SegmentDefinition(value, label, *kind, rgb=_colour(proposal, index)))
    return tuple(segments)


def _free(label: str, taken: set[str]) -> str:
    """Answers the label, with a number where it is taken."""
    number = 2
    free = label
    while free in taken:
        free = f"{label[:60]} {number}"
        number += 1
    return free


def _evaluations(metadata: Mapping[str, Any], name: str, book: _Notebook) -> tuple[EvaluationDefinition, ...]:
    names = _channel_names(_first(metadata, "outputs"))
    count = int(_first(metadata, "outputs").get("num_channels") or len(names) or 1)
    if len(names) < count:
        names = {channel: names.get(channel, f"answer {channel}") for channel in range(count)}
        book.notes.append("the bundle does not name the answers of its classifier → write them and their codes")
    title = _sentence(metadata.get("name") or metadata.get("task"), name)
    keys = [answer.lower().removeprefix("density").removeprefix("birads").strip(" _-") for answer in names.values()]
    if "breast" in title.lower() and "densit" in title.lower() and set(keys) <= set(BREAST_DENSITY):
        answers = [AnswerDefinition(channel, label, BREAST_DENSITY[key]) for (channel, label), key in zip(names.items(), keys, strict=True)]
        return (EvaluationDefinition(BREAST_COMPOSITION, tuple(answers)),)
    proposals = {channel: book.code(label) for channel, label in names.items()}
    concept = placeholder(title)
    book.notes.append(f"no code is known for the question {title!r}: {concept.value} of {concept.scheme} stands there → put the right one")
    return (
        EvaluationDefinition(concept, tuple(AnswerDefinition(channel, names[channel], one.type) for channel, one in proposals.items())),
    )


def _detections(metadata: Mapping[str, Any], configuration: Mapping[str, Any], book: _Notebook) -> tuple[DetectionDefinition, ...]:
    network = configuration.get("network_def") or {}
    stated = network.get("num_classes") if isinstance(network, Mapping) else None
    count = stated if isinstance(stated, int) else 1
    names = _channel_names(_first(metadata, "outputs"))
    described = re.search(
        r"(lung nodule|lung lesion|nodule|lesion|tumou?r|mass|polyp|fracture)", _sentence(metadata.get("task"), "").lower()
    )
    detections = []
    for index in range(count):
        label = names.get(index) or (described[1] if described and count == 1 else f"lesion {index}")
        proposal = book.code(label)
        kind = (proposal.category, proposal.type, proposal.anatomic_region, proposal.laterality)
        detections.append(DetectionDefinition(index, label, *kind, rgb=_colour(proposal, index)))
    book.notes.append("a box is told from a score of 0.5 on → set min_score where the author's operating point lies elsewhere")
    return tuple(detections)


def _landmarks(metadata: Mapping[str, Any], book: _Notebook) -> tuple[LandmarkDefinition, ...]:
    meanings = metadata.get("coordinate_meanings") or {}
    names = {int(key): str(value) for key, value in meanings.items()} or _channel_names(_first(metadata, "outputs"))
    return tuple(
        LandmarkDefinition(channel, label, book.code(label).type, distinct_rgb(channel)) for channel, label in sorted(names.items())
    )


def code_text(code: Code) -> str:
    """Answers a code as people write it: `78961009 SCT Spleen`."""
    return f"{code.value} {code.scheme} {code.meaning}"
