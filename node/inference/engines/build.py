"""Makes the engines of a network, holds each against the gate, measures those that passed and writes down which serves."""

import copy
import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import structlog
import torch

from node.errors import EngineError, NonFiniteOutput
from node.inference.engines.candidates import (
    PLAIN,
    TIMING_CACHE,
    Candidate,
    Material,
    after_overflow,
    build_files,
    candidates_for,
    engine_fields,
    environment_of,
    late_files,
    make_engine,
    reference_engine,
)
from node.inference.engines.onnx_export import NotExportable, export_fields, export_onnx, network_digest
from node.inference.engines.parity import record_of
from node.inference.engines.phantom import SEED, phantom_windows
from node.inference.engines.store import EngineRefused, EngineStore, Entry, Kept, key_of
from node.inference.engines.task import AUTO, NetworkTask, Place
from node.inference.engines.tournament import ROUNDS, Contestant, Progress, compare, measure

ONNX: Final = "model.onnx"
PARITY: Final = "parity.json"
CHOICE: Final = "choice.json"

_WINDOWS: Final = 4
_REFERENCE_BYTES: Final = 1 << 30
"""What the reference's outputs may take while engines are compared."""

_Kept = tuple[EngineStore | None, dict[Candidate, dict[str, bytes]]]
"""Where earlier builds lie, and the files of each engine as they are made."""

log = structlog.get_logger("radnode")


@dataclass(frozen=True, slots=True)
class Choice:
    """Which engines of a network may serve here, the fastest first, and what became of the others."""

    ranking: tuple[Candidate, ...]
    results: tuple[dict[str, Any], ...]
    network: str
    onnx_sha256: str


class Trial:
    """A network on one device, with its digest: all that its engines are looked up by."""

    def __init__(self, network: torch.nn.Module, task: NetworkTask, place: Place, wanted: str = AUTO) -> None:
        """`network` stays as it is."""
        assert task.window is not None  # noqa: S101 - a network without a window has no engine but torch, the caller has looked
        self.material = Material(network, task, place, task.window)
        self.model = task.model
        self.digest = network_digest(network)
        self.wanted = wanted

    @property
    def choice_fields(self) -> dict[str, Any]:
        """What the choice depends on."""
        material = self.material
        return {
            "kind": "choice",
            "network": self.digest,
            "window": list(material.window.batch(0)),
            "threshold": material.task.threshold,
            "device": material.place.device.partition(":")[0],
            "wanted": self.wanted,
            "environment": environment_of(material.place),
        }

    @property
    def onnx_fields(self) -> dict[str, Any]:
        """What the ONNX file depends on."""
        return export_fields(self.digest, self.material.window)


def read_choice(entry: Entry) -> Choice:
    """Answers the choice in a verified entry."""
    told = json.loads(entry.read(CHOICE))
    ranking = tuple(Candidate(**one) for one in told["ranking"])
    return Choice(ranking, tuple(told["results"]), told["network"], told["onnx_sha256"])


def build_engines(trial: Trial, store: EngineStore, *, samples: Sequence[torch.Tensor] = (), progress: Progress = lambda _: None) -> Choice:
    """Makes, examines and measures the engines of a network, and keeps those that passed.

    `samples` are windows of the site's own images, for the gate.

    Raises
    ------
    LockHeld
        When another process does the same at this moment.
    EngineError
        When not even plain torch runs the network.
    """
    with store.lock(trial.model, key_of(trial.choice_fields)):
        store.sweep()
        windows, reference = _reference(trial, samples)
        candidates = _candidates(trial, reference.shape[1])
        if any(candidate.takes_onnx for candidate in candidates):
            trial = _with_onnx(trial, store, progress)
        contestants: list[Contestant] = []
        files: dict[Candidate, dict[str, bytes]] = {}
        for contestant in _enter(candidates, trial, (store, files), progress):
            compare(reference, contestant, windows, trial.material)
            contestants.append(contestant)
            progress(f"{contestant.candidate.name}: {contestant.why_not or 'agrees'}")
        measure([one for one in contestants if one.passed], windows)
        for contestant in contestants:
            if contestant.passed and contestant.engine is not None:
                told = {**_told(contestant, trial, len(samples)), "measured": contestant.as_record()}
                assert contestant.verdict is not None  # noqa: S101 - it has passed
                parity = json.dumps(record_of(contestant.verdict, told), indent=1).encode()
                kept = {**files[contestant.candidate], **late_files(contestant.engine), PARITY: parity}
                store.put(trial.model, engine_fields(contestant.candidate, trial.digest, onnx_sha256(trial), trial.material), kept)
        return _conclude(trial, store, contestants)


def bench_engines(trial: Trial, *, rounds: int = ROUNDS, progress: Progress = lambda _: None) -> list[dict[str, Any]]:
    """Measures every engine that can be made here, those that fail the gate too; keeps nothing."""
    windows, reference = _reference(trial, ())
    candidates = _candidates(trial, reference.shape[1])
    if any(candidate.takes_onnx for candidate in candidates):
        progress("exporting to ONNX")
        trial = _exported(trial)
    contestants: list[Contestant] = []
    for contestant in _enter(candidates, trial, (None, {}), progress):
        compare(reference, contestant, windows, trial.material)
        contestants.append(contestant)
        progress(f"{contestant.candidate.name}: {contestant.why_not or 'agrees'}")
    measure(contestants, windows, rounds=rounds, budget_s=math.inf)
    records = [contestant.as_record() for contestant in contestants]
    _close(contestants)
    return records


def superfluous(store: EngineStore, model: str = "") -> Iterator[Kept]:
    """Yields what is kept and not needed: refused entries, earlier choices for the same network and device, and their engines."""
    contents = list(store.contents(model))
    newest: dict[tuple[str, str, str], Entry] = {}
    for kept in contents:
        entry = kept.entry
        if entry is not None and entry.fields["kind"] == "choice":
            place = (entry.model, str(entry.fields["device"]), str(entry.fields["wanted"]))
            if place not in newest or newest[place].built_at_s < entry.built_at_s:
                newest[place] = entry
    needed = {(entry.model, entry.key) for entry in newest.values()}
    for entry in newest.values():
        choice = read_choice(entry)
        wanted = {"network": choice.network, "environment": entry.fields["environment"]}
        needed |= {(kept.model, kept.key) for kept in contents if kept.entry is not None and _belongs(kept.entry, wanted)}
    yield from (kept for kept in contents if (kept.model, kept.key) not in needed)


def _belongs(entry: Entry, wanted: Mapping[str, Any]) -> bool:
    """Whether an engine or an ONNX file is one of the network, for the environment of a choice."""
    fields, environment = entry.fields, wanted["environment"]
    if fields["network"] != wanted["network"] or fields["kind"] == "choice":
        return False
    if fields["kind"] == "onnx":
        return True
    same_versions = set(fields["versions"].items()) <= set(environment["backends"].items())
    return same_versions and bool(fields["hardware"] == environment["hardware"])


def onnx_sha256(trial: Trial) -> str:
    """Answers the digest of the network's ONNX file, '' where it has none."""
    return hashlib.sha256(trial.material.onnx).hexdigest() if trial.material.onnx else ""


def with_onnx(trial: Trial, content: bytes) -> Trial:
    """Answers a trial whose network is there as ONNX too."""
    other = copy.copy(trial)
    other.material = replace(trial.material, onnx=content)
    return other


def _reference(trial: Trial, samples: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Answers the windows and what plain torch answers for them."""
    engine = reference_engine(trial.material)
    first = engine.infer(phantom_windows(trial.material.window, 1))
    count = max(2, min(_WINDOWS, _REFERENCE_BYTES // (first.numel() * first.element_size())))
    windows = torch.cat([phantom_windows(trial.material.window, count), *(one[None] for one in samples[:count])])
    try:
        return windows, torch.cat([engine.infer(one[None]) for one in windows])
    except NonFiniteOutput as error:
        raise EngineError("plain torch answers NaN or infinity on the test windows: no engine can be held against that") from error
    finally:
        engine.close()


def _with_onnx(trial: Trial, store: EngineStore, progress: Progress) -> Trial:
    try:
        entry = store.find(trial.model, trial.onnx_fields)
        if entry is not None:
            return with_onnx(trial, entry.read(ONNX))
    except EngineRefused as error:
        log.warning("engine.refused", model=trial.model, reason=str(error))
        store.discard(trial.model, trial.onnx_fields)
    progress("exporting to ONNX")
    exported = _exported(trial)
    if exported.material.onnx:
        store.put(trial.model, trial.onnx_fields, {ONNX: exported.material.onnx})
    return exported


def _exported(trial: Trial) -> Trial:
    """Answers the trial with its ONNX; without, where the network cannot be exported: torch's own candidates remain."""
    try:
        return with_onnx(trial, export_onnx(copy.deepcopy(trial.material.network).cpu(), trial.material.window))
    except NotExportable as error:
        log.warning("engine.not_exportable", model=trial.model, reason=str(error))
        return trial


def _candidates(trial: Trial, channels: int) -> list[Candidate]:
    candidates = list(candidates_for(trial.material.place, trial.material.window, channels, trial.wanted))
    return candidates if PLAIN in candidates else [PLAIN, *candidates]  # the reference serves where nothing else may


def _enter(candidates: list[Candidate], trial: Trial, kept: _Kept, progress: Progress) -> Iterator[Contestant]:
    """Yields a contestant for each candidate; the caller compares it before the next is asked for."""
    waiting = list(candidates)
    while waiting:
        candidate = waiting.pop(0)
        progress(f"{candidate.name}: making")
        contestant = _make(candidate, trial, *kept)
        yield contestant
        if contestant.overflowed and candidate.precision == "fp16":
            waiting.insert(0, after_overflow(candidate))


def _make(candidate: Candidate, trial: Trial, store: EngineStore | None, files: dict[Candidate, dict[str, bytes]]) -> Contestant:
    if candidate.takes_onnx and not trial.material.onnx:
        return Contestant(candidate, None, "the network cannot be exported to ONNX")
    try:
        files[candidate] = build_files(candidate, trial.material, _timing_cache(candidate, trial, store))
        return Contestant(candidate, make_engine(candidate, trial.material, files[candidate]))
    except EngineError as error:
        return Contestant(candidate, None, str(error))


def _timing_cache(candidate: Candidate, trial: Trial, store: EngineStore | None) -> bytes:
    """Answers what an earlier build of the same engine measured; the rest of the entry plays no part."""
    if store is None:
        return b""
    try:
        entry = store.find(trial.model, engine_fields(candidate, trial.digest, onnx_sha256(trial), trial.material))
        return entry.read(TIMING_CACHE) if entry is not None and TIMING_CACHE in entry.digests else b""
    except EngineRefused:
        return b""  # changed since: the build measures anew


def _told(contestant: Contestant, trial: Trial, samples: int) -> dict[str, Any]:
    assert contestant.engine is not None  # noqa: S101 - it has passed
    return {
        "reference": reference_name(trial),
        "engine": contestant.engine.describe(),
        "precision": contestant.candidate.precision,
        "windows": {"phantom_seed": SEED, "samples": samples, "shape": list(trial.material.window.batch(1))},
    }


def reference_name(trial: Trial) -> str:
    """Answers what engines are held against, for a person."""
    return f"torch {torch.__version__.partition('+')[0]} {trial.material.place.device} fp32"


def _conclude(trial: Trial, store: EngineStore, contestants: Sequence[Contestant]) -> Choice:
    # A library that was asked for by name goes before the reference, however fast that is.
    wanted = trial.wanted if trial.wanted != AUTO else ""
    passed = sorted((one for one in contestants if one.passed), key=lambda one: (wanted not in one.candidate.backend, one.window_ms))
    if not passed:
        raise EngineError("no engine runs the network: " + "; ".join(f"{one.candidate.name}: {one.why_not}" for one in contestants))
    choice = Choice(
        ranking=tuple(one.candidate for one in passed),
        results=tuple(one.as_record() for one in contestants),
        network=trial.digest,
        onnx_sha256=onnx_sha256(trial),
    )
    told = {**asdict(choice), "made_at_s": time.time()}
    store.put(trial.model, trial.choice_fields, {CHOICE: json.dumps(told, indent=1).encode()})
    _close(contestants)
    return choice


def _close(contestants: Sequence[Contestant]) -> None:
    for contestant in contestants:
        if contestant.engine is not None:
            contestant.engine.close()
