"""`radnode serve`."""

import argparse

from node.cli.common import Verbs, add_config, config_path


def register(verbs: Verbs) -> None:
    """Adds the verb."""
    parser = verbs.add_parser(
        "serve", help="run the node: listener, workers, courier", description="Runs the node until SIGTERM or Ctrl-C."
    )
    add_config(parser)
    parser.set_defaults(act=_serve)


def _serve(arguments: argparse.Namespace) -> int:
    from node.app import serve

    return serve(config_path(arguments))
