"""The seal says what it was given, and nothing else passes for one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.intake.backlog import LATEST_S, LULL_S, is_due
from node.intake.seal import SEAL_BYTES, Seal, decode_seal, this_boot

SEALS = st.builds(
    Seal,
    head_bytes=st.integers(132, 2000),
    size_bytes=st.integers(0, 1 << 40),
    sealed_at_s=st.floats(0, 1e11),
    sha256=st.just(b"") | st.binary(min_size=32, max_size=32).filter(any),
    boot_id=st.binary(min_size=16, max_size=16),
)


@given(SEALS)
def test_a_seal_is_a_preamble_and_says_what_it_was_given(seal: Seal) -> None:
    assert len(seal.encode()) == SEAL_BYTES == 128
    assert decode_seal(seal.encode()) == seal


@given(SEALS, st.integers(0, 83), st.integers(1, 255))
def test_a_seal_with_a_changed_byte_is_none(seal: Seal, place: int, change: int) -> None:
    """The 44 bytes behind it, up to its check, are zeros and say nothing."""
    words = bytearray(seal.encode())
    words[place if place < 80 else place + 44] ^= change
    assert decode_seal(bytes(words)) is None


@given(st.binary(max_size=200))
def test_other_bytes_are_no_seal(words: bytes) -> None:
    assert decode_seal(words) is None
    assert decode_seal(bytes(128) + words) is None


def test_bytes_without_a_digest_are_good_as_long_as_the_machine_runs() -> None:
    now, before = this_boot(), b"another run of it"[:16]
    with_digest, without = Seal(400, 9, 1.0, b"d" * 32, before), Seal(400, 9, 1.0, b"", before)
    assert with_digest.outlives(now)
    assert not without.outlives(now)
    assert Seal(400, 9, 1.0, b"", now).outlives(now) is any(now)
    assert not Seal(400, 9, 1.0, b"", bytes(16)).outlives(bytes(16)), "a system that does not tell its runs apart"


@pytest.mark.parametrize(
    ("waiting", "urgent", "idle_s", "oldest_s", "due"),
    [
        (False, True, 9.0, 0.0, False),
        (True, True, 0.0, 0.0, True),
        (True, False, 0.0, 0.0, False),
        (True, False, LULL_S, LULL_S, True),
        (True, False, 0.0, LATEST_S, True),
    ],
)
def test_rows_are_written_in_a_lull_at_an_end_or_after_a_second(
    waiting: bool, urgent: bool, idle_s: float, oldest_s: float, due: bool
) -> None:
    assert is_due(waiting=waiting, urgent=urgent, idle_s=idle_s, oldest_s=oldest_s) is due
