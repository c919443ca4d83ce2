"""The Encapsulated PDF: the report as pages in the patient's study (PS3.3 A.45.1, C.24.2)."""

from collections.abc import Sequence
from typing import Final

from pydicom.dataset import Dataset
from pydicom.uid import EncapsulatedPDFStorage

from node.codes import Code
from node.domain.result import Result
from node.evidence.base import NOT_VERIFIED, Role, begin, images_used, moment_text, source_references
from node.evidence.context import EvidenceContext
from node.evidence.exact import copy_exactly, new_item
from node.evidence.pdf_page import Identity, Language, pdf_report
from node.evidence.sop_common import code_item, finished, long_string

ENCAPSULATED_PDF: Final = Role("pdf", EncapsulatedPDFStorage, "DOC", 7)
TITLE: Final = Code("126000", "DCM", "Imaging Measurement Report")
"""That of the SR: under LOINC 18748-4 (Diagnostic imaging report) an archive would file it as the radiologist's."""


def encode_pdf_report(
    result: Result, sources: Sequence[Dataset], context: EvidenceContext, *, key_image: bytes | None = None, language: Language = "en"
) -> Dataset:
    """Answers the report of a result, whatever its outcome, as a PDF in a DICOM object.

    `sources` are the headers of the images that were used, or for a study that was not analysed those that came; `key_image` is
    the PNG of `render_key_image`. Sentences of the node itself (notes, reasons) stay in English.

    Raises
    ------
    EvidenceError
        If there is no source image, or one of the label map is missing.
    """
    images = images_used(result, sources)
    made = begin(ENCAPSULATED_PDF, images[0], result, context)
    made.ConversionType = "WSD"
    made.AcquisitionDateTime = None
    made.BurnedInAnnotation = "YES"
    made.ConceptNameCodeSequence = [code_item(TITLE)]
    made.DocumentTitle = long_string(f"{NOT_VERIFIED}: {result.card.title} {result.card.version}")
    made.VerificationFlag = "UNVERIFIED"
    made.SourceInstanceSequence = source_references(images)
    made.MIMETypeOfEncapsulatedDocument = "application/pdf"
    document = finished(made, images[0], result, context)
    pdf = pdf_report(result, identity_of(images[0]), key_image, language, moment_text(document))
    document.EncapsulatedDocument = pdf + b"\0" * (len(pdf) % 2)
    document.EncapsulatedDocumentLength = len(pdf)
    return document


def identity_of(source: Dataset) -> Identity:
    """Answers whose study a source image is of, in words; the source stays as it is, not one value decoded."""
    copy = new_item(source.get("SpecificCharacterSet"))
    keywords = (
        "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyDescription", "AccessionNumber",
    )  # fmt: skip
    for keyword in keywords:
        copy_exactly(copy, source, keyword)
    name, patient_id, birth_date, sex, study_date, description, accession = (str(copy.get(keyword) or "") for keyword in keywords)
    return Identity(
        patient_name=_name(name),
        patient_id=patient_id,
        birth_date=_date(birth_date),
        sex=sex,
        study_date=_date(study_date),
        study_description=description,
        accession_number=accession,
    )


def _name(value: str) -> str:
    """Answers a Person Name with its other writings in parentheses: `Yamada Tarou (山田 太郎)`."""
    groups = [" ".join(part for part in group.split("^") if part.strip()) for group in value.split("=")]
    said = [group.strip() for group in groups if group.strip()]
    return said[0] + "".join(f" ({group})" for group in said[1:]) if said else ""


def _date(value: str) -> str:
    return f"{value[:4]}-{value[4:6]}-{value[6:]}" if len(value) == 8 and value.isdigit() else value
