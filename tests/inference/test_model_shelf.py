"""A worker keeps its models warm within its memory, and tells what it did when memory ran short."""

import mmap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from node.config import Config, parse_config
from node.domain.ladder import Rung
from node.errors import DeviceOutOfMemory
from node.inference.bundle import load_bundle
from node.model_shelf import ModelShelf, used_bytes
from node.modelstore import find_card, load_card
from node.worker import Worker, told
from tests.bundles import make_bundle
from tests.factories import make_ct_series


@dataclass
class Recorder:
    """Loads real bundles, and remembers which."""

    models: Path
    loaded: list[tuple[str, Rung]] = field(default_factory=list)

    def __call__(self, name: str, rung: Rung) -> Any:
        self.loaded.append((name, rung))
        return load_bundle(self.models / name, find_card(self.models, name))


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    for name in ("a", "b"):
        make_bundle(tmp_path / "models", name)
    return Recorder(tmp_path / "models")


def test_a_model_is_loaded_once_and_stays_warm(recorder: Recorder) -> None:
    shelf = ModelShelf(recorder, "cpu", budget_bytes=1 << 40)
    assert shelf.take("a") is shelf.take("a")
    shelf.take("b")
    assert recorder.loaded == [("a", Rung.AS_PLANNED), ("b", Rung.AS_PLANNED)]
    shelf.take("a")
    assert list(shelf.held_bytes) == ["b", "a"]


def test_where_memory_is_short_the_older_model_leaves(recorder: Recorder) -> None:
    shelf = ModelShelf(recorder, "cpu", budget_bytes=1)
    shelf._models.clear()
    shelf.take("a")
    shelf._models["a"] = (shelf._models["a"][0], 1000)
    shelf.take("b")
    assert list(shelf.held_bytes) == ["b"]
    shelf.take("a")
    assert [name for name, _ in recorder.loaded] == ["a", "b", "a"]


def test_for_want_of_memory_the_others_are_set_aside_and_a_variant_stays_with_its_study(recorder: Recorder) -> None:
    shelf = ModelShelf(recorder, "cpu", budget_bytes=1 << 40)
    shelf.take("a")
    shelf.take("b")
    shelf.take("b", Rung.ALONE)
    assert list(shelf.held_bytes) == ["b"]
    shelf.take("b", Rung.ON_CPU)
    assert not shelf.held_bytes
    assert recorder.loaded[-1] == ("b", Rung.ON_CPU)


def test_memory_is_measured() -> None:
    before = used_bytes("cpu")
    with mmap.mmap(-1, 64 << 20) as block:  # from the system: an allocator may have so much to spare
        block.write(b"\1" * len(block))
        assert used_bytes("cpu") - before > 32 << 20


def test_a_study_that_is_too_large_beside_other_models_is_done_alone_and_its_result_says_so(tmp_path: Path) -> None:
    config = node(tmp_path)
    worker = Worker(config, "cpu", "worker-test")
    worker.warm_up()
    series = make_ct_series(tmp_path / "ct", slices=6, rows=32, columns=32)
    worker._files = lambda _job: list(series.paths)  # type: ignore[method-assign, misc, assignment]
    real = worker._shelf.take("a")
    tight = OnlyAlone(real, worker._shelf)
    worker._shelf._models["a"] = (tight, 1)  # type: ignore[assignment]
    from node.pipeline import Stopwatch

    analysis = worker._analyse(Job("a"), Stopwatch(lambda *_: None))  # type: ignore[arg-type]
    assert analysis.result.provenance is not None
    assert analysis.result.provenance.notes == (Rung.ALONE.value,)
    assert list(worker._shelf.held_bytes) == ["a"]
    tight.limit = 0
    with pytest.raises(DeviceOutOfMemory):
        worker._analyse(Job("a"), Stopwatch(lambda *_: None))  # type: ignore[arg-type]


def test_nothing_is_told_of_a_run_as_planned(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "models", "a")
    from node.pipeline import Stopwatch, analyse

    series = make_ct_series(tmp_path / "ct", slices=6, rows=32, columns=32)
    analysis = analyse(series.paths, load_bundle(folder, load_card(folder)), Stopwatch(lambda *_: None))
    assert told(analysis, Rung.AS_PLANNED) is analysis


def test_the_evidence_tells_what_was_done_otherwise(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "models", "a")
    from node.evidence.sop_common import algorithm_parameters
    from node.pipeline import Stopwatch, analyse

    series = make_ct_series(tmp_path / "ct", slices=6, rows=32, columns=32)
    analysis = analyse(series.paths, load_bundle(folder, load_card(folder)), Stopwatch(lambda *_: None))
    assert "note" not in algorithm_parameters(analysis.result)
    assert algorithm_parameters(told(analysis, Rung.ON_CPU).result).endswith(f"; note: {Rung.ON_CPU.value}")


@dataclass
class Job:
    model: str
    job_id: int = 1


@dataclass
class OnlyAlone:
    """A model that finds memory only while at most `limit` models are held."""

    model: Any
    shelf: ModelShelf
    limit: int = 1

    @property
    def card(self) -> Any:
        return self.model.card

    @property
    def provenance(self) -> Any:
        return self.model.provenance

    def predict(self, images: Any, progress: Any) -> Any:
        if len(self.shelf.held_bytes) > self.limit:
            raise DeviceOutOfMemory("too little memory beside other models")
        return self.model.predict(images, progress)

    def close(self) -> None:
        self.model.close()


def node(folder: Path) -> Config:
    for name in ("a", "b"):
        make_bundle(folder / "models", name)
    routes = "".join(f'[[routes]]\nname = "{name}"\nmodel = "{name}"\ndeliver_to = ["pacs"]\n' for name in ("a", "b"))
    text = (
        f'[node]\nae_title = "TEST"\nstate_dir = "{folder / "state"}"\nmodels_dir = "{folder / "models"}"\n'
        f'[peers.pacs]\nae_title = "PACS"\nhost = "127.0.0.1"\nport = 104\n{routes}'
    )
    (folder / "state" / "run").mkdir(parents=True)
    return parse_config(text, folder / "node.toml")
