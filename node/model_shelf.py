"""The models that a worker keeps warm on its device: the one used longest ago leaves when they need too much memory."""

import gc
import os
from collections import OrderedDict
from pathlib import Path
from typing import Final, Protocol

import structlog
import torch

from node.domain.ladder import Rung, surplus
from node.pipeline import Model

SHARE_OF_MEMORY: Final = 0.5
"""Of the device, for models that wait; the rest is for the study at work."""

log = structlog.get_logger("radnode")


class Loaded(Model, Protocol):
    """A model that can be run once for nothing, and dropped."""

    def warm_up(self) -> None:
        """Runs its network once where that is possible."""

    def close(self) -> None:
        """Frees its engine."""


class Loader(Protocol):
    """Loads a model by its name, as a rung of the ladder wants it."""

    def __call__(self, name: str, rung: Rung) -> Loaded:
        """Raises ModelError or EngineError."""


class ModelShelf:
    """Warm models by name, with the memory that each took when it was loaded."""

    def __init__(self, load: Loader, device: str, budget_bytes: int = 0) -> None:
        """`budget_bytes` 0: half of the device's memory."""
        self._load = load
        self._device = device
        self._budget_bytes = budget_bytes or int(memory_bytes(device) * SHARE_OF_MEMORY)
        self._models: OrderedDict[str, tuple[Loaded, int]] = OrderedDict()

    def take(self, name: str, rung: Rung = Rung.AS_PLANNED) -> Loaded:
        """Answers a model, loaded where it is not there, and makes room for it."""
        if rung is Rung.ALONE:
            self._set_aside([other for other in self._models if other != name])
        elif rung is not Rung.AS_PLANNED:
            self._set_aside(list(self._models))  # a variant for one study: nothing of it stays warm
            return self._load(name, rung)
        if name not in self._models:
            before = used_bytes(self._device)
            model = self._load(name, rung)
            model.warm_up()
            self._models[name] = (model, max(0, used_bytes(self._device) - before))
        self._models.move_to_end(name)
        held = {one: size for one, (_, size) in self._models.items()}
        self._set_aside(list(surplus(held, in_use=name, budget_bytes=self._budget_bytes)))
        return self._models[name][0]

    @property
    def held_bytes(self) -> dict[str, int]:
        """What each model took, the one used longest ago first."""
        return {name: size for name, (_, size) in self._models.items()}

    def _set_aside(self, names: list[str]) -> None:
        for name in names:
            model, size = self._models.pop(name)
            model.close()
            log.info("model.set_aside", model=name, bytes=size)
        if names:
            gc.collect()
            if not self._device.startswith("cpu"):
                torch.cuda.empty_cache()


def memory_bytes(device: str) -> int:
    """Answers how much memory a device has."""
    if device.startswith("cpu"):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(torch.cuda.get_device_properties(device).total_memory)


def used_bytes(device: str) -> int:
    """Answers how much of it this process holds."""
    if device.startswith("cpu"):
        resident_pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return resident_pages * os.sysconf("SC_PAGE_SIZE")
    return int(torch.cuda.memory_allocated(device))
