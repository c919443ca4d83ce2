"""RLE Lossless of ours is what others decode."""

import struct

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom.encaps import generate_frames, parse_basic_offsets
from pydicom.pixels.decoders.rle import _rle_decode_frame

from node.network.rle import encapsulated, run_length_encoded


@st.composite
def label_maps(draw: st.DrawFn) -> NDArray[np.uint8]:
    """Noise, runs beyond 128, single pixels, rows of one column."""
    rows, columns = draw(st.integers(1, 6)), draw(st.sampled_from([1, 2, 127, 128, 129, 255, 256, 257, 300]))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    labels = generator.integers(0, draw(st.integers(1, 255)), (rows, columns), dtype=np.uint8, endpoint=True)
    labels[generator.random(labels.shape) < draw(st.floats(0, 1))] = 0
    return labels


@given(label_maps())
def test_pydicom_decodes_what_was_encoded(labels: NDArray[np.uint8]) -> None:
    fragment = run_length_encoded(labels)
    assert len(fragment) % 2 == 0
    assert bytes(_rle_decode_frame(fragment, *labels.shape, 1, 8)) == labels.tobytes()


@given(label_maps())
def test_no_run_crosses_the_end_of_a_row(labels: NDArray[np.uint8]) -> None:
    column = 0
    for control, _ in struct.iter_unpack("BB", run_length_encoded(labels)[64:]):
        assert control != 128, "reserved"
        column += 257 - control if control else 1
        assert column <= labels.shape[1]
        column %= labels.shape[1]


def test_frames_are_found_by_the_basic_offset_table() -> None:
    frames = [run_length_encoded(np.full((3, width), 7, dtype=np.uint8)) for width in (5, 500, 1)]
    element = b"".join(encapsulated(frames))
    assert element[:12] == bytes.fromhex("e07f1000") + b"OB\0\0" + b"\xff" * 4
    value = element[12:]
    offsets = parse_basic_offsets(value)
    first = 8 + 4 * len(offsets)
    for offset, frame in zip(offsets, frames, strict=True):
        assert value[first + offset + 8 :].startswith(frame)
    assert list(generate_frames(value, number_of_frames=3)) == frames
    assert value.endswith(bytes.fromhex("feffdde000000000"))
