"""`radnode model`: a bundle is installed by a person who trusts it, confirmed by one who has looked, and serves no route before."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from node.app import require_confirmed_models
from node.cli import main
from node.codes import ExitCode
from node.config import load_config
from node.dispatcher import usable_cards
from node.errors import ConfigError
from tests.factories import make_ct_series
from tests.zoo import make_source, without_processes

Command = Callable[..., tuple[int, str, str]]

CONFIGURATION = """
[node]
ae_title = "RADNODE"
state_dir = "state"
models_dir = "models"

[study_complete]

[peers.pacs]
ae_title = "PACS"
host = "127.0.0.1"
port = 104

[[routes]]
name = "livers"
model = "liver_and_kidney"
deliver_to = ["pacs"]
"""
WITHOUT_ROUTES = CONFIGURATION.partition("[[routes]]")[0]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    without_processes(monkeypatch)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "node.toml").write_text(WITHOUT_ROUTES)
    make_source(tmp_path / "liver_and_kidney")
    return tmp_path


@pytest.fixture
def radnode(place: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main([*map(str, words), "--config", str(place / "node.toml")])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bundle_goes_the_whole_way_of_install_try_confirm_serve_and_remove(place: Path, radnode: Command) -> None:
    status, out, err = radnode("model", "install", "./liver_and_kidney", "--trust")
    assert status == ExitCode.OK
    assert "3 expressions of Python" in err
    assert "radnode model confirm liver_and_kidney" in out
    assert "DRAFT Liver and kidney" in radnode("model", "list")[1]
    shown = radnode("model", "show", "liver_and_kidney")[1]
    assert "A DRAFT" in shown
    assert "64033007 SCT Kidney left" in " ".join(shown.split())
    assert "trusted by --trust: 3 expressions" in " ".join(shown.split())
    assert json.loads(radnode("model", "show", "liver_and_kidney", "--json")[1])["installed"]["origin"] == "liver_and_kidney"
    assert radnode("model", "verify")[0] == ExitCode.OK

    make_ct_series(place / "ct", slices=8, rows=16, columns=16)
    assert "taken by" in radnode("explain", "ct", "--model", "liver_and_kidney")[1]
    assert radnode("run", "ct", "--model", "liver_and_kidney", "-o", "out")[0] == ExitCode.OK
    assert "DRAFT Liver and kidney" in (place / "out" / "report.html").read_text()

    (place / "node.toml").write_text(CONFIGURATION)
    config = load_config(place / "node.toml")
    assert not usable_cards(config)
    with pytest.raises(ConfigError, match=r"route livers: .* is a draft.* → radnode model confirm liver_and_kidney"):
        require_confirmed_models(config)
    assert radnode("serve")[0] == ExitCode.CONFIG
    status, _, err = radnode("config", "check")
    assert status == ExitCode.CONFIG
    line = CONFIGURATION[: CONFIGURATION.index('model = "liver_and_kidney"')].count("\n") + 1
    assert f"node.toml:{line}: routes.0.model: the card of liver_and_kidney is a draft" in err
    assert "→ radnode model confirm liver_and_kidney" in err

    assert radnode("model", "confirm", "liver_and_kidney", "--yes")[0] == ExitCode.OK
    assert list(usable_cards(config)) == ["liver_and_kidney"]
    require_confirmed_models(config)
    assert radnode("config", "check")[0] == ExitCode.OK
    assert "DRAFT" not in radnode("model", "show", "liver_and_kidney")[1]

    status, _, err = radnode("model", "remove", "liver_and_kidney", "--yes")
    assert status == ExitCode.USAGE
    assert "route livers names liver_and_kidney" in err
    (place / "node.toml").write_text(WITHOUT_ROUTES)
    assert radnode("model", "remove", "liver_and_kidney", "--yes")[0] == ExitCode.OK
    assert not list((place / "models").iterdir())


def test_without_a_terminal_trust_has_to_be_said(place: Path, radnode: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("yes\n"))
    status, _, err = radnode("model", "install", "./liver_and_kidney")
    assert status == ExitCode.FAILED
    assert "--trust" in err
    assert not list((place / "models").iterdir())


@pytest.mark.parametrize(
    ("typed", "status"), [("yes\n", ExitCode.OK), ("y\n", ExitCode.FAILED), ("\n", ExitCode.FAILED), ("", ExitCode.FAILED)]
)
def test_trust_is_a_typed_yes(place: Path, radnode: Command, monkeypatch: pytest.MonkeyPatch, typed: str, status: ExitCode) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal(typed))
    assert radnode("model", "install", "./liver_and_kidney")[0] == status
    assert bool(list((place / "models").iterdir())) == (status == ExitCode.OK)


def test_confirming_shows_the_codes_and_asks(place: Path, radnode: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = place / "liver_and_kidney" / "configs" / "metadata.json"
    metadata.write_text(metadata.read_text().replace("left kidney", "something odd"))
    out = radnode("model", "install", "./liver_and_kidney", "--trust")[1]
    assert "no code is known for 'something odd'" in out
    monkeypatch.setattr(sys, "stdin", Terminal("no\n"))
    status, out, err = radnode("model", "confirm", "liver_and_kidney")
    assert status == ExitCode.FAILED
    assert "10200004 SCT Liver" in out
    assert "no code of a standard: SOMETHING_ODD 99RADNODE" in out
    assert "stays a draft" in err
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert radnode("model", "confirm", "liver_and_kidney")[0] == ExitCode.USAGE


def test_a_changed_script_is_found_and_not_run(place: Path, radnode: Command) -> None:
    radnode("model", "install", "./liver_and_kidney", "--trust")
    configuration = place / "models" / "liver_and_kidney" / "configs" / "inference.json"
    configuration.write_text(configuration.read_text().replace("import os", "import os, socket"))
    status, out, err = radnode("model", "verify", "liver_and_kidney")
    assert status == ExitCode.FAILED
    assert "configs/inference.json    has changed" in out
    assert "--replace" in err
    make_ct_series(place / "ct", slices=8, rows=16, columns=16)
    status, _, err = radnode("run", "ct", "--model", "liver_and_kidney", "-o", "out")
    assert status == ExitCode.FAILED
    assert "is not as it was trusted" in err


def test_an_installation_that_broke_off_is_no_model(place: Path, radnode: Command) -> None:
    radnode("model", "install", "./liver_and_kidney", "--trust")
    (place / "models" / "liver_and_kidney").rename(place / "models" / ".installing-liver_and_kidney-1")
    assert radnode("model", "list")[0] == ExitCode.OK
    assert "models here: none" in radnode("model", "show", "liver_and_kidney")[2]
