"""Compiled networks on the disk: what this node built comes back byte for byte, anything else is refused before a library sees it."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from node.inference.engines.store import MANIFEST, NODE_KEY, EngineRefused, EngineStore, Entry, key_of
from node.locks import LockHeld

FIELDS = {"kind": "engine", "onnx": "ab" * 32, "versions": {"tensorrt": "1.7.1"}, "candidate": {"precision": "fp16", "batch": 4}}
FILES = {"engine.plan": bytes(range(256)) * 64, "parity.json": b"{}"}


@pytest.fixture
def store(tmp_path: Path) -> EngineStore:
    return EngineStore(tmp_path / "engines")


@pytest.fixture
def entry(store: EngineStore) -> Entry:
    return store.put("spleen", FIELDS, FILES)


def found_anew(store: EngineStore) -> Entry | None:
    """As another process of this node finds it."""
    return EngineStore(store.folder).find("spleen", FIELDS)


def test_what_was_put_is_found_by_what_it_depends_on(store: EngineStore, entry: Entry) -> None:
    found = found_anew(store)
    assert found is not None
    assert {name: found.read(name) for name in found.digests} == FILES
    assert found.size_bytes == sum(map(len, FILES.values()))
    assert store.find("spleen", {**FIELDS, "versions": {"tensorrt": "1.7.2"}}) is None
    assert store.find("liver", FIELDS) is None


def test_the_order_of_what_a_key_is_made_of_plays_no_part() -> None:
    assert key_of(FIELDS) == key_of(dict(reversed(FIELDS.items())))
    assert key_of(FIELDS) != key_of({**FIELDS, "onnx": "cd" * 32})


def test_nobody_else_may_look_into_the_folder(store: EngineStore, entry: Entry) -> None:
    for folder in (store.folder, entry.folder.parent, entry.folder):
        assert folder.stat().st_mode & 0o777 == 0o700
    for file in (store.folder / NODE_KEY, *entry.folder.iterdir()):
        assert file.stat().st_mode & 0o777 == 0o600


def flip_a_bit(entry: Entry) -> None:
    plan = entry.folder / "engine.plan"
    content = bytearray(plan.read_bytes())
    content[1000] ^= 1
    plan.write_bytes(bytes(content))


def cut_off(entry: Entry) -> None:
    os.truncate(entry.folder / "engine.plan", 100)


def remove_file(entry: Entry) -> None:
    (entry.folder / "engine.plan").unlink()


def remove_manifest(entry: Entry) -> None:
    (entry.folder / MANIFEST).unlink()


def change_manifest(entry: Entry) -> None:
    """Whoever changes a file and writes its new digest down does not know the key."""
    flip_a_bit(entry)
    manifest = json.loads((entry.folder / MANIFEST).read_text())
    manifest["files"]["engine.plan"] = hashlib.sha256((entry.folder / "engine.plan").read_bytes()).hexdigest()
    (entry.folder / MANIFEST).write_text(json.dumps(manifest))


def truncate_manifest(entry: Entry) -> None:
    os.truncate(entry.folder / MANIFEST, 50)


def read_plan(store: EngineStore) -> bytes:
    found = found_anew(store)
    assert found is not None
    return found.read("engine.plan")


@pytest.mark.parametrize(
    "harm", [flip_a_bit, cut_off, remove_file, remove_manifest, change_manifest, truncate_manifest], ids=lambda harm: harm.__name__
)
def test_what_was_changed_is_refused_told_and_can_be_built_anew(store: EngineStore, entry: Entry, harm: Callable[[Entry], None]) -> None:
    harm(entry)
    with pytest.raises(EngineRefused):
        read_plan(store)
    assert [bool(kept.fault) for kept in store.contents("spleen")] == [True]
    store.discard("spleen", FIELDS)
    assert found_anew(store) is None
    store.put("spleen", FIELDS, FILES)
    assert found_anew(store) is not None


def test_what_another_node_built_is_refused(store: EngineStore, entry: Entry, tmp_path: Path) -> None:
    other = EngineStore(tmp_path / "other")
    foreign = other.put("spleen", FIELDS, FILES)
    shutil.rmtree(entry.folder)
    shutil.copytree(foreign.folder, entry.folder)
    with pytest.raises(EngineRefused, match="not built by this node"):
        found_anew(store)


def test_an_entry_under_another_name_is_refused(store: EngineStore, entry: Entry) -> None:
    other = {**FIELDS, "onnx": "ee" * 32}
    entry.folder.rename(entry.folder.with_name(key_of(other)))
    with pytest.raises(EngineRefused, match="another name"):
        store.find("spleen", other)


def test_an_entry_of_another_model_is_refused(store: EngineStore, entry: Entry) -> None:
    shutil.copytree(entry.folder, store.folder / "liver" / entry.key)
    with pytest.raises(EngineRefused, match="not built by this node"):
        store.find("liver", FIELDS)


def test_a_key_that_others_may_read_proves_nothing(store: EngineStore, entry: Entry) -> None:
    (store.folder / NODE_KEY).chmod(0o644)
    with pytest.raises(EngineRefused, match="others may read"):
        found_anew(store)


def test_a_lost_key_means_building_anew(store: EngineStore, entry: Entry) -> None:
    (store.folder / NODE_KEY).unlink()
    with pytest.raises(EngineRefused):
        found_anew(store)


def test_one_builder_at_a_time(store: EngineStore) -> None:
    with store.lock("spleen", "k"), pytest.raises(LockHeld):
        EngineStore(store.folder).lock("spleen", "k")
    store.lock("spleen", "k").release()


KILLED = """
import os, sys
from pathlib import Path
import node.inference.engines.store as store

def put(folder, number):
    calls = iter(range(10_000))
    def dying(real):
        def call(*arguments, **options):
            if next(calls) == number:
                os.kill(os.getpid(), 9)
            return real(*arguments, **options)
        return call
    store.os.fsync = dying(os.fsync)
    Path.rename = dying(Path.rename)
    store.EngineStore(Path(folder)).put("spleen", {"kind": "engine"}, {"engine.plan": b"x" * 1000})
    os._exit(0)

number, status = 0, -1
while status:
    child = os.fork()
    if not child:
        put(f"{sys.argv[1]}/{number}", number)
    status = os.waitpid(child, 0)[1]
    assert status in (0, 9), status
    number += 1
"""


def test_a_builder_that_is_killed_leaves_a_whole_entry_or_none(tmp_path: Path) -> None:
    """At every flush and at every rename, one after the other, until a builder lives."""
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=True, timeout=120)
    outcomes = []
    for folder in sorted(tmp_path.iterdir(), key=lambda one: int(one.name)):
        store = EngineStore(folder)
        found = store.find("spleen", {"kind": "engine"})
        outcomes.append(found is not None)
        if found is not None:
            assert found.read("engine.plan") == b"x" * 1000
        store.sweep()
        assert not list(folder.glob("*/.*.part"))
    assert outcomes[0] is False
    assert outcomes[-1] is True
    assert len(outcomes) > 5
