"""Other people's validators, and one of ours over the tables of the standard: each answers the faults it finds, best none.

A validator that is not installed skips the test with the reason. What is filtered away is said beside the filter, with why.
"""

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import pydicom
import pytest
from highdicom._standard_utils import get_iod_module_map, get_module_attribute_map, get_sop_class_iod_map
from numpy.typing import NDArray
from pydicom.datadict import keyword_for_tag
from pydicom.dataset import Dataset

TIMEOUT_S: Final = 240

_DCIODVFY_FALSE: Final = re.compile(
    r"ContributingEquipmentSequence.*DeviceUID"  # in the standard since 2023, in Debian's tables not yet
    r"|CodingSchemeDesignator.*Unrecognized defined term = <99"  # private schemes of the site or the model are legal
    r"|OtherPatientIDs.*(Retired attribute|not present in standard)"  # the source has it: so have we
    r"|Unrecognized defined term = <QUANTITY>"
    r"|build DICOMDIR"
)
_RETIRED_BUT_SENT: Final = {"OtherPatientIDs", "EthnicGroup"}
"""Retired of late: scanners write them, and results must agree with the patient's other objects."""

_PIXELMED_JARS: Final = tuple(
    Path("/usr/share/java") / name for name in ("pixelmed.jar", "hsqldb.jar", "vecmath.jar", "slf4j-api.jar", "slf4j-nop.jar")
)
_JAVA: Final = (
    "java",
    "-Djdk.xml.xpathExprOpLimit=0",
    "-Djdk.xml.xpathTotalOpLimit=0",
    "-Djdk.xml.xpathExprGrpLimit=0",
    "-Xmx3g",
    "-Xss64m",
    "-XX:TieredStopAtLevel=1",
    "-cp",
    ":".join(str(jar) for jar in _PIXELMED_JARS),
)
_VALIDATE: Final = Path(__file__).parent / "java" / "Validate.java"
_MAIN_CLASSES: Final = {"report": "com.pixelmed.validate.DicomSRValidator", "instance": "com.pixelmed.validate.DicomInstanceValidator"}
_PIXELMED_FALSE: Final = re.compile(
    r"GeneralSeriesModule/Laterality"  # wanted even of a head
    r"|PatientOrientation: Incorrect value multiplicity - got 2"  # it has two values (PS3.3 C.7.6.1)
    # Of frames without a place it wants Derivation Image shared and in each frame, which it calls wrong elsewhere
    r"|DerivationImageSequence/: SharedFunctionalGroupsSequence/Item\[1\]/: Missing required sequence attribute"
)
_GROUP_ERROR: Final = re.compile(r"^Error: Template (\d+) .*?(?:within |: )(1(?:\.\d+)+): ")


def tool(name: str) -> str:
    """Answers the path of a program, ours or the system's, or skips the test."""
    beside_python = Path(sys.executable).parent / name
    path = str(beside_python) if beside_python.exists() else shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def _run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in command]
    return subprocess.run(words, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S, check=False)


# ── dicom3tools, DCMTK ──────────────────────────────────────────────────────


def iod_faults(path: Path) -> list[str]:
    """V1: dciodvfy, every error and warning but the known false ones."""
    done = _run(tool("dciodvfy"), "-new", path)
    lines = (done.stdout + done.stderr).splitlines()
    return [line for line in lines if line.startswith(("Error", "Warning")) and not _DCIODVFY_FALSE.search(line)]


def of_each(validate: Callable[[Path], list[str]], paths: Iterable[Path]) -> dict[Path, list[str]]:
    """Answers the faults of the files that have some, with a process for each core at a time."""
    paths = list(paths)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return {path: faults for path, faults in zip(paths, pool.map(validate, paths), strict=True) if faults}


def consistency_faults(paths: Iterable[Path]) -> list[str]:
    """V2: dcentvfy, over the results with their sources: one patient, one study, one frame of reference."""
    done = _run(tool("dcentvfy"), *paths)
    return [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]


def tree_faults(path: Path) -> list[str]:
    """V3: dsrdump in its strict mode; its complaint about UTF-8 is about itself."""
    done = _run(tool("dsrdump"), "-q", path)
    faults = [line for line in done.stderr.splitlines() if line.startswith(("E:", "F:"))]
    return faults if done.returncode == 0 else [*faults, f"dsrdump ends with {done.returncode}"]


def tree_faults_of(paths: Iterable[Path]) -> list[str]:
    """V3: dsrdump over many files."""
    done = _run(tool("dsrdump"), "-q", *paths)
    return [line for line in done.stderr.splitlines() if line.startswith(("E:", "F:"))]


def presentation_faults(path: Path) -> list[str]:
    """V3: dcmpschk, over a presentation state."""
    done = _run(tool("dcmpschk"), path)
    told = done.stdout + done.stderr
    faults = [line for line in told.splitlines() if line.startswith("E:") or "Error" in line]
    return faults if "Test passed" in told else [*faults, f"dcmpschk does not say that it passed: {done.stderr}"]


def html_of(path: Path, target: Path) -> str:
    """Answers what dsr2html makes of a report."""
    done = _run(tool("dsr2html"), path, target)
    assert done.returncode == 0, done.stderr
    return target.read_text(encoding="utf-8", errors="replace")


# ── PixelMed ────────────────────────────────────────────────────────────────


def template_faults(path: Path) -> list[str]:
    """V4: PixelMed's template checker, on one report."""
    return template_faults_of([path])[path]


def template_faults_of(paths: Sequence[Path]) -> dict[Path, list[str]]:
    """V4: PixelMed's template checker.

    It applies TID 1410, 1411 and 1501 to every group: an error counts only where the group says it follows that template.
    Procedure Reported takes codes of the site: CID 100 is extensible.
    """
    return {path: _template_faults(path, output) for path, output in _pixelmed("report", paths).items()}


def _template_faults(path: Path, output: str) -> list[str]:
    report = pydicom.dcmread(path)
    assert "Found Root Template TID_1500" in output, output
    faults = []
    for line in output.splitlines():
        if not line.startswith("Error") or "not found in context group 100" in line:
            continue
        match = _GROUP_ERROR.match(line)
        if match and match[1] in {"1410", "1411", "1501"} and _template_at(report, match[2]) not in {match[1], None}:
            continue
        faults.append(line)
    return faults


def instance_faults(path: Path) -> list[str]:
    """V4: PixelMed's IOD checker, on one object."""
    return instance_faults_of([path])[path]


def instance_faults_of(paths: Sequence[Path]) -> dict[Path, list[str]]:
    """V4: PixelMed's IOD checker, every error but the known false ones."""
    return {path: _instance_faults(output) for path, output in _pixelmed("instance", paths).items()}


def _instance_faults(output: str) -> list[str]:
    assert "IOD validation complete" in output, output
    return [line for line in output.splitlines() if line.startswith("Error") and not _PIXELMED_FALSE.search(line)]


def _pixelmed(kind: str, paths: Sequence[Path]) -> dict[Path, str]:
    """Answers what PixelMed says of each file. A JDK judges all of them in one process; a JRE alone needs one for each."""
    missing = [jar.name for jar in _PIXELMED_JARS if not jar.exists()]
    if missing:
        pytest.skip(f"libpixelmed-java is not installed ({', '.join(missing)} absent)")
    tool("java")
    if not _has_compiler():
        return {path: _run(*_JAVA, _MAIN_CLASSES[kind], path).stdout for path in paths}
    done = _run(*_JAVA, _VALIDATE, kind, *paths)
    assert done.returncode == 0, done.stderr
    said = re.split(r"^=== (.*)$", done.stdout, flags=re.MULTILINE)[1:]
    told = {Path(name): output for name, output in zip(said[::2], said[1::2], strict=True)}
    assert list(told) == list(paths)
    return told


@cache
def _has_compiler() -> bool:
    return "jdk.compiler" in _run("java", "--list-modules").stdout


def _template_at(report: Dataset, path: str) -> str | None:
    """Answers the template that the content item at a path such as 1.8.2 says it follows; None where it names none."""
    item = report
    for number in path.split(".")[1:]:
        items = item.get("ContentSequence") or []
        if int(number) > len(items):
            return None
        item = items[int(number) - 1]
    templates = item.get("ContentTemplateSequence")
    return str(templates[0].TemplateIdentifier) if templates else None


# ── the tables of the standard ──────────────────────────────────────────────


def presence_faults(path: Path) -> list[str]:
    """V5: every type 1 and 2 attribute of the mandatory modules is there, every attribute belongs to the IOD (2026b tables)."""
    dataset = pydicom.dcmread(path)
    required, known = _iod(str(dataset.SOPClassUID))
    keywords = (keyword_for_tag(tag) for tag in dataset.keys())  # noqa: SIM118 - a Dataset iterates over converted elements
    faults = [f"{keyword} belongs to no module of the IOD" for keyword in keywords if keyword and keyword not in known]
    for where, attributes in required.items():
        for parent in _parents(dataset, where):
            for keyword, kind, module in attributes:
                name = f"{module}: {'.'.join([*where, keyword])}"
                if keyword not in parent:
                    faults.append(f"{name} is absent (type {kind})")
                elif kind == "1" and parent[keyword].is_empty:
                    faults.append(f"{name} is empty (type 1)")
    return faults


@cache
def _iod(sop_class_uid: str) -> tuple[dict[tuple[str, ...], list[tuple[str, str, str]]], set[str]]:
    """Answers what an IOD requires, path of sequences → (keyword, type, module), and the keywords that it knows."""
    modules = get_iod_module_map()[get_sop_class_iod_map()[sop_class_uid]]
    attributes = get_module_attribute_map()
    required: dict[tuple[str, ...], list[tuple[str, str, str]]] = {}
    for module in modules:
        if module["usage"] != "M" or "functional-groups" in module["key"] or module["key"] == "sr-document-content":
            continue
        for attribute in attributes[module["key"]]:
            if attribute["type"] in {"1", "2"}:
                required.setdefault(tuple(attribute["path"]), []).append((attribute["keyword"], attribute["type"], module["key"]))
    return required, _RETIRED_BUT_SENT | {a["keyword"] for module in modules for a in attributes[module["key"]] if not a["path"]}


def _parents(dataset: Dataset, path: Sequence[str]) -> Iterator[Dataset]:
    if not path:
        yield dataset
        return
    for item in dataset.get(path[0]) or []:
        yield from _parents(item, path[1:])


# ── dcmqi ───────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class DecodedSegment:
    """A segment as dcmqi reads it: `voxels[k, j, i]` lies at `patient_from_index @ (i, j, k, 1)`, LPS mm."""

    number: int
    voxels: NDArray[np.bool_]
    patient_from_index: NDArray[np.float64]


def decoded_segments(path: Path, folder: Path) -> list[DecodedSegment]:
    """V6: what dcmqi's segimage2itkimage makes of a SEG."""
    folder.mkdir(exist_ok=True)
    done = _run(tool("segimage2itkimage"), "--inputDICOM", path, "--outputDirectory", folder, "--prefix", "s", "--outputType", "nrrd")
    assert done.returncode == 0, done.stdout + done.stderr
    meta = json.loads((folder / "s-meta.json").read_text(encoding="utf-8"))
    segments = []
    for index, group in enumerate(meta["segmentAttributes"], start=1):
        array, patient_from_index = read_nrrd(folder / f"s-{index}.nrrd")
        for segment in group:
            segments.append(DecodedSegment(segment["labelID"], array == segment["labelID"], patient_from_index))
    return segments


def read_nrrd(path: Path) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Answers array[k, j, i] and the 4x4 matrix from (i, j, k, 1) to LPS mm of a NRRD file."""
    head, _, body = path.read_bytes().partition(b"\n\n")
    fields = dict(re.findall(r"^([\w ]+): (.*)$", head.decode("ascii"), flags=re.MULTILINE))
    assert fields["space"] == "left-posterior-superior"
    types = {"short": "<i2", "unsigned char": "u1", "unsigned short": "<u2"}
    sizes = [int(size) for size in fields["sizes"].split()]
    raw = gzip.decompress(body) if fields["encoding"] == "gzip" else body
    array = np.frombuffer(raw, dtype=types[fields["type"]]).reshape(sizes[::-1]).astype(np.int64)
    matrix = np.eye(4)
    for column, vector in enumerate(re.findall(r"\(([^)]*)\)", fields["space directions"])):
        matrix[:3, column] = [float(part) for part in vector.split(",")]
    matrix[:3, 3] = [float(part) for part in fields["space origin"].strip("()").split(",")]
    return array, matrix


def read_report(path: Path, target: Path) -> dict[str, Any]:
    """V7: what dcmqi's tid1500reader makes of a report."""
    done = _run(tool("tid1500reader"), "--inputDICOM", path, "--outputMetadata", target)
    assert done.returncode == 0, done.stdout + done.stderr
    document: dict[str, Any] = json.loads(target.read_text(encoding="utf-8"))
    return document
