"""Real peers for tests: Orthanc and the DCMTK tools of Debian, on loopback, on ports that nobody holds; gone when the test ends.

A peer that is not installed skips the test with the reason.
"""

import json
import os
import random
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final
from urllib.error import URLError

import pytest

START_TIMEOUT_S: Final = 30.0
TOOL_TIMEOUT_S: Final = 120.0
HOST: Final = "127.0.0.1"
FIRST_PORT: Final = 20_000
_CHANCE: Final = random.SystemRandom()

RC_OUT_OF_RESOURCES: Final = 167
RC_MISMATCH: Final = 169
RC_CANNOT_UNDERSTAND: Final = 192
"""Exit status of storescu: the high byte of the C-STORE status."""


def tool(name: str) -> str:
    """Answers the path of a program, or skips the test."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin:/sbin")
    if found is None:
        pytest.skip(f"{name} is not installed (Debian: orthanc, dcmtk)")
    return found


def free_port() -> int:
    """Answers a port that nobody holds at this moment, and that nobody will come to by chance.

    Peers go down and come back on it, and some tests need it closed: so it is none of those that the OS gives away for port 0, and
    workers that share the tests (pytest-xdist) choose from different ones.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    ours = range(FIRST_PORT + worker, _first_ephemeral_port(), workers)
    for port in (*_CHANCE.sample(ours, min(100, len(ours))), 0):
        with socket.socket() as probe, suppress(OSError):
            probe.bind((HOST, port))
            return int(probe.getsockname()[1])
    raise AssertionError("there is no free port")


def _first_ephemeral_port() -> int:
    setting = Path("/proc/sys/net/ipv4/ip_local_port_range")
    return int(setting.read_text().split()[0]) if setting.exists() else 32768


def answers(port: int) -> bool:
    """Answers whether somebody listens on a port of this machine."""
    with socket.socket() as probe:
        probe.settimeout(0.2)
        return probe.connect_ex((HOST, port)) == 0


def wait_until(condition: Any, what: str, timeout_s: float = START_TIMEOUT_S) -> Any:
    """Polls until `condition` answers something true, and answers that."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"{what} did not come within {timeout_s} s")


def _run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        timeout=TOOL_TIMEOUT_S,
        env={**os.environ, **(environment or {})},
    )


def echoscu(port: int, *, called: str = "RADNODE", calling: str = "ECHOSCU") -> int:
    """Asks by C-ECHO; answers the exit status."""
    return _run([tool("echoscu"), "-aec", called, "-aet", calling, HOST, str(port)]).returncode


def storescu(
    port: int, paths: Sequence[Path], *options: str, called: str = "RADNODE", calling: str = "STORESCU"
) -> subprocess.CompletedProcess[str]:
    """Sends files or folders with DCMTK; TCP_NODELAY is on, else each instance waits 40 ms."""
    scan = ["+sd", "+r"] if any(path.is_dir() for path in paths) else []
    command = [tool("storescu"), "-v", *scan, "-aec", called, "-aet", calling, *options, HOST, str(port), *map(str, paths)]
    return _run(command, {"TCP_NODELAY": "1"})


@contextmanager
def storescp(folder: Path, *options: str, ae_title: str = "STORESCP") -> Iterator[int]:
    """DCMTK's receiver, writing into `folder`; gives its port."""
    program = tool("storescp")
    folder.mkdir(parents=True, exist_ok=True)
    for _ in range(5):
        port = free_port()
        process = subprocess.Popen(
            [program, "-aet", ae_title, "-od", str(folder), "+xa", *options, str(port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "TCP_NODELAY": "1"},
        )
        try:
            wait_until(lambda port=port, process=process: answers(port) or process.poll() is not None, "storescp")
            if process.poll() is None:
                yield port
                return
        finally:
            process.kill()
            process.wait()
    raise AssertionError("storescp found no port")


class OrthancPeer:
    """A running Orthanc; may go down for a while and come back with what it had."""

    def __init__(self, ae_title: str, folder: Path, settings: Mapping[str, Any]) -> None:
        self.ae_title = ae_title
        self.folder = folder
        self.dicom_port = free_port()
        self.http_port = free_port()
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> bool:
        """Starts it and waits for its REST interface; False when its ports were taken meanwhile."""
        (self.folder / "orthanc.json").write_text(json.dumps(self._configuration(), indent=1), encoding="utf-8")
        with (self.folder / "orthanc.log").open("ab") as stream:
            command = [tool("Orthanc"), str(self.folder / "orthanc.json")]
            process = self._process = subprocess.Popen(command, stdout=stream, stderr=stream, env={"TCP_NODELAY": "1", **os.environ})
        wait_until(lambda: self.answers() or process.poll() is not None, "Orthanc")
        return process.poll() is None and answers(self.dicom_port)

    def stop(self) -> None:
        """Kills it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def pause(self) -> None:
        """Takes it down in good order: connections are refused until `resume`."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait(START_TIMEOUT_S)

    def resume(self) -> None:
        """Brings it back on the same ports, with what it had."""
        assert self.start(), f"Orthanc did not come back: see {self.folder}"

    def _configuration(self) -> dict[str, Any]:
        return {
            "Name": self.ae_title,
            "StorageDirectory": str(self.folder / "storage"),
            "IndexDirectory": str(self.folder / "storage"),
            "HttpPort": self.http_port,
            "DicomPort": self.dicom_port,
            "DicomAet": self.ae_title,
            "DicomCheckCalledAet": False,
            "DicomAlwaysAllowStore": True,
            "DicomAlwaysAllowEcho": True,
            "UnknownSopClassAccepted": True,
            "DicomModalitiesInDatabase": True,
            "DefaultEncoding": "Utf8",
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "Plugins": [],
            "StableAge": 1,
            **self._settings,
        }

    def answers(self) -> bool:
        """Whether its REST interface is up."""
        try:
            self.get("/system")
        except (URLError, ConnectionError, TimeoutError):
            return False
        return True

    def get(self, path: str) -> Any:
        """GET of its REST interface, as JSON."""
        return json.loads(self.get_bytes(path))

    def get_bytes(self, path: str) -> bytes:
        """GET of its REST interface, as it is."""
        with urllib.request.urlopen(f"http://{HOST}:{self.http_port}{path}", timeout=30) as answer:
            return bytes(answer.read())

    def post(self, path: str, body: Any, method: str = "POST") -> Any:
        """POST of JSON or bytes; answers the JSON that comes back, if any."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(f"http://{HOST}:{self.http_port}{path}", data=data, method=method)
        with urllib.request.urlopen(request, timeout=120) as answer:
            content = answer.read()
        return json.loads(content) if content else None

    def add_modality(self, name: str, ae_title: str, port: int) -> None:
        """Tells it of a peer on this machine."""
        self.post(f"/modalities/{name}", {"AET": ae_title, "Host": HOST, "Port": port}, method="PUT")

    def upload(self, paths: Sequence[Path]) -> str:
        """Puts files into it by REST; answers its name of the (last) study."""
        return str([self.post("/instances", path.read_bytes()) for path in paths][-1]["ParentStudy"])

    def send_study(self, modality: str, study: str) -> Any:
        """Makes it send a study by C-STORE, and waits for the end; a failure raises."""
        return self.post(f"/modalities/{modality}/store", {"Resources": [study], "Synchronous": True, "Timeout": 60})

    def echo(self, modality: str) -> None:
        """Makes it ask a peer by C-ECHO; a failure raises."""
        self.post(f"/modalities/{modality}/echo", {})

    def instances(self, modality: str | None = None) -> list[str]:
        """Its names of its instances, of one Modality or all."""
        if modality is None:
            return list(self.get("/instances"))
        series = self.post("/tools/find", {"Level": "Series", "Query": {"Modality": modality}})
        return [instance["ID"] for one in series for instance in self.get(f"/series/{one}/instances")]

    def sop_instance_uids(self) -> set[str]:
        """The SOP Instance UIDs of all its instances."""
        return {self.get(f"/instances/{name}/simplified-tags")["SOPInstanceUID"] for name in self.instances()}

    def download(self, instance: str, path: Path) -> Path:
        """Writes an instance, as it was kept, to a file."""
        path.write_bytes(self.get_bytes(f"/instances/{instance}/file"))
        return path


@contextmanager
def orthanc(folder: Path, *, ae_title: str = "ORTHANC", **settings: Any) -> Iterator[OrthancPeer]:
    """Debian's Orthanc with an empty database in `folder`; `settings` go into its configuration as they are."""
    tool("Orthanc")
    folder.mkdir(parents=True, exist_ok=True)
    for _ in range(5):
        peer = OrthancPeer(ae_title, folder, settings)
        try:
            if peer.start():
                yield peer
                return
        finally:
            peer.stop()
    raise AssertionError(f"Orthanc did not start: see {folder}")
