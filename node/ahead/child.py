"""`python -m node.ahead.child PARENT_PID DESCRIPTOR`: reads headers and decodes frames for a worker, started by it alone."""

import os
import resource
import sys
import warnings
from multiprocessing.connection import Connection
from typing import Final

import numpy as np

from node.ahead.requests import Answer, DecodeFrames, ReadHeader, ReadInstance, Refused, Request
from node.inference.pixels import read_frames
from node.inference.series_reader import read_instance
from node.intake.headers import read_header
from node.locks import die_with_parent

NICENESS: Final = 10
"""The listener and everything else that somebody waits for goes first."""

MOST_MEMORY_BYTES: Final = 4 << 30
"""Of address space; libraries alone take one."""


def main(arguments: list[str]) -> None:
    """Answers one request after the other until the worker hangs up."""
    die_with_parent(int(arguments[0]))
    os.nice(NICENESS)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = MOST_MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(hard, MOST_MEMORY_BYTES)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold images
    warnings.simplefilter("ignore")
    with Connection(int(arguments[1])) as link:
        while True:
            try:
                request = link.recv()
            except EOFError:
                return
            link.send(answer(request))


def answer(request: Request) -> Answer:
    """Answers a request, whatever the file is."""
    try:
        if isinstance(request, ReadHeader):
            return read_header(request.path)
        if isinstance(request, ReadInstance):
            return read_instance(request.path, 0)
        assert isinstance(request, DecodeFrames)  # noqa: S101 - there are three
        return tuple(np.ascontiguousarray(frame) for frame in read_frames(request.pixels, request.indices))
    except Exception as error:  # noqa: BLE001 - whatever it is, the job meets it again and says what it means
        return Refused(type(error).__name__)


if __name__ == "__main__":
    main(sys.argv[1:])
