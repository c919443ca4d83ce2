"""Numbered sections and tables as Markdown."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from string import ascii_uppercase


@dataclass(frozen=True, slots=True)
class Section:
    """A heading, what stands below it, and the sections inside."""

    title: str
    body: str = ""
    inside: tuple["Section", ...] = ()


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Answers a table; a cell may hold any text."""
    lines = [f"| {' | '.join(headings)} |", f"|{' --- |' * len(headings)}"]
    lines += [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in rows]
    return "\n".join(lines)


def paragraphs(*texts: str) -> str:
    """Answers texts as paragraphs of their own."""
    return "\n\n".join(text.strip() for text in texts if text.strip())


def bullets(*texts: str) -> str:
    """Answers texts as a list."""
    return "\n".join(f"- {text}" for text in texts)


def words_of(name: str) -> str:
    """Answers a name in camel case as words: `CTImageStorage` is CT Image Storage."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)


def numbered(sections: Sequence[Section], annexes: Sequence[Section]) -> str:
    """Answers sections as 1, 1.1, …, the second of which is the table of contents, and annexes as A, A.1, …."""
    chapters = list(zip(map(str, range(1, len(sections) + 1)), sections, strict=True))
    chapters += [(letter, annex) for letter, annex in zip(ascii_uppercase, annexes, strict=False)]
    entries = [entry for number, section in chapters for entry in _entries(number, section)]
    contents = "\n".join(f"{'  ' * number.count('.')}- {number} {section.title}" for number, section in entries if number.count(".") < 2)
    texts = []
    for number, section in entries:
        body = contents if section.title == CONTENTS.title else section.body
        name = f"Annex {number}" if number in ascii_uppercase else number
        texts.append(paragraphs(f"{'#' * (number.count('.') + 2)} {name} {section.title}", body))
    return "\n\n".join(texts)


CONTENTS = Section("Table of contents")
"""Stands where the table of contents is wanted."""


def _entries(number: str, section: Section) -> Iterator[tuple[str, Section]]:
    yield number, section
    for place, inner in enumerate(section.inside, 1):
        yield from _entries(f"{number}.{place}", inner)


def _cell(cell: object) -> str:
    return str(cell).replace("\n", " ").replace("|", "\\|")
