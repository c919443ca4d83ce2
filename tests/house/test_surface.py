"""Public surfaces: the names that a package offers are those it means to offer, and they exist."""

import importlib
import pkgutil

import pytest

import node

SURFACES = {
    "node.cli": {"build_parser", "main"},
    "node.evidence.gate": {"Fault", "Severity", "examine_object", "examine_set"},
    "node.journal": {
        "CommitmentJournal", "DeliveryRecord", "EvidenceRecord", "InstanceRecord", "JobEnd", "JobJournal", "JobRecord", "JournalUnusable", "NewJob",
        "OutboxJournal", "ReceivedInstance", "ReceivedJournal", "Reception", "Recorded", "SeriesRecord", "StudyRecord", "TransitionRecord",
        "journal_path", "open_database", "transaction",
    },
}  # fmt: skip
"""Changing one of these is a decision: change it here too."""

PACKAGES = [info.name for info in pkgutil.walk_packages(node.__path__, "node.") if info.ispkg]


@pytest.mark.parametrize("package", PACKAGES)
def test_what_a_package_offers_is_pinned_and_exists(package: str) -> None:
    module = importlib.import_module(package)
    offered = getattr(module, "__all__", None)
    if offered is None:
        assert package not in SURFACES
        return
    assert set(offered) == SURFACES.get(package), f"__all__ of {package} is not the surface that this test pins"
    assert not [name for name in offered if not hasattr(module, name)]
