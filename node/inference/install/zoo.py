"""`monai:NAME[==VERSION]`: a bundle out of MONAI's Model Zoo, by MONAI's own download."""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from node.errors import UsageError, WeightsUnavailable

PREFIX: Final = "monai:"
TIMEOUT_S: Final = 1800

_PROGRAM: Final = """
import socket, sys
socket.setdefaulttimeout(60)
from monai.bundle import download
download(name=sys.argv[1], version=sys.argv[2] or None, bundle_dir=sys.argv[3], progress=False)
"""


@contextmanager
def fetched(reference: str, *, timeout_s: float = TIMEOUT_S) -> Iterator[tuple[Path, str]]:
    """Gives the folder that a bundle of the zoo was fetched to, and its name.

    Raises
    ------
    WeightsUnavailable
        When it cannot be fetched.
    """
    wanted = re.fullmatch(r"monai:([A-Za-z0-9_.-]+?)(?:==([A-Za-z0-9_.+-]+))?", reference)
    if wanted is None:
        raise UsageError(f"{reference!r} names no bundle → monai:NAME or monai:NAME==VERSION, for example monai:spleen_ct_segmentation")
    name, version = wanted[1], wanted[2] or ""
    with tempfile.TemporaryDirectory(prefix="radnode-zoo-") as folder:
        try:
            subprocess.run(  # noqa: S603 - this interpreter, names checked above
                [sys.executable, "-c", _PROGRAM, name, version, folder], check=True, capture_output=True, text=True, timeout=timeout_s
            )
            problem = "" if any(Path(folder).rglob("metadata.json")) else "nothing came"
        except subprocess.CalledProcessError as error:
            problem = (error.stderr.strip().splitlines() or ["no message"])[-1][:300]
        except subprocess.TimeoutExpired:
            problem = f"nothing came in {timeout_s:.0f} s"
        if problem:
            raise WeightsUnavailable(
                f"{reference} cannot be fetched: {problem} → fetch the bundle on a machine with network"
                f" (python -m monai.bundle download {name}, or https://huggingface.co/MONAI/{name}) and name its folder or zip"
            )
        yield Path(folder), name
