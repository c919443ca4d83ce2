"""Fixtures of the fault tests."""

from pathlib import Path

import pytest

from tests.faults.setting import prepare


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A node's folder with one scheduled job in its journal; tests work on copies."""
    folder = tmp_path_factory.mktemp("prepared")
    prepare(folder)
    return folder
