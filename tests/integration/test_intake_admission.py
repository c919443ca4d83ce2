"""Who may associate: by called and calling AE title, by address, by number."""

from pathlib import Path

import pytest

from node.delivery.store_scu import contexts_for, echo, read_part10
from node.delivery.upper_layer import Context
from node.errors import AssociationRejected, AssociationRejectedTransient
from node.intake.admission import AdmissionRules, Caller, KnownSender, RememberingResolver, judge_caller, judge_load, plain_address
from node.intake.association import resolve
from node.network import STORAGE_COMMITMENT, Rejection
from tests.factories import SyntheticSeries, make_ct_series
from tests.integration.intake_kit import config_for, listening, open_scu
from tests.peers import HOST, echoscu, storescu, wait_until

SENDERS = (
    KnownSender("CT1", "10.0.0.1"),
    KnownSender("PACS", "pacs.hospital"),
    KnownSender("PACS", "10.0.0.9"),
    KnownSender("ANY", "gone.hospital"),
    KnownSender("SINK", "10.0.0.1", may_send=False),
    KnownSender("VNA", "10.0.0.1", may_send=False, may_report=True),
)
HOSTS = {"10.0.0.1": {"10.0.0.1"}, "10.0.0.9": {"10.0.0.9"}, "pacs.hospital": {"10.0.0.7", "10.0.0.8"}, "gone.hospital": set()}


def lookup(host: str) -> frozenset[str]:
    return frozenset(HOSTS[host])


@pytest.mark.parametrize(
    ("calling", "address", "admitted"),
    [
        ("CT1", "10.0.0.1", True),
        ("CT1", "::ffff:10.0.0.1", True),
        ("CT1", "10.0.0.2", False),
        ("ct1", "10.0.0.1", False),
        ("PACS", "10.0.0.8", True),
        ("PACS", "10.0.0.9", True),
        ("PACS", "10.0.0.1", False),
        ("ANY", "203.0.113.5", False),  # the name cannot be looked up, and never could
        ("SINK", "10.0.0.1", False),
        ("CT2", "10.0.0.1", False),
        ("", "10.0.0.1", False),
        ("CT2", "127.0.0.1", True),
        ("CT2", "127.8.8.8", True),
        ("CT2", "::1", True),
        ("CT2", "::ffff:127.0.0.1", True),
        ("CT2", "no address", False),
    ],
)
def test_a_caller_is_known_by_title_and_address(calling: str, address: str, admitted: bool) -> None:
    rules = AdmissionRules("RADNODE", 4, senders=SENDERS)
    refusal = judge_caller(Caller(calling, "RADNODE", address), rules, lookup)
    assert (refusal is None) is admitted
    if refusal is not None:
        assert refusal.rejection is Rejection.CALLING_AE_TITLE
        assert refusal.reason


@pytest.mark.parametrize(("calling", "admitted"), [("CT1", True), ("VNA", True), ("SINK", False), ("CT2", False)])
def test_a_destination_may_come_to_report_and_for_nothing_else(calling: str, admitted: bool) -> None:
    rules = AdmissionRules("RADNODE", 4, senders=SENDERS)
    refusal = judge_caller(Caller(calling, "RADNODE", "10.0.0.1", reports_only=True), rules, lookup)
    assert (refusal is None) is admitted
    refusal = judge_caller(Caller("VNA", "RADNODE", "10.0.0.1"), rules, lookup)
    assert refusal is not None
    assert "may not send" in refusal.reason


def test_an_outage_of_dns_shuts_out_nobody_who_was_known() -> None:
    answers: dict[str, frozenset[str]] = {"pacs": frozenset({"10.0.0.7"})}
    asked: list[str] = []
    now_s = 1000.0

    def look_up(host: str) -> frozenset[str]:
        asked.append(host)
        return answers.get(host, frozenset())

    resolve = RememberingResolver(look_up, clock=lambda: now_s)
    resolve.learn(["pacs", "never", "pacs"])
    assert asked == ["pacs", "never"]
    assert resolve("pacs") == {"10.0.0.7"}
    assert asked == ["pacs", "never"], "what was looked up a moment ago is believed"
    answers.clear()
    for _ in range(3):
        now_s += 61.0
        assert resolve("pacs") == resolve("pacs") == {"10.0.0.7"}
    assert asked.count("pacs") == 4, "an outage costs one look a minute"
    assert resolve("never") == frozenset()
    answers["never"] = frozenset({"10.0.0.8"})
    assert resolve("never") == {"10.0.0.8"}
    answers["pacs"] = frozenset({"10.0.0.9"})
    now_s += 61.0
    assert resolve("pacs") == {"10.0.0.9"}, "a host that has moved is known by its new address alone"


def test_unlisted_peers_are_admitted_when_the_site_says_so() -> None:
    rules = AdmissionRules("RADNODE", 4, accept_unlisted_peers=True)
    assert judge_caller(Caller("CT2", "RADNODE", "203.0.113.5"), rules, lookup) is None


def test_a_wrong_called_title_is_refused_whoever_calls() -> None:
    rules = AdmissionRules("RADNODE", 4, accept_unlisted_peers=True, senders=SENDERS)
    refusal = judge_caller(Caller("CT1", "OTHER", "127.0.0.1"), rules, lookup)
    assert refusal is not None
    assert refusal.rejection is Rejection.CALLED_AE_TITLE


def test_the_limit_is_a_matter_of_the_moment() -> None:
    rules = AdmissionRules("RADNODE", 2)
    assert judge_load(1, rules) is None
    refusal = judge_load(2, rules)
    assert refusal is not None
    assert refusal.rejection.value == (2, 3, 2)


def test_addresses_have_one_writing() -> None:
    assert plain_address("::ffff:192.0.2.1") == "192.0.2.1"
    assert plain_address("fe80:0::1%eth0") == "fe80::1"
    assert plain_address("pacs") == "pacs"
    assert HOST in resolve("localhost")
    assert resolve("no such host.invalid") == frozenset()


# ── over the network ────────────────────────────────────────────────────────


@pytest.fixture
def ct(tmp_path: Path) -> SyntheticSeries:
    return make_ct_series(tmp_path / "ct", slices=2)


@pytest.mark.peer
def test_a_wrong_called_title_is_rejected(tmp_path: Path, ct: SyntheticSeries) -> None:
    with listening(config_for(tmp_path / "state")) as listener:
        assert echoscu(listener.port, called="OTHER") != 0
        assert storescu(listener.port, ct.paths, called="OTHER").returncode != 0
        assert echoscu(listener.port) == 0
        with pytest.raises(AssociationRejected, match=r"(?i)called AE title"):
            echo(HOST, listener.port, "OTHER", "TESTER")
        assert not listener.recorded()


def test_an_unknown_caller_from_elsewhere_is_rejected(tmp_path: Path, ct: SyntheticSeries, monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine has no address that is not loopback in every test environment: loopback is taken for elsewhere."""
    monkeypatch.setattr("node.intake.admission.is_loopback", lambda _: False)
    peers = {
        "ct": {"ae_title": "CT1", "host": HOST, "port": 104, "may_send": True},
        "far": {"ae_title": "FAR", "host": "203.0.113.5", "port": 104, "may_send": True},
        "sink": {"ae_title": "SINK", "host": HOST, "port": 104},
        "mute": {"ae_title": "MUTE", "host": HOST, "port": 104, "confirm": "none"},
    }
    with listening(config_for(tmp_path / "state", peers=peers)) as listener:
        contexts = contexts_for([read_part10(ct.paths[0])])
        for stranger in ("NOBODY", "FAR", "SINK"):
            with pytest.raises(AssociationRejected, match=r"(?i)calling AE title"):
                open_scu(listener.port, contexts, calling=stranger)
        report = Context(STORAGE_COMMITMENT, "1.2.840.10008.1.2")
        with open_scu(listener.port, [report], calling="SINK") as scu:
            assert report in scu._association.accepted
        for stranger in ("NOBODY", "FAR", "MUTE"):
            with pytest.raises(AssociationRejected, match=r"(?i)calling AE title"):
                open_scu(listener.port, [report], calling=stranger)
        with open_scu(listener.port, contexts, calling="CT1") as scu:
            assert scu.store(read_part10(ct.paths[0])) == ""
    with listening(config_for(tmp_path / "open", peers=peers, accept_unlisted_peers=True)) as listener:
        echo(HOST, listener.port, "RADNODE", "NOBODY")


def test_one_association_too_many_is_rejected_for_the_moment(tmp_path: Path, ct: SyntheticSeries) -> None:
    contexts = contexts_for([read_part10(ct.paths[0])])
    with listening(config_for(tmp_path / "state", max_associations=3)) as listener:
        scus = [open_scu(listener.port, contexts) for _ in range(3)]
        for _ in range(3):
            with pytest.raises(AssociationRejectedTransient, match=r"(?i)local limit exceeded"):
                open_scu(listener.port, contexts)
        scus[0].close()
        for scu in scus[1:]:
            assert scu.store(read_part10(ct.paths[0])) == ""
            scu.close()
        for _ in range(10):  # one after the other, without a pause: an ended association does not count
            with open_scu(listener.port, contexts) as scu:
                scu.store(read_part10(ct.paths[1]))
        assert len(listener.recorded()) == 2
        wait_until(lambda: listener.open_associations() == 0, "the ends of the associations")
