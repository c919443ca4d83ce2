"""The JavaScript that the tests of viewers run: fetched once by npm into `.cache/viewers`, never committed.

What cannot be fetched skips the test with the reason. What was fetched and is not what is pinned fails it.
"""

import base64
import hashlib
import json
import os
import shutil
import signal
import subprocess
import tarfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import pytest

from tests.once import made_once

FOLDER: Final = Path(__file__).resolve().parent
CACHE: Final = FOLDER.parent.parent / ".cache" / "viewers"
INSTALL_TIMEOUT_S: Final = 240.0
RUN_TIMEOUT_S: Final = 240.0

_LEFT_OUT: Final = ("ort/", "dicom-microscopy-viewer/")
"""Three quarters of OHIF: networks that run in the browser, and slides. The viewer asks for neither here."""


def modules(source: Path = FOLDER) -> Path:
    """Answers the folder that holds `node_modules` as the lock file in `source` names them, with the scripts of `source` beside it."""
    _require("node", "npm")
    pinned = [(source / name).read_bytes() for name in ("package.json", "package-lock.json")]
    folder = made_once(CACHE / ("modules-" + hashlib.sha256(b"".join(pinned)).hexdigest()[:16]), lambda made: _install(source, made))
    for script in source.glob("*.mjs"):
        _put(script, folder / script.name)
    return folder


def viewer() -> Path:
    """Answers the folder of the built OHIF, as its npm tarball holds it."""
    _require("npm")
    pinned = json.loads((FOLDER / "package.json").read_bytes())["ohif"]
    return made_once(CACHE / pinned["package"].replace("/", "-").lstrip("@"), lambda folder: _unpack(pinned, folder))


def chromium() -> str:
    """Answers the path of Debian's browser."""
    found = shutil.which("chromium")
    if found is None:
        pytest.skip("chromium is not installed (Debian: chromium)")
    return found


def run_script(name: str, plan: Any, scratch: Path, source: Path = FOLDER) -> Any:
    """Runs one of our scripts under node with a plan; answers what it writes. Nothing of it lives on, whatever happens."""
    asked, answered = scratch / f"{name}.plan.json", scratch / f"{name}.answers.json"
    asked.write_text(json.dumps(plan), encoding="utf-8")
    command = ["node", str(modules(source) / name), str(asked), str(answered)]
    log = scratch / f"{name}.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, start_new_session=True)
        try:
            status = process.wait(RUN_TIMEOUT_S)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert status == 0, f"{name}: {log.read_text(errors='replace')[-4000:]}"
    return json.loads(answered.read_bytes())


def _require(*programs: str) -> None:
    missing = [name for name in programs if shutil.which(name) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not installed (Debian: nodejs, npm)")


def _install(source: Path, folder: Path) -> None:
    for name in ("package.json", "package-lock.json"):
        _put(source / name, folder / name)
    _npm(["ci", "--legacy-peer-deps", "--ignore-scripts", "--no-audit", "--no-fund"], folder)


def _unpack(pinned: dict[str, str], folder: Path) -> None:
    """Fetches the tarball, compares it with its digest, and keeps what the browser will ask for."""
    with TemporaryDirectory(dir=CACHE) as scratch:
        _npm(["pack", pinned["package"], "--pack-destination", scratch], Path(scratch))
        (tarball,) = Path(scratch).glob("*.tgz")
        digest = "sha512-" + base64.b64encode(hashlib.sha512(tarball.read_bytes()).digest()).decode()
        assert digest == pinned["integrity"], f"{pinned['package']} is not the one that is pinned"
        with tarfile.open(tarball) as stream:
            for member in stream:
                name = member.name.removeprefix("package/dist/")
                if name != member.name and member.isfile() and not name.startswith(_LEFT_OUT) and not name.endswith(".map"):
                    member.name = name
                    stream.extract(member, folder, filter="data")


def _npm(arguments: Sequence[str], folder: Path) -> None:
    """Runs npm; a registry that cannot be reached skips the test."""
    environment = {
        **os.environ,
        "npm_config_update_notifier": "false",
        "npm_config_fetch_retries": "1",
        "npm_config_fetch_timeout": "60000",
    }
    try:
        done = subprocess.run(
            ["npm", *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=INSTALL_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm {arguments[0]} took more than {INSTALL_TIMEOUT_S:.0f} s")
    if done.returncode:
        reason = next((line for line in done.stderr.splitlines() if " code " in line), done.stderr[-200:])
        offline = any(word in done.stderr for word in ("ENOTFOUND", "ECONNREFUSED", "ETIMEDOUT", "EAI_AGAIN", "ECONNRESET", "ENETUNREACH"))
        assert offline, f"npm {arguments[0]}: {done.stderr[-2000:]}"
        pytest.skip(f"the npm registry cannot be reached: {reason}")


def _put(source: Path, target: Path) -> None:
    """Copies a file, in one step for whoever reads it meanwhile."""
    if target.is_file() and target.read_bytes() == source.read_bytes():
        return
    fresh = target.with_name(f"{target.name}.{os.getpid()}")
    shutil.copyfile(source, fresh)
    fresh.replace(target)
