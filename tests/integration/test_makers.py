"""Senders of five makers: each sends real studies in every transfer syntax, and every data set arrives as it was sent.

What a maker sends is not always what the file holds: most read a data set and write it anew. So each sends to stock pynetdicom
too, which accepts the same and notes what comes; pynetdicom as the sender sends the bytes of the file, and these are compared.
"""

import shutil
import subprocess
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.uid import UID, ImplicitVRLittleEndian
from pynetdicom import AE, _config, evt

from node.intake.contexts import supported_contexts
from node.intake.spool import spooled_path
from tests import realdata
from tests.integration.intake_kit import RunningListener, config_for, data_set_of, digest, listening
from tests.peers import HOST, orthanc, tool
from tests.viewers.packages import run_script

pytestmark = [pytest.mark.peer, pytest.mark.data, pytest.mark.slow]

ARCHIVES = (
    "abdomen-ct-totalseg", "enhanced-mr-dcm_qa_enh", "head-ct-ge", "head-phantom-multiseries", "mr-brain-adi", "odd-dicom2nifti",
    "ref-dcmqi", "ref-highdicom", "ts-matrix-cornerstone",
)  # fmt: skip
TRIES = 5
OF_A_KIND = 1
"""Files of one archive, transfer syntax and SOP class: hundreds of slices of one study prove no more."""

DICOMDIR = "1.2.840.10008.1.3.10"
CALLED = "RADNODE"

PIXELMED_STUMBLES = ("CT1_J2KR", "compressed_rle")
"""Files in which its parser gives up in the middle of the data set that it is sending."""

PIXELMED_CANNOT = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.2")
"""It sends what is native in Explicit VR Little Endian, where that is accepted."""

DCMJS_CANNOT = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1.99")
"""It offers Implicit and Explicit VR in one context, of which we take the explicit; and it does not deflate."""

MAKERS = Path(__file__).resolve().parent / "makers"
JARS = tuple(Path("/usr/share/java") / f"{name}.jar" for name in ("pixelmed", "hsqldb", "vecmath", "slf4j-api", "slf4j-nop"))


@dataclass(frozen=True)
class Sample:
    """A file, and by what it is told from others."""

    path: Path
    transfer_syntax_uid: str
    sop_class_uid: str
    sop_instance_uid: str
    can_be_filed: bool
    """Whether it has a Study Instance UID, and the SOP Instance UID that its meta information says: else our listener refuses it."""


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    """A few files of each kind from each archive."""
    found: dict[tuple[str, str, str], list[Sample]] = {}
    for archive in ARCHIVES:
        for path in sorted(realdata.unpack(archive).rglob("*")):
            if path.is_file() and pydicom.misc.is_dicom(path):
                sample = _sample(path)
                of_its_kind = found.setdefault((archive, sample.transfer_syntax_uid, sample.sop_class_uid), [])
                if sample.sop_class_uid != DICOMDIR:
                    of_its_kind.append(sample)
    chosen = [sample for kind in found.values() for sample in sorted(kind, key=lambda one: not one.can_be_filed)[:OF_A_KIND]]
    assert len({sample.transfer_syntax_uid for sample in chosen}) >= 15
    assert len({sample.sop_class_uid for sample in chosen}) >= 9
    return chosen


def _sample(path: Path) -> Sample:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["StudyInstanceUID", "SOPInstanceUID"])
    meta = header.file_meta
    uid = str(meta.MediaStorageSOPInstanceUID)
    can_be_filed = bool(header.get("StudyInstanceUID")) and header.get("SOPInstanceUID") == uid
    return Sample(path, str(meta.TransferSyntaxUID), str(meta.MediaStorageSOPClassUID), uid, can_be_filed)


@dataclass
class Recorder:
    """Stock pynetdicom, which accepts what we accept and notes what comes."""

    port: int = 0
    syntaxes: dict[str, str] = field(default_factory=dict)
    """Transfer syntaxes of the data sets that we would file, by digest."""

    def store(self, event: Any) -> int:
        data = event.encoded_dataset(include_meta=False)
        syntax = UID(event.context.transfer_syntax)
        try:
            header = _header(BytesIO(data), syntax)
        except zlib.error:  # dcmjs-dimse says Deflated and deflates nothing: ours refuses it
            return 0xC000
        if header.get("StudyInstanceUID") and str(event.request.AffectedSOPInstanceUID) == header.SOPInstanceUID:
            self.syntaxes[digest(data)] = str(syntax)
        return 0


def _header(stream: BytesIO, syntax: UID) -> Dataset:
    data = BytesIO(zlib.decompress(stream.read(), -zlib.MAX_WBITS)) if syntax.is_deflated else stream
    return read_dataset(data, syntax.is_implicit_VR, syntax.is_little_endian, stop_when=lambda tag, _vr, _length: int(tag) > 0x0020000E)


@contextmanager
def recording() -> Iterator[Recorder]:
    recorder = Recorder()
    entity = AE(CALLED)
    entity.supported_contexts = list(supported_contexts(reports=False))
    server = entity.start_server((HOST, 0), block=False, evt_handlers=[(evt.EVT_C_STORE, recorder.store)])
    try:
        recorder.port = server.server_address[1]
        yield recorder
    finally:
        server.shutdown()


@dataclass(frozen=True)
class Doors:
    """Where a maker sends to: us, and the recorder."""

    listener: RunningListener
    recorder: Recorder

    @property
    def ports(self) -> tuple[int, int]:
        return self.listener.port, self.recorder.port

    def ours(self) -> dict[str, str]:
        """Transfer syntaxes of what we have recorded, by digest of what lies on the disk."""
        rows = self.listener.rows("SELECT sha256, transfer_syntax_uid FROM instance")
        return {digest(data_set_of(spooled_path(self.listener.state_dir, sha256))): syntax for sha256, syntax in rows}


@pytest.fixture
def doors(tmp_path: Path) -> Iterator[Doors]:
    with listening(config_for(tmp_path / "state")) as listener, recording() as recorder:
        yield Doors(listener, recorder)


def check_same(doors: Doors, samples: Sequence[Sample], *, cannot: Sequence[str] = ()) -> None:
    """What the recorder got, we have: the same bytes, in every transfer syntax but those that this maker cannot send."""
    assert doors.ours() == doors.recorder.syntaxes
    assert set(doors.recorder.syntaxes.values()) == _syntaxes(samples) - set(cannot)


def _syntaxes(samples: Sequence[Sample]) -> set[str]:
    return {sample.transfer_syntax_uid for sample in samples if sample.can_be_filed}


def test_pynetdicom_sends_the_bytes_of_the_file(doors: Doors, samples: list[Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_config, "STORE_SEND_CHUNKED_DATASET", True)
    entity = AE("PYNETDICOM")
    for sop_class, syntax in sorted({(sample.sop_class_uid, sample.transfer_syntax_uid) for sample in samples}):
        entity.add_requested_context(sop_class, syntax)
    statuses: dict[Path, int] = {}
    for _ in range(TRIES):  # where an answer comes at once, its sender may take it for a request: it gives up then
        association = entity.associate(HOST, doors.listener.port, ae_title=CALLED)
        assert association.is_established
        association.dimse_timeout = 5
        for sample in samples:
            if sample.path not in statuses and association.is_established:
                answer = association.send_c_store(sample.path)
                if "Status" in answer:
                    statuses[sample.path] = answer.Status
        association.release()
    assert {path for path, status in statuses.items() if status} == {sample.path for sample in samples if not sample.can_be_filed}
    assert set(doors.ours()) == {digest(data_set_of(sample.path)) for sample in samples if sample.can_be_filed}


def test_dcmtk(doors: Doors, samples: list[Sample]) -> None:
    paths = [str(sample.path) for sample in samples]
    implicit = [str(sample.path) for sample in samples if sample.transfer_syntax_uid == ImplicitVRLittleEndian]
    for port in doors.ports:
        for program, options, files in (
            ("dcmsend", ["-nh", "-nuc", "-dn"], paths),
            ("storescu", ["-nh", "-R", "-xi"], implicit),  # dcmsend leaves it to the receiver which native syntax it takes
            ("storescu", ["-nh", "-R", "-xb"], implicit),
        ):
            command = [tool(program), *options, "-aec", CALLED, HOST, str(port), *files]
            subprocess.run(command, capture_output=True, check=False, timeout=60, env={"TCP_NODELAY": "1"})
    check_same(doors, samples)


def test_pixelmed(doors: Doors, samples: list[Sample]) -> None:
    missing = [jar.name for jar in JARS if not jar.exists()]
    if missing or shutil.which("javac") is None:
        pytest.skip(f"libpixelmed-java or a JDK is not installed ({', '.join(missing) or 'javac'} absent)")
    command = ["java", "-XX:TieredStopAtLevel=1", "-cp", ":".join(map(str, JARS)), str(MAKERS / "Store.java")]
    sendable = [sample for sample in samples if sample.can_be_filed and not any(word in str(sample.path) for word in PIXELMED_STUMBLES)]
    words = [word for group in _by_syntax(sendable) for word in (*group, "--")][:-1]
    told = subprocess.run(
        [*command, CALLED, ",".join(map(str, doors.ports)), *words],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    assert told.stdout.count("true") == 2 * len(sendable), told.stdout
    check_same(doors, sendable, cannot=PIXELMED_CANNOT)


def test_dcmjs_dimse(doors: Doors, samples: list[Sample], tmp_path: Path) -> None:
    groups = _by_syntax([sample for sample in samples if sample.can_be_filed])
    answers = run_script("send.mjs", {"called": CALLED, "ports": doors.ports, "groups": groups}, tmp_path, MAKERS)
    print(answers)
    check_same(doors, samples, cannot=DCMJS_CANNOT)


def _by_syntax(samples: Sequence[Sample]) -> list[list[str]]:
    """Answers the paths in groups: some makers bring all that goes over an association into one of the syntaxes that were accepted."""
    groups: dict[str, list[str]] = {}
    for sample in samples:
        groups.setdefault(sample.transfer_syntax_uid, []).append(str(sample.path))
    return list(groups.values())


def test_orthanc(doors: Doors, samples: list[Sample], tmp_path: Path) -> None:
    """It keeps one instance of a SOP Instance UID: those that share one are sent in turn."""
    with orthanc(tmp_path / "orthanc") as peer:
        for name, port in zip(("radnode", "recorder"), doors.ports, strict=True):
            peer.add_modality(name, CALLED, port)
        for wave in _waves([sample for sample in samples if sample.can_be_filed]):
            names = [peer.post("/instances", sample.path.read_bytes())["ID"] for sample in wave]
            for name in ("radnode", "recorder"):
                peer.post(f"/modalities/{name}/store", {"Resources": names, "Synchronous": True, "Timeout": 60})
            for instance in names:
                peer.post(f"/instances/{instance}", b"", method="DELETE")
    check_same(doors, samples)


def _waves(samples: Sequence[Sample]) -> list[list[Sample]]:
    """Answers the samples in as few lists as it takes for no list to have a SOP Instance UID twice."""
    waves: list[list[Sample]] = []
    for sample in samples:
        for wave in waves:
            if all(other.sop_instance_uid != sample.sop_instance_uid for other in wave):
                wave.append(sample)
                break
        else:
            waves.append([sample])
    return waves


def test_every_transfer_syntax_has_a_name(samples: list[Sample]) -> None:
    assert all(UID(sample.transfer_syntax_uid).is_transfer_syntax for sample in samples)
