"""`python -m node.child PARENT_PID CONFIG FROZEN ROLE…`: a process of the node, started by the supervisor alone.

FROZEN holds the text of CONFIG as it was when the node started: a file that is edited meanwhile changes no process.
"""

import sys
from pathlib import Path

from node.app import stop_on_signals
from node.config import parse_config
from node.locks import die_with_parent
from node.log import configure_logging


def main(arguments: list[str]) -> None:
    """Runs one role until SIGTERM. Heavy libraries are imported by the role that needs them only."""
    die_with_parent(int(arguments[0]))
    stop = stop_on_signals()
    config = parse_config(Path(arguments[2]).read_text(encoding="utf-8"), Path(arguments[1]))
    configure_logging(config.log)
    role, *rest = arguments[3:]
    if role == "listener":
        from node.intake.listener import run_listener

        run_listener(config, stop)
    elif role == "dispatcher":
        from node.dispatcher import run_dispatcher

        run_dispatcher(config, stop)
    elif role == "worker":
        from node.worker import run_worker

        run_worker(config, rest[0], stop)
    elif role == "courier":
        from node.delivery.outbox import run_courier

        run_courier(config, stop)
    elif role == "housekeeper":
        from node.housekeeper import run_housekeeper

        run_housekeeper(config, stop)
    else:
        raise SystemExit(f"no such role: {role}")


if __name__ == "__main__":
    main(sys.argv[1:])
