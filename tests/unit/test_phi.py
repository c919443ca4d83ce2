"""A poisoned name through every path that ends in a log line or a message."""

import io
import json
import logging
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from node.config import LogSection
from node.log import QUIET_LOGGERS, configure_logging
from node.phi import MASK, pseudonym, scrub_field, scrub_text

POISON = "MUELLER^ANNEGRET"
PATIENT_ID = "PID-471142"
BORN = "19630417"
SECRETS = ("MUELLER", "ANNEGRET", PATIENT_ID, BORN)


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    root, hooks = logging.getLogger(), (sys.excepthook, threading.excepthook)
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers, (sys.excepthook, threading.excepthook) = handlers, hooks
    root.setLevel(level)
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()


@pytest.fixture(params=["console", "json"])
def stream(request: pytest.FixtureRequest) -> io.StringIO:
    target = io.StringIO()
    configure_logging(LogSection(level="debug", format=request.param), target)
    return target


def dataset() -> Dataset:
    poisoned = Dataset()
    poisoned.PatientName, poisoned.PatientID, poisoned.PatientBirthDate = POISON, PATIENT_ID, BORN
    return poisoned


def ours() -> structlog.stdlib.BoundLogger:
    logger: structlog.stdlib.BoundLogger = structlog.get_logger("radnode")
    return logger


def raise_poisoned() -> None:
    local = PATIENT_ID  # the traceback must not print this
    try:
        int(f"{POISON} for {local[:0]}")
    except ValueError as error:
        raise RuntimeError(str(dataset())) from error


def log_exception() -> None:
    try:
        raise_poisoned()
    except RuntimeError:
        ours().exception("storing.failed", patient=dataset())


def log_foreign_exception() -> None:
    try:
        raise_poisoned()
    except RuntimeError:
        logging.getLogger("pynetdicom.acse").exception("while storing %s", POISON)


def die_in_a_thread() -> None:
    thread = threading.Thread(target=raise_poisoned)
    thread.start()
    thread.join()


def die() -> None:
    try:
        raise_poisoned()
    except RuntimeError as error:
        sys.excepthook(type(error), error, error.__traceback__)


def bind_context() -> None:
    with structlog.contextvars.bound_contextvars(patient_id=PATIENT_ID, who=POISON):
        ours().info("bound")


def lose_a_line() -> None:
    root = logging.getLogger()
    root.handlers = [handler for handler in root.handlers if type(handler).__module__ == "node.log"]  # pytest's own would raise
    logging.getLogger("somewhere").warning("%d images of %s", POISON, PATIENT_ID)


def warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn(f"Invalid value for VR DA: '{BORN}x' of {POISON}", stacklevel=1)


PATHS: tuple[Callable[[], object], ...] = (
    lambda: ours().info("stored", patient_name=POISON, PatientID=PATIENT_ID, birth_date=BORN, accession_number=PATIENT_ID),
    lambda: ours().info(f"stored {POISON}"),
    lambda: ours().info("stored %s of %s", POISON, "x"),
    lambda: ours().warning("stored", detail={"PatientName": POISON, "nested": [{"patient id": PATIENT_ID}]}),
    lambda: ours().warning("stored", headers=[dataset()], path=f"/in/{POISON}/1.dcm"),
    lambda: ours().error("stored", json=dataset().to_json_dict()),
    lambda: ours().error("stored", raw=POISON.encode(), pair=("x", POISON)),
    lambda: ours().info("stored", error=ValueError(f"PatientID='{PATIENT_ID}', Patient's Birth Date: {BORN}")),
    lambda: ours().info("stored", stack_info=True, name_of=dataset().PatientName),
    lambda: ours().bind(PatientName=dataset().PatientName).info("bound"),
    lambda: logging.getLogger("pydicom").warning("value %s", dataset()),
    lambda: logging.getLogger("pydicom").debug("dataset\n%s", dataset()),
    lambda: logging.getLogger("pynetdicom.service-c").info("Received %s", dataset()),
    lambda: logging.getLogger("elsewhere").error("extra", extra={"patient_name": POISON, "PatientID": PATIENT_ID}),
    log_exception, log_foreign_exception, die_in_a_thread, die, bind_context, lose_a_line, warn,
)  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_no_path_lets_a_name_through(stream: io.StringIO, path: Callable[[], object], capfd: pytest.CaptureFixture[str]) -> None:
    path()
    said = stream.getvalue() + "".join(capfd.readouterr())
    assert not [secret for secret in SECRETS if secret.lower() in said.lower()], said


def test_what_is_no_patient_data_stays_readable(stream: io.StringIO) -> None:
    uid = "1.2.840.10008.5.1.4.1.1.2"
    ours().info("instance.stored", sop_instance_uid=uid, bytes=512, elapsed_ms=3.5, peer="PACS1", path="/spool/ab/cd.dcm", ok=True)
    said = stream.getvalue()
    for kept in ("instance.stored", uid, "512", "3.5", "PACS1", "/spool/ab/cd.dcm"):
        assert kept in said


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("no_color", [True, False])
def test_colours_are_for_terminals_that_want_them(monkeypatch: pytest.MonkeyPatch, no_color: bool) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    terminal = Terminal()
    configure_logging(LogSection(), terminal)
    ours().info("instance.stored")
    assert ("\x1b[" in terminal.getvalue()) is not no_color


def test_json_lines_are_json() -> None:
    target = io.StringIO()
    configure_logging(LogSection(format="json"), target)
    log_exception()
    (line,) = target.getvalue().splitlines()
    event = json.loads(line)
    assert event["event"] == "storing.failed"
    assert event["level"] == "error"
    assert "raise_poisoned" in event["exception"]


def test_the_libraries_are_quiet_at_every_level(stream: io.StringIO) -> None:
    for name in QUIET_LOGGERS:
        assert logging.getLogger(name).getEffectiveLevel() == logging.WARNING
        logging.getLogger(name).info("a data set")
    assert "a data set" not in stream.getvalue()


def test_the_last_words_of_a_process_are_masked() -> None:
    program = (
        "from node.config import LogSection; from node.log import configure_logging\n"
        f"configure_logging(LogSection()); raise ValueError('{POISON}')"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "ValueError" in ended.stderr
    assert "MUELLER" not in ended.stderr.replace(program, "")


@pytest.mark.parametrize(
    ("text", "scrubbed"),
    [
        ("VAN DYKE^JANE MARY^^DR came", f"{MASK} came"),
        ("'von Trapp^Maria'", MASK),
        ("王^小東=王^小東=Wang^XiaoDong", MASK),
        ("in /in/DOE^JANE/1.dcm", f"in /in/{MASK}/1.dcm"),
        ("(0010,0010) Patient's Name  PN: 'Jane'", MASK),
        ("PatientID: 4711, done", f"PatientID: {MASK}, done"),
        ("accession_number='A 1'", f"accession_number={MASK}"),
        ("    ~~~^^^^^^^", "    ~~~^^^^^^^"),
        ("a ^ b", "a ^ b"),
        ("route thin-ct: 3 slices, the model needs at least 20", "route thin-ct: 3 slices, the model needs at least 20"),
        ("1.2.840.113619.2.5", "1.2.840.113619.2.5"),
    ],
)
def test_scrubbed_texts(text: str, scrubbed: str) -> None:
    assert scrub_text(text) == scrubbed


_LETTERS = st.text(st.characters(categories=["Lu", "Lo"]), min_size=2, max_size=12)


@given(_LETTERS, _LETTERS, st.sampled_from(["stored {}", "'{}'", "name={}", "{}: bad", "a/{}/b", "[{}]", "{}\n{}"]))
def test_any_person_name_is_masked_wherever_it_stands(family: str, given_name: str, frame: str) -> None:
    name = f"{family}^{given_name}"
    said = scrub_text(frame.replace("{}", name))
    assert name not in said


@given(st.text())
def test_scrubbing_twice_changes_nothing_more(text: str) -> None:
    once = scrub_text(text)
    assert scrub_text(once) == once


def test_a_pseudonym_is_the_same_for_the_same_value() -> None:
    assert pseudonym(PATIENT_ID) == scrub_field("patient_id", PATIENT_ID)
    assert pseudonym(PATIENT_ID) != pseudonym(PATIENT_ID + "0")
    assert scrub_field("patient_id", "") == ""
