"""`radnode archive`: a small DICOM archive on a folder, for trials without a PACS."""

import argparse
from pathlib import Path

from node.cli.common import Verbs, log_to_stderr
from node.codes import ExitCode


def register(verbs: Verbs) -> None:
    """Adds the verb."""
    parser = verbs.add_parser(
        "archive",
        help="a small DICOM archive on a folder, for trials",
        description="Takes whatever is sent by C-STORE and keeps it below DIR as STUDY/SERIES/INSTANCE.dcm, until SIGTERM or Ctrl-C; prints each path.",
    )
    parser.add_argument("--dir", dest="folder", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--port", type=int, default=11113, metavar="PORT", help="default: 11113; 0: any free port, written to DIR/archive.port"
    )
    parser.add_argument("--host", default="127.0.0.1", metavar="HOST", help="interface to listen on (default: 127.0.0.1)")
    parser.add_argument("--ae-title", default="ARCHIVE", metavar="AET", help="default: ARCHIVE")
    parser.set_defaults(act=_archive)


def _archive(arguments: argparse.Namespace) -> int:
    from node.app import stop_on_signals
    from node.archive import run_archive

    log_to_stderr("info")
    run_archive(
        arguments.folder,
        ae_title=arguments.ae_title,
        host=arguments.host,
        port=arguments.port,
        on_stored=lambda stored: print(stored.path, flush=True),
        stop=stop_on_signals(),
    )
    return ExitCode.OK
