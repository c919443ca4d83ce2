"""One CT slice in fifteen transfer syntaxes (cornerstone's test images), and synthetic series in all that can be written here."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - its own convention
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from node.errors import BrokenPixelData, InputError, NotAVolume, UnsupportedTransferSyntax
from node.inference.series_reader import read_series
from tests import realdata
from tests.decode.images import decode
from tests.factories import make_ct_series, make_enhanced_ct, make_mr_series

LOSSLESS = {
    "Implicit VR": "LittleEndianImplicitTransferSyntax_1.2.840.10008.1.2",
    "Explicit VR": "LittleEndianExplicitTransferSyntax_1.2.840.10008.1.2.1",
    "Big Endian": "BigEndianExplicitTransferSyntax_1.2.840.10008.1.2.2",
    "Deflated": "DeflatedExplicitVRLittleEndianTransferSyntax_1.2.840.10008.1.2.1.99",
    "JPEG Lossless": "JPEGProcess14TransferSyntax_1.2.840.10008.1.2.4.57",
    "JPEG Lossless SV1": "JPEGProcess14SV1TransferSyntax_1.2.840.10008.1.2.4.70",
    "JPEG-LS": "JPEGLSLosslessTransferSyntax_1.2.840.10008.1.2.4.80",
    "JPEG 2000 lossless": "JPEG2000LosslessOnlyTransferSyntax_1.2.840.10008.1.2.4.90",
    "RLE": "RLELosslessTransferSyntax_1.2.840.10008.1.2.5",
}

LOSSY_MEAN_ERROR_HU = {
    "JPEGProcess1TransferSyntax_1.2.840.10008.1.2.4.50": 20.0,  # 8 bits over 4095 HU
    "JPEGProcess2_4TransferSyntax_1.2.840.10008.1.2.4.51": 4.0,  # 12 bits
    "JPEGLSLossyTransferSyntax_1.2.840.10008.1.2.4.81": 1.0,
    "JPEG2000TransferSyntax_1.2.840.10008.1.2.4.91": 1.0,
}


def cornerstone(name: str = "") -> Path:
    folder = realdata.unpack("ts-matrix-cornerstone") / "packages" / "dicomImageLoader" / "testImages"
    return folder / name


def ct_image(syntax: str) -> Path:
    return cornerstone(f"CTImage.dcm_{syntax}.dcm")


@pytest.mark.data
@pytest.mark.parametrize("syntax", LOSSLESS.values(), ids=LOSSLESS.keys())
def test_every_lossless_syntax_gives_the_same_hounsfield_units(syntax: str) -> None:
    reference = decode(cornerstone("CTImage.dcm"))
    assert (reference.min(), reference.max()) == (-3024, 1378)
    assert np.array_equal(decode(ct_image(syntax)), reference)


@pytest.mark.data
@pytest.mark.parametrize(("syntax", "mean_error_hu"), LOSSY_MEAN_ERROR_HU.items())
def test_lossy_syntaxes_come_near(syntax: str, mean_error_hu: float) -> None:
    error = np.abs(decode(ct_image(syntax)) - decode(cornerstone("CTImage.dcm")))
    assert 0 < error.mean() < mean_error_hu


@pytest.mark.data
@pytest.mark.parametrize(
    "syntax", ["JPEGProcess6_8TransferSyntax_1.2.840.10008.1.2.4.53", "JPEGProcess10_12TransferSyntax_1.2.840.10008.1.2.4.55"]
)
def test_retired_jpeg_is_refused_by_name(syntax: str) -> None:
    with pytest.raises(UnsupportedTransferSyntax, match=r"No decoder for JPEG .*1\.2\.840\.10008\.1\.2\.4\.5[35].*uncompressed"):
        decode(ct_image(syntax))


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("TestPattern_RGB.dcm", NotAVolume, "colour picture .RGB"),
        ("TestPattern_Palette.dcm", NotAVolume, "PALETTE COLOR"),
        ("TestPattern_Palette_16.dcm", NotAVolume, "PALETTE COLOR"),
        ("TestPattern_JPEG-Baseline_YBR422.dcm", NotAVolume, "YBR_FULL_422"),
        ("TestPattern_JPEG-Baseline_YBRFull.dcm", NotAVolume, "YBR_FULL"),
        ("TestPattern_JPEG-LS-Lossless.dcm", NotAVolume, "RGB"),
        ("TestPattern_JPEG-LS-NearLossless.dcm", NotAVolume, "RGB"),
        ("TestPattern_JPEG-Lossless_RGB.dcm", NotAVolume, "RGB"),
        ("US-YBR_FULL_422-EVRLE.dcm", NotAVolume, "YBR_FULL_422"),
        ("no-pixel-spacing.dcm", NotAVolume, "PALETTE COLOR"),
        ("no-pixel-data.dcm", BrokenPixelData, "there is no image"),
    ],
)
def test_what_is_no_monochrome_image_is_refused(name: str, error: type[InputError], words: str) -> None:
    with pytest.raises(error, match=words):
        decode(cornerstone(name))
    with pytest.raises(error, match=words):
        read_series([cornerstone(name)])


@pytest.mark.data
@pytest.mark.parametrize(
    "name",
    [
        "CT1_J2KR",
        "CT2_J2KR",
        "CTImage.dcm",
        "CTImage.dcm_JPEGLSLosslessTransferSyntax_1.2.840.10008.1.2.4.80.dcm",
        "CTImage.dcm_JPEGProcess2_4TransferSyntax_1.2.840.10008.1.2.4.51.dcm",
    ],
)
def test_values_equal_simpleitk(name: str) -> None:
    expected = sitk.GetArrayFromImage(sitk.ReadImage(str(cornerstone(name))))[0]
    assert decode(cornerstone(name)) == pytest.approx(expected, abs=1e-2)


@pytest.mark.data
def test_twelve_bit_jpeg_in_fragments_without_an_offset_table() -> None:
    volume = read_series([cornerstone("CT0012.fragmented_no_bot_jpeg_baseline.51.dcm")])
    assert volume.voxels.shape == (2, 512, 512)
    assert [plane.frame_number for plane in volume.source.planes] in ([1, 2], [2, 1])
    assert (volume.voxels.min(), volume.voxels.max()) == (-14, 1199)


@pytest.mark.parametrize(
    "transfer_syntax",
    [
        ImplicitVRLittleEndian,
        ExplicitVRBigEndian,
        DeflatedExplicitVRLittleEndian,
        RLELossless,
        JPEGLSLossless,
        JPEG2000Lossless,
    ],
)
@pytest.mark.parametrize("make", [make_ct_series, make_mr_series, make_enhanced_ct])
def test_series_in_every_syntax_we_can_write(make, transfer_syntax: str, tmp_path: Path) -> None:
    options = {"slices": 5, "rows": 40, "columns": 48}
    plain = read_series(make(tmp_path / "plain", **options, transfer_syntax=ExplicitVRLittleEndian).paths)
    other = read_series(make(tmp_path / "other", **options, transfer_syntax=transfer_syntax).paths)
    assert np.array_equal(plain.voxels, other.voxels)
    assert plain.geometry.is_close_to(other.geometry)
    assert plain.source == other.source
    assert plain.units == other.units
