"""`radnode doctor`."""

import argparse
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING

from node.cli.common import CONFIG_PLACES, Verbs, add_config, add_json, log_to_stderr, print_json, read_config, say
from node.codes import ExitCode

if TYPE_CHECKING:
    from node.doctor import Finding


def register(verbs: Verbs) -> None:
    """Adds the verb."""
    parser = verbs.add_parser(
        "doctor",
        help="check this machine, the node and its peers",
        description="Checks the installation and, where a configuration is found, its folders, models, port and peers. Exit code 1 on a fault.",
    )
    add_config(parser)
    add_json(parser)
    parser.set_defaults(act=_doctor)


def _doctor(arguments: argparse.Namespace) -> int:
    from node.doctor import Health

    log_to_stderr("error")
    findings = []
    for finding in _findings(arguments):
        findings.append(finding)
        if not arguments.json:
            print(f"{finding.health:<8} {finding.check}: {finding.text}" + (f" → {finding.advice}" if finding.advice else ""), flush=True)
    if arguments.json:
        print_json(findings)
    return ExitCode.FAILED if any(finding.health is Health.FAULT for finding in findings) else ExitCode.OK


def _findings(arguments: argparse.Namespace) -> "Iterator[Finding]":
    from node.doctor import examine_machine, examine_node

    if arguments.config is None and not any(place.is_file() for place in CONFIG_PLACES):
        say("no configuration found: only the machine is checked (name one with --config)")
        return examine_machine()
    from node.delivery.peers import configured_peer
    from node.delivery.store_scu import echo_peer

    config = read_config(arguments)
    return chain(examine_machine(), examine_node(config, lambda name: echo_peer(configured_peer(config, name))))
