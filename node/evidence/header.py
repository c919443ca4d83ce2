"""Headers of real scanners, made fit for highdicom, and the patient's and the study's identity, put back byte for byte.

highdicom raises on what hospitals send every day (absent Accession Number, PatientSex U, a date with dots, a character set
with an empty first value). So it never sees the identity: it builds on a stand-in, and the true bytes are put in afterwards.
"""

import re
from typing import Final

from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset
from pydicom.uid import JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless

from node.errors import EvidenceError
from node.evidence.exact import copy_exactly, exact_bytes, fit_texts, keep_bytes

IDENTITY: Final = (
    "PatientName", "PatientID", "IssuerOfPatientID", "OtherPatientIDs", "OtherPatientNames",
    "PatientBirthDate", "PatientBirthTime", "PatientSex",
    "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "StudyDescription", "ReferringPhysicianName",
    "TimezoneOffsetFromUTC", "InstitutionName",
)  # fmt: skip
"""Whose patient and which study: copied byte for byte, right or wrong (PS3.3 C.7.1.1, C.7.2.1)."""

DESCRIPTION: Final = (
    "IssuerOfPatientIDQualifiersSequence", "TypeOfPatientID", "OtherPatientIDsSequence", "EthnicGroup",
    "EthnicGroupCodeSequence", "PatientComments", "QualityControlSubject", "PatientIdentityRemoved", "DeidentificationMethod",
    "DeidentificationMethodCodeSequence", "PatientSpeciesDescription", "PatientSpeciesCodeSequence",
    "PatientBreedDescription", "PatientBreedCodeSequence", "BreedRegistrationSequence", "ResponsiblePerson",
    "ResponsiblePersonRole", "ResponsibleOrganization",
    "ClinicalTrialSponsorName", "ClinicalTrialProtocolID", "ClinicalTrialProtocolName", "ClinicalTrialSiteID",
    "ClinicalTrialSiteName", "ClinicalTrialSubjectID", "ClinicalTrialSubjectReadingID",
    "ClinicalTrialTimePointID", "ClinicalTrialTimePointDescription",
    "IssuerOfAccessionNumberSequence", "ReferringPhysicianIdentificationSequence", "ConsultingPhysicianName",
    "PhysiciansOfRecord", "PhysiciansOfRecordIdentificationSequence", "NameOfPhysiciansReadingStudy",
    "ReferencedStudySequence", "ProcedureCodeSequence", "ReasonForPerformedProcedureCodeSequence",
    "AdmittingDiagnosesDescription", "AdmittingDiagnosesCodeSequence", "PatientAge", "PatientSize", "PatientWeight",
    "Occupation", "AdditionalPatientHistory", "AdmissionID", "IssuerOfAdmissionIDSequence", "PatientSexNeutered",
    "PregnancyStatus",
)  # fmt: skip
"""More of the Patient, Study and Clinical Trial modules: copied byte for byte where the value is well formed, else left out."""

TYPE_2: Final = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex",
    "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
"""Stay in the evidence, empty, where the source has none."""

_FORMS: Final = {
    "AS": rb"\d{3}[DWMY]",
    "CS": rb"[A-Z0-9_ ]{1,16}",
    "DS": rb"(?=.{1,16}$)[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?",
    "LO": rb".{1,64}",
    "SH": rb".{1,16}",
}
"""What a value of a Value Representation looks like (PS3.5 Table 6.2-1)."""

_LOSSY_TRANSFER_SYNTAXES: Final = frozenset({JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless})

DEIDENTIFICATION_UNSTATED: Final = "not stated in the source images"


def normalise_source(dataset: Dataset) -> Dataset:
    """Answers a stand-in for a source image that highdicom accepts: its UIDs and its modality, and no identity at all.

    Raises
    ------
    EvidenceError
        If a UID is absent by which the image could be referenced.
    """
    stand_in = Dataset()
    for keyword in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        if not dataset.get(keyword):
            raise EvidenceError(f"the source image has no {keyword}")
        setattr(stand_in, keyword, str(dataset[keyword].value))
    for keyword in TYPE_2:
        setattr(stand_in, keyword, "")
    stand_in.Modality = str(dataset.get("Modality") or "OT")
    if is_lossy(dataset):
        stand_in.LossyImageCompression = "01"
    return stand_in


def restore_identity(evidence: Dataset, source: Dataset) -> None:
    """Gives `evidence`, in place, the patient and study identity of `source`, byte for byte, with its character set.

    Texts of ours that this character set cannot express are fitted to it. Of the rest what is well formed.
    """
    character_set = source.get("SpecificCharacterSet")
    for keyword in ("SpecificCharacterSet", *IDENTITY, *DESCRIPTION):
        if keyword in evidence:
            delattr(evidence, keyword)
    fit_texts(evidence, character_set)
    for keyword in ("SpecificCharacterSet", *IDENTITY):
        copy_exactly(evidence, source, keyword)
    for keyword in TYPE_2:
        if keyword not in evidence:
            setattr(evidence, keyword, None)
    for keyword in DESCRIPTION:
        if keyword in source and _is_well_formed(source, keyword):
            copy_exactly(evidence, source, keyword)
    if evidence.get("PatientIdentityRemoved") == "YES" and not (
        evidence.get("DeidentificationMethod") or evidence.get("DeidentificationMethodCodeSequence")
    ):
        evidence.DeidentificationMethod = DEIDENTIFICATION_UNSTATED  # type 1C (PS3.3 C.7.1.1): the flag must stay, and be explained
    keep_bytes(evidence)


def is_usable_code(item: Dataset) -> bool:
    """Answers whether a code sequence item says what it must (PS3.3 Table 8.8-1), in lengths that fit."""
    limits = (("CodeValue", 16), ("CodingSchemeDesignator", 16), ("CodeMeaning", 64))
    return all(0 < len(str(item.get(keyword) or "")) <= limit for keyword, limit in limits)


def _is_well_formed(source: Dataset, keyword: str) -> bool:
    """Answers whether a value can be copied: one that is empty, malformed or half a code would make the evidence invalid."""
    if keyword == "ReferencedStudySequence":
        return all(item.get("ReferencedSOPClassUID") and item.get("ReferencedSOPInstanceUID") for item in source[keyword].value)
    if keyword.endswith("CodeSequence"):
        return all(is_usable_code(item) for item in source[keyword].value)
    raw = exact_bytes(source, keyword)
    if raw is None:
        return not source[keyword].is_empty
    pattern = _FORMS.get(dictionary_VR(keyword), rb".+")
    return all(re.fullmatch(pattern, value.strip(b" \0"), re.DOTALL) for value in raw.split(b"\\"))


def is_lossy(dataset: Dataset) -> bool:
    """Answers whether the image has ever been compressed with loss (PS3.3 C.7.6.1.1.5)."""
    if str(dataset.get("LossyImageCompression", "")).strip() == "01":
        return True
    meta = getattr(dataset, "file_meta", None)
    return meta is not None and meta.get("TransferSyntaxUID") in _LOSSY_TRANSFER_SYNTAXES
