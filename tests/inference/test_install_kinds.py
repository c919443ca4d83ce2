"""Bundles that are more than one network with one file of weights install as they are: ensembles, own loaders, prompts, several images."""

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final

import pytest
import torch

from node.errors import BundleInvalid, BundleRefused, UsageError
from node.inference.bundle import load_bundle
from node.inference.install.installer import Installation, Wishes, install
from node.inference.install.loaders import member_files, own_loader
from node.inference.recipe import read_recipe
from node.inference.state import read_state
from node.modelstore import load_card
from tests.inference.test_as_monai import ARGMAX, CONVOLUTION, SCALED, SOFTMAX
from tests.monai_reference import balanced, step, write_bundle
from tests.zoo import without_processes


@pytest.fixture(autouse=True)
def _in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    without_processes(monkeypatch)


def installed(folder: Path, models: Path, **wishes: Any) -> Installation:
    models.mkdir()
    return install(str(folder), models, Wishes(**wishes), lambda _contents, _name: "typed yes")


def loader(file: str, into: str) -> dict[str, Any]:
    return {"_target_": "CheckpointLoader", "load_path": f"$@bundle_root + '/models/{file}'", "load_dict": {"model": into}}


def test_every_network_of_an_ensemble_gets_its_own_weights(tmp_path: Path) -> None:
    networks = [balanced(1, 3, seed=seed) for seed in (1, 2)]
    folder = write_bundle(
        tmp_path / "pair",
        network=CONVOLUTION,
        states={"b.pt": networks[0].state_dict(), "a.pt": networks[1].state_dict()},
        first="$copy.deepcopy(@network_def)",
        second="$copy.deepcopy(@network_def)",
        imports=["$import copy"],
        preprocessing=[SCALED],
        postprocessing=[step("MeanEnsembled", ["one", "two"], output_key="pred"), SOFTMAX, ARGMAX],
        handlers=[loader("a.pt", "@second"), loader("b.pt", "@first")],
        evaluator={"_target_": "EnsembleEvaluator", "networks": "$[@first, @second]", "pred_keys": ["one", "two"]},
    )
    done = installed(folder, tmp_path / "models")
    state = read_state(done.folder / "models" / "model.safetensors")
    for index, network in enumerate(networks):
        assert torch.equal(state[f"networks.{index}.weight"], network.state_dict()["weight"])
    assert not list((done.folder / "models").glob("*.pt"))
    assert load_bundle(done.folder, load_card(done.folder)).recipe.as_monai is None


@pytest.mark.parametrize(
    ("evaluator", "handlers", "files"),
    [
        ({"networks": ["@b", "@a"]}, [loader("a.pt", "@a"), loader("b.pt", "@b")], ("b.pt", "a.pt")),
        ({"networks": "@nets"}, [loader("a.pt", "$@nets[1]"), loader("b.pt", "$@nets[0]")], ("b.pt", "a.pt")),
        ({"networks": "$[@a, @b]"}, [{**loader("", "@a"), "load_path": "@path"}, loader("b.pt", "@b")], ("a.pt", "b.pt")),
        ({"network": "@network"}, [loader("a.pt", "@network")], ()),
        ({}, [], ()),
    ],
)  # fmt: skip
def test_the_files_of_an_ensemble_are_found_in_the_order_of_its_networks(
    evaluator: Mapping[str, Any], handlers: list[dict[str, Any]], files: tuple[str, ...]
) -> None:
    configuration = {"evaluator": evaluator, "handlers": handlers, "nets": "$[0, 1]", "path": "$@bundle_root + '/models/a.pt'"}
    found = member_files(configuration, [PurePosixPath("models/a.pt"), PurePosixPath("models/b.pt")])
    assert tuple(name.name for name in found) == files


def test_an_ensemble_without_its_weights_says_what_is_missing() -> None:
    networks = {"evaluator": {"networks": ["@a", "@b"]}}
    with pytest.raises(BundleInvalid, match=r"several networks and 1 CheckpointLoader .* → a loader for each network"):
        member_files({**networks, "handlers": [loader("a.pt", "@a")]}, [PurePosixPath("models/a.pt")])
    with pytest.raises(BundleInvalid, match=r"/models/b.pt.* not in this bundle → put the file there"):
        member_files({**networks, "handlers": [loader("a.pt", "@a"), loader("b.pt", "@b")]}, [PurePosixPath("models/a.pt")])


OWN_LOADER: Final = """
import torch

def put(network, path):
    raw = torch.load(path, map_location="cpu", weights_only=True)
    network.load_state_dict({key.replace("model.0", "", 1).lstrip("."): value for key, value in raw.items()}, strict=True)
"""


def write_own(folder: Path, state: Mapping[str, torch.Tensor]) -> Path:
    return write_bundle(
        folder,
        network=CONVOLUTION,
        states={"model.pt": state},
        scripts={"checkpoint.py": OWN_LOADER},
        imports=["$import scripts.checkpoint as checkpoint"],
        preprocessing=[SCALED],
        postprocessing=[ARGMAX],
        handlers=[],
        initialize=["$monai.utils.set_determinism(seed=1)", "$checkpoint.put(@network, @bundle_root + '/models/model.pt')"],
    )


def test_weights_that_a_bundle_names_by_a_function_of_its_own_are_named_so(tmp_path: Path) -> None:
    network = balanced(1, 3, seed=3)
    folder = write_own(tmp_path / "own", {f"model.0.{key}": value for key, value in network.state_dict().items()})
    done = installed(folder, tmp_path / "models")
    assert torch.equal(read_state(done.folder / "models" / "model.safetensors")["weight"], network.state_dict()["weight"])
    assert "its weights are named by a function of the bundle's own" in done.notes


def test_a_function_of_its_own_that_fails_is_told(tmp_path: Path) -> None:
    with pytest.raises(BundleRefused, match="own function does not load its weights: RuntimeError"):
        installed(write_own(tmp_path / "own", {"other": torch.zeros(1)}), tmp_path / "models")


def test_monais_own_loader_is_no_function_of_the_bundle() -> None:
    steps = ["$@checkpointloader(@network, 'models/model.pt')"]
    file = PurePosixPath("models/model.pt")
    assert own_loader({"initialize": steps}, file) == "initialize::0"
    assert not own_loader({"initialize": steps, "checkpointloader": loader("model.pt", "@network")}, file)
    assert not own_loader({"initialize": ["$print(@network)"]}, file)


def test_a_draft_names_every_image_that_is_loaded_apart(tmp_path: Path) -> None:
    network = balanced(2, 2, seed=4)
    keys = ["artery", "vein"]
    folder = write_bundle(
        tmp_path / "phases",
        network={**CONVOLUTION, "in_channels": 2, "out_channels": 2},
        states={"model.pt": network.state_dict()},
        loaded=keys,
        preprocessing=[step("ConcatItemsd", keys, name="image")],
        postprocessing=[step("Invertd", "pred", transform="@preprocessing", orig_keys="artery"), ARGMAX],
    )
    done = installed(folder, tmp_path / "models")
    assert done.card.channels == ("artery", "vein")
    assert [requirement.words for requirement in done.card.inputs] == [("ARTERY*",), ("VEIN*",)]
    assert load_bundle(done.folder, load_card(done.folder)).recipe.as_monai is not None


def test_a_setting_of_the_user_is_kept_beside_the_bundle(tmp_path: Path) -> None:
    network = balanced(1, 3, seed=5)
    folder = write_bundle(
        tmp_path / "raw",
        network=CONVOLUTION,
        states={"model.pt": network.state_dict()},
        is_resampled=True,
        preprocessing=[step("Spacingd", pixdim=[2.0, 2.0, 2.0], _disabled_="@is_resampled"), SCALED],
        postprocessing=[ARGMAX],
    )
    before = (folder / "configs" / "inference.json").read_text()
    done = installed(folder, tmp_path / "models", settings={"is_resampled": False})
    assert (done.folder / "configs" / "inference.json").read_text() == before
    assert json.loads((done.folder / "configs" / "overrides.json").read_text()) == {"is_resampled": False}
    preprocessing: Any = read_recipe(done.folder).preprocessing
    assert [type(transform).__name__ for transform in preprocessing.transforms] == ["Spacingd", "ScaleIntensityRanged"]
    assert any("is_resampled is set to False" in note for note in done.notes)
    with pytest.raises(UsageError, match=r"has no resampled → it has bundle_root, "):
        installed(folder, tmp_path / "other", settings={"resampled": False})
