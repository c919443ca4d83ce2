"""A bundle of others comes in whole, checked and trusted, or not at all."""

import json
import os
import pickle
import shutil
import stat
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from node.errors import BundleChanged, BundleInvalid, BundleRefused, UsageError, WeightsUnavailable
from node.inference.bundle import load_bundle
from node.inference.install import source, trial, zoo
from node.inference.install.confirm import confirm_card, placeholders, remove_model
from node.inference.install.contents import Contents
from node.inference.install.convert import Part, convert, rewrite
from node.inference.install.installer import Installation, Wishes, install, safe_name
from node.inference.install.sandbox import Limits, run_confined
from node.inference.manifest import changes_since_trusted, read_installed
from node.inference.series_reader import read_series
from node.inference.state import read_state
from node.modelstore import load_card, load_cards
from tests.factories import make_ct_series
from tests.zoo import make_from_shared, make_source, make_state, without_processes


def trusting(_contents: Contents, _name: str) -> str:
    return "typed yes"


def never(_contents: Contents, name: str) -> str:
    raise BundleRefused(f"{name} is not trusted")


def installed(path: Path | str, models: Path, **wishes: Any) -> Installation:
    models.mkdir(exist_ok=True)
    return install(str(path), models, Wishes(**wishes), trusting)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Opens weights and bundles by the same code without processes of their own, which would import torch anew at each call."""
    without_processes(monkeypatch)


def zipped(folder: Path, archive: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as stream:
        for path in sorted(folder.rglob("*")):
            stream.write(path, prefix + str(path.relative_to(folder)))
    return archive


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installed bundle with a script that its configuration uses. Copy it before changing it."""
    root = tmp_path_factory.mktemp("installed")
    folder = make_source(root / "liver_and_kidney", network={"_target_": "scripts.nets.make"})
    (folder / "scripts").mkdir()
    (folder / "scripts" / "__init__.py").write_text("")
    (folder / "scripts" / "nets.py").write_text("import torch\n\ndef make():\n    return torch.nn.Conv3d(1, 3, 1)\n")
    return installed(zipped(folder, root / "liver_and_kidney_v0.3.1.zip", "liver_and_kidney/"), root / "models").folder


@pytest.fixture
def mine(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "models" / bundle.name))


def test_a_zip_becomes_a_model_that_outlines_what_its_network_sees(mine: Path, tmp_path: Path) -> None:
    assert sorted(path.relative_to(mine).as_posix() for path in mine.rglob("*") if path.is_file()) == [
        "LICENSE", "card.toml", "configs/inference.json", "configs/metadata.json", "installed.json", "models/model.safetensors",
        "scripts/__init__.py", "scripts/nets.py",
    ]  # fmt: skip
    card = load_card(mine)
    assert (card.name, card.licence, card.draft) == ("liver_and_kidney", "Apache-2.0", True)
    volume = read_series(make_ct_series(tmp_path / "ct", slices=8, rows=16, columns=16).paths)
    label_map = load_bundle(mine, card).predict([volume]).label_map
    assert label_map is not None
    assert (label_map.labels != (volume.voxels > 145).astype(np.uint8) + (volume.voxels > 625)).mean() < 1e-3
    assert not changes_since_trusted(mine), "loading leaves nothing behind"


@pytest.mark.parametrize("file", ["configs/inference.json", "scripts/nets.py", "LICENSE"])
def test_a_file_that_was_changed_after_trust_is_not_loaded(mine: Path, file: str) -> None:
    (mine / file).write_text((mine / file).read_text() + " ")
    with pytest.raises(BundleChanged, match=rf"{file} has changed.*--replace"):
        load_bundle(mine, load_card(mine))


def test_a_file_that_came_or_went_after_trust_is_not_loaded(mine: Path) -> None:
    (mine / "scripts" / "more.py").write_text("")
    with pytest.raises(BundleChanged, match=r"scripts/more\.py was not there"):
        load_bundle(mine, load_card(mine))
    (mine / "scripts" / "more.py").unlink()
    (mine / "scripts" / "__init__.py").unlink()
    with pytest.raises(BundleChanged, match=r"scripts/__init__\.py absent"):
        load_bundle(mine, load_card(mine))


def test_compiled_files_beside_a_script_are_not_run(mine: Path) -> None:
    """What Python would take instead of the source, were its time and size right."""
    import py_compile

    script = mine / "scripts" / "nets.py"
    evil = mine.parent / "evil.py"
    evil.write_text("import torch\n\ndef make():\n    raise RuntimeError('owned')\n".ljust(script.stat().st_size)[: script.stat().st_size])
    os.utime(evil, ns=(script.stat().st_atime_ns, script.stat().st_mtime_ns))
    import importlib.util

    py_compile.compile(str(evil), cfile=importlib.util.cache_from_source(str(script)), dfile=str(script))
    assert load_bundle(mine, load_card(mine)).card.name == "liver_and_kidney"


def test_a_card_is_the_persons_own_and_confirming_keeps_its_words(mine: Path) -> None:
    card = mine / "card.toml"
    card.write_text(card.read_text().replace('label = "liver"', 'label = "Liver"  # as we call it'))
    assert not changes_since_trusted(mine)
    confirm_card(mine)
    assert "# as we call it" in card.read_text()
    confirmed = load_card(mine)
    assert (confirmed.draft, confirmed.title, confirmed.segments[0].label) == (False, "Liver and kidney", "Liver")
    record = read_installed(mine)
    assert record is not None
    assert record.confirmed_at >= record.installed_at


def test_nothing_is_written_without_trust(tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    with pytest.raises(BundleRefused, match="not trusted"):
        install(str(make_source(tmp_path / "some")), models, Wishes(), never)
    assert not list(models.iterdir())


def test_what_runs_is_told_before_trust(tmp_path: Path) -> None:
    folder = make_source(tmp_path / "some")
    (folder / "scripts").mkdir()
    (folder / "scripts" / "net.py").write_text("a = 1\nb = 2\n")
    told: list[str] = []

    def ask(contents: Contents, _name: str) -> str:
        told.extend(contents.sentences())
        raise BundleRefused("enough")

    (tmp_path / "models").mkdir()
    with pytest.raises(BundleRefused):
        install(str(folder), tmp_path / "models", Wishes(), ask)
    assert any("3 expressions of Python in configs/inference.json" in line for line in told)
    assert any("scripts/net.py: 3 lines" in line for line in told)
    assert any("models/model.pt" in line and "without network" in line for line in told)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("spleen_ct_segmentation", {"channels": [2, 4, 4], "strides": [2, 2], "num_res_units": 1}),
        ("brats_mri_segmentation", {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]}),
        ("wholeBody_ct_segmentation", {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]}),
        ("breast_density_classification", {}),
    ],
)
@pytest.mark.usefixtures("in_process")
def test_bundles_of_the_zoo_install_as_they_are(
    tmp_path: Path, name: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "breast_density_classification":  # torchvision is not everywhere: here it is nowhere
        monkeypatch.setattr(trial, "run_confined", lambda *_: {"missing": "torchvision"})
    done = installed(make_from_shared(name, tmp_path / name, changes), tmp_path / "models")
    assert done.card.name == name.lower()
    assert not placeholders(done.card)
    assert load_cards(tmp_path / "models")[name.lower()] == load_card(done.folder)
    if name != "breast_density_classification":
        assert load_bundle(done.folder, load_card(done.folder)).card.draft
    else:
        assert any("→ pip install torchvision" in note for note in done.notes)
    state = read_state(done.folder / "models" / "model.safetensors")
    assert state
    assert not [key for key in state if key.startswith("module.")]


# ── a trial ─────────────────────────────────────────────────────────────────


def test_what_cannot_be_loaded_is_found_in_a_process_of_its_own(mine: Path) -> None:
    (mine / "scripts" / "nets.py").write_text("def make():\n    return None\n")
    with pytest.raises(BundleInvalid, match=r"scripts/nets\.py has changed"):
        trial.require_loadable(mine, mine.name)


@pytest.mark.usefixtures("in_process")
def test_weights_of_another_network_are_found_at_the_installation(tmp_path: Path) -> None:
    state = {"weight": torch.zeros(4, 1, 1, 1, 1), "bias": torch.zeros(3), "scale": torch.zeros(1)}
    with pytest.raises(BundleInvalid) as caught:
        installed(make_source(tmp_path / "some", state=state), tmp_path / "models")
    assert str(caught.value) == (
        "models/model.safetensors does not fit the network of some: 1 tensor is unknown to it: scale; 1 tensor is of another size: "
        "weight (4x1x1x1x1 in the file, 3x1x1x1x1 in the network) → these weights belong to another network: name the right file "
        "(radnode model install --weights), or have network_def corrected by its author"
    )
    assert not list((tmp_path / "models").iterdir())


@pytest.mark.parametrize(
    ("target", "fault", "note"),
    [
        ("monai.networks.nets.NoSuchNet", "the bundle some cannot be built", ""),
        ("scripts.nets.absent", "the bundle some cannot be built", ""),
        ("scripts.nets.make", "", "needs the package no_such_package_of_anybody, which is not installed here → pip install"),
    ],
)
@pytest.mark.usefixtures("in_process")
def test_a_bundle_that_cannot_be_built_is_refused_and_one_that_misses_a_package_says_so(
    tmp_path: Path, target: str, fault: str, note: str
) -> None:
    folder = make_source(tmp_path / "some", network={"_target_": target})
    (folder / "scripts").mkdir()
    (folder / "scripts" / "__init__.py").write_text("")
    (folder / "scripts" / "nets.py").write_text("def make():\n    import no_such_package_of_anybody\n")
    if fault:
        with pytest.raises(BundleInvalid, match=fault):
            installed(folder, tmp_path / "models")
        assert not list((tmp_path / "models").iterdir())
    else:
        assert any(note in one for one in installed(folder, tmp_path / "models").notes)


def test_a_trial_that_ends_without_an_answer_is_told_and_hinders_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_processes(monkeypatch)
    monkeypatch.setattr(trial, "run_confined", lambda *_: (_ for _ in ()).throw(BundleRefused("memory or time ran out")))
    done = installed(make_source(tmp_path / "some"), tmp_path / "models")
    assert any("was not loaded for a trial (memory or time ran out) → radnode run DIR --model some" in note for note in done.notes)


# ── weights ─────────────────────────────────────────────────────────────────


def saved(value: Any, path: Path) -> Path:
    torch.save(value, path)
    return path


@pytest.mark.usefixtures("in_process")
def test_nested_prefixed_shared_and_half_precision_weights_arrive_as_they_were(tmp_path: Path) -> None:
    weight = torch.arange(6, dtype=torch.float16).reshape(2, 3)
    state = {"module.a.weight": weight, "module.b.weight": weight, "module.c": weight.t(), "module.n": torch.tensor(3)}
    path = saved({"epoch": 7, "optimizer": {"lr": 0.1}, "network_weights": state}, tmp_path / "x.pt")
    done = convert([Part(path, "folds.0.")], tmp_path / "out.safetensors", keep=["epoch"])
    found = read_state(tmp_path / "out.safetensors")
    assert sorted(found) == ["folds.0.a.weight", "folds.0.b.weight", "folds.0.c", "folds.0.n"]
    assert found["folds.0.a.weight"].dtype == torch.float16
    assert torch.equal(found["folds.0.b.weight"], weight)
    assert torch.equal(found["folds.0.c"], weight.t())
    assert done.kept == {"epoch": 7}
    assert done.parameters == 6 + 6 + 1, "what two names share is kept once"


@pytest.mark.usefixtures("in_process")
def test_torchscript_gives_its_weights_and_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "model.ts"
    torch.jit.save(torch.jit.script(torch.nn.Conv3d(1, 3, 1)), path)
    convert([Part(path)], tmp_path / "out.safetensors")
    assert sorted(read_state(tmp_path / "out.safetensors")) == ["bias", "weight"]


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["saved", "bare pickle", "whole network", "no weights", "broken"])
@pytest.mark.usefixtures("in_process")
def test_hostile_and_odd_pickles_are_refused_and_never_run(tmp_path: Path, kind: str) -> None:
    path, mark = tmp_path / "model.pt", tmp_path / "owned"
    if kind == "saved":
        torch.save({"model": make_state(), "more": Evil(mark)}, path)
    elif kind == "bare pickle":
        path.write_bytes(pickle.dumps(Evil(mark)))
    elif kind == "whole network":
        torch.save(torch.nn.Conv3d(1, 3, 1), path)
    elif kind == "no weights":
        torch.save({"epoch": 3}, path)
    else:
        path.write_bytes(b"\x80\x02" + os.urandom(200))
    with pytest.raises(BundleRefused, match=r"model\.pt holds"):
        convert([Part(path)], tmp_path / "out.safetensors")
    assert not mark.exists()
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.usefixtures("in_process")
def test_a_refused_pickle_leaves_no_model_behind(tmp_path: Path) -> None:
    folder = make_source(tmp_path / "evil", state={"model": Evil(tmp_path / "owned")})
    with pytest.raises(BundleRefused):
        installed(folder, tmp_path / "models")
    assert not list((tmp_path / "models").iterdir())


def test_the_process_that_opens_weights_has_no_network_and_little_memory(tmp_path: Path) -> None:
    path = saved({"w": torch.zeros(8)}, tmp_path / "x.pt")
    with path.open("rb") as stream:
        job = {"do": "convert", "inputs": [{"descriptor": stream.fileno(), "name": "x.pt", "prefix": ""}], "output": str(tmp_path / "o")}
        with pytest.raises(BundleRefused, match=r"memory|ended"):
            run_confined("node.inference.install.convert_child", job, Limits(64 << 20, 1 << 20), files=[stream.fileno()])
    assert convert([Part(path)], tmp_path / "out.safetensors").is_isolated == can_unshare()


def can_unshare() -> bool:
    import subprocess

    return subprocess.run(["unshare", "--user", "--net", "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.usefixtures("in_process")
def test_a_pickle_that_the_configuration_loads_itself_is_written_anew(tmp_path: Path) -> None:
    """DiNTS: search_code.pt holds numpy arrays."""
    path = saved({"node_a": np.ones((2, 3)), "arch_code_a": np.arange(4), "score": np.float64(0.5)}, tmp_path / "search_code.pt")
    rewrite(path, tmp_path / "new.pt")
    found = torch.load(tmp_path / "new.pt", weights_only=False)
    assert found["node_a"].shape == (2, 3)
    with pytest.raises(BundleRefused):
        rewrite(saved({"node_a": Evil(tmp_path / "owned")}, tmp_path / "evil.pt"), tmp_path / "new2.pt")
    assert not (tmp_path / "owned").exists()


# ── archives ────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["../evil.py", "/etc/evil.py", "a/../../evil.py", "C:\\evil.py", "a\\..\\..\\evil.py"])
@pytest.mark.usefixtures("in_process")
def test_paths_that_lead_out_of_the_archive_are_refused(tmp_path: Path, name: str) -> None:
    archive = zipped(make_source(tmp_path / "some"), tmp_path / "some.zip")
    with zipfile.ZipFile(archive, "a") as stream:
        stream.writestr(name, "x = 1")
    with pytest.raises(BundleRefused, match="leads out"):
        installed(archive, tmp_path / "models")
    assert not list(tmp_path.rglob("evil.py"))
    assert not (tmp_path.parent / "evil.py").exists()


@pytest.mark.usefixtures("in_process")
def test_links_are_refused_in_archives_and_folders(tmp_path: Path) -> None:
    folder = make_source(tmp_path / "some")
    archive = zipped(folder, tmp_path / "some.zip")
    with zipfile.ZipFile(archive, "a") as stream:
        link = zipfile.ZipInfo("scripts/evil.py")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        stream.writestr(link, "/etc/passwd")
    with pytest.raises(BundleRefused, match="is a link"):
        installed(archive, tmp_path / "models")
    (folder / "docs").symlink_to("/etc")
    with pytest.raises(BundleRefused, match="is a link"):
        installed(folder, tmp_path / "models")


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    archive = tmp_path / "bomb.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as stream:
        stream.writestr("configs/metadata.json", b"0" * (8 << 20))
    with pytest.raises(BundleRefused, match="swells"):
        installed(archive, tmp_path / "models")


@pytest.mark.usefixtures("in_process")
def test_a_member_that_is_larger_than_it_says_is_refused(tmp_path: Path) -> None:
    archive = zipped(make_source(tmp_path / "some"), tmp_path / "some.zip")
    content = bytearray(archive.read_bytes())
    place = content.index(b"PK\x01\x02")  # the first entry of the directory: its uncompressed size, 24 bytes on
    while not content[place + 46 :].startswith(b"LICENSE"):
        place = content.index(b"PK\x01\x02", place + 1)
    content[place + 24 : place + 28] = struct.pack("<I", 5)
    archive.write_bytes(content)
    with pytest.raises(BundleRefused):
        installed(archive, tmp_path / "models")


@pytest.mark.usefixtures("in_process")
def test_too_many_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "MAX_FILES", 3)
    with pytest.raises(BundleRefused, match="at most 3 files"):
        installed(make_source(tmp_path / "some"), tmp_path / "models")


@pytest.mark.parametrize("content", [b"PK\x03\x04 and nothing else", b"no zip at all"])
def test_a_file_that_is_no_zip_says_what_is_wanted(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises((UsageError, BundleRefused), match=r"x\.zip"):
        installed(tmp_path / "x.zip", tmp_path / "models")


# ── what is there and what is not ───────────────────────────────────────────


def test_a_folder_without_a_model_says_what_is_looked_for(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleInvalid, match=r"configs/metadata\.json"):
        installed(tmp_path / "empty", tmp_path / "models")


def test_absent_weights_say_where_they_belong(tmp_path: Path) -> None:
    folder = make_source(tmp_path / "some")
    (folder / "models" / "model.pt").unlink()
    with pytest.raises(BundleInvalid, match=r"models/model\.pt is absent"):
        installed(folder, tmp_path / "models")
    (folder / "large_files.yml").write_text("large_files: []\n")
    with pytest.raises(BundleInvalid, match=r"large_files\.yml says where"):
        installed(folder, tmp_path / "models")


@pytest.mark.usefixtures("in_process")
def test_of_several_weights_the_configuration_or_the_user_chooses(tmp_path: Path) -> None:
    folder = make_source(tmp_path / "some", file="models/a.pt")
    saved(make_state(), folder / "models" / "b.pt")
    with pytest.raises(UsageError, match=r"models/a\.pt, models/b\.pt .* --weights"):
        installed(folder, tmp_path / "models")
    done = installed(folder, tmp_path / "models", weights="b.pt")
    assert done.card.weights[0].source == "installed:models/b.pt"
    assert any("models/a.pt is a pickle" in note for note in done.notes)
    assert not list(done.folder.rglob("*.pt"))


@pytest.mark.usefixtures("in_process")
def test_a_name_that_is_taken_is_replaced_only_when_asked_and_only_when_ours(mine: Path, tmp_path: Path) -> None:
    folder = make_source(tmp_path / "liver_and_kidney")
    with pytest.raises(UsageError, match="--replace"):
        installed(folder, mine.parent)
    installed(folder, mine.parent, replace=True)
    assert not (mine / "scripts").exists()
    (mine / "installed.json").unlink()
    with pytest.raises(UsageError, match="not replaced"):
        installed(folder, mine.parent, replace=True)
    with pytest.raises(UsageError, match="not removed"):
        remove_model(mine.parent, mine.name)
    assert not [path for path in mine.parent.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("text", "name"),
    [("Spleen CT_v0.5.9.zip", "spleen_ct"), ("wholeBody_ct_segmentation", "wholebody_ct_segmentation"), ("../..", "")],
)
def test_names_are_safe_for_a_folder(text: str, name: str) -> None:
    if name:
        assert safe_name(text) == name
    else:
        with pytest.raises(UsageError):
            safe_name(text)


@pytest.mark.parametrize("name", ["../up", "UPPER", ".hidden", "a/b", ""])
@pytest.mark.usefixtures("in_process")
def test_a_wished_name_cannot_leave_the_folder_of_models(tmp_path: Path, name: str) -> None:
    folder = make_source(tmp_path / "some")
    if name:
        with pytest.raises(UsageError, match="cannot name a model"):
            installed(folder, tmp_path / "models", name=name)
    else:
        assert installed(folder, tmp_path / "models", name=name).card.name == "some"


@pytest.mark.usefixtures("in_process")
def test_yaml_configurations_are_read_as_they_are(tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    folder = make_source(tmp_path / "some")
    path = folder / "configs" / "inference.json"
    path.with_suffix(".yaml").write_text(yaml.safe_dump(json.loads(path.read_text())))
    path.unlink()
    done = installed(folder, tmp_path / "models")
    assert done.contents.expressions == {"configs/inference.yaml": 3}
    (folder / "configs" / "inference.yaml").write_text("!!python/object/apply:os.mkdir ['owned']")
    with pytest.raises(BundleInvalid, match=r"inference\.yaml cannot be read"):
        installed(folder, tmp_path / "models", replace=True)
    assert not Path("owned").exists()


def test_without_network_the_zoo_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "_PROGRAM", "import sys; sys.exit('no route to host')")
    with (
        pytest.raises(WeightsUnavailable, match="no route to host → fetch the bundle on a machine with network"),
        zoo.fetched("monai:a==1"),
    ):
        pass
    with pytest.raises(UsageError, match="names no bundle"), zoo.fetched("monai:a;b"):
        pass


def test_the_zoo_is_waited_for_with_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "_PROGRAM", "import time; time.sleep(60)")
    began = time.monotonic()
    with pytest.raises(WeightsUnavailable, match="nothing came in"), zoo.fetched("monai:a", timeout_s=0.5):
        pass
    assert time.monotonic() - began < 30


@pytest.mark.usefixtures("in_process")
def test_what_the_zoo_gives_is_installed_under_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_source(tmp_path / "served" / "some_bundle")
    monkeypatch.setattr(zoo, "_PROGRAM", f"import shutil, sys; shutil.copytree({str(folder.parent)!r}, sys.argv[3], dirs_exist_ok=True)")
    assert installed("monai:some_bundle==0.1.0", tmp_path / "models").card.name == "some_bundle"
