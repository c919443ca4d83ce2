"""`radnode check`: the conformance gate for anybody's results."""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from node.cli.common import Verbs, add_json, print_json, say
from node.codes import ExitCode
from node.errors import UsageError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


def register(verbs: Verbs) -> None:
    """Adds the verb."""
    parser = verbs.add_parser(
        "check",
        help="examine SEG and SR, anybody's: what is against the standard, or against their source images",
        description="Examines DICOM results, whoever made them: each file by itself, reports with the segmentations that they refer to, "
        "and, with --sources, both with the images that they were made from. Patient data is not printed. Exit code 1 on an error.",
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="FILE", help="results: files, or folders of them")
    parser.add_argument("--sources", nargs="+", type=Path, default=[], metavar="PATH", help="the source images: files or folders")
    parser.add_argument("--strict", action="store_true", help="exit code 1 also on warnings")
    add_json(parser)
    parser.set_defaults(act=_check)


def _check(arguments: argparse.Namespace) -> int:
    from node.evidence.gate import Severity, examine_set

    objects = dict(_read(arguments.paths, whole=True))
    if not objects:
        raise UsageError("none of these is a DICOM file → name SEG or SR files, or a folder of them")
    sources = [header for _, header in _read(arguments.sources, whole=False)]
    if arguments.sources and not sources:
        raise UsageError("there is no DICOM image among the sources → name the folder of the source images")
    found = examine_set(list(objects.values()), sources)
    faults = {path: [fault for holder, fault in found if holder is dataset] for path, dataset in objects.items()}
    if arguments.json:
        print_json([{"file": path, "sop_class": _class_of(objects[path]), "faults": told} for path, told in faults.items()])
    else:
        for path, told in faults.items():
            errors = sum(fault.severity is Severity.ERROR for fault in told)
            verdict = f"{errors} errors, {len(told) - errors} warnings" if told else "nothing is wrong"
            print(f"{path}: {_class_of(objects[path])}: {verdict}")
            for fault in told:
                print(f"  {fault.severity:<8} {fault}")
        if not sources:
            say("not compared with source images: name them with --sources")
    grave = [fault for _, fault in found if arguments.strict or fault.severity is Severity.ERROR]
    return ExitCode.FAILED if grave else ExitCode.OK


def _class_of(dataset: "Dataset") -> str:
    from pydicom.uid import UID

    return UID(str(dataset.get("SOPClassUID") or "")).name or "no SOP class"


def _read(paths: Sequence[Path], *, whole: bool) -> Iterable[tuple[Path, "Dataset"]]:
    """Answers the DICOM files among and below `paths`; what is none is told on stderr, by its name alone."""
    from pydicom import dcmread

    for path in _files(paths):
        try:
            dataset = dcmread(path, stop_before_pixels=not whole)
            dataset.get("SOPClassUID")
        except Exception as error:  # noqa: BLE001 - pydicom raises whatever its parsers meet in a file that is no DICOM
            say(f"skipped {path}: not a DICOM file ({type(error).__name__})")
            continue
        yield path, dataset


def _files(paths: Sequence[Path]) -> Iterable[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(one for one in path.rglob("*") if one.is_file())
        elif path.is_file():
            yield path
        else:
            raise UsageError(f"there is no file {path}")
