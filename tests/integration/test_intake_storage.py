"""What is sent arrives: byte for byte, durable before the answer, once per content."""

import shutil
import sqlite3
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom import dcmread
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from node.codes import StoreStatus
from node.delivery.store_scu import batches, contexts_for, read_part10, store_files
from node.delivery.upper_layer import Context
from node.errors import StoreOutOfResources, StoreRefused
from node.intake.contexts import TRANSFER_SYNTAXES, supported_contexts
from node.intake.spool import spooled_path
from node.network import DATA_SET_FOLLOWS, CommandElement, CommandField
from node.network.command import encode_command
from tests import realdata
from tests.factories import NATIVE, SyntheticSeries, make_ct_series, make_enhanced_ct, make_mr_series
from tests.integration.intake_kit import (
    RawSender,
    RunningListener,
    config_for,
    data_set_of,
    digest,
    listening,
    on_the_wire,
    open_scu,
    peer_of,
)
from tests.peers import RC_CANNOT_UNDERSTAND, RC_MISMATCH, RC_OUT_OF_RESOURCES, echoscu, orthanc, storescu, wait_until


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[RunningListener]:
    with listening(config_for(tmp_path / "state")) as running:
        yield running


@pytest.fixture
def ct(tmp_path: Path) -> SyntheticSeries:
    return make_ct_series(tmp_path / "ct", slices=5)


def send(listener: RunningListener, *paths: Path) -> dict[Path, str]:
    """Sends with our own SCU; answers `stored` or the kind of the error by path."""
    outcomes = store_files(peer_of(listener.port), [read_part10(path) for path in paths])
    return {outcome.path: outcome.status for outcome in outcomes}


def edited(source: Path, target: Path, **changes: Any) -> Path:
    """Copies a file with other values; None deletes an element."""
    dataset = dcmread(source)
    for keyword, value in changes.items():
        if value is None:
            del dataset[keyword]
        else:
            setattr(dataset, keyword, value)
    dataset.save_as(target)
    return target


@pytest.mark.peer
def test_the_listener_answers_echo(listener: RunningListener) -> None:
    assert echoscu(listener.port) == 0


def test_all_storage_classes_are_offered_in_all_transfer_syntaxes() -> None:
    contexts = supported_contexts(reports=False)
    assert len(contexts) == 171
    assert all(len(context.transfer_syntax) >= 45 for context in contexts if context.abstract_syntax != "1.2.840.10008.1.1")
    assert TRANSFER_SYNTAXES[:2] == (ExplicitVRLittleEndian, ImplicitVRLittleEndian)


@pytest.mark.peer
@pytest.mark.parametrize("syntax", NATIVE, ids=lambda uid: uid.name)
def test_native_images_of_dcmtk_are_kept_byte_for_byte(listener: RunningListener, tmp_path: Path, syntax: str) -> None:
    option = {ExplicitVRLittleEndian: "-xe", ExplicitVRBigEndian: "-xb", ImplicitVRLittleEndian: "-xi"}.get(syntax, "-xd")
    made = [
        make_ct_series(tmp_path / "ct", slices=3, transfer_syntax=syntax),
        make_mr_series(tmp_path / "mr", slices=3, transfer_syntax=syntax, study="mr", series="mr"),
        make_enhanced_ct(tmp_path / "enhanced", slices=4, transfer_syntax=syntax, study="multi", series="multi"),
    ]
    paths = [path for series in made for path in series.paths]
    ended = storescu(listener.port, paths, option)
    assert ended.returncode == 0, ended.stderr
    sent = {str(dcmread(path).SOPInstanceUID): dcmread(path) for path in paths}
    # DCMTK rewrites the lengths of sequences and deflates anew: the elements count, and that the name is the digest of the bytes
    kept = {uid: spooled_path(listener.state_dir, sha256) for uid, sha256 in listener.recorded().items()}
    assert {uid: dcmread(path) for uid, path in kept.items()} == sent
    assert all(digest(data_set_of(path)) == path.stem for path in kept.values())
    syntaxes = {row[0] for row in listener.rows("SELECT DISTINCT transfer_syntax_uid FROM instance")}
    assert syntaxes == {syntax}


@pytest.mark.parametrize("syntax", NATIVE, ids=lambda uid: uid.name)
def test_native_images_are_kept_byte_for_byte(listener: RunningListener, tmp_path: Path, syntax: str) -> None:
    made = make_ct_series(tmp_path / "ct", slices=3, transfer_syntax=syntax)
    assert set(send(listener, *made.paths).values()) == {"stored"}
    assert listener.kept() == {uid: data_set_of(path) for uid, path in zip(made.sop_instance_uids, made.paths, strict=True)}
    for path in listener.spooled():
        assert dcmread(path).file_meta.TransferSyntaxUID == syntax
        assert path.stat().st_mode & 0o777 == 0o440
        assert path.stem == digest(data_set_of(path))


@pytest.mark.data
def test_every_transfer_syntax_of_the_matrix_is_kept_byte_for_byte(listener: RunningListener) -> None:
    folder = realdata.unpack("ts-matrix-cornerstone")
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and is_sendable(path)]
    assert len({read_part10(path).transfer_syntax_uid for path in paths}) >= 15
    check_all_kept(listener, paths)


def test_every_test_file_of_pydicom_is_kept_or_refused_with_a_reason(listener: RunningListener) -> None:
    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    check_all_kept(listener, [path for path in sorted(folder.rglob("*.dcm")) if is_sendable(path)])


def is_sendable(path: Path) -> bool:
    try:
        read_part10(path)
    except StoreRefused:
        return False
    return True


def check_all_kept(listener: RunningListener, paths: list[Path]) -> None:
    """Sends each file; what was answered with success must lie in the spool as it was, everything else must leave nothing."""
    stored = [path for path, status in send(listener, *paths).items() if status == "stored"]
    assert stored
    digests = {row[0] for row in listener.rows("SELECT sha256 FROM instance")}
    assert digests == {digest(on_the_wire(path)) for path in stored}
    assert {path.stem for path in listener.spooled()} == digests
    for path in listener.spooled():
        assert digest(data_set_of(path)) == path.stem
    assert not listener.leftovers()


@pytest.mark.peer
def test_a_study_from_orthanc_arrives(listener: RunningListener, ct: SyntheticSeries, tmp_path: Path) -> None:
    with orthanc(tmp_path / "orthanc") as archive:
        archive.add_modality("radnode", "RADNODE", listener.port)
        archive.echo("radnode")
        archive.send_study("radnode", archive.upload(ct.paths))
    assert listener.recorded().keys() == set(ct.sop_instance_uids)
    assert listener.rows("SELECT DISTINCT calling_ae_title FROM instance") == [("ORTHANC",)]


def test_the_same_bytes_again_are_kept_once_and_other_bytes_beside_them(
    listener: RunningListener, ct: SyntheticSeries, tmp_path: Path
) -> None:
    first = ct.paths[0]
    changed = edited(first, tmp_path / "changed.dcm", InstanceNumber=99)
    for path in (first, first, changed, changed, first):
        assert send(listener, path) == {path: "stored"}
    assert listener.rows("SELECT revision, sha256 FROM instance ORDER BY revision") == [
        (0, digest(data_set_of(first))),
        (1, digest(data_set_of(changed))),
    ]
    assert len(listener.spooled()) == 2
    assert not listener.leftovers()


def test_instances_of_one_study_over_several_associations_at_once(listener: RunningListener, tmp_path: Path) -> None:
    series = [make_ct_series(tmp_path / str(number), slices=8, series=str(number)) for number in range(4)]
    files = [[read_part10(path) for path in one.paths] for one in series]
    scus = [open_scu(listener.port, contexts_for(one)) for one in files]
    for round_ in zip(*files, strict=True):
        for scu, file in zip(scus, round_, strict=True):
            assert scu.store(file) == ""
    assert listener.open_associations() == 4
    for scu in scus:
        scu.close()
    wait_until(lambda: listener.open_associations() == 0, "the ends of the associations")
    assert len(listener.recorded()) == 32


# ── refusals ────────────────────────────────────────────────────────────────


@pytest.mark.peer
def test_a_disk_below_its_limit_is_answered_with_a700(tmp_path: Path, ct: SyntheticSeries) -> None:
    with listening(config_for(tmp_path / "state", refuse_below_free_gib=1e9)) as listener:
        assert storescu(listener.port, ct.paths[:1]).returncode == RC_OUT_OF_RESOURCES
        with open_scu(listener.port, contexts_for([read_part10(ct.paths[0])])) as scu, pytest.raises(StoreOutOfResources, match="A700"):
            scu.store(read_part10(ct.paths[0]))
        assert not listener.leftovers()
        assert not listener.spooled()
        assert not listener.recorded()


@pytest.mark.peer
@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID"])
@pytest.mark.parametrize("value", [None, "", "not a uid", "../../etc/passwd"])
def test_an_instance_that_cannot_be_filed_is_answered_with_c000(
    listener: RunningListener, ct: SyntheticSeries, tmp_path: Path, keyword: str, value: str | None
) -> None:
    path = edited(ct.paths[0], tmp_path / "bad.dcm", **{keyword: value})
    assert storescu(listener.port, [path]).returncode == RC_CANNOT_UNDERSTAND
    assert not listener.spooled()
    assert not listener.leftovers()


@pytest.mark.parametrize(
    ("keyword", "value"), [("SOPInstanceUID", "1.2.3.4"), ("SOPClassUID", "1.2.840.10008.5.1.4.1.1.4")], ids=["instance", "class"]
)
def test_a_data_set_that_disagrees_with_its_request_is_answered_with_a900(
    listener: RunningListener, ct: SyntheticSeries, tmp_path: Path, keyword: str, value: str
) -> None:
    dataset = dcmread(ct.paths[0])
    meta = dataset.file_meta
    setattr(dataset, keyword, value)
    path = tmp_path / "bad.dcm"
    pydicom.dcmwrite(path, dataset, enforce_file_format=False)
    assert dcmread(path).file_meta.MediaStorageSOPInstanceUID == meta.MediaStorageSOPInstanceUID
    with open_scu(listener.port, contexts_for([read_part10(path)])) as scu:
        with pytest.raises(StoreRefused, match="A900"):
            scu.store(read_part10(path))
        assert scu.store(read_part10(ct.paths[1])) == "", "the association goes on"
    assert RC_MISMATCH == StoreStatus.DATA_SET_DOES_NOT_MATCH_SOP_CLASS >> 8
    assert len(listener.spooled()) == 1


def test_uids_that_the_data_set_lacks_are_those_of_the_request(listener: RunningListener, ct: SyntheticSeries, tmp_path: Path) -> None:
    dataset = dcmread(ct.paths[0])
    del dataset.SOPClassUID, dataset.SOPInstanceUID
    path = tmp_path / "bare.dcm"
    pydicom.dcmwrite(path, dataset, enforce_file_format=False)
    assert send(listener, path) == {path: "stored"}
    assert listener.recorded().keys() == {ct.sop_instance_uids[0]}


@pytest.mark.parametrize("syntax", NATIVE, ids=lambda uid: uid.name)
@pytest.mark.parametrize("seed", range(3))
def test_noise_is_answered_with_c000(listener: RunningListener, ct: SyntheticSeries, syntax: str, seed: int) -> None:
    import random

    noise = random.Random(seed).randbytes(5000)
    context = Context(read_part10(ct.paths[0]).sop_class_uid, str(syntax))
    with RawSender(listener.port, [context]) as sender:
        sender.send_values((1, 3, store_command(context.sop_class_uid, "1.2.3")), (1, 2, noise))
        answer = sender.receive_response(CommandField.C_STORE_RSP, 1)
        assert answer[CommandElement.STATUS] == StoreStatus.CANNOT_UNDERSTAND
    assert not listener.leftovers()
    assert not listener.spooled()


# ── odd senders ─────────────────────────────────────────────────────────────


def store_command(sop_class_uid: str, sop_instance_uid: str) -> bytes:
    return encode_command(
        {
            CommandElement.AFFECTED_SOP_CLASS_UID: sop_class_uid,
            CommandElement.COMMAND_FIELD: CommandField.C_STORE_RQ,
            CommandElement.MESSAGE_ID: 1,
            CommandElement.PRIORITY: 0,
            CommandElement.DATA_SET_TYPE: DATA_SET_FOLLOWS,
            CommandElement.AFFECTED_SOP_INSTANCE_UID: sop_instance_uid,
        }
    )


@pytest.mark.parametrize(
    "way", ["in one PDU", "command in three, data in five a PDU", "byte by byte", "empty last fragment", "empty first fragment"]
)
def test_fragments_may_be_cut_in_any_way(listener: RunningListener, tmp_path: Path, way: str) -> None:
    """PS3.8 annex E: a message is any number of fragments, a PDU holds any number of them."""
    path = make_ct_series(tmp_path / "small", slices=2, rows=48, columns=48).paths[0]
    file, data = read_part10(path), data_set_of(path)
    command = store_command(file.sop_class_uid, file.sop_instance_uid)
    with RawSender(listener.port, file.contexts[:1]) as sender:
        if way == "in one PDU":
            sender.send_values((1, 3, command), (1, 2, data))
        elif way == "command in three, data in five a PDU":
            sender.send_values((1, 1, command[:10]), (1, 1, command[10:11]), (1, 3, command[11:]))
            parts = [data[place : place + 1000] for place in range(0, len(data), 1000)]
            for place in range(0, len(parts), 5):
                group = parts[place : place + 5]
                last = place + 5 >= len(parts)
                sender.send_values(*((1, 2 if last and number == len(group) - 1 else 0, part) for number, part in enumerate(group)))
        elif way == "byte by byte":
            from tests.integration.intake_kit import p_data

            whole = p_data((1, 3, command), (1, 2, data))
            for byte in whole[:300]:
                sender.link.sendall(bytes([byte]))
            sender.link.sendall(whole[300:])
        elif way == "empty last fragment":
            sender.send_values((1, 3, command))
            sender.send_values((1, 0, data))
            sender.send_values((1, 2, b""))
        else:
            sender.send_values((1, 3, command), (1, 0, b""))
            sender.send_values((1, 2, data))
        assert sender.receive_response(CommandField.C_STORE_RSP, 1)[CommandElement.STATUS] == StoreStatus.SUCCESS
    assert listener.kept() == {file.sop_instance_uid: data}


@pytest.mark.parametrize("end", ["vanish", "abort", "release", "garbage"])
def test_an_association_that_ends_in_mid_transfer_leaves_nothing_and_the_next_one_works(
    listener: RunningListener, ct: SyntheticSeries, end: str
) -> None:
    file, data = read_part10(ct.paths[0]), data_set_of(ct.paths[0])
    sender = RawSender(listener.port, file.contexts[:1])
    sender.send_values((1, 3, store_command(file.sop_class_uid, file.sop_instance_uid)), (1, 0, data[:2000]))
    wait_until(listener.leftovers, "the incoming file")
    if end == "garbage":
        sender.link.sendall(b"GET / HTTP/1.0\r\n\r\n")
        sender.link.close()
    else:
        getattr(sender, end)()
    wait_until(lambda: not listener.leftovers(), "the sweep")
    assert not listener.recorded()
    assert send(listener, ct.paths[0]) == {ct.paths[0]: "stored"}
    wait_until(lambda: listener.open_associations() == 0, "the ends of the associations")


def test_a_study_is_let_go_when_its_association_breaks(listener: RunningListener, ct: SyntheticSeries) -> None:
    file = read_part10(ct.paths[0])
    sender = RawSender(listener.port, file.contexts[:1])
    sender.send_values((1, 3, store_command(file.sop_class_uid, file.sop_instance_uid)), (1, 2, data_set_of(ct.paths[0])))
    sender.receive_response(CommandField.C_STORE_RSP, 1)
    assert listener.open_associations() == 1
    sender.vanish()
    wait_until(lambda: listener.open_associations() == 0, "the end of the association")


def test_a_peer_that_stalls_in_the_middle_of_a_pdu_is_dropped(tmp_path: Path, ct: SyntheticSeries) -> None:
    """A cut cable: no FIN, no data. Neither its file nor its threads may stay."""
    file = read_part10(ct.paths[0])
    with listening(config_for(tmp_path / "state", network_timeout_s=1.0, max_associations=1)) as listener:
        sender = RawSender(listener.port, file.contexts[:1])
        sender.send_values((1, 3, store_command(file.sop_class_uid, file.sop_instance_uid)))
        sender.link.sendall(struct.pack(">BBIIBB", 4, 0, 5000, 4996, 1, 0) + b"half of it")
        wait_until(listener.leftovers, "the incoming file")
        wait_until(lambda: not listener.leftovers(), "the sweep", 6)
        assert send(listener, ct.paths[0]) == {ct.paths[0]: "stored"}
        sender.link.close()


def test_a_silent_connection_does_not_count_against_the_limit(tmp_path: Path, ct: SyntheticSeries) -> None:
    import socket

    with (
        listening(config_for(tmp_path / "state", max_associations=1)) as listener,
        socket.create_connection(("127.0.0.1", listener.port)),
        socket.create_connection(("127.0.0.1", listener.port)),
    ):
        assert send(listener, ct.paths[0]) == {ct.paths[0]: "stored"}


def test_a_request_without_data_set_is_refused(listener: RunningListener, ct: SyntheticSeries) -> None:
    file = read_part10(ct.paths[0])
    command = {
        CommandElement.AFFECTED_SOP_CLASS_UID: file.sop_class_uid,
        CommandElement.COMMAND_FIELD: CommandField.C_STORE_RQ,
        CommandElement.MESSAGE_ID: 1,
        CommandElement.PRIORITY: 0,
        CommandElement.DATA_SET_TYPE: 0x0101,
        CommandElement.AFFECTED_SOP_INSTANCE_UID: file.sop_instance_uid,
    }
    with RawSender(listener.port, file.contexts[:1]) as sender:
        sender.send_command(1, command)
        assert sender.receive_response(CommandField.C_STORE_RSP, 1)[CommandElement.STATUS] != StoreStatus.SUCCESS
    assert not listener.recorded()


# ── restart ─────────────────────────────────────────────────────────────────


def test_what_was_kept_is_there_after_a_restart_and_leftovers_are_swept(tmp_path: Path, ct: SyntheticSeries) -> None:
    config = config_for(tmp_path / "state")
    with listening(config) as listener:
        send(listener, *ct.paths)
        before = listener.kept()
    (tmp_path / "state" / "spool" / "incoming" / "half.part").write_bytes(b"half")
    connection = sqlite3.connect(tmp_path / "state" / "journal.sqlite")
    connection.execute("INSERT INTO open_association VALUES ('of an earlier life', ?)", (ct.study_instance_uid,))
    connection.commit()
    connection.close()
    with listening(config) as listener:
        assert listener.kept() == before
        assert not listener.leftovers()
        assert listener.open_associations() == 0
        send(listener, *ct.paths)
        assert listener.kept() == before


def test_a_stop_in_mid_transfer_is_quick_and_leaves_nothing(tmp_path: Path, ct: SyntheticSeries) -> None:
    file, data = read_part10(ct.paths[0]), data_set_of(ct.paths[0])
    with listening(config_for(tmp_path / "state")) as listener:
        sender = RawSender(listener.port, file.contexts[:1])
        sender.send_values((1, 3, store_command(file.sop_class_uid, file.sop_instance_uid)), (1, 0, data[:2000]))
        wait_until(listener.leftovers, "the incoming file")
        started = time.monotonic()
    assert time.monotonic() - started < 15  # a quarter of the silence that it allows
    assert not listener.leftovers()
    sender.link.close()


def test_batches_never_need_more_contexts_than_an_association_has(ct: SyntheticSeries, tmp_path: Path) -> None:
    files = []
    for number in range(300):
        path = tmp_path / f"{number}.dcm"
        shutil.copyfile(ct.paths[0], path)
        dataset = dcmread(path)
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = f"1.2.840.10008.5.1.4.1.1.{number}"
        dataset.save_as(path)
        files.append(read_part10(path))
    cut = list(batches(files))
    assert [file for batch in cut for file in batch] == files
    assert all(len(contexts_for(batch)) <= 128 for batch in cut)


@pytest.mark.parametrize("durability", ["power-loss", "process-crash"])
def test_instances_in_preallocated_places_are_kept_byte_for_byte_whatever_their_size(tmp_path: Path, durability: str) -> None:
    """Smaller than the place, larger than it, and more of them than there are places; nothing of a place is left behind one."""
    series = [
        make_ct_series(tmp_path / "ct", slices=6, rows=128, columns=128, series="1"),
        make_ct_series(tmp_path / "large", slices=4, rows=640, columns=640, series="2"),
        make_ct_series(tmp_path / "small", slices=4, rows=16, columns=16, series="3"),
    ]
    paths = [path for one in series for path in one.paths]
    with listening(config_for(tmp_path / "state", preallocated_mib=2, durability=durability)) as listener:
        made_ahead = [path.stat().st_size for path in (tmp_path / "state" / "spool" / "incoming").iterdir()]
        assert made_ahead.count(576 << 10) == 3, "as many as 2 MiB are"
        files = [read_part10(path) for path in paths]
        outcomes = list(store_files(peer_of(listener.port), files))
        assert all(outcome.error is None for outcome in outcomes)
        wait_until(lambda: len(listener.rows("SELECT 1 FROM instance")) == len(paths), "the rows")
        assert listener.kept() == {file.sop_instance_uid: data_set_of(file.path) for file in files}
        for path in listener.spooled():
            assert dcmread(path).SOPInstanceUID
    assert not list((tmp_path / "state" / "spool" / "incoming").iterdir())


def test_a_data_set_in_fragments_of_one_byte_is_kept(listener: RunningListener, tmp_path: Path) -> None:
    """Thousands of them lie in the buffer at once: more than the system writes in one call."""
    path = make_ct_series(tmp_path / "bytewise", slices=2, rows=64, columns=64, series="bytewise").paths[0]
    file, content = read_part10(path), data_set_of(path)
    sender = RawSender(listener.port, file.contexts[:1])
    sender.send_values((1, 3, store_command(file.sop_class_uid, file.sop_instance_uid)))
    pieces = [(1, 2 if place == len(content) - 1 else 0, content[place : place + 1]) for place in range(len(content))]
    for place in range(0, len(pieces), 3000):
        sender.send_values(*pieces[place : place + 3000])
    wait_until(lambda: file.sop_instance_uid in listener.recorded(), "the row")
    sender.link.close()
    assert listener.kept()[file.sop_instance_uid] == content
