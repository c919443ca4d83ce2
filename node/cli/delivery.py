"""`radnode delivery`: results on their way to the archives."""

import argparse

from node.cli.common import Verbs, add_config, add_json, local_time, open_journal, print_json, print_table
from node.codes import ExitCode


def register(verbs: Verbs) -> None:
    """Adds the verb."""
    nouns = verbs.add_parser("delivery", help="results on their way").add_subparsers(metavar="VERB", required=True)
    listing = nouns.add_parser("list", help="results that are not stored yet; all with --all")
    listing.add_argument("--all", action="store_true", help="also those that arrived")
    add_json(listing)
    add_config(listing)
    listing.set_defaults(act=_list)


def _list(arguments: argparse.Namespace) -> int:
    from node.journal.queries import list_deliveries

    deliveries = list_deliveries(open_journal(arguments), all=arguments.all)
    if arguments.json:
        print_json(deliveries)
        return ExitCode.OK
    rows = [
        (one.job_id, one.role, one.destination, one.state, one.attempts, local_time(one.stored_at or one.next_attempt_at), one.reason)
        for one in deliveries
    ]
    print_table(("JOB", "ROLE", "TO", "STATE", "TRIES", "STORED/NEXT", "REASON"), rows, empty="nothing is on its way (all: --all)")
    return ExitCode.OK
