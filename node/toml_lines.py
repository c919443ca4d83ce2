"""Which line of a TOML text a key stands on: neither tomllib nor pydantic tells. Pure; expects a text that tomllib accepts."""

import re
from typing import Final

KeyPath = tuple[str | int, ...]
"""Keys from the root; an int counts the tables of an array from 0."""

_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
_SCALAR: Final = re.compile(r"[^\s,\]}#][^,\]}#\n]*")
_ESCAPE: Final = re.compile(r"\\u([0-9a-fA-F]{4})|\\U([0-9a-fA-F]{8})|\\(.)")


def locate_keys(text: str) -> dict[KeyPath, int]:
    """Answers the line, from 1, of every key and every table header of a valid TOML text."""
    return _Scanner(text).scan()


class _Scanner:
    """Walks over the text once; `place` is the offset that is read next."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.place = 0
        self.lines: dict[KeyPath, int] = {}
        self.array_lengths: dict[KeyPath, int] = {}

    def scan(self) -> dict[KeyPath, int]:
        table: KeyPath = ()
        while self._skip_blank(newlines=True):
            if self._looks_at("["):
                table = self._header()
            else:
                self._assignment(table)
        return self.lines

    def _header(self) -> KeyPath:
        is_array = self._looks_at("[[")
        self.place += 2 if is_array else 1
        path = self._resolve(self._dotted_key())
        if is_array:
            count = self.array_lengths.get(path, 0)
            self.array_lengths[path] = count + 1
            path = (*path, count)
        for depth in range(len(path)):
            self._note(path[: depth + 1])
        self.place += 2 if is_array else 1
        return path

    def _resolve(self, keys: list[str]) -> KeyPath:
        """[a.b] below [[a]] means the last a."""
        path: KeyPath = ()
        for depth, key in enumerate(keys):
            path = (*path, key)
            if depth < len(keys) - 1 and path in self.array_lengths:
                path = (*path, self.array_lengths[path] - 1)
        return path

    def _assignment(self, table: KeyPath) -> None:
        path = table
        for key in self._dotted_key():
            path = (*path, key)
            self._note(path)
        self._skip_blank()
        self.place += 1  # =
        self._value(path)

    def _value(self, path: KeyPath) -> None:
        self._skip_blank()
        if self._looks_at('"', "'"):
            self._string()
        elif self._looks_at("["):
            self.place += 1
            count = 0
            while self._skip_blank(newlines=True, commas=True) and not self._looks_at("]"):
                self._note((*path, count))
                self._value((*path, count))
                count += 1
            self.place += 1
        elif self._looks_at("{"):
            self.place += 1
            while self._skip_blank(newlines=True, commas=True) and not self._looks_at("}"):
                self._assignment(path)
            self.place += 1
        else:
            found = _SCALAR.match(self.text, self.place)
            self.place = found.end() if found else self.place + 1

    def _string(self) -> str:
        quote = self.text[self.place]
        mark = quote * 3 if self._looks_at(quote * 3) else quote
        start = self.place + len(mark)
        end = start
        while not self.text.startswith(mark, end):
            end += 2 if quote == '"' and self.text[end] == "\\" else 1
        self.place = end + len(mark)
        while len(mark) == 3 and self._looks_at(quote):  # up to two quotes may stand before the closing three
            self.place += 1
        content = self.text[start:end]
        return _ESCAPE.sub(_unescape, content) if quote == '"' else content

    def _dotted_key(self) -> list[str]:
        keys: list[str] = []
        while True:
            self._skip_blank()
            if self._looks_at('"', "'"):
                keys.append(self._string())
            else:
                found = _BARE_KEY.match(self.text, self.place)
                keys.append(found[0] if found else "")
                self.place = found.end() if found else self.place + 1
            self._skip_blank()
            if not self._looks_at("."):
                return keys
            self.place += 1

    def _skip_blank(self, *, newlines: bool = False, commas: bool = False) -> bool:
        """Passes over spaces and comments; answers whether text is left."""
        passed = " \t" + ("\r\n" if newlines else "") + ("," if commas else "")
        while self.place < len(self.text):
            character = self.text[self.place]
            if character == "#" and newlines:
                end = self.text.find("\n", self.place)
                self.place = len(self.text) if end < 0 else end
            elif character in passed:
                self.place += 1
            else:
                return True
        return False

    def _looks_at(self, *marks: str) -> bool:
        return self.text.startswith(marks, self.place)

    def _note(self, path: KeyPath) -> None:
        self.lines.setdefault(path, self.text.count("\n", 0, self.place) + 1)


def _unescape(found: re.Match[str]) -> str:
    code = found[1] or found[2]
    if code:
        return chr(int(code, 16))
    return {"b": "\b", "t": "\t", "n": "\n", "f": "\f", "r": "\r", "e": "\x1b"}.get(found[3], found[3])
