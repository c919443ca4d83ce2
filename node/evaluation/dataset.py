"""A folder of cases with their truth.

DIR/CASE/…          images of one study, and what is true: a DICOM SEG, or a NIfTI label map with the card's label values
DIR/answers.csv     for classifiers:  case,answer[,question]       answer: a label of the card; for yes or no: yes, no
DIR/lesions.csv     for detectors:    case,x_mm,y_mm,z_mm,diameter_mm[,label]      LPS, as Image Position (Patient)
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from node.domain.instance import InstanceHeader, SeriesHeader, group_into_series, place_in_series
from node.domain.modelcard import ModelCard
from node.domain.routing import Route, decide_study
from node.errors import CannotUnderstand, UsageError
from node.intake.headers import read_header

ANSWERS: Final = "answers.csv"
LESIONS: Final = "lesions.csv"

_NIFTI: Final = (".nii", ".nii.gz")


@dataclass(frozen=True, slots=True)
class Lesion:
    """Something that is there, in the patient (LPS)."""

    centre_mm: tuple[float, float, float]
    diameter_mm: float
    label: str = ""


@dataclass(frozen=True, slots=True)
class Case:
    """A study with its truth."""

    name: str
    files: tuple[Path, ...]
    """Of the series that the model takes; () where it takes none."""
    declined: str = ""
    """Why it takes none."""
    reference: Path | None = None
    """A label map."""
    answers: Mapping[str, str] = field(default_factory=dict)
    """Question ('' for the only one) → the true answer."""
    lesions: tuple[Lesion, ...] | None = None


def read_dataset(folder: Path, card: ModelCard) -> tuple[Case, ...]:
    """Answers the cases of a folder, by name.

    Raises
    ------
    UsageError
        When the folder holds none, a table is malformed, or names cases that are not there.
    """
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder} → name one with a folder for each case")
    answers = _table(folder / ANSWERS, ("case", "answer"))
    lesions = _table(folder / LESIONS, ("case", "x_mm", "y_mm", "z_mm", "diameter_mm"))
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    unknown = {row["case"] for row in (*(answers or ()), *(lesions or ()))} - set(names)
    if not names or unknown:
        what = f"has no folder for the case(s) {', '.join(sorted(unknown))}" if unknown else "holds no folders: one for each case is wanted"
        raise UsageError(f"{folder} {what}")
    for row in answers or ():
        _require_answer(row, card)
    return tuple(_case(folder / name, card, answers, lesions) for name in names)


def _require_answer(row: Mapping[str, str], card: ModelCard) -> None:
    """Refuses an answer that the card does not know, before an hour of networks has run."""
    asked = [one for one in card.evaluations if row.get("question") in (None, "", one.concept.meaning)]
    known = [label for one in asked for label in ([a.label for a in one.answers] if len(one.answers) > 1 else ["yes", "no"])]
    if row["answer"].casefold() not in {label.casefold() for label in known}:
        raise UsageError(
            f"{ANSWERS}: case {row['case']} has the answer {row['answer']!r} → one of {', '.join(known) or 'none: the card asks nothing'}"
        )


def _case(folder: Path, card: ModelCard, answers: Sequence[Mapping[str, str]] | None, lesions: Sequence[Mapping[str, str]] | None) -> Case:
    series, path_of, references = _read(folder)
    if len(references) > 1:
        raise UsageError(f"{folder} holds {len(references)} label maps → leave the one that is true")
    name = folder.name
    decision = decide_study(series, [Route("evaluate", {}, card.name, ())], {card.name: card})
    files: tuple[Path, ...] = ()
    declined = ""
    if decision.selections:
        chosen = decision.selections[0].series_instance_uids
        files = tuple(
            path_of[instance.sop_instance_uid]
            for one in series
            if one.series_instance_uid in chosen
            for instance in sorted(one.instances, key=place_in_series)
        )
    else:
        reasons = dict.fromkeys(decision.reason_for(one.series_instance_uid) for one in series)
        declined = "; ".join(reasons) or "there are no DICOM images"
    return Case(
        name=name,
        files=files,
        declined=declined,
        reference=references[0] if references else None,
        answers={row.get("question") or "": row["answer"] for row in answers or () if row["case"] == name},
        lesions=None if lesions is None else tuple(_lesion(row) for row in lesions if row["case"] == name),
    )


def _read(folder: Path) -> tuple[tuple[SeriesHeader, ...], dict[str, Path], list[Path]]:
    """Answers the series of images below a folder, the file of each instance, and the label maps."""
    headers: list[InstanceHeader] = []
    path_of: dict[str, Path] = {}
    references: list[Path] = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")):
        if path.name.endswith(_NIFTI):
            references.append(path)
            continue
        try:
            header = read_header(path)
        except CannotUnderstand:
            continue  # notes, DICOMDIR: a folder of cases may hold them
        if header.text("Modality") == "SEG":
            references.append(path)
            continue
        headers.append(header)
        path_of.setdefault(header.sop_instance_uid, path)
    return group_into_series(headers), path_of, references


def _table(path: Path, needed: Sequence[str]) -> list[Mapping[str, str]] | None:
    """Answers the rows of a table, None where there is none."""
    if not path.is_file():
        return None
    with path.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream, skipinitialspace=True)
        missing = [name for name in needed if name not in (reader.fieldnames or ())]
        if missing:
            raise UsageError(f"{path} lacks the column(s) {', '.join(missing)} → its first line is {','.join(needed)}")
        return [{key: (value or "").strip() for key, value in row.items() if key is not None} for row in reader]


def _lesion(row: Mapping[str, str]) -> Lesion:
    try:
        centre = (float(row["x_mm"]), float(row["y_mm"]), float(row["z_mm"]))
        diameter_mm = float(row["diameter_mm"])
    except ValueError as error:
        raise UsageError(f"{LESIONS}: case {row['case']} has a value that is no number") from error
    return Lesion(centre, diameter_mm, row.get("label") or "")
