"""Headers of real scanners, made fit for highdicom, and the patient's and the study's identity, put back byte for byte.

highdicom raises on what hospitals send every day (absent Accession Number, PatientSex U, a date with dots, a character set
with an empty first value). So it never sees the identity: it builds on a stand-in, and the true bytes are put in afterwards.
"""

from typing import Final

from pydicom.dataset import Dataset
from pydicom.uid import JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless

from node.errors import EvidenceError
from node.evidence.exact import copy_exactly, fit_texts, keep_bytes

PATIENT: Final = (
    "PatientName", "PatientID", "IssuerOfPatientID", "IssuerOfPatientIDQualifiersSequence", "TypeOfPatientID",
    "PatientBirthDate", "PatientBirthTime", "PatientSex", "OtherPatientIDs", "OtherPatientIDsSequence", "OtherPatientNames",
    "EthnicGroup", "EthnicGroupCodeSequence", "PatientComments", "QualityControlSubject", "PatientIdentityRemoved",
    "DeidentificationMethod", "DeidentificationMethodCodeSequence",
    "PatientSpeciesDescription", "PatientSpeciesCodeSequence", "PatientBreedDescription", "PatientBreedCodeSequence",
    "BreedRegistrationSequence", "ResponsiblePerson", "ResponsiblePersonRole", "ResponsibleOrganization",
    "ClinicalTrialSponsorName", "ClinicalTrialProtocolID", "ClinicalTrialProtocolName", "ClinicalTrialSiteID",
    "ClinicalTrialSiteName", "ClinicalTrialSubjectID", "ClinicalTrialSubjectReadingID",
)  # fmt: skip
"""Patient and Clinical Trial Subject modules (PS3.3 C.7.1.1, C.7.1.3)."""

STUDY: Final = (
    "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "IssuerOfAccessionNumberSequence",
    "StudyDescription", "ReferringPhysicianName", "ReferringPhysicianIdentificationSequence", "ConsultingPhysicianName",
    "PhysiciansOfRecord", "PhysiciansOfRecordIdentificationSequence", "NameOfPhysiciansReadingStudy",
    "ReferencedStudySequence", "ProcedureCodeSequence", "RequestingService", "ReasonForPerformedProcedureCodeSequence",
    "AdmittingDiagnosesDescription", "AdmittingDiagnosesCodeSequence", "PatientAge", "PatientSize", "PatientWeight",
    "Occupation", "AdditionalPatientHistory", "AdmissionID", "IssuerOfAdmissionIDSequence", "PatientSexNeutered",
    "PregnancyStatus", "ClinicalTrialTimePointID", "ClinicalTrialTimePointDescription",
)  # fmt: skip
"""General Study, Patient Study and Clinical Trial Study modules (PS3.3 C.7.2)."""

INSTITUTION: Final = ("InstitutionName", "TimezoneOffsetFromUTC")

TYPE_2: Final = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex",
    "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
"""Stay in the evidence, empty, where the source has none."""

_LOSSY_TRANSFER_SYNTAXES: Final = frozenset({JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless})


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

    Texts of ours that this character set cannot express are fitted to it. Of sequences only whole ones are copied.
    """
    character_set = source.get("SpecificCharacterSet")
    for keyword in ("SpecificCharacterSet", *PATIENT, *STUDY, *INSTITUTION):
        if keyword in evidence:
            delattr(evidence, keyword)
    fit_texts(evidence, character_set)
    copy_exactly(evidence, source, "SpecificCharacterSet")
    for keyword in (*PATIENT, *STUDY, *INSTITUTION):
        if keyword.endswith("Sequence") and not _is_whole(source, keyword):
            continue
        if not copy_exactly(evidence, source, keyword) and keyword in TYPE_2:
            setattr(evidence, keyword, None)
    keep_bytes(evidence)


def is_usable_code(item: Dataset) -> bool:
    """Answers whether a code sequence item says what it must (PS3.3 Table 8.8-1), in lengths that fit."""
    limits = (("CodeValue", 16), ("CodingSchemeDesignator", 16), ("CodeMeaning", 64))
    return all(0 < len(str(item.get(keyword) or "")) <= limit for keyword, limit in limits)


def _is_whole(source: Dataset, keyword: str) -> bool:
    """Answers whether a sequence can be copied: half codes and half references would make the evidence invalid."""
    items = source.get(keyword) or []
    if keyword.endswith("CodeSequence"):
        return all(is_usable_code(item) for item in items)
    if keyword == "ReferencedStudySequence":
        return all(item.get("ReferencedSOPClassUID") and item.get("ReferencedSOPInstanceUID") for item in items)
    return True


def is_lossy(dataset: Dataset) -> bool:
    """Answers whether the image has ever been compressed with loss (PS3.3 C.7.6.1.1.5)."""
    if str(dataset.get("LossyImageCompression", "")).strip() == "01":
        return True
    meta = getattr(dataset, "file_meta", None)
    return meta is not None and meta.get("TransferSyntaxUID") in _LOSSY_TRANSFER_SYNTAXES
