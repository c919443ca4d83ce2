"""STOW-RS: what is posted arrives, byte for byte and safe before the answer; everything else is refused, and nothing of it is kept."""

import functools
import http.client
import json
import os
import shutil
import socket
import sqlite3
import ssl
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests
from dicomweb_client.api import DICOMwebClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import Dataset, dcmread
from pydicom.uid import DeflatedExplicitVRLittleEndian, generate_uid

from node.config import Config
from node.intake.stow.http import LONGEST_HEAD_BYTES
from tests.certificates import Authority, Files
from tests.factories import SyntheticSeries, make_ct_series
from tests.integration.intake_kit import RunningListener, data_set_of, listening
from tests.peers import HOST, _run, orthanc, tool, wait_until

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
TOKEN = "4d1f0c2b9a8e7766554433221100ffee"  # noqa: S105 - of the tests
STUDIES = "/dicom-web/studies"
FAILED, STORED, OTHER = "00081198", "00081199", "0008119A"


@dataclass
class Web:
    """A node that takes STOW-RS."""

    listener: RunningListener
    port: int
    token: str = ""
    tls: ssl.SSLContext | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def connect(self) -> http.client.HTTPConnection:
        if self.tls is not None:
            return http.client.HTTPSConnection(HOST, self.port, timeout=20, context=self.tls)
        return http.client.HTTPConnection(HOST, self.port, timeout=20)

    def post(self, body: Any, path: str = STUDIES, **headers: str | None) -> tuple[int, dict[str, str], bytes]:
        """Posts a body with the headers of a right request, of which each may be changed; `None` leaves one out."""
        connection = self.connect()
        try:
            connection.request("POST", path, body, headers_of(**headers), encode_chunked=not isinstance(body, bytes))
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def store(self, *files: bytes, path: str = STUDIES, **headers: str) -> tuple[int, dict[str, list[dict[str, Any]]]]:
        """Posts files; answers the status, and UID and reason of the items of every sequence of the response."""
        status, _, body = self.post(multipart(files), path, **headers)
        return status, outcome_of(body)


def headers_of(**changed: str | None) -> dict[str, str]:
    headers: dict[str, str | None] = {
        "Content-Type": 'multipart/related; type="application/dicom"; boundary=B',
        "Accept": "application/dicom+json",
    }
    headers |= {name.replace("_", "-").title(): value for name, value in changed.items()}
    return {name: value for name, value in headers.items() if value is not None}


def outcome_of(body: bytes) -> dict[str, list[dict[str, Any]]]:
    sequences = {tag: element.get("Value", []) for tag, element in json.loads(body).items() if element["vr"] == "SQ"}
    wanted = {"00081155": "uid", "00081197": "reason"}
    return {
        tag: [{wanted[name]: value["Value"][0] for name, value in item.items() if name in wanted} for item in items]
        for tag, items in sequences.items()
    }


def multipart(files: Iterable[bytes], *, head: bytes = b"Content-Type: application/dicom\r\n", end: bytes = b"--B--\r\n") -> bytes:
    return b"".join(b"--B\r\n" + head + b"\r\n" + content + b"\r\n" for content in files) + end


def raw_request(body: bytes, *lines: str, path: str = STUDIES) -> bytes:
    head = "\r\n".join(
        [f"POST {path} HTTP/1.1", "Host: node", 'Content-Type: multipart/related; type="application/dicom"; boundary=B', *lines]
    )
    return head.encode() + b"\r\n\r\n" + body


def counted(body: bytes) -> str:
    return f"Content-Length: {len(body)}"


def answer_on(connection: socket.socket) -> tuple[int, bytes]:
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    return answer.status, answer.read()


def web_config(
    state_dir: Path, *, stow: dict[str, Any] | None = None, peers: dict[str, Any] | None = None, tls: Files | None = None, **listener: Any
) -> Config:
    state_dir.mkdir(parents=True, exist_ok=True)
    table: dict[str, Any] = {
        "node": {"ae_title": "RADNODE", "state_dir": str(state_dir), "models_dir": str(state_dir)},
        "listener": {"host": HOST, "port": 0, "refuse_below_free_gib": 0.0, **listener},
        "stow": {"host": HOST, "port": 0, **(stow or {})},
        "peers": peers or {},
    }
    if tls is not None:
        table["tls"] = tls.as_table()
    return Config.model_validate(table, context={"folder": state_dir})


@contextmanager
def serving(state_dir: Path, **options: Any) -> Iterator[Web]:
    with listening(web_config(state_dir, **options)) as listener:
        yield Web(listener, int((state_dir / "run" / "stow.port").read_text()))


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    """A node with every default but short waits."""
    with serving(tmp_path_factory.mktemp("web"), network_timeout_s=1.0) as running:
        yield running


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> SyntheticSeries:
    return make_ct_series(tmp_path_factory.mktemp("ct"), slices=4)


@pytest.fixture
def ct(tmp_path: Path, template: SyntheticSeries) -> list[Path]:
    """Instances that nobody has stored before."""
    return [edited(path, tmp_path / path.name, SOPInstanceUID=generate_uid(), StudyInstanceUID="1.2.3.4") for path in template.paths]


def edited(source: Path, target: Path, **changes: Any) -> Path:
    dataset = dcmread(source)
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.save_as(target, enforce_file_format=True)
    return target


def contents(paths: Sequence[Path]) -> list[bytes]:
    return [path.read_bytes() for path in paths]


def uids(paths: Sequence[Path]) -> list[str]:
    return [str(dcmread(path, stop_before_pixels=True).SOPInstanceUID) for path in paths]


def assert_kept(web: Web, paths: Sequence[Path]) -> None:
    """Every one of these is recorded, and its bytes are those that were sent."""
    kept = web.listener.kept()
    for uid, path in zip(uids(paths), paths, strict=True):
        assert kept[uid] == data_set_of(path)


def assert_nothing_arriving(web: Web) -> None:
    wait_until(lambda: not web.listener.leftovers() and web.listener.open_associations() == 0, "the end of what was arriving", 5)


# ── clients of other makers ─────────────────────────────────────────────────


def test_dicomweb_client_stores_a_series_and_reads_the_answer(web: Web, ct: list[Path]) -> None:
    client = DICOMwebClient(f"http://{HOST}:{web.port}/dicom-web")
    told: Dataset = client.store_instances([dcmread(path) for path in ct])
    assert [item.ReferencedSOPInstanceUID for item in told.ReferencedSOPSequence] == uids(ct)
    assert "FailedSOPSequence" not in told
    assert_kept(web, ct)
    assert client.store_instances([dcmread(ct[0])], study_instance_uid="1.2.3.4").ReferencedSOPSequence


@pytest.mark.parametrize("options", [[], ["-H", "Transfer-Encoding: chunked"], ["-H", "Expect: 100-continue", "--expect100-timeout", "20"]])
def test_curl_stores_whole_chunked_and_after_asking(web: Web, ct: list[Path], tmp_path: Path, options: list[str]) -> None:
    body = tmp_path / "body"
    body.write_bytes(multipart(contents(ct)))
    address = f"http://{HOST}:{web.port}{STUDIES}"
    kind = 'Content-Type: multipart/related; type="application/dicom"; boundary=B'
    said = _run([tool("curl"), "-sS", "-m", "20", "-w", "%{http_code}", "-H", kind, *options, "--data-binary", f"@{body}", address])
    assert said.stdout.endswith("200"), said
    assert_kept(web, ct)


@pytest.mark.peer
def test_orthancs_plugin_stores_what_it_has(web: Web, ct: list[Path], tmp_path: Path) -> None:
    if not PLUGIN.exists():
        pytest.skip("orthanc-dicomweb is not installed")
    servers = {"Enable": True, "Servers": {"radnode": [f"http://{HOST}:{web.port}/dicom-web/"]}}
    with orthanc(tmp_path / "orthanc", Plugins=[str(PLUGIN)], DicomWeb=servers) as peer:
        study = peer.upload(ct)
        told = peer.post("/dicom-web/servers/radnode/stow", {"Resources": [study], "Synchronous": True})
    assert int(told["InstancesCount"]) == len(ct)
    assert_kept(web, ct)


def test_requests_stores_a_body_that_it_makes_on_the_way(web: Web, ct: list[Path]) -> None:
    body = multipart(contents(ct))
    pieces = (body[place : place + 777] for place in range(0, len(body), 777))
    answer = requests.post(f"http://{HOST}:{web.port}{STUDIES}", data=pieces, headers=headers_of(), timeout=20)
    assert answer.status_code == 200
    assert_kept(web, ct)


# ── what arrives ────────────────────────────────────────────────────────────


def test_every_part_of_many_is_answered_in_order(web: Web, ct: list[Path]) -> None:
    content = ct[0].read_bytes()
    uid = uids(ct)[0]
    names = [f"{uid[:-4]}{number:04d}" for number in range(200)]
    status, told = web.store(*(content.replace(uid.encode(), name.encode()) for name in names))
    assert (status, [one["uid"] for one in told[STORED]]) == (200, names)
    assert set(names) <= set(web.listener.recorded())
    assert_nothing_arriving(web)


def test_a_deflated_instance_arrives_as_it_was(web: Web, ct: list[Path], tmp_path: Path) -> None:
    dataset = dcmread(ct[0])
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(tmp_path / "deflated.dcm", enforce_file_format=True)
    assert web.store((tmp_path / "deflated.dcm").read_bytes())[0] == 200
    assert_kept(web, [tmp_path / "deflated.dcm"])


def test_what_comes_again_is_success_and_kept_once(web: Web, ct: list[Path]) -> None:
    before = len(web.listener.spooled())
    assert web.store(*contents(ct), *contents(ct))[0] == 200
    assert web.store(*contents(ct))[0] == 200
    assert_kept(web, ct)
    assert len(web.listener.spooled()) == before + len(ct)


def test_good_ones_are_stored_beside_bad_ones_and_each_is_told_why(web: Web, ct: list[Path], tmp_path: Path) -> None:
    good, second, third, fourth = contents(ct)
    another = uids(ct)[1][:-1] + ("1" if uids(ct)[1][-1] != "1" else "2")  # as long: the length of the element stays
    mismatch = second.replace(uids(ct)[1].encode(), another.encode(), 1)  # in the file meta information alone
    no_class = edited(ct[2], tmp_path / "class.dcm", SOPClassUID="1.2.3").read_bytes()
    private = third.replace(b"1.2.840.10008.1.2.1", b"1.2.840.10008.9.9.9", 1)
    no_study = fourth[: fourth.index(b"\x20\0\x0d\0UI")]
    status, told = web.store(good, good[128:], mismatch, no_class, private, b"", good[:140], no_study)
    assert status == 202
    assert [one["uid"] for one in told[STORED]] == uids(ct)[:1]
    assert [one["reason"] for one in told[FAILED]] == [0xA900, 0x0122, 0xC122, 0xC000]
    assert [one["reason"] for one in told[OTHER]] == [0xC000] * 3
    assert_kept(web, ct[:1])
    assert not set(uids(ct[1:])) & set(web.listener.recorded())
    assert_nothing_arriving(web)


def test_only_instances_of_the_study_in_the_path_are_taken(web: Web, ct: list[Path]) -> None:
    status, told = web.store(*contents(ct[:2]), path=f"{STUDIES}/1.2.3.5")
    assert (status, [one["reason"] for one in told[FAILED]]) == (409, [0xA900, 0xA900])
    assert not set(uids(ct)) & set(web.listener.recorded())
    assert web.store(*contents(ct[:2]), path=f"{STUDIES}/1.2.3.4")[0] == 200
    assert_kept(web, ct[:2])


@pytest.mark.parametrize(
    "head", [b"", b"Content-Type: application/dicom; transfer-syntax=1.2.840.10008.1.2.1\r\nContent-Transfer-Encoding: binary\r\n"]
)
def test_a_part_may_say_more_or_less_of_itself(web: Web, ct: list[Path], head: bytes) -> None:
    assert web.post(multipart(contents(ct[:1]), head=head))[0] == 200
    assert_kept(web, ct[:1])


@pytest.mark.parametrize(
    "head", [b"Content-Type: application/json\r\n", b"Content-Type: application/dicom\r\nContent-Transfer-Encoding: base64\r\n"]
)
def test_a_part_that_is_something_else_is_refused(web: Web, ct: list[Path], head: bytes) -> None:
    status, _, body = web.post(multipart(contents(ct[:1]), head=head))
    assert (status, outcome_of(body)[OTHER]) == (409, [{"reason": 0xC000}])


# ── requests that are not taken ─────────────────────────────────────────────


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        (STUDIES, {"content_type": "application/dicom"}, 415),
        (STUDIES, {"content_type": 'multipart/related; type="application/dicom+xml"; boundary=B'}, 415),
        (STUDIES, {"content_encoding": "gzip"}, 415),
        (STUDIES, {"content_type": "multipart/related; type=application/dicom"}, 400),
        (STUDIES, {"content_type": "multipart/related; type=application/dicom; boundary=C"}, 400),
        (STUDIES, {"accept": "text/html"}, 406),
        ("/studies", {}, 404),
        (f"{STUDIES}/not-a-uid", {}, 400),
    ],
)
def test_a_request_that_cannot_be_meant_is_refused_and_leaves_nothing(
    web: Web, ct: list[Path], path: str, headers: dict[str, str], status: int
) -> None:
    before = set(web.listener.recorded())
    told = web.post(multipart(contents(ct)), path, **headers)
    assert told[0] == status
    assert told[2].decode().strip(), "it says why"
    assert set(web.listener.recorded()) == before
    assert_nothing_arriving(web)


def test_an_empty_body_is_a_bad_request(web: Web) -> None:
    assert web.post(b"")[0] == 400
    assert web.post(b"--B--")[0] == 400


def test_get_says_what_this_is(web: Web) -> None:
    connection = web.connect()
    for path, status in ((STUDIES, 405), ("/", 404)):
        connection.request("GET", path)
        answer = connection.getresponse()
        assert (answer.status, b"POST" in answer.read()) == (status, True)
    connection.request("HEAD", STUDIES)
    answer = connection.getresponse()
    assert (answer.status, answer.read(), answer.getheader("Allow")) == (405, b"", "POST")
    connection.close()


def test_the_answer_comes_in_xml_where_that_is_wanted(web: Web, ct: list[Path]) -> None:
    status, headers, body = web.post(multipart(contents(ct)), accept="application/dicom+xml")
    assert (status, headers["Content-Type"]) == (200, "application/dicom+xml")
    assert body.count(b"ReferencedSOPInstanceUID") == len(ct)


def test_a_head_without_end_is_refused(web: Web) -> None:
    with socket.create_connection((HOST, web.port), 20) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nX: " + b"x" * (LONGEST_HEAD_BYTES + 10))
        assert answer_on(connection)[0] == 431


# ── bodies that break ───────────────────────────────────────────────────────


def test_of_a_body_that_is_cut_in_the_middle_of_a_part_only_whole_parts_are_kept(web: Web, ct: list[Path]) -> None:
    body = multipart(contents(ct[:2]))
    with socket.create_connection((HOST, web.port), 20) as connection:
        connection.sendall(raw_request(body, counted(body))[:-600])
        wait_until(lambda: uids(ct)[0] in web.listener.recorded(), "the first part")
    assert_nothing_arriving(web)
    assert_kept(web, ct[:1])
    assert uids(ct)[1] not in web.listener.recorded()


def test_a_body_without_its_last_boundary_stores_whole_parts_and_says_that_one_is_missing(web: Web, ct: list[Path]) -> None:
    status, _, body = web.post(multipart(contents(ct[:2]))[: -len(b"\r\n--B--\r\n") - 10])
    told = outcome_of(body)
    assert (status, [one["uid"] for one in told[STORED]], told[OTHER]) == (202, uids(ct)[:1], [{"reason": 0xC000}])
    assert_nothing_arriving(web)
    assert uids(ct)[1] not in web.listener.recorded()


def test_a_sender_that_falls_silent_is_told_and_nothing_of_its_part_is_kept(web: Web, ct: list[Path]) -> None:
    body = multipart(contents(ct[:2]))
    with socket.create_connection((HOST, web.port), 20) as connection:
        connection.sendall(raw_request(body, counted(body))[:-600])
        status, told = answer_on(connection)
    assert (status, [one["uid"] for one in outcome_of(told)[STORED]]) == (408, uids(ct)[:1])
    assert_nothing_arriving(web)
    assert uids(ct)[1] not in web.listener.recorded()


def test_a_sender_that_dribbles_is_not_waited_for(web: Web, ct: list[Path]) -> None:
    """A byte now and then, so that it is never silent for long."""
    body = multipart(contents(ct[:1]))
    with socket.create_connection((HOST, web.port), 20) as connection:
        connection.sendall(raw_request(b"", counted(body)))
        connection.settimeout(0.1)
        for byte in body:
            try:
                connection.sendall(bytes([byte]))
                if connection.recv(12) == b"HTTP/1.1 408":
                    break
            except TimeoutError:
                continue
        else:
            raise AssertionError("it was waited for to the end")
    assert_nothing_arriving(web)


@pytest.mark.parametrize("begun", [b"POST /dicom-web/studies HTTP/1.1\r\nHo", b"P"])
def test_a_head_that_does_not_come_is_not_waited_for(web: Web, begun: bytes) -> None:
    with socket.create_connection((HOST, web.port), 20) as connection:
        connection.sendall(begun)
        assert answer_on(connection)[0] == 408


def test_a_connection_over_which_nothing_comes_is_closed(web: Web) -> None:
    with socket.create_connection((HOST, web.port), 20) as connection:
        assert connection.recv(1) == b""


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 400), noise=st.binary(min_size=1, max_size=30), whole=st.booleans())
def test_whatever_is_sent_the_next_one_is_served(web: Web, place: int, noise: bytes, whole: bool) -> None:
    request = bytearray(raw_request(multipart([b"x" * 40]), "Transfer-Encoding: chunked" if whole else "Content-Length: 100"))
    request[place : place + len(noise)] = noise
    with socket.create_connection((HOST, web.port), 20) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        try:
            answer = connection.recv(15)
        except ConnectionResetError:
            answer = b""
    assert answer == b"" or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 501", b"HTTP/1.1 505")), answer
    with socket.create_connection((HOST, web.port), 20) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert answer_on(connection)[0] == 404


# ── the connection ──────────────────────────────────────────────────────────


def test_requests_that_follow_each_other_at_once_are_answered_in_order(web: Web, ct: list[Path]) -> None:
    bodies = [multipart([content]) for content in contents(ct)]
    chunked = b"".join(b"%x;ext=1\r\n%s\r\n" % (len(piece), piece) for piece in (bodies[1][:1], bodies[1][1:50], bodies[1][50:]))
    asked = [
        raw_request(bodies[0], counted(bodies[0])),
        raw_request(chunked + b"0\r\nTrailer: x\r\n\r\n", "Transfer-Encoding: chunked"),
        b"GET /dicom-web/studies HTTP/1.1\r\nHost: node\r\n\r\n",
        raw_request(bodies[2], counted(bodies[2])),
        raw_request(bodies[3], counted(bodies[3]), "Connection: close"),
    ]
    with socket.create_connection((HOST, web.port), 20) as connection:
        connection.sendall(b"".join(asked))
        stream = connection.makefile("rb")
        answers = []
        for _ in asked:
            status = int(stream.readline().split()[1])
            head = http.client.parse_headers(stream)
            answers.append((status, stream.read(int(head["Content-Length"]))))
        assert stream.read() == b""
    assert [status for status, _ in answers] == [200, 200, 405, 200, 200]
    stored = [outcome_of(body)[STORED][0]["uid"] for status, body in answers if status == 200]
    assert stored == uids(ct)
    assert_kept(web, ct)


def test_who_asks_first_is_told_to_go_on_or_refused_without_sending(web: Web, ct: list[Path]) -> None:
    body = multipart(contents(ct[:1]))
    with socket.create_connection((HOST, web.port), 20) as connection:
        connection.sendall(raw_request(b"", counted(body), "Expect: 100-continue"))
        assert connection.recv(100).startswith(b"HTTP/1.1 100")
        connection.sendall(body)
        assert answer_on(connection)[0] == 200
    with socket.create_connection((HOST, web.port), 20) as connection:
        connection.sendall(raw_request(b"", counted(body), "Expect: 100-continue", path="/elsewhere"))
        assert answer_on(connection)[0] == 404


def test_more_requests_than_are_taken_at_once_are_told_to_come_again(tmp_path: Path, ct: list[Path]) -> None:
    body = multipart(contents(ct[:1]))
    with serving(tmp_path / "state", stow={"max_connections": 1}) as web, socket.create_connection((HOST, web.port), 20) as first:
        first.sendall(raw_request(body, counted(body))[:-100])
        wait_until(web.listener.leftovers, "the first request")
        status, headers, _ = web.post(multipart(contents(ct[1:2])))
        assert (status, int(headers["Retry-After"]) > 0) == (503, True)
        first.sendall(body[-100:])
        assert answer_on(first)[0] == 200
        assert web.post(multipart(contents(ct[1:2])))[0] == 200
        assert_kept(web, ct[:2])


def test_idle_connections_give_way_to_one_that_speaks(tmp_path: Path, ct: list[Path]) -> None:
    with serving(tmp_path / "state", stow={"max_connections": 1}) as web:
        idle = [socket.create_connection((HOST, web.port), 20) for _ in range(50)]
        try:
            assert web.store(*contents(ct))[0] == 200
        finally:
            for connection in idle:
                connection.close()


def test_a_body_that_is_too_long_is_refused(tmp_path: Path, ct: list[Path]) -> None:
    body = multipart([bytes(1 << 20) + ct[0].read_bytes()])
    with serving(tmp_path / "state", stow={"max_body_mib": 1}) as web:
        assert web.post(body)[0] == 413
        assert web.post(iter([body[:1000], body[1000:]]), transfer_encoding="chunked")[0] == 413
        assert web.store(ct[0].read_bytes())[0] == 200
        assert_nothing_arriving(web)


def test_the_node_stops_in_the_middle_of_a_request_and_what_was_whole_is_kept(tmp_path: Path, ct: list[Path]) -> None:
    body = multipart(contents(ct[:2]))
    with serving(tmp_path / "state") as web:
        connection = socket.create_connection((HOST, web.port), 20)
        connection.sendall(raw_request(body, counted(body))[:-600])
        wait_until(lambda: uids(ct)[0] in web.listener.recorded(), "the first part")
    with connection:
        assert connection.recv(12) in {b"", b"HTTP/1.1 503"}
    with serving(tmp_path / "state") as web:
        assert_kept(web, ct[:1])
        assert set(web.listener.recorded()) == {uids(ct)[0]}


# ── the disk and the journal ────────────────────────────────────────────────


def test_below_the_watermark_every_instance_is_refused_and_comes_again(tmp_path: Path, ct: list[Path]) -> None:
    free_gib = shutil.disk_usage(tmp_path).free / (1 << 30)
    with serving(tmp_path / "state", refuse_below_free_gib=free_gib * 2) as web:
        status, headers, body = web.post(multipart(contents(ct)))
        assert (status, int(headers["Retry-After"]) > 0) == (503, True)
        assert [(one["uid"], one["reason"]) for one in outcome_of(body)[FAILED]] == [(uid, 0xA700) for uid in uids(ct)]
        assert web.listener.recorded() == {}
        assert_nothing_arriving(web)


class FaultyJournal(sqlite3.Connection):
    """A journal that takes nothing while it is broken."""

    broken = False

    def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
        if FaultyJournal.broken and sql.startswith(("INSERT", "UPDATE", "BEGIN")):
            raise sqlite3.OperationalError("disk I/O error")
        return super().execute(sql, *args)


def test_while_the_journal_takes_nothing_instances_are_refused_and_none_is_lost(
    tmp_path: Path, ct: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite3, "connect", functools.partial(sqlite3.connect, factory=FaultyJournal))
    with serving(tmp_path / "state") as web:
        FaultyJournal.broken = True
        try:
            first, _ = web.store(ct[0].read_bytes())  # may be safe before anybody knows of the fault
            wait_until(lambda: web.store(ct[1].read_bytes())[0] == 503, "a refusal", 10)
        finally:
            FaultyJournal.broken = False
        wait_until(lambda: web.store(*contents(ct[2:]))[0] == 200, "the end of the fault", 10)
        assert_kept(web, [*(ct[:1] if first == 200 else []), *ct[2:]])


# ── who may send ────────────────────────────────────────────────────────────


def test_only_a_bearer_of_a_token_may_send_and_is_recorded_by_its_name(tmp_path: Path, ct: list[Path]) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"GATEWAY {TOKEN}\n")
    with serving(tmp_path / "state", stow={"token_file": str(tokens)}) as web:
        for authorization in (None, "Bearer wrong", f"Basic {TOKEN}"):
            status, headers, _ = web.post(multipart(contents(ct)), authorization=authorization)
            assert (status, headers["WWW-Authenticate"].startswith("Bearer")) == (401, True)
        assert web.listener.recorded() == {}
        assert web.store(*contents(ct), authorization=f"Bearer {TOKEN}")[0] == 200
        assert_kept(web, ct)
        assert {row[0] for row in web.listener.rows("SELECT calling_ae_title FROM instance")} == {"GATEWAY"}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


def client_context(files: Files, *, certificate: bool) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(files.trusted_ca_file))
    if certificate:
        context.load_cert_chain(files.certificate_file, files.private_key_file)
    return context


def test_over_tls_only_who_shows_a_certificate_may_send(tmp_path: Path, ct: list[Path], authority: Authority) -> None:
    ours, theirs = authority.issue("node"), authority.issue("peer")
    with serving(tmp_path / "state", stow={"tls": True}, tls=ours) as web:
        web.tls = client_context(theirs, certificate=True)
        assert web.store(*contents(ct))[0] == 200
        web.tls = client_context(theirs, certificate=False)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            web.store(*contents(ct))
        with pytest.raises((http.client.HTTPException, ConnectionError)):
            Web(web.listener, web.port).store(*contents(ct))
        assert_kept(web, ct)


def test_over_tls_a_token_may_stand_for_the_certificate(tmp_path: Path, ct: list[Path], authority: Authority) -> None:
    ours = authority.issue("node")
    tokens = tmp_path / "tokens"
    tokens.write_text(TOKEN)
    with serving(tmp_path / "state", stow={"tls": True, "client_certificates": False, "token_file": str(tokens)}, tls=ours) as web:
        web.tls = client_context(ours, certificate=False)
        assert web.post(multipart(contents(ct)))[0] == 401
        assert web.store(*contents(ct), authorization=f"Bearer {TOKEN}")[0] == 200
        assert_kept(web, ct)


def test_without_a_port_there_is_no_such_door(tmp_path: Path) -> None:
    config = web_config(tmp_path / "state")
    shut = config.model_copy(update={"stow": config.stow.model_copy(update={"port": None})})
    with listening(shut):
        assert not (tmp_path / "state" / "run" / "stow.port").exists()


# ── the end of a transfer ───────────────────────────────────────────────────


def test_requests_that_follow_each_other_hold_their_study_open_until_the_sender_goes(
    tmp_path: Path, ct: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.intake.stow.server.LULL_S", 20.0)
    with serving(tmp_path / "state") as web:
        with requests.Session() as session:
            for path in ct[:2]:
                address = f"http://{HOST}:{web.port}{STUDIES}"
                assert session.post(address, data=multipart([path.read_bytes()]), headers=headers_of(), timeout=20).status_code == 200
            assert_kept(web, ct[:2])
            assert web.listener.open_associations() == 1
        assert_nothing_arriving(web)


def test_a_sender_that_stays_but_sends_no_more_holds_no_study_open(web: Web, ct: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.intake.stow.server.LULL_S", 0.05)
    with requests.Session() as session:
        answer = session.post(f"http://{HOST}:{web.port}{STUDIES}", data=multipart(contents(ct)), headers=headers_of(), timeout=20)
        assert answer.status_code == 200
        assert_nothing_arriving(web)
        assert_kept(web, ct)


CONFIG = """
[node]
ae_title = "RADNODE"
state_dir = "state"
models_dir = "state"
[listener]
host = "127.0.0.1"
port = 0
refuse_below_free_gib = 0.0
durability = "{durability}"
[stow]
host = "127.0.0.1"
port = 0
"""


@pytest.mark.parametrize("durability", ["power-loss", "process-crash"])
def test_what_was_answered_as_stored_survives_kill_9_at_once(tmp_path: Path, ct: list[Path], durability: str) -> None:
    (tmp_path / "state").mkdir()
    config = tmp_path / "node.toml"
    config.write_text(CONFIG.format(durability=durability))
    ready = tmp_path / "state" / "run" / "listener.port"
    command = [sys.executable, "-m", "node.child", str(os.getpid()), str(config), str(config), "listener"]
    with (tmp_path / "log").open("wb") as stream, subprocess.Popen(command, stdout=stream, stderr=stream) as process:
        try:
            wait_until(lambda: ready.exists() or process.poll() is not None, "the listener")
            port = int((tmp_path / "state" / "run" / "stow.port").read_text())
            with socket.create_connection((HOST, port), 20) as connection:
                body = multipart(contents(ct))
                connection.sendall(raw_request(body, counted(body)))
                assert connection.recv(12) == b"HTTP/1.1 200"
        finally:
            process.kill()
    with serving(tmp_path / "state", durability=durability) as web:
        assert_kept(web, ct)
