"""The DICOM conformance statement, in the order of PS3.2 Annex N."""

from typing import Final

from node import __version__
from node.codes import IMPLEMENTATION_CLASS_UID, MANUFACTURER, MANUFACTURER_MODEL_NAME
from node.config import ListenerSection
from node.conformance_statement.configuration import configuration_parameters
from node.conformance_statement.markdown import CONTENTS, Section, bullets, numbered, paragraphs, table
from node.conformance_statement.names import class_name, syntax_name
from node.conformance_statement.objects import exhibits, object_annexes
from node.conformance_statement.scp import acceptor, storage_classes, storage_syntaxes
from node.conformance_statement.scu import requestor, result_contexts
from node.conformance_statement.stow import origin_server
from node.delivery.query import STUDY_ROOT_FIND
from node.domain.identifiers import MAX_AE_TITLE_LENGTH
from node.network import IMPLEMENTATION_VERSION_NAME, STORAGE_COMMITMENT, VERIFICATION
from node.network.tls import CIPHERS_OF_TLS_1_2

RELEASED: Final = "unreleased"
"""When this version was released, as CHANGELOG.md has it: a statement has the date of its product, not of its printing."""


def conformance_statement() -> str:
    """Answers the conformance statement as Markdown."""
    chapters = [
        Section("Overview", _overview()),
        CONTENTS,
        Section("Introduction", "", _introduction()),
        Section("Implementation model", "", _model()),
        Section("Service and interoperability description", _entity(), (acceptor(), requestor(), origin_server())),
        Section("Network and media communication details", "", _network()),
        Section("Configuration", "", _configuration()),
        Section("Support of character sets", _character_sets()),
        Section("Security", "", _security()),
    ]
    cover = paragraphs(
        "# DICOM Conformance Statement",
        table(
            ("product", "version", "date", "manufacturer"),
            [(MANUFACTURER_MODEL_NAME, __version__, RELEASED, MANUFACTURER)],
        ),
        "Written by the product itself (`radnode conformance`): tables are read off the code of this version. Organised as PS3.2 Annex N.",
    )
    return paragraphs(cover, numbered(chapters, object_annexes())) + "\n"


def _overview() -> str:
    sent = dict.fromkeys(context.sop_class_uid for context in result_contexts())
    services = [
        (class_name(VERIFICATION), f"`{VERIFICATION}`", "yes", "yes"),
        *(
            (class_name(uid), f"`{uid}`", "yes", "yes" if uid in {str(one.abstract_syntax) for one in storage_classes()} else "no")
            for uid in sent
        ),
        (f"all other storage SOP classes ({len(storage_classes()) - len(sent)}, see 5.1.1)", "", "by hand", "yes"),
        (class_name(STORAGE_COMMITMENT), f"`{STORAGE_COMMITMENT}`", "yes", "no"),
        (class_name(STUDY_ROOT_FIND), f"`{STUDY_ROOT_FIND}`", "yes", "no"),
    ]
    made = ", ".join(f"{class_name(one.sop_class_uid)} in {syntax_name(one.transfer_syntax_uid)}" for one in exhibits())
    syntaxes = dict.fromkeys(syntax_name(context.transfer_syntax_uid) for context in result_contexts())
    return paragraphs(
        "radnode receives studies, runs AI models on the series that its configuration and the model cards choose, and sends what they found "
        "back into the archive as segmentations and structured reports.",
        "Network services (DIMSE):",
        table(("SOP class", "UID", "SCU", "SCP"), services),
        "DICOMweb services: Store (STOW-RS) as origin server, where it is configured (see 5.3). Media services: none. Real-time communication: none.",
        "Transfer syntaxes:",
        table(
            ("use", "transfer syntaxes"),
            [
                ("received", f"{len(storage_syntaxes())}: native, deflated and compressed ones (see 5.1.2)"),
                ("objects made", made),
                ("objects sent", ", ".join(syntaxes)),
            ],
        ),
        "Objects created: " + "; ".join(f"{one.kind.title} ({one.kind.when})" for one in exhibits()) + ".",
    )


def _introduction() -> tuple[Section, ...]:
    return (
        Section("Revision history", f"Version {__version__}, {RELEASED}. What changed for other systems: CHANGELOG.md, *Conformance*."),
        Section("Audience", "Whoever connects the product to other DICOM systems, and knows the DICOM standard."),
        Section(
            "Remarks",
            "A conformance statement lets readers see whether two products may work together; it does not replace a test of the two together. "
            "The sections are those of PS3.2 Annex N; its fixed texts are not repeated. radnode is no medical device: results are marked as "
            "unverified, and for research.",
        ),
        Section(
            "Abbreviations",
            "AE Application Entity; IOD Information Object Definition; SCU, SCP Service Class User, Provider; SEG Segmentation; SR Structured "
            "Report; TID Template of PS3.16; CID Context Group of PS3.16.",
        ),
        Section(
            "References",
            "DICOM PS3 (NEMA); IHE Radiology, AI Results (AIR): `docs/reference/ihe-integration-statement.md`. How the node behaves when "
            "things fail: `docs/explanation/promises.md`; what bounds its port: `docs/explanation/limits.md`.",
        ),
    )


def _model() -> tuple[Section, ...]:
    flow = """```text
 sender ── C-STORE ──▶ receive ──▶ decide ──▶ analyse ──▶ encode ──▶ examine ──▶ deliver ── C-STORE ──▶ archive
                                                                                   confirm ── N-ACTION, C-FIND ──▶ archive
                       receive ◀────────────────────────────────────── N-EVENT-REPORT (commitment) ── archive
```"""
    functions = table(
        ("activity", "what it does", "role"),
        [
            ("receive", "keeps instances and reports on commitments durably, then answers", "acceptor: SCP; SCU of Storage Commitment"),
            ("decide", "a study that was quiet is complete; routes and model cards choose series", "none"),
            ("analyse, encode, examine", "runs the model, makes the objects; one with an error against the standard is never sent", "none"),
            ("deliver", "sends results to each destination until it has them", "requestor: SCU of Storage"),
            ("confirm", "asks each destination whether it keeps them", "requestor: SCU of Storage Commitment and FIND"),
        ],
    )
    order = bullets(
        "An instance is received before its study is decided on; a late image opens the study again, and the new report names the one that it "
        "supersedes (Predecessor Documents Sequence).",
        "Results are made before they are sent; each is sent to every destination independently of the others.",
        "A result is confirmed after it was stored.",
    )
    return (
        Section("Application data flow", flow),
        Section("Functional definition of the application entity", functions),
        Section("Sequencing of real-world activities", order),
    )


def _entity() -> str:
    return paragraphs(
        "There is one application entity, with one AE title (`node.ae_title`).",
        table(
            ("identification", "value"),
            [
                ("Implementation Class UID", f"`{IMPLEMENTATION_CLASS_UID}`"),
                ("Implementation Version Name", f"`{IMPLEMENTATION_VERSION_NAME}`"),
            ],
        ),
        "Both are in every association, and in the file meta information of every object that is made or kept.",
    )


def _network() -> tuple[Section, ...]:
    return (
        Section("Physical network", "TCP/IP, IPv4 or IPv6, over whatever the operating system offers; TCP_NODELAY and keep-alive are set."),
        Section("Media interchange", "None: no application profile is supported, no DICOMDIR is read or written."),
    )


def _configuration() -> tuple[Section, ...]:
    titles = paragraphs(
        table(
            ("AE title", "default", "port"),
            [
                ("`node.ae_title`", "none: it must be given", f"`listener.port`, {ListenerSection().port} unless configured"),
                ("(DICOMweb)", "", "`stow.port`; none unless configured"),
            ],
        ),
        f"An AE title has 1 to {MAX_AE_TITLE_LENGTH} printable ASCII characters and no backslash. Titles of peers are mapped to hosts and ports "
        "by `peers.NAME`; senders are known by title and address together.",
    )
    return (Section("AE titles and ports", titles), Section("Parameters", configuration_parameters()))


def _character_sets() -> str:
    return bullets(
        "Received data sets are kept byte for byte, whatever their Specific Character Set (0008,0005).",
        "Results have the Specific Character Set of their source images; patient and study attributes are copied as bytes and are "
        "therefore right in every character set, also with code extensions, and also where the source breaks its own rules.",
        "Texts of the node's own are English. A letter that a single character set of the source cannot express loses its accent or becomes `?`; "
        "with several character sets, or none, these texts are ASCII.",
        "Queries hold UIDs alone.",
    )


def _security() -> tuple[Section, ...]:
    transport = paragraphs(
        "BCP 195 (RFC 8996, RFC 9325) TLS Secure Transport Connection Profile, PS3.15 B.12; for the port (`listener.tls`), for that of "
        "DICOMweb (`stow.tls`) and for each peer (`peers.NAME.tls`), off unless configured.",
        bullets(
            f"TLS 1.2 and 1.3; of 1.2 the cipher suites `{CIPHERS_OF_TLS_1_2}` (in the words of OpenSSL). No compression, no renegotiation, no "
            "session tickets.",
            "Both sides show a certificate of an authority of `tls.trusted_ca_file`; one that is called must also name its host, unless "
            "`peers.NAME.tls_verify_host = false`. With `stow.client_certificates = false` senders of DICOMweb show a token and no certificate.",
            "A port with TLS speaks nothing else. The same port number serves both; 2762 is not fixed.",
        ),
    )
    return (
        Section("Secure transport connection", transport),
        Section(
            "Admission",
            "By AE titles and IP addresses, see 5.1. They sort peers and protect nothing: who is to be trusted is decided by TLS.",
        ),
        Section(
            "Other profiles",
            "Secure use, digital signatures, media security, audit trail messages (PS3.15 A.5), attribute confidentiality (de-identification), "
            "user identity negotiation, network address management, time synchronisation: not supported. Logs hold UIDs; patient data is "
            "masked.",
        ),
    )
