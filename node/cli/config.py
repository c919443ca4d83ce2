"""`radnode config`: is the file right, and what does it amount to."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from node.cli.common import Verbs, add_config, add_json, config_path, print_json
from node.cli.toml import to_toml
from node.codes import ExitCode

if TYPE_CHECKING:
    from node.config import Config


def register(verbs: Verbs) -> None:
    """Adds the verbs."""
    nouns = verbs.add_parser("config", help="check or show the configuration").add_subparsers(metavar="VERB", required=True)
    check = nouns.add_parser("check", help="name every fault of the file, with its line", description="Exit code 78 when there are faults.")
    check.add_argument("file", type=Path, nargs="?", metavar="FILE", help="the file (default: as --config)")
    add_config(check)
    check.set_defaults(act=_check)
    show = nouns.add_parser("show", help="print the whole configuration, defaults included")
    add_config(show)
    add_json(show)
    show.set_defaults(act=_show)


def _check(arguments: argparse.Namespace) -> int:
    from node.config import load_config
    from node.config_faults import Fault, report_faults
    from node.errors import ConfigError
    from node.modelstore import drafts_among

    path = arguments.file or config_path(arguments)
    config = load_config(path)
    drafts = drafts_among(config.node.models_dir, [route.model for route in config.routes])
    faults = [Fault(("routes", index, "model"), str(error)) for index, error in drafts]
    if faults:
        raise ConfigError(report_faults(faults, path.read_text(encoding="utf-8"), path))
    print(f"{path}: no faults. {_summary(config)}")
    return ExitCode.OK


def _summary(config: "Config") -> str:
    senders = [peer.ae_title for peer in config.peers.values() if peer.may_send]
    who = "anybody" if config.listener.accept_unlisted_peers else ", ".join(senders) or "nobody (no peer has may_send = true)"
    routes = "; ".join(f"{route.name}: {route.model} → {', '.join(route.deliver_to)}" for route in config.routes)
    return (
        f"{config.node.ae_title} listens on {config.listener.host}:{config.listener.port}, takes images from {who}; "
        f"routes: {routes or 'none, so every series will be declined'}."
    )


def _show(arguments: argparse.Namespace) -> int:
    from node.config import load_config

    config = load_config(config_path(arguments))
    table = _as_table(config)
    if arguments.json:
        print_json(table)
    else:
        print(to_toml(table), end="")
    return ExitCode.OK


def _as_table(config: "Config") -> dict[str, Any]:
    table = config.model_dump(mode="json", exclude_none=True)
    for route, shown in zip(config.routes, table["routes"], strict=True):
        shown["when"] = {keyword: _condition(value) for keyword, value in route.when.items()}
    return table


def _condition(condition: object) -> object:
    if isinstance(condition, tuple):
        return condition[0] if len(condition) == 1 else list(condition)
    return {key: bound for key in ("min", "max") if (bound := getattr(condition, key)) is not None}
