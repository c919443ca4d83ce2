"""What a worker makes ready while a study still arrives: the volume of the job is the same, and the work is done before."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
from pydicom import dcmread
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from node import dispatcher as dispatcher_module
from node import study_images as study_images_module
from node.ahead import helper as helper_module
from node.ahead import work as work_module
from node.ahead.helper import Helper
from node.ahead.load import MachineLoad
from node.ahead.work import Ahead
from node.config import Config
from node.dispatcher import Dispatcher, Rules
from node.domain.ahead import Load
from node.domain.completeness import CompletenessPolicy
from node.domain.instance import InstanceHeader
from node.domain.modelcard import InputRequirement
from node.domain.states import JobState
from node.domain.volume import Volume
from node.errors import BrokenPixelData
from node.inference import series_reader
from node.inference.series_reader import read_series
from node.intake.headers import read_header
from node.journal import ReceivedJournal, open_database
from node.modelstore import load_cards
from node.study_images import read_study_images
from node.worker import Worker
from tests.factories import SyntheticSeries, make_ct_series, make_enhanced_ct, make_mr_series
from tests.faults.setting import jobs
from tests.integration.ahead_kit import ASSOCIATION, IDLE, arrive, decide, make_ahead, make_node

SIZE: dict[str, Any] = {"slices": 8, "rows": 32, "columns": 32, "spacing_mm": (9.0, 4.0, 4.0)}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return make_node(tmp_path_factory.mktemp("ahead"))


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short where nothing is waited for, long where a busy machine may be slow."""
    monkeypatch.setattr(work_module, "SETTLED_S", 0.1)
    monkeypatch.setattr(helper_module, "PATIENCE_S", 600.0)


@pytest.fixture(scope="module")
def ahead(config: Config) -> Iterator[Ahead]:
    made = make_ahead(config)
    yield made
    made.close()


def work_until(ahead: Ahead, is_ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not is_ready():
        ahead.work(0.02, threading.Event())
        assert time.monotonic() < deadline, "it was not made ready"


def digests(paths: list[Path]) -> frozenset[str]:
    return frozenset(path.stem for path in paths)


class Counter:
    """Frames that were read or decoded in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.frames = 0
        real = series_reader.read_frames

        def counting(pixels: Any, indices: Any) -> Iterator[Any]:
            for frame in real(pixels, indices):
                self.frames += 1
                yield frame

        monkeypatch.setattr(series_reader, "read_frames", counting)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter:
    return Counter(monkeypatch)


def same(one: Volume, other: Volume) -> bool:
    return (
        np.array_equal(one.voxels, other.voxels)
        and one.voxels.dtype == other.voxels.dtype
        and np.array_equal(one.geometry.patient_from_voxel, other.geometry.patient_from_voxel)
        and (one.source, one.notes, one.units, one.modality) == (other.source, other.notes, other.units, other.modality)
    )


MAKERS: dict[str, Callable[[Path], SyntheticSeries]] = {
    "native": lambda folder: make_ct_series(folder, **SIZE, study="n", series="n"),
    "RLE": lambda folder: make_ct_series(folder, **SIZE, transfer_syntax=RLELossless, study="r", series="r"),
    "JPEG 2000": lambda folder: make_ct_series(folder, **SIZE, transfer_syntax=JPEG2000Lossless, study="j", series="j"),
    "deflated": lambda folder: make_ct_series(folder, **SIZE, transfer_syntax=DeflatedExplicitVRLittleEndian, study="d", series="d"),
    "tilted": lambda folder: make_ct_series(folder, **SIZE, gantry_tilt_deg=12.0, study="t", series="t"),
    "multi-frame": lambda folder: make_enhanced_ct(folder, **{**SIZE, "slices": 20}, transfer_syntax=RLELossless, study="m", series="m"),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_the_volume_is_ready_when_the_last_image_is_there_and_is_the_same(
    config: Config, ahead: Ahead, tmp_path: Path, decoded: Counter, kind: str
) -> None:
    series = MAKERS[kind](tmp_path)
    kept = arrive(config, *series.paths)
    work_until(ahead, lambda: ahead.prepared.has_volume(digests(kept)))
    expected = read_series(kept)
    ahead.prepared.served = decoded.frames = 0
    assert same(ahead.prepared.series(kept), expected)
    assert (decoded.frames, ahead.prepared.served) == (0, len(expected.source.planes)), "everything was done before"
    assert same(ahead.prepared.series(kept), expected), "a volume is given away once; the next one is made anew"
    assert decoded.frames == (len(expected.source.planes) if kind in {"native", "tilted"} else 0), "of frames that are still there"


def test_frames_that_are_ready_serve_although_more_images_came(config: Config, ahead: Ahead, tmp_path: Path, decoded: Counter) -> None:
    series = make_ct_series(tmp_path, **SIZE, transfer_syntax=RLELossless, study="late", series="late")
    kept = arrive(config, *series.paths[:5])
    work_until(ahead, lambda: all(len(ahead.prepared.file(path.stem, "").frames) == 1 for path in kept))
    kept += arrive(config, *series.paths[5:])
    expected = read_series(kept)
    ahead.prepared.served = decoded.frames = 0
    assert same(ahead.prepared.series(kept), expected)
    assert (ahead.prepared.served, decoded.frames) == (5, 3)


def test_a_series_that_no_route_wants_is_not_decoded(config: Config, ahead: Ahead, tmp_path: Path) -> None:
    options: dict[str, Any] = {**SIZE, "transfer_syntax": RLELossless, "study": "two"}
    unwanted = make_ct_series(tmp_path / "pt", **options, series="pt", headers={"Modality": "PT"})
    wanted = make_ct_series(tmp_path / "ct", **options, series="ct")
    left, kept = arrive(config, *unwanted.paths), arrive(config, *wanted.paths)
    work_until(ahead, lambda: ahead.prepared.has_volume(digests(kept)))
    assert all(ahead.prepared.file(path.stem, "").header is not None for path in left)
    assert all(ahead.prepared.file(path.stem, "").instance is None for path in left)
    assert ahead.prepared.pixel_bytes(unwanted.series_instance_uid) == 0


def test_the_channels_of_a_study_are_found_by_headers_that_are_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_node(tmp_path / "node")
    made = {
        name: make_mr_series(tmp_path / name, **SIZE, transfer_syntax=RLELossless, series=name, headers={"SeriesDescription": name})
        for name in ("T1", "T2")
    }
    files = [path for series in made.values() for path in arrive(config, *series.paths)]
    inputs = tuple(InputRequirement(modality=("MR",), channel=name, words=(name,)) for name in made)
    card = replace(load_cards(config.node.models_dir)["thresholds"], inputs=inputs)
    expected = read_study_images(files, card)
    ahead = make_ahead(config)
    ahead._cards = {card.name: card}
    try:
        work_until(ahead, lambda: all(ahead.prepared.has_volume(digests(files[first : first + 8])) for first in (0, 8)))
        monkeypatch.setattr(study_images_module, "read_header", lambda _: pytest.fail("a header was read again"))
        ahead.prepared.served = 0
        assert all(same(one, other) for one, other in zip(read_study_images(files, card, ahead.prepared), expected, strict=True))
        assert ahead.prepared.served == 16
    finally:
        ahead.close()


def test_the_bound_is_kept_and_what_found_no_room_is_decoded_by_the_job(tmp_path: Path, decoded: Counter) -> None:
    config = make_node(tmp_path / "node")
    series = make_ct_series(tmp_path / "ct", slices=16, rows=128, columns=128, transfer_syntax=RLELossless)
    kept = arrive(config, *series.paths)
    ahead = make_ahead(config, decode_ahead_mib=1)
    try:
        work_until(ahead, lambda: ahead.prepared.used_bytes > (1 << 20) - 64_000)
        for _ in range(5):
            ahead.work(0.05, threading.Event())
            assert ahead.prepared.used_bytes <= 1 << 20
        expected = read_series(kept)
        decoded.frames = 0
        assert same(ahead.prepared.series(kept), expected)
        assert 0 < ahead.prepared.served < 16
        assert decoded.frames == 16 - ahead.prepared.served
    finally:
        ahead.close()


def test_under_load_and_where_it_is_turned_off_nothing_is_read_and_no_process_started(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Helper, "_start", lambda _: pytest.fail("a helper was started"))
    series = make_ct_series(tmp_path, **SIZE, study="load", series="load")
    arrive(config, *series.paths)
    for ahead in (make_ahead(config, lambda: Load(0.95, float("inf"))), make_ahead(config, decode_ahead_mib=0)):
        ahead.work(0.02, threading.Event())
        assert ahead.prepared.used_bytes == 0


def test_the_log_tells_when_load_stops_it_and_when_it_goes_on(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_module, "LOOK_AT_LOAD_S", 0.0)
    busy = iter((0.2, 0.3, 0.9, 0.9, 0.7, 0.1))
    ahead = make_ahead(config, lambda: Load(next(busy), 8 << 30))
    with structlog.testing.capture_logs() as lines:
        for _ in range(6):
            ahead.work(0.0, threading.Event())
    ahead.close()
    assert [(line["event"], line["busy"]) for line in lines] == [("ahead.resumed", 0.2), ("ahead.paused", 0.9), ("ahead.resumed", 0.1)]


def test_when_memory_runs_short_what_was_made_ready_goes_first(tmp_path: Path) -> None:
    config = make_node(tmp_path / "node")
    arrive(config, *make_ct_series(tmp_path / "ct", **SIZE, transfer_syntax=RLELossless).paths)
    loads = [IDLE]
    ahead = make_ahead(config, lambda: loads[-1])
    try:
        work_until(ahead, lambda: ahead.prepared.used_bytes > 0)
        loads.append(Load(0.0, 500 << 20))
        ahead._looked_s = 0.0
        ahead.work(0.02, threading.Event())
        assert ahead.prepared.used_bytes == 0
    finally:
        ahead.close()


POISONED = """
import ctypes, sys, time
import node.ahead.child as child
real = child.answer
def answer(request):
    if isinstance(request, child.DecodeFrames) and "image 3" in request.pixels.name:
        {deed}
    return real(request)
child.answer = answer
child.main(sys.argv[1:])
"""


@pytest.mark.parametrize("deed", ["ctypes.string_at(0)", "time.sleep(600)"], ids=["crashes", "hangs"])
def test_a_codec_that_takes_the_helper_with_it_costs_that_image_alone(
    tmp_path: Path, decoded: Counter, monkeypatch: pytest.MonkeyPatch, deed: str
) -> None:
    config = make_node(tmp_path / "node")
    series = make_ct_series(tmp_path / "ct", **SIZE, transfer_syntax=RLELossless)
    ahead = make_ahead(config)
    ahead._helper = Helper((sys.executable, "-c", POISONED.format(deed=deed)))
    kept = arrive(config, *series.paths[:3])
    try:
        work_until(ahead, lambda: ahead.prepared.file(kept[2].stem, "").instance is not None)
        with monkeypatch.context() as patched:
            patched.setattr(helper_module, "PATIENCE_S", 0.2)
            work_until(ahead, lambda: ahead._helper.losses == 1)
        kept += arrive(config, *series.paths[3:])
        work_until(ahead, lambda: sum(len(ahead.prepared.file(path.stem, "").frames) for path in kept) == 7)
        expected = read_series(kept)
        ahead.prepared.served = decoded.frames = 0
        assert same(ahead.prepared.series(kept), expected)
        assert (ahead.prepared.served, decoded.frames) == (7, 1)
        assert ahead._helper.losses == 1, "it was not asked for that image again"
    finally:
        ahead.close()


def test_a_broken_file_is_left_to_the_job_and_its_reason_is_the_same(config: Config, ahead: Ahead, tmp_path: Path) -> None:
    series = make_ct_series(tmp_path, **SIZE, transfer_syntax=RLELossless, study="broken", series="broken")
    kept = arrive(config, series.paths[0])
    kept[0].write_bytes(kept[0].read_bytes()[:-200])
    kept += arrive(config, *series.paths[1:])
    work_until(ahead, lambda: all(ahead.prepared.file(path.stem, "").frames for path in kept[1:]))
    with pytest.raises(BrokenPixelData) as alone:
        read_series(kept)
    with pytest.raises(BrokenPixelData) as prepared:
        ahead.prepared.series(kept)
    assert str(prepared.value) == str(alone.value)


def test_headers_are_read_while_a_study_arrives_and_not_again_when_it_is_decided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_node(tmp_path / "node")
    arrive(config, *make_ct_series(tmp_path / "ct", **SIZE).paths)
    read: list[Path] = []

    def counting(path: Path) -> InstanceHeader:
        read.append(path)
        return read_header(path)

    monkeypatch.setattr(dispatcher_module, "read_header", counting)
    monkeypatch.setattr(dispatcher_module, "READ_AHEAD_S", 60.0)
    with closing(open_database(config.node.state_dir)) as connection:
        rules = Rules(tuple(route.as_route() for route in config.routes), load_cards(config.node.models_dir), CompletenessPolicy(0.0, 60.0))
        dispatcher = Dispatcher(connection, config.node.state_dir, rules)
        dispatcher.tick(time.time())
        assert len(set(read)) == len(read) == 8, "an association is open: the study still arrives"
        assert not jobs(config)
        ReceivedJournal(connection).close_association(ASSOCIATION)
        dispatcher.tick(time.time())
    assert len(jobs(config)) == 1
    assert len(read) == 8


def test_helpers_that_die_again_and_again_are_given_up(config: Config, tmp_path: Path) -> None:
    series = make_ct_series(tmp_path, **{**SIZE, "slices": 12}, study="dying", series="dying")
    arrive(config, *series.paths)
    ahead = make_ahead(config)
    ahead._helper = Helper(("/bin/false",))
    work_until(ahead, lambda: not ahead.is_on)
    assert ahead.prepared.used_bytes == 0


def test_a_fault_of_its_own_turns_it_off_and_the_worker_goes_on(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(config, "cpu", "worker")

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(worker._ahead, "work", fail)
    worker.look_ahead(0.0, threading.Event())
    assert not worker._ahead.is_on


def run_study(config: Config, series: SyntheticSeries, *, is_on: bool) -> bytes:
    """A slow sender, image by image; the worker has nothing else to do. Answers the pixels of the segmentation."""
    worker = Worker(config, "cpu", "worker")
    worker._ahead._look = lambda: IDLE
    worker._ahead.is_on = is_on
    kept = []
    try:
        for path in series.paths:
            kept += arrive(config, path)
            worker.look_ahead(0.02, threading.Event())
        if is_on:
            work_until(worker._ahead, lambda: worker._ahead.prepared.has_volume(digests(kept)))
        decide(config)
        worker.look_ahead(0.02, threading.Event())
        assert worker.work_once()
        assert worker._ahead.prepared.served == (len(kept) if is_on else 0)
        worker.look_ahead(0.02, threading.Event())
        assert worker._ahead.prepared.used_bytes == 0, "nobody waits for it any more"
    finally:
        worker.close()
    (job,) = jobs(config)
    assert job.state == JobState.COMPLETED, job.reason
    return bytes(dcmread(config.node.state_dir / "results" / "1" / "0" / "seg.dcm").PixelData)


def test_after_the_last_image_of_a_slow_sender_the_job_decodes_nothing_and_finds_the_same(tmp_path: Path, decoded: Counter) -> None:
    series = make_ct_series(tmp_path / "ct", slices=12, rows=48, columns=48, transfer_syntax=RLELossless)
    without = run_study(make_node(tmp_path / "without"), series, is_on=False)
    assert decoded.frames == 12
    decoded.frames = 0
    assert run_study(make_node(tmp_path / "with"), series, is_on=True) == without
    assert decoded.frames == 0


STAT = "cpu  {user} {nice} 0 {idle} 0 0 0 0 0 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n"


def test_the_load_is_that_of_others_since_the_last_look(tmp_path: Path) -> None:
    def tell(user: int, nice: int, idle: int) -> None:
        (tmp_path / "stat").write_text(STAT.format(user=user, nice=nice, idle=idle))

    tell(100, 0, 100)
    (tmp_path / "meminfo").write_text("MemTotal: 8388608 kB\nMemAvailable:    4194304 kB\n")
    load = MachineLoad(tmp_path, tmp_path / "none")
    tell(130, 50, 120)
    assert load.look() == Load(0.3, 4 << 30), "what runs with lower priority is not counted"
    tell(230, 50, 120)
    assert load.look().busy == 1.0
    for name, text in (
        ("memory.max", "2147483648"),
        ("memory.current", "2000000000"),
        ("memory.stat", "anon 7\ninactive_file 800000000\n"),
    ):
        (tmp_path / name).write_text(text)
    assert MachineLoad(tmp_path, tmp_path).look().available_bytes == 947_483_648
    (tmp_path / "memory.max").write_text("max\n")
    assert MachineLoad(tmp_path, tmp_path).look().available_bytes == 4 << 30
