"""A process that opens what is not trusted: without network, without rights, with little memory and time. It answers JSON."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import node
from node.errors import BundleRefused

TIMEOUT_S: Final = 900
BASE_MEMORY_BYTES: Final = 6 << 30
"""Address space of a process that has imported torch, with room for its threads' stacks; the files' sizes come on top."""

REFUSED_STATUS: Final = 3
_PR_SET_NO_NEW_PRIVS: Final = 38
_CLONE_NEWUSER: Final = 0x10000000
_CLONE_NEWNET: Final = 0x40000000


@dataclass(frozen=True, slots=True)
class Limits:
    """What a sandboxed process may use."""

    memory_bytes: int
    file_bytes: int
    cpu_s: int = TIMEOUT_S


def run_confined(module: str, job: Mapping[str, Any], limits: Limits, *, files: Sequence[int] = ()) -> dict[str, Any]:
    """Runs `python -m module` on a job, with `files` as its open files, and answers what it answers.

    Raises
    ------
    BundleRefused
        When it refuses, fails, or uses more than it may.
    """
    root = Path(node.__file__).parents[1]
    environment = {
        "PATH": os.defpath, "PYTHONPATH": str(root), "PYTHONNOUSERSITE": "1", "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1",
        "LANG": "C.UTF-8",
    }  # fmt: skip
    text = json.dumps({"job": dict(job), "memory_bytes": limits.memory_bytes, "file_bytes": limits.file_bytes, "cpu_s": limits.cpu_s})
    with tempfile.TemporaryDirectory(prefix="radnode-confined-") as folder:
        process = subprocess.Popen(  # noqa: S603 - this interpreter, with a module of ours
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            cwd=folder, env={**environment, "HOME": folder, "TMPDIR": folder}, pass_fds=tuple(files), start_new_session=True, text=True,
        )  # fmt: skip
        try:
            output, errors = process.communicate(text, timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise BundleRefused(f"the weights were not converted in {TIMEOUT_S} s") from error
    return _answer(process.returncode, output, errors)


def _answer(status: int, output: str, errors: str) -> dict[str, Any]:
    last = (output.strip().splitlines() or [""])[-1]
    try:
        answer = json.loads(last) if last.startswith("{") else {}
    except ValueError:
        answer = {}
    if status == 0 and isinstance(answer, dict) and "refused" not in answer:
        return answer
    if status == REFUSED_STATUS and "refused" in answer:
        raise BundleRefused(str(answer["refused"]))
    words = (errors.strip().splitlines() or [f"status {status}"])[-1]
    if "MemoryError" in words or "bad_alloc" in errors or "can't allocate memory" in errors or status in {-signal.SIGKILL, -signal.SIGXCPU}:
        raise BundleRefused("what came is larger than it may be: memory or time ran out")
    raise BundleRefused(f"the process that opened it ended without an answer: {words}")


def read_job() -> tuple[dict[str, Any], bool]:
    """In the process: confines it, then answers its job and whether it is without network."""
    told = json.loads(sys.stdin.read())
    return told["job"], confine(Limits(told["memory_bytes"], told["file_bytes"], told["cpu_s"]))


def confine(limits: Limits) -> bool:
    """Takes rights, network and resources from this process, for good; answers whether the network is gone.

    A kernel or a container may refuse the namespaces: what remains then is that the pickle reader of torch makes tensors alone.
    """
    import ctypes
    import resource

    for kind, limit in (
        (resource.RLIMIT_AS, limits.memory_bytes),
        (resource.RLIMIT_FSIZE, limits.file_bytes),
        (resource.RLIMIT_CPU, limits.cpu_s),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        most = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (most, most))
    library = ctypes.CDLL(None, use_errno=True)
    library.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    return bool(library.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) == 0)


def answer(value: Mapping[str, Any]) -> None:
    """In the process: tells the result."""
    sys.stdout.write(json.dumps(dict(value)) + "\n")
    sys.stdout.flush()


def refuse(reason: str) -> None:
    """In the process: ends it with a reason."""
    answer({"refused": reason})
    raise SystemExit(REFUSED_STATUS)
