"""Weights are what the card names, or they are not installed and not loaded."""

import hashlib
from pathlib import Path

import pytest

from node.errors import WeightsMismatch, WeightsMissing, WeightsUnavailable
from node.inference.weights import install_weights, require_weights, verify_weights
from node.modelstore import load_card
from tests.bundles import make_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "models")


def test_weights_of_the_card_are_right(bundle: Path) -> None:
    card = load_card(bundle)
    require_weights(card, bundle)
    assert [state.fault for state in verify_weights(card, bundle)] == [""]


def test_one_changed_bit_is_refused(bundle: Path) -> None:
    path = bundle / "models" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsMismatch, match="radnode model install thresholds"):
        require_weights(load_card(bundle), bundle)


def test_absent_weights_say_what_to_do(bundle: Path) -> None:
    (bundle / "models" / "model.safetensors").unlink()
    with pytest.raises(WeightsMissing, match="radnode model install thresholds"):
        require_weights(load_card(bundle), bundle)


@pytest.mark.parametrize("as_folder", [True, False])
def test_a_users_file_is_installed_when_it_is_the_right_one(bundle: Path, tmp_path: Path, as_folder: bool) -> None:
    there = bundle / "models" / "model.safetensors"
    mine = tmp_path / "stick" / "model.safetensors"
    mine.parent.mkdir()
    there.rename(mine)
    lines: list[str] = []
    install_weights(load_card(bundle), bundle, origin=mine.parent if as_folder else mine, progress=lines.append)
    require_weights(load_card(bundle), bundle)
    assert "installed" in lines[-1]


def test_a_wrong_file_is_not_put_into_place(bundle: Path, tmp_path: Path) -> None:
    there = bundle / "models" / "model.safetensors"
    there.unlink()
    wrong = tmp_path / "wrong.safetensors"
    wrong.write_bytes(b"something else")
    with pytest.raises(WeightsMismatch, match=hashlib.sha256(b"something else").hexdigest()):
        install_weights(load_card(bundle), bundle, origin=wrong)
    assert not there.exists()


def test_only_https_is_fetched(bundle: Path) -> None:
    (bundle / "models" / "model.safetensors").unlink()
    card = bundle / "card.toml"
    card.write_text(card.read_text().replace("https://example.invalid/none", "file:///etc/passwd"))
    with pytest.raises(WeightsUnavailable, match="only https"):
        install_weights(load_card(bundle), bundle)


def test_what_is_right_is_not_fetched_again(bundle: Path) -> None:
    lines: list[str] = []
    install_weights(load_card(bundle), bundle, progress=lines.append)
    assert lines == [line for line in lines if "in place" in line]
    assert len(lines) == 1


def test_weights_of_the_bundle_itself_are_checked_and_never_fetched(bundle: Path) -> None:
    card = bundle / "card.toml"
    card.write_text(card.read_text().replace("https://example.invalid/none", "bundled"))
    install_weights(load_card(bundle), bundle)
    require_weights(load_card(bundle), bundle)
    (bundle / "models" / "model.safetensors").write_bytes(b"something else")
    with pytest.raises(WeightsUnavailable, match=r"comes with the bundle.*--from FILE"):
        install_weights(load_card(bundle), bundle)
