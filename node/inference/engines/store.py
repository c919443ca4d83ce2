"""Compiled networks on the disk, under the digest of all that they depend on, and only those that this node built.

`engines/MODEL/KEY/` holds the files of an entry beside its `manifest.json`: what the key is made of, the sha256 of every file, and an
HMAC by a key that never leaves this node (`engines/.node.key`, 0600). An engine is native code: what was changed, cut off or brought
from elsewhere is refused before a library sees it.
"""

import hashlib
import hmac
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from node.errors import EngineError
from node.files import fsync_folder
from node.locks import HeldLock

MANIFEST: Final = "manifest.json"
NODE_KEY: Final = ".node.key"
KEY_LENGTH: Final = 32
_KEY_BYTES: Final = 32
_OTHERS: Final = 0o077
_PRIVATE_FOLDER: Final = 0o700
_PRIVATE_FILE: Final = 0o600


class EngineRefused(EngineError):
    """A compiled network is not as this node built it: it is not loaded."""

    retryable = False


def canonical(value: object) -> bytes:
    """Answers a value as JSON that is the same for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def key_of(fields: Mapping[str, Any]) -> str:
    """Answers the name under which what depends on `fields` is kept: the beginning of their sha256."""
    return hashlib.sha256(canonical(fields)).hexdigest()[:KEY_LENGTH]


@dataclass(frozen=True, slots=True)
class Entry:
    """A verified entry."""

    model: str
    key: str
    folder: Path
    fields: Mapping[str, Any]
    digests: Mapping[str, str]
    built_at_s: float

    @property
    def size_bytes(self) -> int:
        """Of all its files."""
        return sum((self.folder / name).stat().st_size for name in self.digests)

    def read(self, name: str) -> bytes:
        """Answers the content of a file; raises EngineRefused where it is not what was written.

        The bytes that are answered are those that were verified: nothing is read a second time.
        """
        try:
            content = (self.folder / name).read_bytes()
        except OSError as error:
            raise EngineRefused(f"{self.folder / name} cannot be read: {error.strerror}") from error
        if hashlib.sha256(content).hexdigest() != self.digests.get(name):
            raise EngineRefused(f"{self.folder / name} was changed since this node built it")
        return content


@dataclass(frozen=True, slots=True)
class Kept:
    """Something that lies in the folder of engines: an entry, or what is wrong with it."""

    model: str
    key: str
    folder: Path
    entry: Entry | None
    fault: str = ""


@dataclass
class EngineStore:
    """The folder of engines of a node."""

    folder: Path
    _secret: bytes = field(default=b"", repr=False)

    def find(self, model: str, fields: Mapping[str, Any]) -> Entry | None:
        """Answers the entry for `fields`, None where there is none.

        Raises
        ------
        EngineRefused
            When what lies there was not built by this node, or not for these fields, or is not whole.
        """
        folder = self.folder / model / key_of(fields)
        if not folder.is_dir():
            return None
        entry = self._open(model, folder)
        if canonical(entry.fields) != canonical(fields):
            raise EngineRefused(f"{folder} was built for something else than its name says")
        return entry

    def put(self, model: str, fields: Mapping[str, Any], files: Mapping[str, bytes]) -> Entry:
        """Writes an entry in one step and answers it; what lay under its key is replaced."""
        folder = self.folder / model / key_of(fields)
        temporary = folder.with_name(f".{folder.name}.{os.getpid()}.part")
        self._prepare(folder.parent)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(mode=_PRIVATE_FOLDER)
        manifest: dict[str, Any] = {
            "key": folder.name,
            "fields": dict(fields),
            "files": {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())},
            "built_at_s": time.time(),
        }
        manifest["hmac"] = self._sign(model, manifest)
        for name, content in {**files, MANIFEST: json.dumps(manifest, indent=1, sort_keys=True).encode()}.items():
            _write_flushed(temporary / name, content)
        fsync_folder(temporary)
        self._replace(temporary, folder)
        return self._open(model, folder)

    def refuse(self, kept: Kept | Entry) -> None:
        """Removes an entry, so that it is built anew."""
        doomed = kept.folder.with_name(f".{kept.key}.{os.getpid()}.old")
        if kept.folder.exists():
            kept.folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)

    def discard(self, model: str, fields: Mapping[str, Any]) -> None:
        """Removes whatever lies under the key of `fields`, so that it is built anew."""
        key = key_of(fields)
        self.refuse(Kept(model, key, self.folder / model / key, None))

    def lock(self, model: str, key: str) -> HeldLock:
        """Takes the right to build an entry; raises LockHeld where another process builds it."""
        self._prepare(self.folder / model)
        return HeldLock(self.folder / model / f".{key}.lock")

    def contents(self, model: str = "") -> Iterator[Kept]:
        """Yields all that lies there, of one model or of all, each file of it verified."""
        for folder in sorted(self.folder.glob(f"{model or '*'}/*/")):
            if folder.name.startswith("."):
                continue
            name = folder.parent.name
            try:
                entry = self._open(name, folder)
                for file in entry.digests:
                    entry.read(file)
            except EngineRefused as error:
                yield Kept(name, folder.name, folder, None, str(error))
            else:
                yield Kept(name, folder.name, folder, entry)

    def sweep(self) -> int:
        """Removes what builders that died left half done; answers how many."""
        leftovers = [one for pattern in ("*/.*.part", "*/.*.old") for one in self.folder.glob(pattern) if not _is_alive(one)]
        for leftover in leftovers:
            shutil.rmtree(leftover, ignore_errors=True)
        return len(leftovers)

    def _open(self, model: str, folder: Path) -> Entry:
        try:
            manifest = json.loads((folder / MANIFEST).read_bytes())
            told = str(manifest.pop("hmac"))
            files, fields = dict(manifest["files"]), dict(manifest["fields"])
            built_at_s = float(manifest["built_at_s"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise EngineRefused(f"{folder} has no whole {MANIFEST}") from error
        if not hmac.compare_digest(told.encode(), self._sign(model, manifest).encode()):
            raise EngineRefused(f"{folder} was not built by this node: its signature is another")
        if manifest["key"] != folder.name or any(Path(name).name != name for name in files):
            raise EngineRefused(f"{folder} was built under another name")
        return Entry(model, folder.name, folder, fields, files, built_at_s)

    def _sign(self, model: str, manifest: Mapping[str, Any]) -> str:
        return hmac.new(self._node_key(), canonical([model, manifest]), hashlib.sha256).hexdigest()

    def _node_key(self) -> bytes:
        if not self._secret:
            self._prepare(self.folder)
            path = self.folder / NODE_KEY
            _make_key(path)
            if path.stat().st_mode & _OTHERS:
                raise EngineRefused(f"others may read {path}: what it signs proves nothing → rm {path}, and engines are built anew")
            secret = path.read_bytes()
            if len(secret) != _KEY_BYTES:
                raise EngineRefused(f"{path} is no key → rm {path}, and engines are built anew")
            self._secret = secret
        return self._secret

    def _prepare(self, folder: Path) -> None:
        for one in (self.folder, folder):
            one.mkdir(parents=True, exist_ok=True)
            if one.stat().st_mode & _OTHERS:
                one.chmod(_PRIVATE_FOLDER)

    def _replace(self, temporary: Path, folder: Path) -> None:
        old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
        fsync_folder(folder.parent)
        shutil.rmtree(old, ignore_errors=True)


def _make_key(path: Path) -> None:
    """Makes the key of this node where there is none: whole or not at all, and by one process."""
    if path.exists():
        return
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    _write_flushed(temporary, secrets.token_bytes(_KEY_BYTES))
    try:
        os.link(temporary, path)  # fails where another process was first: then its key is the key
    except FileExistsError:
        return
    finally:
        temporary.unlink()
    fsync_folder(path.parent)


def _write_flushed(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _PRIVATE_FILE)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _is_alive(leftover: Path) -> bool:
    writer = leftover.name.split(".")[-2]
    return writer.isdigit() and Path(f"/proc/{writer}").exists()
