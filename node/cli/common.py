"""What the verbs share: finding the configuration, tables and JSON on stdout, progress on stderr, advice on errors."""

import argparse
import dataclasses
import re
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from node.errors import NodeError, UsageError

if TYPE_CHECKING:
    import sqlite3
    from types import TracebackType

    from node.config import Config

    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001 - no public name for what add_subparsers answers
else:
    Verbs = argparse.Action

CONFIG_PLACES: Final = (Path("node.toml"), Path("/etc/radnode/node.toml"))

_CHOICE: Final = re.compile(r"invalid choice: '([^']*)' \(choose from (.*)\)")

_ADVICE: Final[Mapping[str, str]] = {
    "ConfigError": "correct the file, then `radnode config check`",
    "UsageError": "radnode --help",
    "JournalUnusable": "name the right configuration with --config, or see `radnode journal check`",
    "BackupFailed": "make room, or name another file; [backup] in the configuration has the folder",
    "NodeRuns": "stop the node first",
    "AlreadyServed": "stop the other node, or give this one its own state_dir",
    "OutOfResources": "free space on the disk of state_dir",
    "IntakeError": "check that the files are DICOM images, for example with dcmdump",
    "InputError": "choose another series; `radnode explain DIR` shows what the model accepts",
    "WeightsMissing": "radnode model install MODEL",
    "WeightsMismatch": "radnode model install MODEL --force",
    "WeightsUnavailable": "check the network, or put the file in place by hand and run `radnode model verify`",
    "CardInvalid": "correct card.toml; models/CARD.md explains every key",
    "ModelError": "radnode model verify",
    "DeviceOutOfMemory": "use a device with more memory, or cpu in [worker] devices",
    "EngineError": "run `radnode doctor`, then the same command with --device cpu",
    "EvidenceError": "this is a fault of radnode: please report it with the log",
    "PeerUnreachable": "check host and port of the peer, and the firewall between",
    "AssociationRejectedTransient": "try again in a moment: the peer is busy",
    "AssociationRejected": "make our AE title known to the peer, and check its own AE title",
    "StoreOutOfResources": "try again when the peer has room",
    "StoreRefused": "read the peer's log: it will not take this object",
    "NodeError": "run `radnode doctor`",
}


class _LogOptions(NamedTuple):
    """What `node.config.LogSection` says of a node, for a command."""

    level: str
    format: str = "console"


def advice_for(error: NodeError) -> str:
    """Answers what a person can do about an error that does not say so itself."""
    return next(_ADVICE[kind.__name__] for kind in type(error).__mro__ if kind.__name__ in _ADVICE)


def suggest(message: str) -> str:
    """Answers a message of argparse, with `did you mean` for a misspelt verb instead of the whole list."""
    import difflib

    found = _CHOICE.search(message)
    if found is None:
        return message
    choices = [choice.strip(" '") for choice in found[2].split(",")]
    close = difflib.get_close_matches(found[1], choices, n=1)
    return f"there is no {found[1]!r}; " + (f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(choices)}")


def add_config(parser: argparse.ArgumentParser) -> None:
    """Adds --config."""
    places = ", then ".join(str(place) for place in CONFIG_PLACES)
    parser.add_argument("--config", type=Path, metavar="FILE", help=f"configuration (default: {places})")


def add_json(parser: argparse.ArgumentParser) -> None:
    """Adds --json."""
    parser.add_argument("--json", action="store_true", help="JSON on stdout, for programs")


def add_models_dir(parser: argparse.ArgumentParser) -> None:
    """Adds --config and --models-dir."""
    add_config(parser)
    parser.add_argument("--models-dir", type=Path, metavar="DIR", help="folder of models (default: of the configuration, else ./models)")


def config_path(arguments: argparse.Namespace) -> Path:
    """Answers the configuration file to use: --config, or the first that exists."""
    if arguments.config is not None:
        return Path(arguments.config)
    for place in CONFIG_PLACES:
        if place.is_file():
            return place
    raise UsageError(f"no configuration: neither {' nor '.join(str(place) for place in CONFIG_PLACES)} exists → name one with --config")


def read_config(arguments: argparse.Namespace) -> "Config":
    """Reads the configuration that the command line names."""
    from node.config import load_config

    return load_config(config_path(arguments))


def models_dir(arguments: argparse.Namespace) -> Path:
    """Answers the folder of models: --models-dir, the configuration's, or ./models."""
    if arguments.models_dir is not None:
        return _existing(Path(arguments.models_dir))
    if arguments.config is not None or any(place.is_file() for place in CONFIG_PLACES):
        return read_config(arguments).node.models_dir
    return _existing(Path("models"))


def _existing(folder: Path) -> Path:
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder} → name the folder of models with --models-dir, or a configuration with --config")
    return folder.resolve()


def existing_folder(folder: Path) -> Path:
    """Answers the folder; raises UsageError when it is not there."""
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder} → name a folder of DICOM files")
    return folder


def open_journal(arguments: argparse.Namespace) -> "sqlite3.Connection":
    """Opens the journal of the configured node."""
    from node.journal import open_database

    return open_database(read_config(arguments).node.state_dir, create=False)


def log_to_stderr(level: str = "warning") -> None:
    """Sends logs and warnings of the libraries to stderr, patient data masked."""
    from node.log import configure_logging

    configure_logging(_LogOptions(level))


def log_errors_when_there_are_any() -> None:
    """Does what `log_to_stderr("error")` does when the first error comes: its libraries take longer than it takes to send a study."""
    import logging
    import threading

    class Waiting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            log_to_stderr("error")
            logging.getLogger(record.name).handle(record)

    def last_words(kind: type[BaseException], error: BaseException, trace: "TracebackType | None") -> None:
        log_to_stderr("error")
        sys.excepthook(kind, error, trace)

    def last_words_of_thread(args: threading.ExceptHookArgs) -> None:
        log_to_stderr("error")
        threading.excepthook(args)

    root = logging.getLogger()
    root.handlers = [Waiting(logging.ERROR)]
    root.setLevel(logging.ERROR)
    logging.captureWarnings(capture=True)
    sys.excepthook = last_words
    threading.excepthook = last_words_of_thread


def print_json(value: object) -> None:
    """Prints a value as JSON on stdout."""
    import json

    print(json.dumps(_plain(value), indent=2, ensure_ascii=False))


def _plain(value: object) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def print_table(headings: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str) -> None:
    """Prints rows in columns on stdout; where there are none, says so on stderr."""
    texts = [["" if cell is None else str(cell) for cell in row] for row in rows]
    if not texts:
        say(empty)
        return
    widths = [max(len(line[place]) for line in [list(headings), *texts]) for place in range(len(headings))]
    for line in [list(headings), *texts]:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def print_stages(stages: Mapping[str, float]) -> None:
    """Prints the seconds of each stage on stdout, and their total."""
    rows = [(name, f"{elapsed_s:.2f}") for name, elapsed_s in stages.items()]
    print_table(("STAGE", "SECONDS"), [*rows, ("total", f"{sum(stages.values()):.2f}")], empty="")


def say(text: str) -> None:
    """Tells a person something on stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def local_time(seconds: float | None) -> str:
    """Answers a moment (seconds since the epoch) as local time, '' for none."""
    return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


class ProgressLine:
    """Progress of a long step on stderr: one line that moves on a terminal, a line per step elsewhere."""

    def __init__(self) -> None:
        self._moves = sys.stderr.isatty()
        self._last = ""
        self._shown = ""

    def __call__(self, step: str, fraction: float) -> None:
        """Shows that `fraction` (0..1) of `step` is done."""
        if self._moves:
            text = f"{step} {fraction:4.0%}" if fraction > 0 else step
            if text != self._shown:
                sys.stderr.write(f"\r\x1b[K{text}")
                sys.stderr.flush()
            self._shown = text
        elif step != self._last:
            say(step)
        self._last = step

    def close(self) -> None:
        """Ends the moving line."""
        if self._moves and self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
