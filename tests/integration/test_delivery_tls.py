"""Delivery over TLS: the courier, its queries and its requests for confirmation, to a peer of the configuration with `tls = true`."""

from pathlib import Path

import pytest

from node.config import Config
from node.delivery.outbox import Destination
from node.domain.states import DeliveryState
from node.journal import OutboxJournal, open_database
from tests.certificates import Authority
from tests.factories import make_ct_series
from tests.integration.delivery_kit import deliveries, delivering, peer, queue, states
from tests.integration.intake_kit import config_for, data_set_of
from tests.peers import storescp, wait_until


def with_tls(config: Config, tls: dict[str, str], folder: Path) -> Config:
    return Config.model_validate({**config.model_dump(mode="json"), "tls": tls}, context={"folder": folder}, strict=False)


@pytest.mark.peer
def test_results_go_over_tls_to_who_shows_a_trusted_certificate_and_wait_for_who_does_not(tmp_path: Path) -> None:
    ct = make_ct_series(tmp_path / "ct", slices=2, rows=16, columns=16)
    authority, strangers = Authority(tmp_path / "ca"), Authority(tmp_path / "strangers", "strangers")
    ours, theirs = authority.issue("ours"), authority.issue("theirs")
    stranger = strangers.issue("stranger")
    state_dir = tmp_path / "state"
    queue(state_dir, ct.paths, ["good", "stranger"])
    with (
        storescp(tmp_path / "good", *theirs.as_tool_options(), ae_title="GOOD") as good,
        storescp(tmp_path / "strange", *stranger.as_tool_options(), ae_title="STRANGER") as strange,
    ):
        peers = {"good": {**peer(good, "GOOD"), "tls": True}, "stranger": {**peer(strange, "STRANGER"), "tls": True}}
        config = with_tls(config_for(state_dir, peers=peers), ours.as_table(), tmp_path)
        assert Destination.of(config, "good").peer.tls is not None
        with delivering(config):
            wait_until(lambda: states(state_dir, "good") == {"STORED"}, "delivery over TLS")
            connection = open_database(state_dir)
            outage = wait_until(lambda: OutboxJournal(connection).outage("stranger"), "the outage")
            connection.close()
    assert "certificate is not trusted" in outage.reason
    assert {one.state for one in deliveries(state_dir) if one.destination == "stranger"} == {DeliveryState.PENDING}
    assert {data_set_of(path) for path in (tmp_path / "good").iterdir()} == {data_set_of(path) for path in ct.paths}
    assert not list((tmp_path / "strange").iterdir())
