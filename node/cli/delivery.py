"""`radnode delivery`: results on their way to the archives."""

import argparse
import dataclasses
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from node.cli.common import Verbs, add_config, add_json, local_time, open_journal, print_json, print_table, say
from node.codes import ExitCode
from node.errors import UsageError

if TYPE_CHECKING:
    from node.domain.delivery import Outage
    from node.journal import DeliveryRecord

HEADINGS = ("DELIVERY", "JOB", "ROLE", "TO", "STATE", "CONFIRMED", "TRIES", "STORED/NEXT", "REASON")


def register(verbs: Verbs) -> None:
    """Adds the verbs."""
    nouns = verbs.add_parser("delivery", help="results on their way").add_subparsers(metavar="VERB", required=True)
    listing = nouns.add_parser("list", help="results that are not stored and confirmed yet; all with --all")
    listing.add_argument("--all", action="store_true", help="also those that arrived")
    listing.set_defaults(act=_list)
    retry = nouns.add_parser("retry", help="send again what was refused or given up, ask again about what was not confirmed")
    retry.add_argument(
        "delivery_ids", type=int, nargs="*", metavar="DELIVERY", help="number of a delivery, as `radnode delivery list` shows it"
    )
    retry.add_argument("--refused", action="store_true", help="all that were refused or given up")
    retry.add_argument("--missed", action="store_true", help="all whose confirmation was missed")
    retry.add_argument("--destination", metavar="NAME", help="with --refused or --missed: only those to this peer of the configuration")
    retry.set_defaults(act=_retry)
    for parser in (listing, retry):
        add_json(parser)
        add_config(parser)


def _list(arguments: argparse.Namespace) -> int:
    from node.journal import OutboxJournal
    from node.journal.queries import list_deliveries

    journal = open_journal(arguments)
    deliveries = list_deliveries(journal, all=arguments.all)
    outages = OutboxJournal(journal).outages()
    if arguments.json:
        print_json([_as_json(one, _outage_of(one, outages)) for one in deliveries])
        return ExitCode.OK
    print_table(HEADINGS, [_row(one, _outage_of(one, outages)) for one in deliveries], empty="nothing is on its way (all: --all)")
    for line in _outage_lines(deliveries, outages):
        say(line)
    return ExitCode.OK


def _outage_of(delivery: "DeliveryRecord", outages: "Mapping[str, Outage]") -> "Outage | None":
    """Answers the outage that a delivery waits for, None where it waits for none."""
    from node.domain.states import DeliveryState

    return outages.get(delivery.destination) if delivery.state is DeliveryState.PENDING else None


def _row(delivery: "DeliveryRecord", outage: "Outage | None") -> Sequence[object]:
    moment = delivery.stored_at if delivery.confirmation is not None else delivery.next_attempt_at
    if outage is not None:
        moment = max(delivery.next_attempt_at, outage.next_attempt_s)
    return (
        delivery.delivery_id,
        delivery.job_id,
        delivery.role,
        delivery.destination,
        delivery.state,
        delivery.confirmation,
        delivery.attempts,
        local_time(moment),
        f"waits: {outage.reason}" if outage is not None else delivery.reason,
    )


def _as_json(delivery: "DeliveryRecord", outage: "Outage | None") -> dict[str, object]:
    values = {field.name: getattr(delivery, field.name) for field in dataclasses.fields(delivery)}
    return {**values, "outage": outage}


def _outage_lines(deliveries: "Sequence[DeliveryRecord]", outages: "Mapping[str, Outage]") -> list[str]:
    waiting = Counter(one.destination for one in deliveries if _outage_of(one, outages) is not None)
    lines = []
    for name, count in waiting.items():
        outage = outages[name]
        deliver = "1 delivery waits" if count == 1 else f"{count} deliveries wait"
        lines.append(
            f"{name} cannot be reached since {local_time(outage.down_since_s)} ({outage.failures} tries),"
            f" next try {local_time(outage.next_attempt_s)}, {deliver}: {outage.reason}"
        )
    return lines


def _retry(arguments: argparse.Namespace) -> int:
    from node.journal import OutboxJournal

    whole_groups = arguments.refused or arguments.missed
    if bool(arguments.delivery_ids) is whole_groups:
        raise UsageError("name deliveries by their numbers, or all with --refused or --missed → see `radnode delivery list`")
    if arguments.destination and not whole_groups:
        raise UsageError("--destination goes with --refused or --missed: a delivery has one destination already")
    outbox = OutboxJournal(open_journal(arguments))
    chosen = tuple(dict.fromkeys(arguments.delivery_ids))
    if arguments.refused:
        chosen += outbox.refused(arguments.destination)
    if arguments.missed:
        chosen += outbox.missed(arguments.destination)
    outbox.open_again(chosen, now_s=time.time())
    if arguments.json:
        print_json({"opened": chosen})
    elif chosen:
        say(f"{len(chosen)} {'delivery is' if len(chosen) == 1 else 'deliveries are'} on the way again → radnode delivery list")
    else:
        say("there is none to retry")
    return ExitCode.OK
