"""What the machine can do at best: a copy over loopback, a sink that writes a new file an object, and what the disk's own flush costs.

`python -m benchmarks.limits sink FOLDER` is the sink, in a process of its own as the receivers are: recv into one buffer and write,
with an answer of one byte an object; no DICOM, no index, no name. Without FOLDER it drops what it receives.
"""

import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from benchmarks.corpora import NOISE
from benchmarks.measuring import Meter

HOST: Final = "127.0.0.1"
BUFFER_BYTES: Final = 1 << 20
HEAD: Final = struct.Struct("<Q")


def flush_floor(folder: Path, *, size_bytes: int, instances: int, at_once: int) -> dict[str, float]:
    """Answers the seconds that the disk takes for an instance, with so many writers at once.

    `preallocated` is one pwrite and one fdatasync on a file that has its blocks already; `new_file` a file made, written and flushed.
    """
    folder.mkdir(parents=True)
    content = (NOISE * (size_bytes // len(NOISE) + 1))[:size_bytes]
    ready = [folder / f"ready{number}" for number in range(at_once)]
    for path in ready:
        path.write_bytes(content)
    os.sync()

    def overwrite(number: int) -> None:
        descriptor = os.open(ready[number], os.O_WRONLY)
        for _ in range(instances // at_once):
            os.pwrite(descriptor, content, 0)
            os.fdatasync(descriptor)
        os.close(descriptor)

    def write_new(number: int) -> None:
        for count in range(instances // at_once):
            descriptor = os.open(folder / f"new{number}.{count}", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            os.write(descriptor, content)
            os.fsync(descriptor)
            os.close(descriptor)

    return {"preallocated": _each(overwrite, at_once) / instances, "new_file": _each(write_new, at_once) / instances}


def _each(work: Callable[[int], None], at_once: int) -> float:
    started = time.perf_counter()
    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(work, range(at_once)))
    return time.perf_counter() - started


def socket_limit(folder: Path | None, *, sizes: Sequence[int], at_once: int) -> dict[str, float]:
    """Answers MB/s and CPU seconds a GB of the sink; into new files in `folder`, or nowhere."""
    with _sink(folder) as (port, pid):
        _blow(port, [1 << 16] * 4)
        meter = Meter(pid)
        wall_s = _each(lambda number: _blow(port, sizes[number::at_once]), at_once)
        gigabytes = sum(sizes) / 1e9
        return {"megabytes_per_s": 1000 * gigabytes / wall_s, "cpu_s_per_gb": meter.read().cpu_s / gigabytes}


def _blow(port: int, sizes: Sequence[int]) -> None:
    content = memoryview(NOISE * (max(sizes) // len(NOISE) + 1))
    with socket.create_connection((HOST, port)) as link:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for size in sizes:
            head = HEAD.pack(size)
            sent = link.sendmsg([head, content[:size]]) - len(head)
            link.sendall(content[sent:size])
            assert link.recv(1), "the sink has gone"


@contextmanager
def _sink(folder: Path | None) -> Iterator[tuple[int, int]]:
    command = [sys.executable, "-m", "benchmarks.limits", "sink", *([str(folder)] if folder else [])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline()), process.pid
        finally:
            process.kill()


def _serve(folder: Path | None) -> None:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    server = socket.create_server((HOST, 0))
    print(server.getsockname()[1], flush=True)
    for number in range(1 << 20):
        link, _ = server.accept()
        threading.Thread(target=_swallow, args=(link, folder, number), daemon=True).start()


def _swallow(link: socket.socket, folder: Path | None, number: int) -> None:
    buffer = memoryview(bytearray(BUFFER_BYTES))
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    count = 0
    while True:
        held = 0
        while held < HEAD.size:
            got = link.recv_into(buffer[held:])
            if not got:
                return
            held += got
        left = HEAD.unpack_from(buffer)[0] - (held - HEAD.size)
        count += 1
        descriptor = os.open(folder / f"{number}.{count}", os.O_WRONLY | os.O_CREAT, 0o640) if folder else -1
        if folder:
            os.write(descriptor, buffer[HEAD.size : held])
        while left:
            got = link.recv_into(buffer, min(left, BUFFER_BYTES))
            if not got:
                return
            if folder:
                os.write(descriptor, buffer[:got])
            left -= got
        if folder:
            os.close(descriptor)
        link.sendall(b"k")


if __name__ == "__main__":
    _serve(Path(sys.argv[2]) if len(sys.argv) > 2 else None)
