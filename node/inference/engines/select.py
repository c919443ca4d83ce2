"""Which engine serves a network: the fastest that has passed the gate on this machine; until one has, torch."""

import copy
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

import structlog
import torch

from node.errors import DeviceOutOfMemory, EngineError
from node.inference.engines import Engine
from node.inference.engines.backends import TORCH, find_backends
from node.inference.engines.build import ONNX, PARITY, Choice, Trial, build_engines, read_choice, with_onnx
from node.inference.engines.candidates import PLAIN, Candidate, Material, engine_fields, make_engine, reference_engine
from node.inference.engines.parity import sentence_of
from node.inference.engines.serving import Chosen, ServingEngine
from node.inference.engines.store import EngineRefused, EngineStore, key_of
from node.inference.engines.task import AUTO, NetworkTask, Place
from node.inference.engines.torch_engine import TorchEngine
from node.inference.engines.tournament import Progress

BUILD_LIMIT_S: Final = 3600
"""A build in the background that takes longer is ended."""

_BATCH: Final = 2
"""Windows at once in torch, before anything was measured: at one, torch unfolds convolutions on the CPU."""

_WORTH_S: Final = {"cpu": 0.005, "cuda": 0.0005}
"""A network that takes less for a window is fast enough as it is."""

log = structlog.get_logger("radnode")

_builders: Final[list[subprocess.Popen[bytes]]] = []
"""Those that may still run: a model that is set aside meanwhile must not drop its builder unreaped."""


class Build(StrEnum):
    """What to do where no engine of this machine is there yet."""

    NEVER = "never"
    BACKGROUND = "background"
    NOW = "now"


@dataclass(frozen=True, slots=True)
class EngineWish:
    """What the configuration or the command line says about engines."""

    wanted: str = TORCH
    """auto, or the name of a library."""
    folder: Path | None = None
    """Where engines lie."""
    build: Build = Build.NEVER
    half: bool = False
    """Only half precision, for want of memory."""


def open_engine(
    network: torch.nn.Module, task: NetworkTask, place: Place, wish: EngineWish, progress: Progress = lambda _: None
) -> ServingEngine:
    """Answers the engine that serves a network from now on; takes `network` over.

    Raises
    ------
    EngineError
        When the device is none, or when an engine was to be built now and none of the wanted library may serve.
    """
    reason = _why_torch(task, wish)
    if reason and wish.half:
        raise _no_half(task)
    if reason:
        if wish.wanted not in {TORCH, AUTO}:
            _refuse(task, wish, reason)
        return _torch(network, task, place)
    return _Selection(network, task, place, wish).open(progress)


def _no_half(task: NetworkTask) -> DeviceOutOfMemory:
    """Half precision that has passed no gate does not serve, not even for want of memory."""
    return DeviceOutOfMemory(f"no engine of {task.model} in half precision has passed the gate on this machine")


def _why_torch(task: NetworkTask, wish: EngineWish) -> str:
    if wish.wanted == TORCH or wish.folder is None:
        return "torch is asked for, or there is no folder for engines"
    return task.why_no_window if task.window is None else ""


def _refuse(task: NetworkTask, wish: EngineWish, reason: str) -> None:
    """An engine that was asked for and cannot be: the command line fails, a node serves with torch and says so."""
    if wish.build is Build.NOW:
        raise EngineError(f"{task.model} does not run on {wish.wanted}: {reason} → --engine torch")
    log.warning("engine.not_as_wanted", model=task.model, wanted=wish.wanted, reason=reason)


def _torch(network: torch.nn.Module, task: NetworkTask, place: Place) -> ServingEngine:
    engine = _default(network, task, place)
    return ServingEngine(Chosen(engine))


def _default(network: torch.nn.Module, task: NetworkTask, place: Place) -> TorchEngine:
    batch = 1 if task.window is None else _BATCH
    return TorchEngine(network, device=place.device, threads=place.threads, cpu_precision=task.cpu_precision, batch=batch)


class _Selection:
    """The search for the engine of one network."""

    def __init__(self, network: torch.nn.Module, task: NetworkTask, place: Place, wish: EngineWish) -> None:
        assert wish.folder is not None  # noqa: S101 - the caller has looked
        self._trial = Trial(network.eval(), task, place, wish.wanted)
        self._wish = wish
        self._store = EngineStore(wish.folder)
        self._builder: subprocess.Popen[bytes] | None = None

    def open(self, progress: Progress) -> ServingEngine:
        best = self._best()
        if best is None and self._wish.build is Build.NOW and not self._wish.half:
            if missing := self._missing():
                _refuse(self._trial.material.task, self._wish, missing)
            build_engines(self._trial, self._store, progress=progress)
            best = self._best()
        if best is not None:
            return self._serve(best)
        material = self._trial.material
        if self._wish.half:
            raise _no_half(material.task)
        waiting = self._last_good() or Chosen(_default(copy.deepcopy(material.network), material.task, material.place))
        if missing := self._missing():
            _refuse(material.task, self._wish, missing)
        if self._wish.build is Build.BACKGROUND and not missing and self._is_worth_it(waiting.engine):
            self._start_builder()
            return self._serve(waiting, waits=True)
        return self._serve(waiting)

    def _serve(self, chosen: Chosen, *, waits: bool = False) -> ServingEngine:
        material = self._trial.material
        return ServingEngine(
            chosen, make_reference=lambda: reference_engine(material), look_for_better=self._look_for_better if waits else None
        )

    def _best(self) -> Chosen | None:
        """Answers the fastest engine of the choice that was made here; what is refused on the way is told and removed."""
        choice = self._choice()
        if choice is None:
            return None
        for candidate in choice.ranking:
            if self._wish.half and candidate.precision == PLAIN.precision:
                continue
            chosen = self._open(candidate, choice)
            if chosen is not None:
                return chosen
        if not self._wish.half:
            self._store.discard(self._trial.model, self._trial.choice_fields)  # nothing of it is left: it is made again
        return None

    def _choice(self) -> Choice | None:
        try:
            entry = self._store.find(self._trial.model, self._trial.choice_fields)
            return read_choice(entry) if entry is not None else None
        except EngineRefused as error:
            self._tell(error)
            self._store.discard(self._trial.model, self._trial.choice_fields)
            return None

    def _open(self, candidate: Candidate, choice: Choice) -> Chosen | None:
        """Answers an engine of a choice; None where it is not there for this machine, or refused."""
        trial = self._trial
        fields = engine_fields(candidate, trial.digest, choice.onnx_sha256, trial.material)
        try:
            entry = self._store.find(trial.model, fields)
            if entry is None:
                return None
            files = {name: entry.read(name) for name in entry.digests}
        except EngineRefused as error:
            self._tell(error)
            self._store.discard(trial.model, fields)
            self._store.discard(trial.model, trial.choice_fields)  # made again with the engine
            return None
        try:
            engine = make_engine(candidate, self._material(candidate), files)
        except EngineRefused as error:
            self._tell(error)
            self._store.discard(trial.model, trial.onnx_fields)
            self._store.discard(trial.model, trial.choice_fields)
            return None
        except EngineError as error:
            log.warning("engine.unusable", model=trial.model, engine=candidate.name, reason=str(error))
            return None
        parity = "" if candidate == PLAIN else sentence_of(json.loads(files[PARITY]))
        log.info("engine.opened", model=trial.model, engine=engine.describe(), key=entry.key, parity=parity)
        return Chosen(engine, parity, is_full=candidate.precision == PLAIN.precision)

    def _material(self, candidate: Candidate) -> Material:
        if not candidate.takes_onnx or candidate.backend == "tensorrt":
            return self._trial.material
        entry = self._store.find(self._trial.model, self._trial.onnx_fields)
        if entry is None:
            raise EngineRefused(f"the ONNX file of {self._trial.model} is gone")
        return with_onnx(self._trial, entry.read(ONNX)).material

    def _last_good(self) -> Chosen | None:
        """Answers the best of earlier choices for this network that still holds: after a new driver, what does not depend on it."""
        for kept in sorted(self._store.contents(self._trial.model), key=lambda one: -(one.entry.built_at_s if one.entry else 0)):
            fields = kept.entry.fields if kept.entry is not None else {}
            if kept.entry is None or fields.get("kind") != "choice" or fields.get("network") != self._trial.digest:
                continue
            choice = read_choice(kept.entry)
            for candidate in choice.ranking:
                if chosen := self._open(candidate, choice):
                    return chosen
        return None

    def _look_for_better(self) -> Chosen | None:
        trial = self._trial
        if self._builder is not None and (status := self._builder.poll()) is not None:
            self._builder = None
            (log.info if status == 0 else log.warning)("engine.builder_ended", model=trial.model, status=status)
        # Another worker's builder may have made it.
        return self._best() if (self._store.folder / trial.model / key_of(trial.choice_fields)).is_dir() else None

    def _missing(self) -> str:
        """Answers why the wanted library cannot be used, '' where it can."""
        place = self._trial.material.place
        return next((one.fault for one in find_backends(place.device) if one.name == self._wish.wanted), "")

    def _is_worth_it(self, engine: Engine) -> bool:
        """Answers whether the network takes so long that another engine can gain something; the runs also warm it up."""
        window = torch.zeros(self._trial.material.window.batch(1))
        engine.infer(window)
        began = time.perf_counter()
        engine.infer(window)
        return time.perf_counter() - began > _WORTH_S[self._trial.material.place.device.partition(":")[0]]

    def _start_builder(self) -> None:
        """A process of its own: a library that crashes, or that takes every core, does not take a study with it."""
        task, place = self._trial.material.task, self._trial.material.place
        command = [
            sys.executable, "-m", "node", "engine", "build", task.model, "--models-dir", str(task.folder.parent),
            "--engines-dir", str(self._store.folder), "--device", place.device, "--threads", str(place.threads),
            "--engine", self._wish.wanted, "--child-of", str(os.getpid()),
        ]  # fmt: skip
        self._builder = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)  # noqa: S603 - our own command
        _builders[:] = [one for one in _builders if one.poll() is None] + [self._builder]
        log.info("engine.building", model=task.model, wanted=self._wish.wanted, pid=self._builder.pid)

    def _tell(self, error: EngineRefused) -> None:
        log.error("engine.refused", model=self._trial.model, reason=str(error))
