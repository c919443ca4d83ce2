"""Structured logs on stderr, without patient data: every line of ours, pydicom's and pynetdicom's passes one filter.

The rule is to log UIDs and never PHI; the filter is the net below it. What it knows by key is replaced by a pseudonym
(equal within one process, so that two lines can be matched), what looks like a person name inside any text is masked.
Tracebacks carry file, line and message, never the values of local variables.
"""

import logging
import os
import sys
import threading
import traceback
from types import TracebackType
from typing import Final, Protocol, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from node.phi import scrub_field

LOGGER_NAME: Final = "radnode"

QUIET_LOGGERS: Final = ("pydicom", "pynetdicom")
"""Their INFO and DEBUG lines print data sets: pinned at WARNING, whatever our own level is."""

_OF_STRUCTLOG: Final = frozenset({"_record", "_from_structlog"})


class LogOptions(Protocol):
    """What logging needs to know: `node.config.LogSection` has it."""

    @property
    def level(self) -> str:
        """One of debug, info, warning, error."""

    @property
    def format(self) -> str:
        """Either console or json."""


class _Handler(logging.StreamHandler[TextIO]):
    """Writes log lines; one that cannot be formatted is reported by its place, without its arguments."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name is logging's
        error = type(sys.exception()).__name__
        self.stream.write(f"a log line from {record.pathname}:{record.lineno} is lost: {error}\n")


def configure_logging(section: LogOptions, stream: TextIO | None = None) -> None:
    """Sends every log line of the process, ours, the libraries' and the last words of threads, to `stream` (stderr)."""
    target = stream if stream is not None else sys.stderr
    level = logging.getLevelNamesMapping()[section.level.upper()]
    chain: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.StackInfoRenderer(),
        render_exception,
        scrub_event,
    ]
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *chain, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = _Handler(target)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.ExtraAdder(), *chain],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _renderer(section.format, target)],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(max(level, logging.WARNING))
    logging.getLogger(LOGGER_NAME).setLevel(level)
    for name in QUIET_LOGGERS:
        library = logging.getLogger(name)
        library.handlers = []
        library.propagate = True
        library.setLevel(max(level, logging.WARNING))
    logging.captureWarnings(capture=True)
    sys.excepthook = _log_last_words
    threading.excepthook = _log_last_words_of_thread


def _renderer(log_format: str, target: TextIO) -> Processor:
    if log_format == "json":
        return structlog.processors.JSONRenderer(ensure_ascii=False)
    colours = target.isatty() and "NO_COLOR" not in os.environ
    return structlog.dev.ConsoleRenderer(colors=colours, exception_formatter=structlog.dev.plain_traceback)


def render_exception(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Turns `exc_info` into the text of the traceback: source lines and messages, no local variables."""
    info = event.pop("exc_info", None)
    if not info:
        return event
    if isinstance(info, BaseException):
        error: BaseException | None = info
    else:
        error = info[1] if isinstance(info, tuple) else sys.exception()
    if error is not None:
        event["exception"] = "".join(traceback.format_exception(error)).rstrip()
    return event


def scrub_event(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Takes patient data out of a log line."""
    return {key: value if key in _OF_STRUCTLOG else scrub_field(key, value) for key, value in event.items()}


def _log_last_words(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    structlog.get_logger(LOGGER_NAME).critical("process.failed", exc_info=error)


def _log_last_words_of_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None:
        thread = args.thread.name if args.thread is not None else "?"
        structlog.get_logger(LOGGER_NAME).critical("thread.failed", thread=thread, exc_info=args.exc_value)
