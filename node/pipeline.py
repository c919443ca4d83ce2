"""One job, step by step: prepare the volume, infer, measure, encode, freeze. The same steps offline and in the node."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from io import BytesIO
from pathlib import Path
from typing import Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset

from node.domain.findings import Findings
from node.domain.measurement import measure
from node.domain.modelcard import ModelCard
from node.domain.objects import DEFAULT_OBJECTS, ResultObject
from node.domain.result import Provenance, Result
from node.domain.states import Outcome
from node.domain.volume import Volume
from node.errors import EvidenceInvalid, InputError, NodeError
from node.evidence.base import is_placed
from node.evidence.context import EvidenceContext
from node.evidence.encapsulated_pdf import encode_pdf_report
from node.evidence.frames import overlaps
from node.evidence.gate import Severity, examine_set
from node.evidence.key_image import render_key_image, window_of
from node.evidence.key_objects import encode_key_objects
from node.evidence.measurement_report import encode_report
from node.evidence.page import render_page
from node.evidence.parametric_map import encode_parametric_map
from node.evidence.presentation_state import encode_presentation_state
from node.evidence.secondary_capture import encode_secondary_capture
from node.evidence.segmentation import encode_label_map, encode_segmentation
from node.evidence.sop_common import part10_bytes
from node.evidence.structure_set import encode_structure_set
from node.files import write_durably
from node.inference.pixels import PARSE_ERRORS
from node.inference.series_reader import ON_DISK, ImageFiles
from node.study_images import read_study_images

QUARANTINE: Final = "quarantine"
"""Folder beside the results: what the gate has held back, for a person and `radnode check`."""

TOLD_ERRORS: Final = 3
NOT_TO_BE_SKIPPED: Final = frozenset({ResultObject.SR, ResultObject.SEG, ResultObject.LABELMAP, ResultObject.SR_LABELMAP})
"""The result itself; the others only show it."""

Progress = Callable[[str, float], None]
"""Called with the step and the fraction of it that is done, 0..1."""


class Step(StrEnum):
    """The steps of a job, in order. Crash tests kill the worker at every one of them."""

    PREPARE = "prepare"
    INFER = "infer"
    MEASURE = "measure"
    ENCODE = "encode"
    EXAMINE = "examine"
    FREEZE = "freeze"


class Model(Protocol):
    """A loaded model: a bundle on an engine."""

    card: ModelCard

    def predict(self, images: Sequence[Volume], progress: Callable[[float], None]) -> Findings:
        """Answers what the model finds; `images` are its channels on one grid, or the single images of a series."""

    @property
    def provenance(self) -> Provenance:
        """What made the scores."""


@dataclass
class Stopwatch:
    """Seconds per stage, and word of progress to whoever listens."""

    progress: Progress
    stages: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, step: Step) -> Iterator[Callable[[float], None]]:
        """Times a step, also when it fails."""
        self.progress(step, 0.0)
        started = time.perf_counter()
        try:
            yield lambda fraction: self.progress(step, fraction)
        finally:
            self.stages[step] = self.stages.get(step, 0.0) + time.perf_counter() - started

    def split(self, step: Step, parts: Mapping[str, float]) -> None:
        """Tells parts of a step that is over by themselves; the step keeps the rest."""
        for name, elapsed_s in parts.items():
            self.stages[name] = self.stages.get(name, 0.0) + elapsed_s
        self.stages[step] = max(0.0, self.stages.get(step, 0.0) - sum(parts.values()))


@dataclass(frozen=True, slots=True)
class Analysis:
    """The result of a run with what the evidence is made from. `volume` is None when there was none to analyse."""

    result: Result
    volume: Volume | None
    sources: Sequence[Dataset]
    probability: Callable[[], NDArray[np.float32]] | None = None
    """Answers the probability of the one structure on the source grid, for a model that gives one."""
    images: Sequence[Volume] = ()
    """What was analysed, where that is more than `volume`: single images, as volumes of one slice."""

    @property
    def shown(self) -> Sequence[Volume]:
        """What pictures are made of: the volume, or each image; empty where there was nothing to analyse."""
        if self.result.card.reads == "images" and self.images:
            return self.images
        return () if self.volume is None else (self.volume,)


@dataclass(frozen=True, slots=True)
class FrozenEvidence:
    """An object that lies whole on the disk."""

    role: str
    dataset: Dataset
    content: bytes
    path: Path


def analyse(files: Sequence[Path], model: Model, watch: Stopwatch, images: ImageFiles = ON_DISK) -> Analysis:
    """Runs a model on the images of a job: `files` of a series, of one series a channel, or single images.

    `images` may have some of them decoded already.
    A series that must not be analysed gives a Result with outcome NOT_ATTEMPTED and the reason: told, never silent.
    Raises whatever NodeError the model or its engine raises: the caller decides on another attempt.
    """
    try:
        with watch.stage(Step.PREPARE):
            volumes = read_study_images(files, model.card, images)
    except InputError as error:
        return decline(files, model.card, Outcome.NOT_ATTEMPTED, str(error))
    with watch.stage(Step.INFER) as progress:
        findings = model.predict(volumes, progress)
    watch.split(Step.INFER, findings.stages)
    with watch.stage(Step.MEASURE):
        result = conclude(model, findings, volumes)
        sources = read_source_headers(files)
    return Analysis(result, volumes[0], sources, findings.probability, volumes)


def conclude(model: Model, findings: Findings, images: Sequence[Volume]) -> Result:
    """Answers the result that findings amount to: what of the card is present, with its measurements on the first of `images`."""
    segments = measure(findings.label_map, model.card, images[0]) if findings.label_map is not None else ()
    found = any(segment.present for segment in segments) or findings.evaluations or findings.detections or findings.landmarks
    return Result(
        card=model.card,
        outcome=Outcome.FOUND if found else Outcome.NOTHING_FOUND,
        segments=segments,
        label_map=findings.label_map,
        evaluations=findings.evaluations,
        detections=findings.detections,
        landmarks=findings.landmarks,
        grids=tuple(image.source for image in images),
        notes=tuple(dict.fromkeys(note for image in images for note in image.notes)),
        provenance=replace(model.provenance, notes=findings.provenance_notes),
    )


def decline(files: Sequence[Path], card: ModelCard, outcome: Outcome, reason: str) -> Analysis:
    """Answers the analysis that tells a reader why there is none."""
    result = Result(card, outcome, reason=reason)
    return Analysis(result, None, read_source_headers(files))


def read_source_headers(files: Sequence[Path]) -> tuple[Dataset, ...]:
    """Reads the headers of the source images: what the evidence copies and cites. The pixels stay on the disk.

    UIDs that the data set lacks come from the file meta information, as in the volume. A file that cannot be read is left
    out: the report that says so must not fail on it.
    """
    headers = []
    for path in files:
        try:
            header = dcmread(path, stop_before_pixels=True, force=True)
            for keyword in ("SOPClassUID", "SOPInstanceUID"):
                if not header.get(keyword):
                    setattr(header, keyword, header.file_meta.get(f"MediaStorage{keyword}", ""))
        except (*PARSE_ERRORS, OSError, AttributeError):
            continue
        headers.append(header)
    return tuple(headers)


@dataclass
class Wanted:
    """Which objects are wanted besides SEG and SR, in which language; and what could not be had of them."""

    objects: frozenset[ResultObject] = frozenset(DEFAULT_OBJECTS)
    language: Literal["en", "zh"] = "en"
    skipped: list[str] = field(default_factory=list)
    """One sentence an object that could not be made or did not pass the gate: it costs no other."""


def encode(
    analysis: Analysis, context: EvidenceContext, folder: Path, watch: Stopwatch, wanted: Wanted | None = None
) -> tuple[FrozenEvidence, ...]:
    """Makes the evidence of an analysis and freezes it in `folder`: SEG when a structure was outlined, and always the SR.

    Further objects are made where they are wanted; one that cannot be made is told in `wanted.skipped`.

    Raises
    ------
    EvidenceInvalid
        When the gate finds an error in an object, read again from its bytes; it lies in `folder/quarantine` then.
    """
    result, sources = analysis.result, analysis.sources
    with watch.stage(Step.ENCODE):
        segmentation = encode_segmentation(result, sources, context) if _has_structures(result) else None
        report = encode_report(result, sources, segmentation, context)
        objects = {"seg": segmentation, "sr": report}
        encoded = {role: (dataset, part10_bytes(dataset)) for role, dataset in objects.items() if dataset is not None}
        encoded |= further_objects(analysis, context, wanted or Wanted())
    with watch.stage(Step.EXAMINE):
        for role in _pass_the_gate({role: content for role, (_, content) in encoded.items()}, sources, folder, wanted or Wanted()):
            del encoded[role]
    with watch.stage(Step.FREEZE):
        frozen = []
        for role, (dataset, content) in encoded.items():
            path = folder / f"{role}.dcm"
            write_durably(path, content)
            frozen.append(FrozenEvidence(role, dataset, content, path))
    return tuple(frozen)


def further_objects(analysis: Analysis, context: EvidenceContext, wanted: Wanted) -> dict[str, tuple[Dataset, bytes]]:
    """Answers what is wanted besides SEG and SR, as far as it can be made of this outcome, each with its bytes.

    What shows outlines needs a structure; what shows places, anything that has one. A classifier's answers have none.
    """
    made: dict[str, tuple[Dataset, bytes]] = {}
    result, sources, shown = analysis.result, analysis.sources, analysis.shown
    has_structures, has_places = _has_structures(result), is_placed(result)

    def label_map() -> Dataset | None:
        return made[ResultObject.LABELMAP][0] if has_structures else None  # wanted with every report that cites it, and made before

    makers: dict[ResultObject, tuple[bool, Callable[[], Dataset]]] = {
        ResultObject.LABELMAP: (has_structures and _can_be_label_map(result, wanted), lambda: _label_map(result, sources, context)),
        ResultObject.SR_LABELMAP: (True, lambda: encode_report(result, sources, label_map(), context, ResultObject.SR_LABELMAP)),
        ResultObject.SC: (bool(shown), lambda: encode_secondary_capture(result, sources, shown, context)),
        ResultObject.KOS: (has_places, lambda: encode_key_objects(result, sources, context)),
        ResultObject.GSPS: (has_places, lambda: _presentation_state(analysis, context)),
        ResultObject.RTSTRUCT: (has_structures, lambda: encode_structure_set(result, sources, context)),
        ResultObject.PDF: (True, lambda: _pdf(analysis, context, wanted.language)),
        ResultObject.PM: (analysis.probability is not None and bool(result.card.segments), lambda: _parametric_map(analysis, context)),
    }
    for wish, (can_be, make) in makers.items():
        if wish in wanted.objects and can_be:
            try:
                dataset = make()
                made[wish] = (dataset, part10_bytes(dataset))
            except Exception as error:
                # A picture that cannot be made must not cost a result that is right; a report that cannot must not stay silent.
                if wish in NOT_TO_BE_SKIPPED:
                    raise
                wanted.skipped.append(f"{wish} could not be made: {describe(error)}")
    return made


def _has_structures(result: Result) -> bool:
    return any(segment.present for segment in result.segments)


def _can_be_label_map(result: Result, wanted: Wanted) -> bool:
    """Answers whether anything goes out as label map; where structures overlap, it is told what goes in its place."""
    if result.label_map is None or not overlaps(result.label_map):
        return True
    is_cited = ResultObject.SR_LABELMAP in wanted.objects
    if ResultObject.LABELMAP in wanted.objects:
        instead = "a binary segmentation goes in its place" if is_cited else "none is made"
        wanted.skipped.append(f"labelmap: structures overlap, which a label map cannot say; {instead}")
    return is_cited


def _label_map(result: Result, sources: Sequence[Dataset], context: EvidenceContext) -> Dataset:
    """Answers the label map; where structures overlap, a binary segmentation of its own, for a report to cite."""
    if result.label_map is not None and overlaps(result.label_map):
        return encode_segmentation(result, sources, context, ResultObject.LABELMAP)
    return encode_label_map(result, sources, context)


def _presentation_state(analysis: Analysis, context: EvidenceContext) -> Dataset:
    window = None
    if analysis.volume is not None:
        low, high = window_of(analysis.volume, analysis.result)
        window = ((low + high) / 2, high - low)
    return encode_presentation_state(analysis.result, analysis.sources, context, window)


def _pdf(analysis: Analysis, context: EvidenceContext, language: Literal["en", "zh"]) -> Dataset:
    picture = render_key_image(analysis.shown, analysis.result) if analysis.shown else None
    return encode_pdf_report(analysis.result, analysis.sources, context, key_image=picture, language=language)


def _parametric_map(analysis: Analysis, context: EvidenceContext) -> Dataset:
    assert analysis.volume is not None  # noqa: S101 - the caller has asked
    assert analysis.probability is not None  # noqa: S101 - the caller has asked
    result = analysis.result
    return encode_parametric_map(result, analysis.sources, analysis.probability(), analysis.volume.source, result.card.segments[0], context)


def _pass_the_gate(contents: Mapping[str, bytes], sources: Sequence[Dataset], folder: Path, wanted: Wanted) -> set[str]:
    """Answers the further objects that did not pass; raises when a segmentation or a report did not."""
    role_of = {}
    for role, content in contents.items():
        dataset = dcmread(BytesIO(content))
        role_of[id(dataset)] = (role, dataset)
    found = examine_set([dataset for _, dataset in role_of.values()], sources)
    errors = [(role_of[id(dataset)][0], fault) for dataset, fault in found if fault.severity is Severity.ERROR]
    failed = {role for role, _ in errors}
    for role in failed:
        write_durably(folder / QUARANTINE / f"{role}.dcm", contents[role])
    if not failed & NOT_TO_BE_SKIPPED:
        wanted.skipped += [f"{role} did not pass the conformance gate: {fault}" for role, fault in errors[:TOLD_ERRORS]]
        return failed
    told = "; ".join(f"{role.upper()} {fault}" for role, fault in errors[:TOLD_ERRORS])
    more = f"; and {len(errors) - TOLD_ERRORS} more" if len(errors) > TOLD_ERRORS else ""
    raise EvidenceInvalid(f"the result did not pass the conformance gate and was not sent: {told}{more}")


def illustrate(
    analysis: Analysis, evidence: Sequence[FrozenEvidence], context: EvidenceContext, folder: Path, stages: Mapping[str, float]
) -> dict[str, Path]:
    """Makes what a person looks at: the key image (when there is a volume) and the page. Answers their paths."""
    paths = {}
    picture = None
    if analysis.shown:
        picture = render_key_image(analysis.shown, analysis.result)
        paths["key_image"] = folder / "key_image.png"
        write_durably(paths["key_image"], picture)
    paths["page"] = folder / "report.html"
    page = render_page(analysis.result, [item.dataset for item in evidence], picture, stages, context)
    write_durably(paths["page"], page.encode())
    return paths


@dataclass(frozen=True, slots=True)
class OfflineResult:
    """What `radnode run` made."""

    result: Result
    paths: Mapping[str, Path]
    stages: Mapping[str, float]


def run_offline(
    files: Sequence[Path], model: Model, context: EvidenceContext, output: Path, progress: Progress, wanted: Wanted | None = None
) -> OfflineResult:
    """Runs a model on the files of one series and writes SEG, SR, what else is wanted, key image and page into `output`."""
    watch = Stopwatch(progress)
    analysis = analyse(files, model, watch)
    evidence = encode(analysis, context, output, watch, wanted)
    paths = {item.role: item.path for item in evidence} | illustrate(analysis, evidence, context, output, watch.stages)
    return OfflineResult(analysis.result, paths, watch.stages)


def context_for(job_key: str, *, run: int, encoded_at_s: float, ae_title: str, device_serial_number: str) -> EvidenceContext:
    """Answers the context of a run: every UID of its evidence derives from the job key and the run."""
    return EvidenceContext(
        job_key=f"{job_key}/{run}" if run else job_key,
        encoded_at=datetime.fromtimestamp(encoded_at_s, tz=UTC).astimezone(),  # local, as the Study Time beside it is
        ae_title=ae_title,
        device_serial_number=device_serial_number,
        predecessor=None,
    )


def describe(error: BaseException) -> str:
    """Answers an error as a reason for a reader: its own words if it is ours, only its kind if it is not (may hold patient data)."""
    return str(error) if isinstance(error, NodeError) else f"unexpected fault ({type(error).__name__}); the node's log says more"
