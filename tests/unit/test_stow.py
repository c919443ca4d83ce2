"""STOW-RS, what is decided without a network: file meta information, statuses, media types, who may store, what a request must be."""

import json
import struct
from http import HTTPStatus
from pathlib import Path
from xml.etree.ElementTree import fromstring

import pytest
from pydicom import Dataset

from node.codes import FailureReason, StoreStatus
from node.errors import CannotUnderstand, ConfigError
from node.intake.admission import KnownSender
from node.intake.incoming import FileIdentity, IncomingFile
from node.intake.slots import Place
from node.intake.stow.answer import JSON, XML, Outcome, choose_media_type, encode, http_status, store_instances_response
from node.intake.stow.part10 import LONGEST_META_BYTES, FileMeta, read_file_meta
from node.intake.stow.rules import Refused, StoreRules, Token, judge_payload, judge_sender, judge_target, read_tokens

CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
IDENTITY = FileIdentity(CT, "1.2.3.4", EXPLICIT, "STOW")
RULES = StoreRules(path="/dicom-web")


def element(number: int, vr: bytes, value: bytes) -> bytes:
    length = struct.pack("<HI", 0, len(value)) if vr in {b"OB", b"UN"} else struct.pack("<H", len(value))
    return struct.pack("<HH", 2, number) + vr + length + value


def head(*, group_length: int | None = 0, **changed: bytes) -> bytes:
    """Preamble and file meta information; a group length of 0 is replaced by the right one, None leaves it out."""
    uids = {"sop_class": CT.encode(), "instance": b"1.2.3.4\0", "syntax": EXPLICIT.encode(), **changed}
    meta = (
        element(1, b"OB", b"\0\1")
        + element(2, b"UI", uids["sop_class"])
        + element(3, b"UI", uids["instance"])
        + element(0x10, b"UI", uids["syntax"])
    )
    first = b"" if group_length is None else element(0, b"UL", struct.pack("<I", group_length or len(meta)))
    return bytes(128) + b"DICM" + first + meta


DATA_SET = struct.pack("<HH2sH", 8, 0x16, b"UI", 2) + b"1\0"


def test_what_our_own_files_say_of_themselves_is_read(tmp_path: Path) -> None:
    incoming = IncomingFile(Place(str(tmp_path / "one")), IDENTITY)
    incoming.write(DATA_SET)
    incoming.flush()
    content = (tmp_path / "one").read_bytes()
    incoming.discard()
    assert read_file_meta(content) == FileMeta(CT, "1.2.3.4", EXPLICIT, incoming.head_bytes)


@pytest.mark.parametrize("group_length", [0, None, 7, 100_000])
def test_a_data_set_begins_where_it_begins_whatever_the_group_length_says(group_length: int | None) -> None:
    content = head(group_length=group_length)
    assert read_file_meta(content + DATA_SET) == FileMeta(CT, "1.2.3.4", EXPLICIT, len(content))


def test_a_deflated_data_set_that_looks_like_file_meta_information_is_not_taken_for_it() -> None:
    content = head()
    meta = read_file_meta(content + element(3, b"UI", b"6.6.6\0") + bytes(20))
    assert meta is not None
    assert (meta.data_set_from, meta.sop_instance_uid) == (len(content), "1.2.3.4")


def test_more_is_asked_for_until_the_head_is_whole_and_never_after() -> None:
    content = head()
    asked = [read_file_meta(content[:length]) is None for length in range(len(content) + 1)]
    assert asked == [True] * len(content) + [False]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x08\0\x05\0" * 100, "DICM does not follow"),
        (bytes(128) + b"DIXM" + bytes(100), "DICM does not follow"),
        (bytes(128) + b"DICM" + DATA_SET + bytes(20), "Media Storage SOP Class UID is absent"),
        (head(instance=b"no uid"), "Media Storage SOP Instance UID is no UID"),
        (head(syntax=b""), "Transfer Syntax UID is absent"),
        (bytes(128) + b"DICM" + struct.pack("<HHI", 2, 2, 4) + bytes(60), "not in Explicit VR"),
        (head()[:132] + element(0x0102, b"OB", bytes(LONGEST_META_BYTES)) + bytes(100), "longer than 64 KiB"),
        (head()[:132] + struct.pack("<HH2sHI", 2, 0x0102, b"OB", 0, 0xFFFFFFFF) + bytes(100), "longer than 64 KiB"),
    ],
)
def test_what_is_no_part_10_file_is_refused_with_the_reason(content: bytes, reason: str) -> None:
    with pytest.raises(CannotUnderstand, match=reason):
        read_file_meta(content)


STORED, FULL = Outcome(StoreStatus.SUCCESS, CT, "1.2"), Outcome(StoreStatus.OUT_OF_RESOURCES, CT, "1.3")
BROKEN, FAULT = Outcome(StoreStatus.CANNOT_UNDERSTAND), Outcome(FailureReason.PROCESSING_FAILURE, CT, "1.4")


@pytest.mark.parametrize(
    ("outcomes", "whole", "status"),
    [
        ([STORED, STORED], True, HTTPStatus.OK),
        ([STORED, FULL], True, HTTPStatus.ACCEPTED),
        ([STORED], False, HTTPStatus.ACCEPTED),
        ([BROKEN], True, HTTPStatus.CONFLICT),
        ([FULL, BROKEN], True, HTTPStatus.CONFLICT),
        ([FULL, FULL], True, HTTPStatus.SERVICE_UNAVAILABLE),
        ([FAULT], True, HTTPStatus.INTERNAL_SERVER_ERROR),
        ([BROKEN], False, HTTPStatus.BAD_REQUEST),
        ([], True, HTTPStatus.BAD_REQUEST),
    ],
)
def test_the_http_status_says_how_much_was_stored(outcomes: list[Outcome], whole: bool, status: HTTPStatus) -> None:
    assert http_status(outcomes, whole=whole) is status


def test_the_response_names_what_was_stored_what_was_not_and_what_has_no_name() -> None:
    response = store_instances_response([STORED, FULL, BROKEN])
    dataset = Dataset.from_json(json.dumps(response))
    assert [item.ReferencedSOPInstanceUID for item in dataset.ReferencedSOPSequence] == ["1.2"]
    assert [(item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID, item.FailureReason) for item in dataset.FailedSOPSequence] == [
        (CT, "1.3", 0xA700)
    ]
    assert [item.FailureReason for item in dataset.OtherFailuresSequence] == [0xC000]


def test_the_response_in_xml_says_the_same() -> None:
    model = fromstring(encode(store_instances_response([STORED, FULL]), XML))  # noqa: S314 - our own
    names = {"d": "http://dicom.nema.org/PS3.19/models/NativeDICOM"}
    failed = model.find("d:DicomAttribute[@keyword='FailedSOPSequence']/d:Item", names)
    assert failed is not None
    assert [value.text for value in failed.iterfind("d:DicomAttribute/d:Value", names)] == [CT, "1.3", str(0xA700)]


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("", JSON), ("*/*", JSON), ("application/dicom+json", JSON), ("application/dicom+xml", XML), ("text/html, application/dicom+xml", XML),
        ("application/dicom+json;q=0.2, application/dicom+xml;q=0.9", XML), ("application/json", JSON), ("text/html, image/png", ""),
        ("application/dicom+json;q=0", ""), ("application/dicom+json;q=much", ""), ("application/*;q=0.1", JSON),
    ],
)  # fmt: skip
def test_the_answer_has_the_media_type_that_was_asked_for(accept: str, chosen: str) -> None:
    assert choose_media_type(accept) == chosen


@pytest.mark.parametrize("root", ["", "/dicom-web", "/a/b"])
def test_a_path_names_all_studies_or_one(root: str) -> None:
    rules = StoreRules(path=root)
    assert judge_target("POST", f"{root}/studies", rules) == ""
    assert judge_target("POST", f"{root}/studies/?a=b", rules) == ""
    assert judge_target("POST", f"{root}/studies/1.2.3", rules) == "1.2.3"


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("GET", "/dicom-web/studies", 405), ("PUT", "/dicom-web/studies/1.2", 405), ("POST", "/dicom-web", 404), ("POST", "/studies", 404),
        ("POST", "/dicom-webstudies", 404), ("POST", "/dicom-web/studies/1.2/series", 404), ("POST", "/dicom-web/studies/..", 400),
        ("POST", "/dicom-web/studies/x", 400), ("POST", "http://elsewhere/dicom-web/studies", 404), ("OPTIONS", "*", 404),
    ],
)  # fmt: skip
def test_other_paths_and_methods_are_refused(method: str, target: str, status: int) -> None:
    with pytest.raises(Refused) as refused:
        judge_target(method, target, RULES)
    assert refused.value.status == status


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ('multipart/related; type="application/dicom"; boundary=abc', b"abc"),
        ('multipart/related; boundary="a b:c"; type=application/dicom', b"a b:c"),
        ("Multipart/Related; Boundary=Abc; TYPE=Application/DICOM; start=x", b"Abc"),
        ("multipart/related; boundary=abc", b"abc"),
    ],
)
def test_the_boundary_is_found_however_it_is_written(content_type: str, boundary: bytes) -> None:
    assert judge_payload(content_type, "identity").boundary == boundary


@pytest.mark.parametrize(
    ("content_type", "encoding", "status"),
    [
        ("", "", 415), ("application/dicom", "", 415), ("multipart/form-data; boundary=a", "", 415),
        ('multipart/related; type="application/dicom+json"; boundary=a', "", 415), ("multipart/related; boundary=a", "gzip", 415),
        ("multipart/related", "", 400), ("multipart/related; boundary=", "", 400), (f"multipart/related; boundary={'b' * 201}", "", 400),
        ('multipart/related; boundary="a "', "", 400), ("multipart/related; boundary=\xe4", "", 400),
    ],
)  # fmt: skip
def test_a_body_that_is_no_multipart_of_dicom_files_is_refused(content_type: str, encoding: str, status: int) -> None:
    with pytest.raises(Refused) as refused:
        judge_payload(content_type, encoding)
    assert refused.value.status == status


def nobody(_host: str) -> frozenset[str]:
    return frozenset()


def test_only_a_bearer_of_a_token_may_store_where_there_are_tokens(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text("# ours\nMODALITY1 0123456789abcdef0\n\nfedcba98765432100\n")
    rules = StoreRules(path="", tokens=read_tokens(path, "STOW"), accept_unlisted_peers=True)
    assert judge_sender("Bearer 0123456789abcdef0", "10.0.0.1", rules, nobody) == "MODALITY1"
    assert judge_sender("bearer  fedcba98765432100 ", "10.0.0.1", rules, nobody) == "STOW"
    for shown in (
        "",
        "Bearer",
        "Bearer 0123456789abcdef",
        "Basic 0123456789abcdef0",
        "0123456789abcdef0",
        "Bearer MODALITY1 0123456789abcdef0",
    ):
        with pytest.raises(Refused) as refused:
            judge_sender(shown, "127.0.0.1", rules, nobody)
        assert refused.value.status == 401


def test_a_token_does_not_stand_in_the_rules(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("0123456789abcdef0\n")
    assert b"0123456789abcdef0" not in repr(read_tokens(tmp_path / "tokens", "STOW")).encode()


@pytest.mark.parametrize("text", ["", "# none\n", "short\n", "A NAME OF MANY WORDS 0123456789abcdef0\n", "BACK\\SLASH 0123456789abcdef0\n"])
def test_a_file_of_tokens_that_protects_nothing_is_a_config_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokens").write_text(text)
    with pytest.raises(ConfigError, match="token"):
        read_tokens(tmp_path / "tokens", "STOW")


def test_without_tokens_a_sender_is_known_by_its_address_as_over_dimse() -> None:
    def resolve(host: str) -> frozenset[str]:
        return frozenset({"10.0.0.5"} if host == "pacs" else {"10.0.0.6"})

    rules = StoreRules(path="", senders=(KnownSender("PACS", "pacs"), KnownSender("OTHER", "other", may_send=False)))
    assert judge_sender("", "10.0.0.5", rules, resolve) == "STOW"
    assert judge_sender("", "::ffff:10.0.0.5", rules, resolve) == "STOW"
    assert judge_sender("", "127.0.0.1", rules, resolve) == "STOW"
    for address in ("10.0.0.6", "10.0.0.7"):
        with pytest.raises(Refused) as refused:
            judge_sender("", address, rules, resolve)
        assert refused.value.status == 403
    assert judge_sender("", "10.0.0.7", StoreRules(path="", trusts_certificates=True), resolve) == "STOW"
    assert judge_sender("", "10.0.0.7", StoreRules(path="", accept_unlisted_peers=True), resolve) == "STOW"


def test_tokens_of_one_name_are_all_good() -> None:
    """So that a token can be changed without a pause."""
    import hashlib

    tokens = tuple(Token("A", hashlib.sha256(secret).digest()) for secret in (b"old-old-old-old-old", b"new-new-new-new-new"))
    rules = StoreRules(path="", tokens=tokens)
    assert {judge_sender(f"Bearer {one}", "10.0.0.1", rules, nobody) for one in ("old-old-old-old-old", "new-new-new-new-new")} == {"A"}
