"""Whatever comes over the wire: accepted or refused; the listener goes on, nothing half received stays, no thread fails."""

import contextlib
import random
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.delivery.store_scu import read_part10, store_files
from node.delivery.upper_layer import Context, _associate_request
from node.network import DATA_SET_FOLLOWS, CommandElement, CommandField
from node.network.command import decode_command, encode_command
from tests.factories import SyntheticSeries, make_ct_series
from tests.integration.intake_kit import RunningListener, config_for, data_set_of, digest, listening, p_data, peer_of
from tests.peers import HOST, wait_until

RELEASE = bytes.fromhex("05000000000400000000")


@pytest.fixture(scope="module")
def ct(tmp_path_factory: pytest.TempPathFactory) -> SyntheticSeries:
    return make_ct_series(tmp_path_factory.mktemp("ct"), slices=2, rows=48, columns=48)


@pytest.fixture(scope="module")
def listener(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningListener]:
    with listening(config_for(tmp_path_factory.mktemp("state"), network_timeout_s=1.0, max_associations=64)) as running:
        yield running


@pytest.fixture(scope="module")
def session(ct: SyntheticSeries) -> bytes:
    """Everything that a sender says from the request to the release: two stores."""
    file = read_part10(ct.paths[0])
    said = _associate_request(peer_of(0), [Context("1.2.840.10008.1.1", "1.2.840.10008.1.2"), *file.contexts])
    for number, path in enumerate(ct.paths, 1):
        data = data_set_of(path)
        command = encode_command(
            {
                CommandElement.AFFECTED_SOP_CLASS_UID: file.sop_class_uid,
                CommandElement.COMMAND_FIELD: CommandField.C_STORE_RQ,
                CommandElement.MESSAGE_ID: number,
                CommandElement.PRIORITY: 0,
                CommandElement.DATA_SET_TYPE: DATA_SET_FOLLOWS,
                CommandElement.AFFECTED_SOP_INSTANCE_UID: read_part10(path).sop_instance_uid,
            }
        )
        said += p_data((3, 3, command)) + p_data((3, 0, data[:1000])) + p_data((3, 0, data[1000:3000]), (3, 2, data[3000:]))
    return said + RELEASE


def say(port: int, words: bytes) -> None:
    """Says it all, reads until the other side closes or is silent."""
    with socket.create_connection((HOST, port)) as link:
        link.settimeout(0.3)
        with contextlib.suppress(OSError):
            link.sendall(words)
            while link.recv(1 << 16):
                pass


def test_the_session_is_a_right_one(listener: RunningListener, ct: SyntheticSeries, session: bytes) -> None:
    say(listener.port, session)
    assert listener.recorded() == {uid: digest(data_set_of(path)) for uid, path in zip(ct.sop_instance_uids, ct.paths, strict=True)}


@pytest.mark.parametrize("seed", range(120))
def test_a_session_with_wrong_bytes(listener: RunningListener, ct: SyntheticSeries, session: bytes, seed: int, tmp_path: Path) -> None:
    dice = random.Random(seed)
    words = bytearray(session)
    last = len(words) if seed % 2 else 700  # heads and lengths stand at the beginning
    for _ in range(dice.randint(1, 12)):
        place, kind = dice.randrange(last), dice.random()
        if kind < 0.7:
            words[place] = dice.randrange(256)
        elif kind < 0.85:
            del words[place : place + dice.randrange(1, 40)]
        else:
            words[place:place] = dice.randbytes(dice.randrange(1, 40))
    say(listener.port, bytes(words))
    if seed % 20 == 19:
        assert {outcome.status for outcome in store_files(peer_of(listener.port), [read_part10(path) for path in ct.paths])} == {"stored"}
        wait_until(lambda: not listener.leftovers(), "the sweep", 5)
        wait_until(lambda: listener.open_associations() == 0, "the ends of the associations", 5)
        for path in listener.spooled():
            assert digest(data_set_of(path)) == path.stem


@pytest.mark.parametrize("cut", range(0, 1200, 50))
def test_a_session_that_is_cut_off(listener: RunningListener, session: bytes, cut: int) -> None:
    with socket.create_connection((HOST, listener.port)) as link:
        link.sendall(session[:cut])
    wait_until(lambda: not listener.leftovers(), "the sweep", 5)


@pytest.mark.parametrize("seed", range(50))
def test_commands_of_noise_can_be_read(seed: int) -> None:
    dice = random.Random(seed)
    decoded = decode_command(dice.randbytes(dice.randrange(200)))
    assert all(isinstance(value, int | str) for value in decoded.values())
