"""The command line answers at once: what help and `config check` import, and how long they take."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "pydicom", "pynetdicom", "monai", "highdicom", "scipy", "nibabel", "PIL")
BUDGET_S = 0.3
SLACK = 3.0
"""A shared machine may be three times slower than a quiet one; what the budget guards against is ten times slower."""

CHECK = ["config", "check", str(ROOT / "configs" / "node.toml")]

PROBE = """
import json, sys
from node.cli import main
try:
    status = main(sys.argv[1:])
except SystemExit as end:
    status = end.code
sys.stderr.write("\\n" + json.dumps({"status": status, "modules": sorted(sys.modules)}))
"""


def imported_by(arguments: list[str]) -> set[str]:
    ended = subprocess.run([sys.executable, "-c", PROBE, *arguments], capture_output=True, text=True, check=True, cwd=ROOT)
    answer = json.loads(ended.stderr.splitlines()[-1])
    assert answer["status"] in {0, None}, ended.stderr
    return set(answer["modules"])


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["job", "--help"], CHECK], ids=" ".join)
def test_help_and_config_check_import_nothing_heavy(arguments: list[str]) -> None:
    assert not [name for name in HEAVY if name in imported_by(arguments)]


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]], ids=" ".join)
def test_help_needs_neither_numpy_nor_pydantic(arguments: list[str]) -> None:
    assert not imported_by(arguments) & {"numpy", "pydantic", "structlog", "sqlite3"}


@pytest.mark.parametrize("arguments", [["--help"], CHECK], ids=["--help", "config check"])
def test_help_and_config_check_answer_at_once(arguments: list[str]) -> None:
    """Judged by the time of the processor: what else the machine does in these seconds is not the command's."""
    taken = []
    for _ in range(5):
        before_s = processor_time_of_children_s()
        subprocess.run([sys.executable, "-m", "node", *arguments], capture_output=True, check=True, cwd=ROOT)
        taken.append(processor_time_of_children_s() - before_s)
    assert min(taken) < BUDGET_S * SLACK


def processor_time_of_children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
