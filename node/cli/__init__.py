"""The `radnode` command. Each noun is a module, imported where it is called; heavy imports stand inside its verbs."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Final, NoReturn

from node import __version__
from node.cli.common import Verbs, suggest
from node.codes import ExitCode
from node.errors import NodeError

__all__ = ["build_parser", "main"]

_NOUNS: Final[Mapping[str, str]] = {
    "serve": "serve",
    "config": "config",
    "doctor": "doctor",
    "echo": "peer",
    "send": "peer",
    "run": "run",
    "explain": "explain",
    "check": "check",
    "conformance": "conformance",
    "job": "job",
    "series": "series",
    "delivery": "delivery",
    "journal": "journal",
    "model": "model",
    "engine": "engine",
    "evaluate": "evaluate",
    "study": "study",
    "archive": "archive",
    "demo": "demo",
}
"""First word of a command line → module of this package that adds it."""

_EPILOG = """\
exit codes: 0 done, 1 failed, 2 wrong usage, 69 a peer cannot be reached or refuses, 78 faults in the configuration.
Data goes to stdout, progress and logs to stderr. NO_COLOR is respected.
"""


class _Parser(argparse.ArgumentParser):
    """Says what to do about a wrong command line."""

    def error(self, message: str) -> NoReturn:
        sys.stderr.write(f"radnode: {suggest(message)} → {self.prog} --help\n")
        sys.exit(ExitCode.USAGE)


def build_parser(first_word: str = "") -> argparse.ArgumentParser:
    """Answers the parser of the whole command line; of the noun alone that `first_word` names, where it names one: others cost time."""
    parser: argparse.ArgumentParser = _Parser(
        prog="radnode",
        description="A DICOM AI node: studies come in, SEG and SR go back into the archive.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"radnode {__version__}")
    # Without `prog` a formatter of help is made to find it out, and that takes longer than the rest.
    verbs: Verbs = parser.add_subparsers(title="verbs", metavar="VERB", dest="verb", required=True, prog="radnode", parser_class=_Parser)
    for noun in [_NOUNS[first_word]] if first_word in _NOUNS else dict.fromkeys(_NOUNS.values()):
        import_module(f"node.cli.{noun}").register(verbs)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and answers its exit code."""
    words = sys.argv[1:] if argv is None else argv
    arguments = build_parser(words[0] if words else "").parse_args(words)
    try:
        status = int(arguments.act(arguments))
        sys.stdout.flush()
    except NodeError as error:
        sys.stderr.write(f"radnode: {_told(error)}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("radnode: interrupted\n")
        return 130
    except BrokenPipeError:
        # The reader of our output went away (`radnode job list | head`): not an error; keep the interpreter from flushing again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.OK
    return status


def _told(error: NodeError) -> str:
    """Answers the error as a sentence with what to do; patient data masked."""
    from node.cli.common import advice_for
    from node.phi import scrub_text

    text = scrub_text(str(error))
    if "\n" in text:
        return f"{text}\n→ {advice_for(error)}"
    return text if "→" in text else f"{text} → {advice_for(error)}"
