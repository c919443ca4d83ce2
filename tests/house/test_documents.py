"""What the documents say can be done, can be done."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from node.cli import build_parser
from node.domain.states import TRANSITIONS

ROOT = Path(__file__).parents[2]
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "ARCHITECTURE.md",
    "models/CARD.md",
    "docs/how-to/disk-and-journal.md",
    "docs/how-to/results.md",
    "docs/how-to/models.md",
    "docs/how-to/stow.md",
    "docs/explanation/promises.md",
    "docs/explanation/performance.md",
    "docs/explanation/limits.md",
)
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def code_of(name: str) -> list[str]:
    """Lines of shell blocks, and every inline code that starts with a command."""
    text = (ROOT / name).read_text(encoding="utf-8")
    blocks = [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return [line.split("#")[0].strip() for line in blocks + inline]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_make_target_of_the_document_exists(name: str) -> None:
    named = {found for line in code_of(name) for found in re.findall(r"^make ([a-z]+)", line)}
    assert not named - TARGETS


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_radnode_command_of_the_document_is_understood(name: str) -> None:
    for line in code_of(name):
        if re.match(r"radnode [a-z]", line) and "|" not in line:
            words = shlex.split(line)[1:]
            if words == [word for word in words if re.fullmatch(r"[a-z]+", word)] and len(words) <= 2:
                words.append("--help")  # the name of a verb, not a whole command
            assert understands(words), line


def understands(words: list[str]) -> bool:
    try:
        build_parser().parse_args(words)
    except SystemExit as end:
        return end.code == 0
    return True


def test_the_readme_names_the_two_commands_and_ci_runs_the_second() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "make demo" in readme
    assert "make test" in readme
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert re.findall(r"make \w+", script) == ["make test"]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_file_that_a_document_names_exists(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:node|tests|configs|models|docs|scripts|engines)/[\w./-]+\.\w+)`", text))
    assert not [path for path in named if not (ROOT / path).exists()]


def test_the_generated_pages_are_up_to_date() -> None:
    ended = subprocess.run([sys.executable, "scripts/write_docs.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_the_changelog_knows_the_version() -> None:
    from node import __version__

    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_architecture_is_short_and_names_a_test_for_every_promise() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300
    for promise in ("P1", "P2", "P3", "P4"):
        (row,) = [line for line in text.splitlines() if line.startswith(f"| **{promise}")]
        named = re.findall(r"`(tests/[\w/.]+\.py)`", row)
        assert named, f"no test proves {promise}"
        assert not [path for path in named if not (ROOT / path).is_file()]


def test_the_diagram_of_states_has_every_step_of_the_table() -> None:
    page = (ROOT / "docs" / "reference" / "states.md").read_text(encoding="utf-8")
    steps = sum(len(after) for kind in TRANSITIONS.values() for after in kind.values())
    assert page.count(" --> ") == steps + len(TRANSITIONS), "and one arrow of birth for each kind"
