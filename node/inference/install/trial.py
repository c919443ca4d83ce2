"""Loads what was just installed once, in a confined process: a network that its weights do not fit is found now, not at the first study.

The process runs the bundle's code, which a person has trusted by then, without network and with limits on memory and time.
"""

from pathlib import Path
from typing import Final

from node.errors import BundleInvalid, BundleRefused
from node.inference.install.sandbox import BASE_MEMORY_BYTES, Limits, run_confined

CHILD: Final = "node.inference.install.trial_child"
_FILE_BYTES: Final = 64 << 20
"""Of what the bundle's code may write: it has nothing to write."""

_COPIES: Final = 6
"""Of the weights that may live at a time: as they are read, as the network is born with, as the engine turns them; in half precision
they come twice as large."""


def require_loadable(staging: Path, name: str) -> tuple[str, ...]:
    """Loads the bundle in `staging`, whose card and list of files are written already; answers what a person should know.

    Raises
    ------
    BundleInvalid
        When it cannot run: weights that do not fit, a part that is absent or not understood.
    """
    size = sum(path.stat().st_size for path in (staging / "models").rglob("*") if path.is_file())
    limits = Limits(memory_bytes=BASE_MEMORY_BYTES + _COPIES * size, file_bytes=_FILE_BYTES)
    try:
        told = run_confined(CHILD, {"folder": str(staging.resolve())}, limits)
    except BundleRefused as error:
        return (f"the model was not loaded for a trial ({error}) → radnode run DIR --model {name} before it is confirmed",)
    if told.get("missing"):
        return (f"the model needs the package {told['missing']}, which is not installed here → pip install {told['missing']}",)
    if told.get("fault"):
        raise BundleInvalid(str(told["fault"]).replace(staging.name, name))
    return ()
