"""`radnode journal`: is it sound, copy it, put a copy back, take it elsewhere, make it smaller."""

import argparse
import csv
import json
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from node.cli.common import ProgressLine, Verbs, add_config, add_json, open_journal, print_json, print_table, read_config, say
from node.codes import ExitCode
from node.errors import UsageError

if TYPE_CHECKING:
    import sqlite3

    from node.config import Config

_HISTORY_HELP = "first forget the steps of what ended more than N days ago; by default they are kept for ever"


def register(verbs: Verbs) -> None:
    """Adds the verbs."""
    nouns = verbs.add_parser("journal", help="check, back up, restore, export or shrink the journal").add_subparsers(
        metavar="VERB", required=True
    )
    check = nouns.add_parser("check", help="is the journal sound, and is every file there that it names; exit 1 where not")
    check.add_argument("--deep", action="store_true", help="read every image, byte for byte")
    add_json(check)
    backup = nouns.add_parser("backup", help="copy the journal, also while the node runs")
    backup.add_argument("file", type=Path, nargs="?", metavar="FILE", help="where to (default: a new one in the folder of backups)")
    restore = nouns.add_parser("restore", help="put a backup in the place of the journal; the node must be stopped")
    restore.add_argument("file", type=Path, nargs="?", metavar="FILE", help="the backup")
    restore.add_argument("--from-spool", action="store_true", help="without a backup: begin anew with the images that lie in the spool")
    export = nouns.add_parser("export", help="write all rows as text; they hold UIDs, no patient data")
    export.add_argument("--format", choices=("jsonl", "csv"), default="jsonl", help="a JSON object a row, or CSV (default: jsonl)")
    export.add_argument("--table", metavar="NAME", help="of this table only; CSV needs it")
    export.add_argument("--output", type=Path, metavar="FILE", help="where to (default: stdout)")
    vacuum = nouns.add_parser("vacuum", help="give the room of removed rows back to the disk")
    vacuum.add_argument("--history-days", type=_days, metavar="N", help=_HISTORY_HELP)
    for parser, act in ((check, _check), (backup, _backup), (restore, _restore), (export, _export), (vacuum, _vacuum)):
        add_config(parser)
        parser.set_defaults(act=act)


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = -1.0
    if not 0 <= days < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of days")
    return days


def _backups(config: "Config") -> Path:
    from node.journal.upkeep import backups_folder

    return backups_folder(config.node.state_dir, config.backup.folder)


@contextmanager
def _progress() -> Iterator[ProgressLine]:
    line = ProgressLine()
    try:
        yield line
    finally:
        line.close()


def _check(arguments: argparse.Namespace) -> int:
    from node.custody import Verdict, examine

    config = read_config(arguments)
    with _progress() as progress:
        findings = list(examine(config.node.state_dir, _backups(config), progress, deep=arguments.deep))
    if arguments.json:
        print_json(findings)
    else:
        rows = [(one.check, one.verdict, one.count or "", one.text + (f" → {one.advice}" if one.advice else "")) for one in findings]
        print_table(("CHECK", "", "COUNT", "WHAT"), rows, empty="")
    return ExitCode.FAILED if any(one.verdict is Verdict.WRONG for one in findings) else ExitCode.OK


def _backup(arguments: argparse.Namespace) -> int:
    from node.journal.upkeep import copy_to, make_backup

    config = read_config(arguments)
    with closing(open_journal(arguments)) as journal:
        if arguments.file is None:
            made = make_backup(journal, _backups(config), now_s=time.time())
        elif arguments.file.exists():
            raise UsageError(f"{arguments.file} exists → name a file that does not")
        else:
            made = copy_to(journal, arguments.file)
    print(made)
    return ExitCode.OK


def _restore(arguments: argparse.Namespace) -> int:
    from node.custody import restore

    if (arguments.file is None) is not arguments.from_spool:
        raise UsageError("name the backup to restore, or use --from-spool → the newest ones lie in the folder of `radnode journal backup`")
    config = read_config(arguments)
    with _progress() as progress:
        done = restore(config.node.state_dir, arguments.file, progress)
    if done.kept_aside is not None:
        say(f"the journal of before is kept: {done.kept_aside}")
    if done.missing:
        say(f"{done.missing} images that the backup names are gone from the spool: they count as removed by retention")
    for name in done.unreadable:
        say(f"no whole instance, left alone: spool/{name}")
    print(f"{done.adopted} images of the spool that the journal did not know were taken in")
    return ExitCode.OK


def _export(arguments: argparse.Namespace) -> int:
    from node.journal.upkeep import tables_of

    with closing(open_journal(arguments)) as journal:
        known = tables_of(journal)
        if arguments.table is not None and arguments.table not in known:
            raise UsageError(f"there is no table {arguments.table} → one of {', '.join(known)}")
        if arguments.table is None and arguments.format == "csv":
            raise UsageError(f"CSV holds one table → name it with --table: {', '.join(known)}")
        tables = known if arguments.table is None else (arguments.table,)
        if arguments.output is None:
            _write(journal, tables, arguments.format, sys.stdout)
        else:
            try:
                with Path(arguments.output).open("w", encoding="utf-8", newline="") as stream:
                    _write(journal, tables, arguments.format, stream)
            except OSError as error:
                raise UsageError(f"{arguments.output} cannot be written: {error.strerror} → name another with --output") from error
    return ExitCode.OK


def _write(journal: "sqlite3.Connection", tables: Iterable[str], form: str, stream: TextIO) -> None:
    from node.journal.upkeep import columns_of, export_rows

    for table in tables:
        rows = (_scrubbed(row) for row in export_rows(journal, table))
        if form == "csv":
            writer = csv.DictWriter(stream, columns_of(journal, table))
            writer.writeheader()
            writer.writerows(rows)
        else:
            stream.writelines(json.dumps({"table": table, **row}, ensure_ascii=False) + "\n" for row in rows)


def _scrubbed(row: dict[str, Any]) -> dict[str, Any]:
    """Answers the row; what a peer has said about an object passes the filter of the log."""
    from node.phi import scrub_text

    return {**row, "reason": scrub_text(row["reason"])} if "reason" in row else row


def _vacuum(arguments: argparse.Namespace) -> int:
    from node.journal.upkeep import drop_history, size_bytes, vacuum

    with closing(open_journal(arguments)) as journal:
        before = size_bytes(journal)
        if arguments.history_days is not None:
            dropped = drop_history(journal, before_s=time.time() - arguments.history_days * 86400)
            say(f"{dropped} steps of the history forgotten")
        vacuum(journal)
        print(f"{before / 1e6:.1f} MB before, {size_bytes(journal) / 1e6:.1f} MB now")
    return ExitCode.OK
