"""Writes docs/reference/ from the code: the command line, the states, the statements of conformance. `--check` only says whether that is needed."""

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from node.cli import build_parser
from node.conformance_statement.ihe import ihe_integration_statement
from node.conformance_statement.statement import conformance_statement
from node.domain.states import OPENING_STATES, TRANSITIONS

REFERENCE = Path(__file__).parents[1] / "docs" / "reference"
HEAD = "<!-- Written by `make docs`: change the code, not this file. -->\n"


def pages() -> dict[str, str]:
    """Answers every generated page by its file name."""
    return {
        "cli.md": cli_page(),
        "states.md": states_page(),
        "conformance-statement.md": HEAD + conformance_statement(),
        "ihe-integration-statement.md": HEAD + ihe_integration_statement(),
    }


def cli_page() -> str:
    """Answers the reference of the command line."""
    sections = [HEAD, "# The command line\n"]
    for command, parser in commands("radnode", build_parser()):
        sections.append(f"## `{command}`\n\n```text\n{parser.format_help().rstrip()}\n```\n")
    return "\n".join(sections)


def commands(name: str, parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Answers a parser and those below it, in the order of the help."""
    yield name, parser
    for action in parser._actions:  # noqa: SLF001 - argparse has no public way to its subparsers
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            for verb, below in action.choices.items():
                yield from commands(f"{name} {verb}", below)


def states_page() -> str:
    """Answers the states of studies, series, jobs and deliveries as diagrams."""
    sections = [HEAD, "# States\n", "Every allowed step; the journal refuses any other.\n"]
    for kind, birth in OPENING_STATES.items():
        lines = [f"    [*] --> {identifier(birth)}"]
        for before, after in TRANSITIONS[kind].items():
            lines += [f"    {identifier(before)} --> {identifier(one)}" for one in sorted(after)]
        body = "\n".join(lines)
        sections.append(f"## {kind.__name__.removesuffix('State')}\n\n```mermaid\nstateDiagram-v2\n{body}\n```\n")
    return "\n".join(sections)


def identifier(state: str) -> str:
    """Answers a state as mermaid wants it."""
    return state.replace(" ", "_")


def main() -> int:
    """Writes the pages, or with --check answers 1 where one is out of date."""
    os.environ["COLUMNS"] = "110"  # argparse folds its lines to it
    stale = {
        name: text for name, text in pages().items() if not (REFERENCE / name).is_file() or (REFERENCE / name).read_text("utf-8") != text
    }
    if "--check" in sys.argv[1:]:
        for name in stale:
            sys.stderr.write(f"docs/reference/{name} is out of date → make docs\n")
        return 1 if stale else 0
    REFERENCE.mkdir(parents=True, exist_ok=True)
    for name, text in stale.items():
        (REFERENCE / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
