"""UIDs, AE titles and keys."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.domain.identifiers import derive_job_key, derive_uid, is_ae_title, is_uid, is_usable_uid


@given(st.lists(st.text(max_size=30), min_size=1, max_size=4))
def test_derived_uids_are_valid_and_repeatable(parts: list[str]) -> None:
    assert is_uid(derive_uid(*parts))
    assert derive_uid(*parts) == derive_uid(*parts)


@given(st.lists(st.text("0123456789abcdef", min_size=4, max_size=8), min_size=1, max_size=6))
def test_job_key_ignores_the_order_of_arrival(digests: list[str]) -> None:
    assert derive_job_key("model", "1.2", digests) == derive_job_key("model", "1.2", reversed(digests))


def test_job_key_changes_with_every_part() -> None:
    keys = {
        derive_job_key("m", "1.2", ["a", "b"]),
        derive_job_key("n", "1.2", ["a", "b"]),
        derive_job_key("m", "1.3", ["a", "b"]),
        derive_job_key("m", "1.2", ["a"]),
        derive_job_key("m", "1.2", ["ab"]),
    }
    assert len(keys) == 5


@pytest.mark.parametrize("uid", ["1", "1.2.840.10008.1.1", "2.25." + "9" * 39])
def test_valid_uids(uid: str) -> None:
    assert is_uid(uid)
    assert is_usable_uid(uid)


@pytest.mark.parametrize("uid", ["", "1..2", ".1", "1.", "1.2a", "../../etc/passwd", "1.2\x00", "1" * 65])
def test_unusable_uids(uid: str) -> None:
    assert not is_uid(uid)
    assert not is_usable_uid(uid)


def test_leading_zeros_are_usable_though_invalid() -> None:
    assert not is_uid("1.02.3")
    assert is_usable_uid("1.02.3")


@pytest.mark.parametrize(
    ("text", "answer"),
    [("AINODE", True), ("NO", True), (" X ", True), ("", False), ("   ", False), ("A" * 17, False), ("A\\B", False), ("ÄE", False)],
)
def test_ae_titles(text: str, answer: bool) -> None:
    assert is_ae_title(text) is answer
