"""A damaged file gives a volume or a named reason: never another exception."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from node.domain.volume import Volume
from node.errors import InputError
from node.inference.series_reader import read_series
from tests.factories import make_ct_series, make_enhanced_ct

EXAMPLES = 60

CASES = {
    "explicit": (make_ct_series, ExplicitVRLittleEndian),
    "implicit": (make_ct_series, ImplicitVRLittleEndian),
    "deflated": (make_ct_series, DeflatedExplicitVRLittleEndian),
    "J2K": (make_ct_series, JPEG2000Lossless),
    "RLE": (make_ct_series, RLELossless),
    "enhanced": (make_enhanced_ct, ExplicitVRLittleEndian),
    "enhanced RLE": (make_enhanced_ct, RLELossless),
}


@pytest.fixture(scope="module", params=CASES)
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    make, transfer_syntax = CASES[request.param]
    folder = tmp_path_factory.mktemp("fuzz")
    return make(folder, slices=3, rows=40, columns=36, spacing_mm=(8.0, 2.0, 2.0), transfer_syntax=transfer_syntax).paths


@given(data=st.data())
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_is_named(files: tuple[Path, ...], data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(files))
    whole = path.read_bytes()
    damaged = bytearray(whole)
    places = st.integers(132, min(len(whole) - 1, 132 + 2200))
    for place, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=6)):
        damaged[place] = value
    if data.draw(st.booleans()):
        del damaged[data.draw(st.integers(0, len(damaged) - 1)) :]
    path.write_bytes(damaged)
    try:
        outcome = volume_or_reason(files)
    finally:
        path.write_bytes(whole)
    assert isinstance(outcome, Volume) or outcome.endswith(".")


def volume_or_reason(files: tuple[Path, ...]) -> Volume | str:
    try:
        return read_series(files)
    except InputError as error:
        return str(error)
