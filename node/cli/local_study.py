"""A folder of DICOM files as the verbs see it: its series, the files of each, and what the rules say to them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from node.cli.common import existing_folder, say
from node.domain.instance import InstanceHeader, SeriesHeader, place_in_series
from node.domain.modelcard import ModelCard
from node.domain.routing import Route, StudyDecision, decide_study
from node.errors import CannotUnderstand, UsageError
from node.intake.headers import read_header


@dataclass(frozen=True, slots=True)
class LocalStudy:
    """The series of one study, and their files in the order of Instance Number."""

    study_instance_uid: str
    series: tuple[SeriesHeader, ...]
    files: dict[str, tuple[Path, ...]] = field(repr=False)
    """Series Instance UID → files."""

    def decide(self, routes: Sequence[Route], cards: dict[str, ModelCard]) -> StudyDecision:
        """Answers which series each route takes, and why not the others."""
        return decide_study(self.series, routes, cards)


def dicom_files(folder: Path) -> list[Path]:
    """Answers all files below a folder but hidden ones and DICOMDIR."""
    return sorted(
        path for path in existing_folder(folder).rglob("*") if path.is_file() and not path.name.startswith(".") and path.name != "DICOMDIR"
    )


def read_studies(folder: Path) -> tuple[LocalStudy, ...]:
    """Reads the headers below a folder, grouped into studies; what is no DICOM file is counted on stderr.

    Raises
    ------
    UsageError
        When there is not one DICOM file.
    """
    found: dict[str, dict[str, dict[str, tuple[InstanceHeader, Path]]]] = {}
    skipped = 0
    for path in dicom_files(folder):
        try:
            header = read_header(path)
        except CannotUnderstand:
            skipped += 1
            continue
        series = found.setdefault(header.study_instance_uid, {}).setdefault(header.series_instance_uid, {})
        series.setdefault(header.sop_instance_uid, (header, path))
    if skipped:
        say(f"{skipped} files are no DICOM instances and were passed over")
    if not found:
        raise UsageError(f"{folder} holds no DICOM files → name a folder with the images of a study")
    return tuple(_study(uid, series) for uid, series in found.items())


def read_study(folder: Path) -> LocalStudy:
    """Reads the one study below a folder; raises UsageError when there are several."""
    studies = read_studies(folder)
    if len(studies) > 1:
        raise UsageError(f"{folder} holds {len(studies)} studies → name a folder with one")
    return studies[0]


def _study(study_instance_uid: str, found: dict[str, dict[str, tuple[InstanceHeader, Path]]]) -> LocalStudy:
    ordered = {uid: sorted(instances.values(), key=lambda pair: place_in_series(pair[0])) for uid, instances in found.items()}
    return LocalStudy(
        study_instance_uid,
        tuple(SeriesHeader(uid, tuple(header for header, _ in pairs)) for uid, pairs in ordered.items()),
        {uid: tuple(path for _, path in pairs) for uid, pairs in ordered.items()},
    )
