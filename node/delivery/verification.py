"""C-ECHO as service class user: is a peer there for us."""

import time
from typing import Final

from node.codes import StoreStatus
from node.delivery.upper_layer import Context, Peer, RequestedAssociation, Timeouts
from node.delivery.variants import IMPLICIT
from node.errors import StoreRefused
from node.network import NO_DATA_SET, VERIFICATION, CommandElement, CommandField
from node.network.command import Command

ECHO_TIMEOUTS: Final = Timeouts(connect_s=5.0, answer_s=5.0)


def echo(host: str, port: int, called: str, calling: str) -> float:
    """Asks a peer without TLS whether it is there, as `echo_peer` does."""
    return echo_peer(Peer(host, port, called, calling))


def echo_peer(peer: Peer) -> float:
    """Asks a peer whether it is there; answers the seconds from the connection to the answer.

    Raises
    ------
    DeliveryError
        The leaf says why it is not there for us.
    """
    started = time.perf_counter()
    context = Context(VERIFICATION, IMPLICIT)
    with RequestedAssociation(peer, [context], ECHO_TIMEOUTS) as association:
        if context not in association.accepted:
            raise StoreRefused(f"{peer} does not offer verification (C-ECHO)")
        request: Command = {
            CommandElement.AFFECTED_SOP_CLASS_UID: VERIFICATION,
            CommandElement.COMMAND_FIELD: CommandField.C_ECHO_RQ,
            CommandElement.MESSAGE_ID: 1,
            CommandElement.DATA_SET_TYPE: NO_DATA_SET,
        }
        association.send_command(association.accepted[context], request)
        answer = association.receive_response(CommandField.C_ECHO_RSP, 1)
        elapsed_s = time.perf_counter() - started
    if answer.get(CommandElement.STATUS) != StoreStatus.SUCCESS:
        raise StoreRefused(f"{peer} answered C-ECHO with status {answer.get(CommandElement.STATUS)}")
    return elapsed_s
