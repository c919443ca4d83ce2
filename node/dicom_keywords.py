"""The keywords of the DICOM data dictionary, without importing pydicom (0.6 s): its dictionary module is loaded by path."""

import importlib.util
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Final

TEXT_VRS: Final = frozenset({"AE", "AS", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UI", "UR", "UT"})
"""Value representations that hold no number."""

UNROUTABLE_VRS: Final = frozenset({"SQ", "OB", "OW", "OF", "OD", "OL", "OV", "UN", "OB or OW", "NONE"})
"""Sequences and bulk data: headers as routing sees them leave these out."""


@cache
def keyword_vrs() -> Mapping[str, str]:
    """Answers every keyword of PS3.6 that pydicom knows, with its value representation."""
    package = importlib.util.find_spec("pydicom")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("pydicom is not installed → run `pip install radnode` again")
    path = Path(package.origin).with_name("_dicom_dict.py")
    spec = importlib.util.spec_from_file_location("_radnode_dicom_dict", path)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"{path} is absent → run `pip install --force-reinstall pydicom`")
    dictionary = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(dictionary)
    return {keyword: vr for vr, _vm, _name, _retired, keyword in dictionary.DicomDictionary.values() if keyword}
