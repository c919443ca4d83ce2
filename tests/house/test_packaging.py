"""What is shipped, and under which names."""

import json
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import entry_points, packages_distributions, requires
from pathlib import Path

import pytest

import node
from node.domain.modelcard import ModelCard
from node.modelstore import load_cards

ROOT = Path(__file__).parents[2]
LIST_OWNERS = "import json; from importlib.metadata import packages_distributions as owners; print(json.dumps(owners()['node']))"
OUR_OWN_WEIGHTS = "models/body-ct-organs/models/net.safetensors"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


def names_in(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_nobody_else_owns_the_import_name() -> None:
    """An editable install lists no files, so there the name has no owner at all; another owner would show."""
    assert set(packages_distributions().get("node", [])) <= {"radnode"}
    assert Path(node.__file__).parent == ROOT / "node"


def test_a_real_install_owns_the_import_name(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(wheel)], check=True)
    program = "import json; from importlib.metadata import packages_distributions as p; print(json.dumps(p()['node']))"
    program = f"import sys; sys.path.insert(0, {str(target)!r}); {LIST_OWNERS}"
    said = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=True)  # no site-packages
    assert set(json.loads(said.stdout)) == {"radnode"}


def test_the_command_is_radnode_and_never_node() -> None:
    ours = [entry.name for entry in entry_points(group="console_scripts") if entry.value.startswith("node.")]
    assert ours == ["radnode"]


def test_no_gpl_decoder_is_required() -> None:
    assert not [one for one in requires("radnode") or () if "pylibjpeg-libjpeg" in one.lower()]
    assert "pylibjpeg-libjpeg" not in (ROOT / "constraints.txt").read_text(encoding="utf-8").lower()


def test_every_direct_dependency_is_constrained() -> None:
    pinned = {
        re.split(r"==", line)[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line
    }
    wanted = PROJECT["project"]["dependencies"] + PROJECT["project"]["optional-dependencies"]["dev"]
    names = {re.split(r"[\[<>=~! ]", one)[0].lower().replace("_", "-") for one in wanted} - {"radnode"}
    assert not names - pinned


def test_the_wheel_holds_node_and_nothing_else(wheel: Path) -> None:
    assert {name.split("/")[0] for name in names_in(wheel) if ".dist-info/" not in name} == {"node"}


def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    """SQL, templates and the py.typed mark as well as modules."""
    ours = {str(path.relative_to(ROOT)) for path in (ROOT / "node").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert not ours - set(names_in(wheel))
    assert {"node/py.typed", "node/journal/schema.sql"} <= set(names_in(wheel))


def test_the_wheel_carries_the_licence(wheel: Path) -> None:
    assert {Path(name).name for name in names_in(wheel) if "/licenses/" in name} == {"LICENSE", "NOTICE"}


def test_every_model_has_a_right_card_and_a_licence() -> None:
    cards = load_cards(ROOT / "models")
    assert {"brain-extraction", "brain-volumes-t1", "brain-structures-t1"} <= set(cards)
    for name, card in cards.items():
        assert isinstance(card, ModelCard)
        assert (ROOT / "models" / name / "LICENSE").is_file()
        assert (ROOT / "models" / name / "configs" / "metadata.json").is_file()


@pytest.mark.parametrize("folder", ["models", "configs", "engines"])
def test_data_folders_are_no_packages(folder: str) -> None:
    """A bundle's own `scripts/` is MONAI's convention: imported by its configuration, never by node."""
    assert not [path for path in (ROOT / folder).rglob("__init__.py") if path.parent.name != "scripts"]


def test_no_weights_but_our_own_are_in_git() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    kinds = (".safetensors", ".pt", ".pth", ".ts", ".onnx", ".engine", ".dcm", ".nii.gz")
    assert {name for name in listed if name.endswith(kinds)} <= {OUR_OWN_WEIGHTS}
