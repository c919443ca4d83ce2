"""What comes before every test module, and how workers (`pytest -n auto`) share the tests: whole files, the longest first."""

import logging
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
import structlog
from hypothesis import settings

from tests.torchvision_ops import declare_missing_operators

declare_missing_operators()  # before any test module imports MONAI

TESTS: Final = Path(__file__).resolve().parent

settings.register_profile("same", derandomize=True)
settings.register_profile("explore", print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))
"""A change is judged by the same examples everywhere; `make explore` looks for new ones, and what it finds becomes an `@example`."""

LONGEST_FIRST: Final = (
    "faults/test_soak.py",
    "acceptance/test_real_studies.py",
    "conformance/test_matrix.py",
    "faults/test_anomalies.py",
    "acceptance/test_main_path.py",
    "acceptance/test_cli.py",
    "integration/test_intake_abuse.py",
    "viewers/test_ohif.py",
    "acceptance/test_cli_demo.py",
    "viewers/test_read_back.py",
    "integration/test_housekeeper.py",
)
"""By measured seconds: one of these begun last would keep one worker busy when the others have nothing left to do."""

MOST_WORKERS: Final = 8


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Answers how many workers `-n auto` starts: many a test waits for the network, so there is one more than cores."""
    return min(len(os.sched_getaffinity(0)) + 1, MOST_WORKERS)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Puts the longest files first where workers share the tests; alone, the order stays that of the folders."""
    if not hasattr(config, "workerinput"):
        return
    rank = {TESTS / name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """Takes back what a command run in this process has set up: its log goes to a captured stderr that ends with the test."""
    hooks = (sys.excepthook, threading.excepthook)
    yield
    if (sys.excepthook, threading.excepthook) != hooks:
        sys.excepthook, threading.excepthook = hooks
        logging.captureWarnings(capture=False)
        root = logging.getLogger()
        root.handlers = [handler for handler in root.handlers if not type(handler).__module__.startswith("node.")]
        structlog.reset_defaults()
