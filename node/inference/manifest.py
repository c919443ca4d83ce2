"""What an installed bundle consists of: the sha256 of every file as it was when a person trusted it. What differs is not loaded.

This tells a file that was changed, added or lost. It is no signature: who may write the models folder may write the manifest too.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from node.errors import BundleChanged, BundleInvalid
from node.files import write_durably

MANIFEST: Final = "installed.json"
FORMAT: Final = 1
UNLISTED: Final = frozenset({MANIFEST, "card.toml"})
"""Files that a person (card) or radnode (manifest) writes after the installation."""

_BLOCK_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Installed:
    """What is kept of an installation, as `installed.json`."""

    origin: str
    """Where the bundle came from: a name, never more."""
    installed_at: str
    """ISO 8601, UTC."""
    trusted_by: str
    """`typed yes` or `--trust`."""
    contents: Mapping[str, int]
    """What was told when trust was asked for: expressions, scripts, their lines, pickles."""
    files: Mapping[str, str]
    """Path in the bundle → sha256."""
    converted: Mapping[str, str] = field(default_factory=dict)
    """sha256 of each file of weights that came → what it became."""
    confirmed_at: str = ""
    """When a person confirmed the card."""


def read_installed(folder: Path) -> Installed | None:
    """Answers what was installed into a model folder, None where it did not come by `radnode model install PATH`."""
    path = folder / MANIFEST
    try:
        table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if table.pop("format") != FORMAT:
            raise BundleInvalid(f"{path} is of another version of radnode → install the model again")
        return Installed(**table)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BundleInvalid(f"{path} is damaged ({type(error).__name__}) → install the model again") from error


def write_installed(folder: Path, installed: Installed) -> None:
    """Writes `installed.json`."""
    text = json.dumps({"format": FORMAT, **asdict(installed)}, indent=2, ensure_ascii=False, sort_keys=True)
    write_durably(folder / MANIFEST, text.encode() + b"\n")


def digest_files(folder: Path) -> dict[str, str]:
    """Answers the sha256 of every file of a bundle by its path in it.

    But for those of `UNLISTED`, and Python's compiled files in `__pycache__`: a bundle's scripts are never run from those.
    """
    paths = sorted(path for path in folder.rglob("*") if (path.is_file() and "__pycache__" not in path.parts) or path.is_symlink())
    return {name: sha256_of(path) for path in paths if (name := path.relative_to(folder).as_posix()) not in UNLISTED}


def changes_since_trusted(folder: Path) -> dict[str, str]:
    """Answers what is not as it was trusted: path → what is wrong with it. Empty for a bundle that was not installed from a path."""
    installed = read_installed(folder)
    if installed is None:
        return {}
    now = digest_files(folder)
    faults = {name: "absent" for name in installed.files if name not in now}
    faults |= {name: "was not there when the bundle was trusted" for name in now if name not in installed.files}
    faults |= {
        name: f"has changed: sha256 is {now[name][:12]}, {sha256[:12]} was trusted"
        for name, sha256 in installed.files.items()
        if name in now and now[name] != sha256
    }
    return dict(sorted(faults.items()))


def require_unchanged(folder: Path) -> None:
    """Raises BundleChanged where a file of an installed bundle is not the one that was trusted."""
    faults = changes_since_trusted(folder)
    if faults:
        told = "; ".join(f"{name} {fault}" for name, fault in list(faults.items())[:3])
        more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise BundleChanged(
            f"the bundle {folder.name} is not as it was trusted: {told}{more} → put the files back, or install the model again with --replace"
        )


def sha256_of(path: Path) -> str:
    """Answers the sha256 of a file; of a link, that of its target's name: a link was never trusted."""
    digest = hashlib.sha256()
    if path.is_symlink():
        digest.update(b"link to " + bytes(path.readlink()))
        return digest.hexdigest()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
