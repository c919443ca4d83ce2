"""Bodies of STOW-RS in pieces of any length: parts come out as they went in, and what is no multipart is refused by name."""

from collections.abc import Callable, Sequence

from hypothesis import example, given, settings
from hypothesis import strategies as st

from node.errors import CannotUnderstand
from node.intake.stow.multipart import SMALLEST_BUFFER_BYTES, MalformedMultipart, MultipartReader
from node.intake.stow.part10 import read_file_meta

BOUNDARIES = st.text("-aB09'()+_,./:=?", min_size=1, max_size=20).map(str.encode)
NEARLY = st.sampled_from([b"\r\n", b"\r", b"\n", b"--", b"\r\n-", b"\r\n--", b"\r\r\n--", b"\0", b"a", b"-"])
CONTENTS = st.one_of(
    st.binary(max_size=200), st.lists(NEARLY, max_size=20).map(b"".join), st.binary(min_size=1, max_size=8).map(lambda one: one * 3000)
)
HEADS = st.sampled_from(
    [
        b"",
        b"\r\nContent-Type: application/dicom",
        b"\r\nContent-Type: application/dicom; x=y\r\nContent-Location: a",
        b"\r\nX: " + b"y" * 5000,
    ]
)


def in_pieces(body: bytes, lengths: Sequence[int]) -> Callable[[memoryview], int]:
    """Answers what receives a body in pieces of these lengths, over and over."""
    place = turn = 0

    def receive(view: memoryview) -> int:
        nonlocal place, turn
        assert len(view), "room for something must be offered"
        length = min(len(view), lengths[turn % len(lengths)], len(body) - place)
        view[:length] = body[place : place + length]
        place, turn = place + length, turn + 1
        return length

    return receive


def read(body: bytes, boundary: bytes, lengths: Sequence[int]) -> list[tuple[str, bytes]]:
    reader = MultipartReader(boundary, in_pieces(body, lengths), bytearray(SMALLEST_BUFFER_BYTES))
    return [(part.media_type, b"".join(bytes(piece) for piece in part.pieces)) for part in reader.parts()]


def encoded(parts: Sequence[tuple[bytes, bytes]], boundary: bytes, preamble: bytes = b"", epilogue: bytes = b"") -> bytes:
    lines = [b"--" + boundary + head + b"\r\n\r\n" + content + b"\r\n" for head, content in parts]
    return preamble + b"".join([*lines, b"--" + boundary + b"--" + epilogue])


@settings(max_examples=300, deadline=None)
@given(
    parts=st.lists(st.tuples(HEADS, CONTENTS), max_size=4),
    boundary=BOUNDARIES,
    lengths=st.lists(st.integers(1, 9000), min_size=1, max_size=5),
    around=st.tuples(st.sampled_from([b"", b"\r\n", b"hello\r\n"]), st.sampled_from([b"", b"\r\n", b"\r\nbye"])),
)
@example(parts=[(b"", b"\r"), (b"", b"\r\n")], boundary=b"-", lengths=[1], around=(b"", b""))
def test_parts_come_out_as_they_went_in_however_the_network_cuts_them(
    parts: list[tuple[bytes, bytes]], boundary: bytes, lengths: list[int], around: tuple[bytes, bytes]
) -> None:
    delimiter = b"\r\n--" + boundary
    parts = [(head, content) for head, content in parts if delimiter not in b"\r\n" + content + b"\r\n--"]  # a sender chooses another
    body = encoded(parts, boundary, *around)
    found = read(body, boundary, lengths)
    assert [content for _, content in found] == [content for _, content in parts]
    assert [kind for kind, _ in found] == ["application/dicom" if b"application/dicom" in head else "" for head, _ in parts]


@settings(max_examples=200, deadline=None)
@given(st.data(), BOUNDARIES, st.lists(st.integers(1, 5000), min_size=1, max_size=3))
def test_a_body_that_is_cut_anywhere_is_malformed_and_no_part_grows_by_it(data: st.DataObject, boundary: bytes, lengths: list[int]) -> None:
    contents = [b"first part", b"\0" * 700, b"last"]
    body = encoded([(b"", content) for content in contents], boundary)
    cut = data.draw(st.integers(0, len(body) - 1))
    reader = MultipartReader(boundary, in_pieces(body[:cut], lengths), bytearray(SMALLEST_BUFFER_BYTES))
    found: list[bytes] = []
    try:
        for part in reader.parts():
            found.append(b"")
            for piece in part.pieces:
                found[-1] += bytes(piece)
    except MalformedMultipart:
        pass
    else:
        raise AssertionError("it was taken for a whole body")
    assert all(whole.startswith(part) for whole, part in zip(contents, found, strict=False))
    assert found[:-1] == contents[: len(found[:-1])]


@settings(max_examples=300, deadline=None)
@given(
    body=st.one_of(
        st.binary(max_size=400),
        st.lists(
            st.sampled_from([b"--x", b"\r\n", b"--", b"Content-Type:", b" ", b"\t", b"\0", b"\xff", b";", b'"', b"=", b"a"]), max_size=60
        ).map(b"".join),
    ),
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=3),
)
@example(body=b"--x\r\nA: " + b"b" * 9000 + b"\r\n\r\n\r\n--x--", lengths=[9000])
@example(body=b"--x\r\nContent-Type: \xff\xff;;=\r\n\r\n\r\n--x--", lengths=[100])
def test_any_body_gives_parts_or_is_refused_by_name(body: bytes, lengths: list[int]) -> None:
    try:
        parts = read(body, b"x", lengths)
    except MalformedMultipart:
        return
    assert body.count(b"--x") >= len(parts) + 1


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 200), st.binary(max_size=40))
def test_any_head_of_a_file_is_understood_wants_more_or_is_refused_by_name(noise: bytes, place: int, tail: bytes) -> None:
    content = bytearray(bytes(128) + b"DICM" + noise)
    content[132 + place : 132 + place + len(tail)] = tail
    try:
        meta = read_file_meta(bytes(content))
    except CannotUnderstand:
        return
    assert meta is None or meta.data_set_from <= len(content)
