"""`radnode conformance`: what this version does towards other systems, written by its own code."""

import argparse
from pathlib import Path

from node.cli.common import Verbs, say
from node.codes import ExitCode
from node.errors import UsageError


def register(verbs: Verbs) -> None:
    """Adds the verb."""
    parser = verbs.add_parser(
        "conformance",
        help="print the DICOM conformance statement, or the IHE integration statement",
        description="Prints the DICOM conformance statement of this version (PS3.2 Annex N) as Markdown: tables are read off the code. "
        "docs/reference/ holds the same.",
    )
    parser.add_argument("--ihe", action="store_true", help="the IHE integration statement instead")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write it there (default: stdout)")
    parser.set_defaults(act=_conformance)


def _conformance(arguments: argparse.Namespace) -> int:
    from node.conformance_statement.ihe import ihe_integration_statement
    from node.conformance_statement.statement import conformance_statement

    text = ihe_integration_statement() if arguments.ihe else conformance_statement()
    if arguments.output is None:
        print(text, end="")
        return ExitCode.OK
    try:
        arguments.output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{arguments.output} cannot be written: {error.strerror} → name another file") from error
    say(f"written: {arguments.output}")
    return ExitCode.OK
