"""`radnode series`: every received series, and why it was not analysed."""

import argparse

from node.cli.common import Verbs, add_config, add_json, local_time, open_journal, print_json, print_table
from node.codes import ExitCode


def register(verbs: Verbs) -> None:
    """Adds the verb."""
    nouns = verbs.add_parser("series", help="received series, and why one was declined").add_subparsers(metavar="VERB", required=True)
    listing = nouns.add_parser("list", help="series that were declined or are still coming in; all with --all")
    listing.add_argument("--all", action="store_true", help="also those that a job carries")
    add_json(listing)
    add_config(listing)
    listing.set_defaults(act=_list)


def _list(arguments: argparse.Namespace) -> int:
    from node.journal.queries import list_series

    series = list_series(open_journal(arguments), all=arguments.all)
    if arguments.json:
        print_json(series)
        return ExitCode.OK
    rows = [
        (one.state, one.instances, one.changed or "", one.purged or "", local_time(one.updated_at), one.series_instance_uid, one.reason)
        for one in series
    ]
    print_table(
        ("STATE", "IMAGES", "CHANGED", "PURGED", "UPDATED", "SERIES", "REASON"),
        rows,
        empty="no series was declined or is coming in (all: --all)",
    )
    return ExitCode.OK
