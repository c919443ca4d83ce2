"""TLS: real peers and ours take each other when the certificates are right, and none else; the port goes on (PS3.15 B.12)."""

import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.config import Config, load_config
from node.delivery.peers import configured_peer
from node.delivery.store_scu import contexts_for, echo_peer, read_part10, store_files
from node.delivery.upper_layer import Context, Peer, RequestedAssociation, Timeouts
from node.doctor import Health, _peers, _tls
from node.errors import ConfigError, DeliveryError, PeerUnreachable
from node.intake.listener import options_from
from node.network import VERIFICATION, hang_up
from node.network.link import Link, LinkBroken
from node.network.tls import TlsFilesUnusable, accept_tls, listener_context
from tests.certificates import Authority, Files, tls_peer
from tests.factories import SyntheticSeries, make_ct_series
from tests.integration.intake_kit import RunningListener, data_set_of, digest, listening, peer_of
from tests.peers import HOST, _run, storescp, storescu, tool, wait_until

IMPLICIT = "1.2.840.10008.1.2"
ECHO = Context(VERIFICATION, IMPLICIT)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def ours(authority: Authority) -> Files:
    return authority.issue("node")


@pytest.fixture(scope="module")
def theirs(authority: Authority) -> Files:
    return authority.issue("peer")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Files:
    """Signed by an authority that we do not trust; trusts ours."""
    other = Authority(tmp_path_factory.mktemp("other"), "other").issue("stranger")
    return Files(other.certificate_file, other.private_key_file, authority.certificate)


@pytest.fixture(scope="module")
def ct(tmp_path_factory: pytest.TempPathFactory) -> SyntheticSeries:
    return make_ct_series(tmp_path_factory.mktemp("ct"), slices=3, rows=256, columns=256)


def tls_config(state_dir: Path, files: Files, **listener: object) -> Config:
    state_dir.mkdir(parents=True, exist_ok=True)
    table = {
        "node": {"ae_title": "RADNODE", "state_dir": str(state_dir), "models_dir": str(state_dir)},
        "listener": {"host": HOST, "port": 0, "refuse_below_free_gib": 0.0, "tls": True, **listener},
        "tls": files.as_table(),
    }
    return Config.model_validate(table, context={"folder": state_dir})


@pytest.fixture(scope="module")
def listener(tmp_path_factory: pytest.TempPathFactory, ours: Files) -> Iterator[RunningListener]:
    with listening(tls_config(tmp_path_factory.mktemp("state"), ours, network_timeout_s=2.0)) as running:
        yield running


def s_client(port: int, *options: str) -> subprocess.CompletedProcess[str]:
    """Shakes hands with openssl's client and waits for what the listener makes of it; answers what it says."""
    return _run([tool("openssl"), "s_client", "-connect", f"{HOST}:{port}", "-ign_eof", *options])


def of(files: Files) -> list[str]:
    return ["-cert", str(files.certificate_file), "-key", str(files.private_key_file), "-CAfile", str(files.trusted_ca_file)]


# ── the listener ────────────────────────────────────────────────────────────


@pytest.mark.peer
def test_dcmtk_sends_over_tls_with_both_certificates(listener: RunningListener, theirs: Files, ct: SyntheticSeries) -> None:
    sent = storescu(listener.port, ct.paths, *theirs.as_tool_options())
    assert sent.returncode == 0, sent.stderr
    expected = {uid: digest(data_set_of(path)) for uid, path in zip(ct.sop_instance_uids, ct.paths, strict=True)}
    assert listener.recorded().items() >= expected.items()


@pytest.mark.peer
@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_tls_1_2_and_1_3_are_spoken_with_forward_secrecy(listener: RunningListener, theirs: Files, version: str) -> None:
    told = s_client(listener.port, version, *of(theirs))
    assert "Verify return code: 0 (ok)" in told.stdout
    assert ("ECDHE-" if version == "-tls1_2" else "TLS_") in told.stdout.partition("Cipher is ")[2].splitlines()[0]
    assert "Compression: NONE" in told.stdout
    assert "New, " in told.stdout


@pytest.mark.peer
@pytest.mark.parametrize(
    "options",
    [
        ["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"],
        ["-tls1", "-cipher", "ALL:@SECLEVEL=0"],
        ["-tls1_2", "-cipher", "AES256-GCM-SHA384"],
        ["-tls1_2", "-cipher", "ECDHE-RSA-AES256-SHA384"],
        ["-tls1_2", "-cipher", "DHE-RSA-AES256-GCM-SHA384"],
    ],
    ids=["TLS 1.1", "TLS 1.0", "no forward secrecy", "no authenticated encryption", "finite fields"],
)
def test_what_bcp_195_advises_against_is_not_spoken(listener: RunningListener, theirs: Files, options: list[str]) -> None:
    told = s_client(listener.port, *options, *of(theirs))
    assert "Cipher is (NONE)" in told.stdout
    assert ("alert protocol version" if options[0] in {"-tls1", "-tls1_1"} else "alert handshake failure") in told.stderr


@pytest.mark.peer
def test_renegotiation_is_refused(listener: RunningListener, theirs: Files) -> None:
    with subprocess.Popen(
        [tool("openssl"), "s_client", "-connect", f"{HOST}:{listener.port}", "-tls1_2", *of(theirs)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as client:  # fmt: skip
        said, _ = client.communicate("R\n", timeout=20)
    assert "RENEGOTIATING" in said
    assert "no renegotiation" in said


@pytest.mark.peer
def test_who_shows_no_certificate_or_that_of_another_authority_is_refused(
    listener: RunningListener, theirs: Files, stranger: Files, ct: SyntheticSeries
) -> None:
    before = listener.rows("SELECT count(*) FROM instance")
    assert storescu(listener.port, ct.paths).returncode != 0, "without TLS"
    assert storescu(listener.port, ct.paths, "+tla", "+cf", str(theirs.trusted_ca_file)).returncode != 0, "anonymous"
    assert storescu(listener.port, ct.paths, *stranger.as_tool_options()).returncode != 0, "of another authority"
    for version in ("-tls1_2", "-tls1_3"):
        assert "alert unknown ca" in s_client(listener.port, version, *of(stranger)).stderr
        anonymous = s_client(listener.port, version, "-CAfile", str(theirs.trusted_ca_file)).stderr
        assert "alert handshake failure" in anonymous or "alert certificate required" in anonymous
    assert listener.rows("SELECT count(*) FROM instance") == before
    outcomes = store_files(tls_peer(listener.port, theirs), [read_part10(path) for path in ct.paths])
    assert {outcome.status for outcome in outcomes} == {"stored"}


def test_plain_dicom_noise_and_silence_on_the_tls_port_change_nothing(
    listener: RunningListener, theirs: Files, ct: SyntheticSeries
) -> None:
    with pytest.raises(PeerUnreachable):
        RequestedAssociation(peer_of(listener.port), [ECHO], Timeouts(5, 5))
    for noise in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + bytes(300), bytes(5000), b""):
        with socket.create_connection((HOST, listener.port), timeout=10) as link:
            link.sendall(noise)
            until_closed(link)  # silence is over after the time of a negotiation
    outcomes = store_files(tls_peer(listener.port, theirs), [read_part10(path) for path in ct.paths])
    assert {outcome.status for outcome in outcomes} == {"stored"}


def test_a_handshake_of_one_byte_a_second_is_given_up(listener: RunningListener) -> None:
    with socket.create_connection((HOST, listener.port), timeout=30) as link:
        closed = threading.Event()
        threading.Thread(target=lambda: (until_closed(link), closed.set()), daemon=True).start()
        for byte in b"\x16\x03\x01\x02\x00" + bytes(60):
            if closed.wait(0.2):
                break
            try:
                link.sendall(bytes([byte]))
            except OSError:
                break
        assert closed.wait(5), "the listener waits for a handshake without end"


def until_closed(link: socket.socket) -> None:
    try:
        while link.recv(1 << 12):
            pass
    except OSError:
        return


def test_a_listener_without_tls_takes_tls_for_no_dicom(tmp_path: Path, ours: Files, theirs: Files, ct: SyntheticSeries) -> None:
    config = tls_config(tmp_path / "state", ours, tls=False, network_timeout_s=2.0)
    with listening(config) as plain:
        with pytest.raises(PeerUnreachable, match="TLS"):
            RequestedAssociation(tls_peer(plain.port, theirs), [ECHO], Timeouts(5, 5))
        outcomes = store_files(peer_of(plain.port), [read_part10(path) for path in ct.paths])
        assert {outcome.status for outcome in outcomes} == {"stored"}


def test_a_listener_that_stops_ends_open_tls_associations(tmp_path: Path, ours: Files, theirs: Files, ct: SyntheticSeries) -> None:
    with listening(tls_config(tmp_path / "state", ours)) as running:
        file = read_part10(ct.paths[0])
        association = RequestedAssociation(tls_peer(running.port, theirs), contexts_for([file]), Timeouts(5, 10))
        assert association.is_open
    with pytest.raises(PeerUnreachable):
        assert association.receive_message(5) is not None


def test_an_idle_tls_association_is_ended_after_the_network_timeout(listener: RunningListener, theirs: Files) -> None:
    association = RequestedAssociation(tls_peer(listener.port, theirs), [ECHO], Timeouts(5, 30))
    with pytest.raises(PeerUnreachable):
        assert association.receive_message(20) is not None


def test_who_is_hung_up_on_reads_no_ciphertext(ours: Files, theirs: Files) -> None:
    """Ending a connection from another thread wakes its reader with the end, and with nothing else."""
    ends: list[str] = []
    with socket.create_server((HOST, 0)) as server:
        client = threading.Thread(
            target=lambda: _end_of(lambda: RequestedAssociation(tls_peer(server.getsockname()[1], theirs), [ECHO], Timeouts(5, 20)), ends)
        )
        client.start()
        connection, _ = server.accept()
        link = Link(accept_tls(connection, listener_context(ours)), timeout_s=20, longest_pdu_bytes=1 << 16)
        link.shake_hands()
        link.receive_pdu()
        threading.Timer(0.2, hang_up, [link.socket]).start()
        started_s = time.monotonic()
        with pytest.raises(LinkBroken, match="closed the connection"):
            link.receive_pdu()
        assert time.monotonic() - started_s < 10
        client.join(10)
    assert len(ends) == 1


def _end_of(act: object, ends: list[str]) -> None:
    try:
        act()  # type: ignore[operator]
    except DeliveryError as error:
        ends.append(str(error))


# ── the sender ──────────────────────────────────────────────────────────────


@pytest.mark.peer
def test_dcmtk_takes_what_we_send_over_tls(tmp_path: Path, ours: Files, theirs: Files, ct: SyntheticSeries) -> None:
    with storescp(tmp_path / "in", *theirs.as_tool_options(), "+xa") as port:
        outcomes = list(store_files(tls_peer(port, ours, called="STORESCP"), [read_part10(path) for path in ct.paths]))
        assert {outcome.status for outcome in outcomes} == {"stored"}, [str(outcome.error) for outcome in outcomes]
    assert len(list((tmp_path / "in").iterdir())) == len(ct.paths)


@pytest.mark.peer
def test_a_peer_of_another_authority_or_by_another_name_is_not_sent_to(
    tmp_path: Path, authority: Authority, ours: Files, stranger: Files, ct: SyntheticSeries
) -> None:
    elsewhere = authority.issue("elsewhere", "DNS:elsewhere.invalid")
    files = [read_part10(path) for path in ct.paths]
    with storescp(tmp_path / "other", *stranger.as_tool_options()) as port:
        with pytest.raises(PeerUnreachable, match="its certificate is not trusted") as refusal:
            RequestedAssociation(tls_peer(port, ours), contexts_for(files), Timeouts(5, 5))
        assert refusal.value.retryable, "an archive whose certificate is renewed gets what waits for it"
    with storescp(tmp_path / "in", *elsewhere.as_tool_options()) as port:
        with pytest.raises(PeerUnreachable, match=r"not trusted .*IP address mismatch"):
            RequestedAssociation(tls_peer(port, ours), contexts_for(files), Timeouts(5, 5))
        assert not list((tmp_path / "in").iterdir())
        lenient = tls_peer(port, ours, verify_host=False)
        assert {outcome.status for outcome in store_files(lenient, files)} == {"stored"}
    with (
        storescp(tmp_path / "strict", *authority.issue("strict").as_tool_options()) as port,
        pytest.raises(PeerUnreachable, match=r"alert of TLS|broke the connection|does not answer|closed the connection"),
    ):
        RequestedAssociation(tls_peer(port, stranger), contexts_for(files), Timeouts(5, 5))


def test_a_peer_without_tls_or_without_an_answer_is_told_apart(tmp_path: Path, ours: Files) -> None:
    with socket.create_server((HOST, 0)) as silent, pytest.raises(PeerUnreachable, match="no answer in time"):
        RequestedAssociation(tls_peer(silent.getsockname()[1], ours), [ECHO], Timeouts(5, 0.5))
    missing = Files(tmp_path / "none.pem", ours.private_key_file, ours.trusted_ca_file)
    with socket.create_server((HOST, 0)) as server, pytest.raises(PeerUnreachable, match=r"none\.pem cannot be read: No such file"):
        RequestedAssociation(tls_peer(server.getsockname()[1], missing), [ECHO], Timeouts(5, 1))


def test_our_sender_and_our_listener_take_each_other_at_once(listener: RunningListener, theirs: Files, ct: SyntheticSeries) -> None:
    files = [read_part10(path) for path in ct.paths]
    results: list[str] = []
    threads = [
        threading.Thread(target=lambda: results.extend(one.status for one in store_files(tls_peer(listener.port, theirs), files)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert results == ["stored"] * 12
    wait_until(lambda: not listener.leftovers(), "the sweep", 5)


# ── the files ───────────────────────────────────────────────────────────────


def test_an_encrypted_key_is_opened_with_the_password_of_its_file(authority: Authority) -> None:
    files = authority.issue("secret", password="a pass phrase")  # noqa: S106
    assert listener_context(files).verify_mode == ssl.CERT_REQUIRED
    without = Files(files.certificate_file, files.private_key_file, files.trusted_ca_file)
    with pytest.raises(TlsFilesUnusable, match="private_key_password_file"):
        listener_context(without)
    assert files.private_key_password_file is not None
    files.private_key_password_file.write_text("another\n")
    with pytest.raises(TlsFilesUnusable, match="check the password"):
        listener_context(files)


def test_files_that_cannot_be_used_are_named(tmp_path: Path, ours: Files, theirs: Files) -> None:
    noise = tmp_path / "noise.pem"
    noise.write_bytes(b"no certificate")
    for files, message in (
        (Files(tmp_path / "none.pem", ours.private_key_file, ours.trusted_ca_file), r"the certificate .*none\.pem cannot be read"),
        (Files(ours.certificate_file, tmp_path / "none.key", ours.trusted_ca_file), r"the private key .*none\.key cannot be read"),
        (Files(ours.certificate_file, ours.private_key_file, tmp_path / "ca.pem"), r"authorities .*ca\.pem cannot be read"),
        (Files(ours.certificate_file, theirs.private_key_file, ours.trusted_ca_file), "make them a pair"),
        (Files(noise, ours.private_key_file, ours.trusted_ca_file), "make them a pair"),
        (Files(ours.certificate_file, ours.private_key_file, noise), "holds no certificate"),
    ):
        with pytest.raises(TlsFilesUnusable, match=message):
            listener_context(files)


def test_tls_without_its_section_is_never_taken_for_plain(tmp_path: Path, ours: Files) -> None:
    peer = {"ae_title": "PACS", "host": "pacs", "port": 2762, "tls": True}
    table = tls_config(tmp_path, ours).model_dump(mode="json")
    whole = Config.model_validate({**table, "peers": {"pacs": peer}}, context={"folder": tmp_path})
    tls = configured_peer(whole, "pacs").tls
    assert tls is not None
    assert tls.verify_host
    assert tls.files.certificate_file == ours.certificate_file
    assert options_from(whole).tls is not None
    broken = Config.model_validate({**table, "peers": {"pacs": peer}, "tls": None}, context={"folder": tmp_path})
    with pytest.raises(ConfigError, match=r"no section \[tls\]"):
        configured_peer(broken, "pacs")
    with pytest.raises(ConfigError, match=r"no section \[tls\]"):
        options_from(broken)
    assert configured_peer(
        broken.model_copy(update={"peers": {"pacs": whole.peers["pacs"].model_copy(update={"tls": False})}}), "pacs"
    ) == (Peer("pacs", 2762, "PACS", "RADNODE"))


@pytest.mark.peer
def test_the_command_line_speaks_tls_to_a_configured_peer(tmp_path: Path, ours: Files, theirs: Files, ct: SyntheticSeries) -> None:
    tls = "".join(f'{name} = "{path}"\n' for name, path in ours.as_table().items())
    with storescp(tmp_path / "in", *theirs.as_tool_options(), ae_title="PACS") as port:
        peer = f'ae_title = "PACS"\nhost = "{HOST}"\nport = {port}\ntls = true\n'
        node = f'ae_title = "RADNODE"\nstate_dir = "{tmp_path}"\nmodels_dir = "{tmp_path}"\n'
        config = tmp_path / "node.toml"
        config.write_text(f"[node]\n{node}[tls]\n{tls}[peers.pacs]\n{peer}")
        for verb in (["echo", "pacs"], ["send", "pacs", str(ct.paths[0])]):
            done = _run([sys.executable, "-m", "node", *verb, "--config", str(config)])
            assert done.returncode == 0, done.stderr
        known = load_config(config)
        found = list(_peers(known, lambda name: echo_peer(configured_peer(known, name))))
        assert [finding.health for finding in found] == [Health.OK]
    assert len(list((tmp_path / "in").iterdir())) == 1


def test_the_doctor_examines_the_files_of_tls(tmp_path: Path, ours: Files) -> None:
    config = tls_config(tmp_path, ours)
    found = list(_tls(config))
    assert [finding.health for finding in found] == [Health.OK]
    assert "by the listener" in found[0].text
    ours.private_key_file.chmod(0o644)
    try:
        assert [finding.health for finding in _tls(config)] == [Health.WARNING, Health.OK]
    finally:
        ours.private_key_file.chmod(0o600)
    broken = tls_config(tmp_path, Files(ours.certificate_file, ours.certificate_file, ours.trusted_ca_file))
    found = list(_tls(broken))
    assert [finding.health for finding in found] == [Health.FAULT]
    assert found[0].advice
    assert not list(_tls(broken.model_copy(update={"tls": None})))
