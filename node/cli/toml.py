"""A table as TOML text: tomllib only reads."""

import json
from typing import Any


def to_toml(table: dict[str, Any]) -> str:
    """Answers a table as TOML: plain keys first, then the tables below it; a table of min and max stands in its line."""
    return "\n".join(_toml_lines(table, "")).lstrip("\n") + "\n"


def _toml_lines(table: dict[str, Any], prefix: str) -> list[str]:
    lines = [f"{_key(key)} = {_value(value)}" for key, value in table.items() if not _is_section(value)]
    for key, value in table.items():
        path = f"{prefix}{_key(key)}"
        if isinstance(value, dict) and _is_section(value):
            lines += ["", f"[{path}]", *_toml_lines(value, f"{path}.")]
        elif _is_section(value):
            for item in value:
                lines += ["", f"[[{path}]]", *_toml_lines(item, f"{path}.")]
    return lines


def _is_section(value: object) -> bool:
    if isinstance(value, dict):
        return not set(value) <= {"min", "max"} or not value
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _key(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() and key.isascii() else json.dumps(key)


def _value(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_value(item)}" for key, item in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False)
