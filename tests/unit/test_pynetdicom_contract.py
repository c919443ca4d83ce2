"""What the product relies upon in pynetdicom: fails when a function moves, takes other arguments, or answers something else.

pyproject.toml allows pynetdicom 3.0.4 to 3.0.*; whoever widens that reads here what has to stay.
"""

import inspect
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pynetdicom
import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, evt
from pynetdicom.acse import ACSE
from pynetdicom.association import Association
from pynetdicom.dsutils import encode, split_dataset
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
    SCP_SCU_RoleSelectionNegotiation,
)
from pynetdicom.presentation import PresentationContext, build_context, negotiate_as_acceptor

from tests.factories import make_ct_series

CT, MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"
IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"


def test_the_version_is_one_that_this_was_written_for() -> None:
    assert tuple(map(int, pynetdicom.__version__.split(".")[:2])) == (3, 0)


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (negotiate_as_acceptor, ["rq_contexts", "ac_contexts", "roles"]),
        (build_context, ["abstract_syntax", "transfer_syntax"]),
        (A_ASSOCIATE_RQ.decode, ["self", "bytestream"]),
        (A_ASSOCIATE_RQ.to_primitive, ["self"]),
        (A_ASSOCIATE_AC.__init__, ["self", "primitive"]),
        (A_ASSOCIATE_AC.encode, ["self"]),
        (encode, ["ds", "is_implicit_vr", "is_little_endian", "deflated"]),
        (split_dataset, ["path"]),
        (AE.start_server, ["self", "address", "block", "ssl_context", "evt_handlers", "ae_title", "contexts"]),
        (AE.shutdown, ["self"]),
        (ACSE.send_reject, ["self", "result", "source", "diagnostic"]),
        (Association.kill, ["self"]),
        (evt.Event.encoded_dataset, ["self", "include_meta"]),
    ],
    ids=lambda value: getattr(value, "__qualname__", ""),
)
def test_a_function_is_where_it_was_and_takes_what_it_took(function: Callable[..., Any], parameters: Sequence[str]) -> None:
    assert list(inspect.signature(function).parameters) == parameters


def test_an_encoded_request_becomes_a_primitive_with_the_names_that_are_read() -> None:
    primitive = _request(build_context(CT, [EXPLICIT, IMPLICIT]), roles={CT: (True, False)})
    decoded = A_ASSOCIATE_RQ()
    decoded.decode(A_ASSOCIATE_RQ(primitive).encode())
    found = decoded.to_primitive()
    assert (str(found.calling_ae_title).strip(), str(found.called_ae_title).strip()) == ("SENDER", "RADNODE")
    (context,) = found.presentation_context_definition_list
    assert (context.context_id, context.abstract_syntax, context.transfer_syntax) == (1, CT, [EXPLICIT, IMPLICIT])
    (role,) = (item for item in found.user_information if isinstance(item, SCP_SCU_RoleSelectionNegotiation))
    assert (role.sop_class_uid, role.scu_role, role.scp_role) == (CT, True, False)


def test_what_is_no_request_raises_what_is_caught() -> None:
    from node.network.malformed import MALFORMED_PDU

    encoded = A_ASSOCIATE_RQ(_request(build_context(CT, EXPLICIT))).encode()
    for place in range(10, len(encoded)):
        spoilt = encoded[:place] + b"\xff" + encoded[place + 1 :]
        decoded = A_ASSOCIATE_RQ()
        try:
            decoded.decode(spoilt)
            decoded.to_primitive()
        except MALFORMED_PDU:
            continue


def test_negotiation_takes_our_first_transfer_syntax_that_is_proposed_and_refuses_what_we_lack() -> None:
    ours = [build_context(CT, [EXPLICIT, IMPLICIT])]
    known, unknown, foreign = build_context(CT, [IMPLICIT, EXPLICIT]), build_context(MR, EXPLICIT), build_context(CT, "1.2.3")
    known.context_id, unknown.context_id, foreign.context_id = 1, 3, 5
    results, roles = negotiate_as_acceptor([known, unknown, foreign], ours, {CT: (True, False)})
    told = {context.context_id: (context.result, [str(one) for one in context.transfer_syntax]) for context in results}
    assert told[1] == (0, [EXPLICIT])
    assert told[3][0] == 3, "abstract syntax not supported"
    assert told[5][0] == 4, "transfer syntaxes not supported"
    assert roles == [], "the defaults hold: nothing is answered"
    assert all(isinstance(context, PresentationContext) for context in results)


def test_the_role_of_an_scp_is_answered_where_we_offer_it() -> None:
    ours = build_context(CT, EXPLICIT)
    ours.scu_role, ours.scp_role = False, True
    proposed = build_context(CT, EXPLICIT)
    proposed.context_id = 1
    results, roles = negotiate_as_acceptor([proposed], [ours], {CT: (False, True)})
    assert [(context.result, context.as_scu, context.as_scp) for context in results] == [(0, True, False)]
    assert [(role.sop_class_uid, role.scu_role, role.scp_role) for role in roles] == [(CT, False, True)]


def test_an_acceptance_is_encoded_as_it_always_was() -> None:
    accepted = build_context(CT, EXPLICIT)
    accepted.context_id, accepted.result = 1, 0
    answer = A_ASSOCIATE()
    answer.application_context_name = "1.2.840.10008.3.1.1.1"
    answer.calling_ae_title, answer.called_ae_title = "SENDER", "RADNODE"
    answer.result, answer.result_source = 0, 1
    answer.presentation_context_definition_results_list = [accepted]
    answer.user_information = list(_user_information())
    assert A_ASSOCIATE_AC(answer).encode() == bytes.fromhex(
        "020000000099" "00010000"
        + b"RADNODE         SENDER          ".hex() + "00" * 32
        + "10000015" + b"1.2.840.10008.3.1.1.1".hex()
        + "2100001b" "01000000" "40000013" + b"1.2.840.10008.1.2.1".hex()
        + "50000019" "51000004" "00004000" "52000005" + b"1.2.3".hex() + "55000004" + b"TEST".hex()
    )  # fmt: skip


def test_data_sets_are_encoded_and_part_10_files_are_split(tmp_path: Path) -> None:
    told = Dataset()
    told.PatientID = "X"
    assert encode(told, is_implicit_vr=True, is_little_endian=True) == b"\x10\x00\x20\x00\x02\x00\x00\x00X "
    assert encode(told, is_implicit_vr=False, is_little_endian=True) == b"\x10\x00\x20\x00LO\x02\x00X "
    path = make_ct_series(tmp_path, slices=3).paths[0]
    meta, offset = split_dataset(path)
    content = path.read_bytes()
    assert meta.TransferSyntaxUID == EXPLICIT
    assert content[offset : offset + 2] == b"\x08\x00"
    assert content[128:132] == b"DICM"


def test_every_storage_class_and_transfer_syntax_is_named() -> None:
    assert len(AllStoragePresentationContexts) >= 170
    assert {str(context.abstract_syntax) for context in AllStoragePresentationContexts} >= {CT, MR}
    assert {EXPLICIT, IMPLICIT, "1.2.840.10008.1.2.4.80"} <= set(map(str, ALL_TRANSFER_SYNTAXES))


def test_an_event_has_what_the_reference_listener_reads() -> None:
    for name in ("EVT_REQUESTED", "EVT_C_STORE", "EVT_C_ECHO", "EVT_N_EVENT_REPORT"):
        assert hasattr(evt, name)
    from pynetdicom.dimse_primitives import C_STORE, N_EVENT_REPORT

    store, report = C_STORE(), N_EVENT_REPORT()
    store.AffectedSOPClassUID, store.AffectedSOPInstanceUID, store.DataSet = CT, "1.2.3", BytesIO(b"12")
    report.AffectedSOPClassUID, report.EventTypeID, report.EventInformation = CT, 1, BytesIO(b"12")
    event = evt.Event(None, evt.EVT_C_STORE, {"request": store, "context": build_context(CT, EXPLICIT).as_tuple})
    assert event.encoded_dataset(include_meta=False) == b"12"
    assert str(event.context.transfer_syntax) == EXPLICIT
    assert (str(event.request.AffectedSOPClassUID), str(event.request.AffectedSOPInstanceUID)) == (CT, "1.2.3")
    assert report.EventInformation.getvalue() == b"12"


def _user_information() -> Sequence[Any]:
    length, implementation, version = (
        MaximumLengthNotification(),
        ImplementationClassUIDNotification(),
        ImplementationVersionNameNotification(),
    )
    length.maximum_length_received = 16384
    implementation.implementation_class_uid = "1.2.3"
    version.implementation_version_name = "TEST"
    return length, implementation, version


def _request(context: PresentationContext, roles: dict[str, tuple[bool, bool]] | None = None) -> A_ASSOCIATE:
    asked = A_ASSOCIATE()
    asked.application_context_name = "1.2.840.10008.3.1.1.1"
    asked.calling_ae_title, asked.called_ae_title = "SENDER", "RADNODE"
    context.context_id = 1
    asked.presentation_context_definition_list = [context]
    asked.user_information = list(_user_information())
    for sop_class, (scu, scp) in (roles or {}).items():
        role = SCP_SCU_RoleSelectionNegotiation()
        role.sop_class_uid, role.scu_role, role.scp_role = sop_class, scu, scp
        asked.user_information.append(role)
    return asked
