"""What is wrong with a configuration file, in words: relations that no single key shows, and the report of all faults."""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from node.dicom_keywords import TEXT_VRS, UNROUTABLE_VRS, keyword_vrs
from node.toml_lines import KeyPath, locate_keys

Table = Mapping[str, Any]

_SYNTAX_LINE: Final = re.compile(r"\(at line (\d+), column \d+\)")
_SENTENCES: Final = {
    "missing": "is missing",
    "string_type": "must be a text in quotes, not {input}",
    "int_type": "must be a whole number, not {input}",
    "float_type": "must be a number, not {input}",
    "bool_type": "must be true or false, not {input}",
    "list_type": "must be a list in square brackets, not {input}",
    "tuple_type": "must be tables, each under a [[{key}]] header",
    "dict_type": "must be a table, not {input}",
    "model_type": "must be a table, not {input}",
    "greater_than": "is {input}, must be above {gt}",
    "greater_than_equal": "is {input}, must be {ge} or more",
    "less_than_equal": "is {input}, must be {le} or less",
    "literal_error": "is {input}, must be {expected}",
    "string_pattern_mismatch": "is {input}, must be like cpu, cuda or cuda:0",
    "string_too_short": "must not be empty",
    "string_too_long": "is longer than {max_length} characters",
    "too_short": "must name at least one",
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong, and at which key."""

    path: KeyPath
    text: str


def describe_error(error: Mapping[str, Any], known_keys: Iterable[str]) -> Fault:
    """Answers the fault that an error of pydantic means; `known_keys` are those of the table where it lies."""
    path: KeyPath = tuple(error["loc"])
    kind, context = error["type"], error.get("ctx", {})
    if kind == "extra_forbidden":
        return Fault(path, "unknown key" + did_you_mean(str(path[-1]), known_keys, "; keys here: "))
    if kind == "value_error":
        return Fault(path, str(context["error"]))
    if kind == "missing" and len(path) == 1:
        return Fault(path, f"the section [{path[0]}] is missing")
    sentence = _SENTENCES.get(kind)
    if sentence is None:
        return Fault(path, str(error["msg"]))
    return Fault(path, sentence.format(input=as_toml(error.get("input")), key=path[-1], **context))


def cross_check(table: Table, folder: Path) -> Iterator[Fault]:
    """Answers the faults that lie between keys; the table may have faults of other kinds as well."""
    peers = {name: peer for name, peer in _table(table, "peers").items() if isinstance(peer, dict)}
    routes = [route for route in _list(table, "routes") if isinstance(route, dict)]
    yield from _check_times(table, peers)
    yield from _check_peers(peers)
    yield from _check_tls(table, peers, folder)
    yield from _check_stow(_table(table, "stow"), folder)
    yield from _check_disk(table)
    yield from _check_route_names(routes)
    models_dir = _table(table, "node").get("models_dir")
    models = _models_in((folder / Path(models_dir).expanduser()).resolve()) if isinstance(models_dir, str) else None
    if models is None and isinstance(models_dir, str):
        yield Fault(("node", "models_dir"), f"there is no folder {models_dir} (seen from {folder}) → correct it, or create the folder")
    for name in _table(table, "models"):
        if models is not None and name not in models:
            meant = did_you_mean(name, models, " → models there: ")
            yield Fault(("models", name), f"there is no model {name!r} in {models_dir}{meant}")
    for index, route in enumerate(routes):
        place: KeyPath = ("routes", index)
        model = route.get("model")
        if models is not None and isinstance(model, str) and model not in models:
            yield Fault(
                (*place, "model"), f"there is no model {model!r} in {models_dir}" + did_you_mean(model, models, " → models there: ")
            )
        for count, peer in enumerate(_list(route, "deliver_to")):
            if isinstance(peer, str) and peer not in peers:
                meant = did_you_mean(peer, peers, f" → add a section [peers.{peer}], or name one of: ")
                yield Fault((*place, "deliver_to", count), f"there is no peer {peer!r}{meant}")
        for keyword, condition in _table(route, "when").items():
            text = _keyword_fault(keyword, condition)
            if text:
                yield Fault((*place, "when", keyword), text)


def _check_times(table: Table, peers: Table) -> Iterator[Fault]:
    complete = _table(table, "study_complete")
    if _number(complete.get("quiet_s"), 30) > _number(complete.get("max_wait_s"), 900):
        yield Fault(("study_complete",), "quiet_s is longer than max_wait_s: the quiet time would never count → lower quiet_s")
    for name, peer in peers.items():
        retry = _table(peer, "retry")
        if _number(retry.get("first_s"), 10) > _number(retry.get("max_s"), 900):
            yield Fault(("peers", name, "retry"), "first_s is longer than max_s → lower first_s")


def _check_peers(peers: Table) -> Iterator[Fault]:
    seen: dict[tuple[str, str], str] = {}
    for name, peer in peers.items():
        title, host = peer.get("ae_title"), peer.get("host")
        if not isinstance(title, str) or not isinstance(host, str):
            continue
        first = seen.setdefault((title.strip(), host.lower()), name)
        if first != name:
            yield Fault(
                ("peers", name), f"has the AE title and host of [peers.{first}]: a sender could be either → join them, or correct one"
            )


def _check_tls(table: Table, peers: Table, folder: Path) -> Iterator[Fault]:
    if "tls" not in table:
        users: list[KeyPath] = [(door, "tls") for door in ("listener", "stow") if _table(table, door).get("tls") is True]
        users += [("peers", name, "tls") for name, peer in peers.items() if peer.get("tls") is True]
        for user in users:
            yield Fault(user, "there is no section [tls] → add it, with certificate_file, private_key_file and trusted_ca_file")
    for key, value in _table(table, "tls").items():
        if key.endswith("_file") and isinstance(value, str) and value and not (folder / Path(value).expanduser()).is_file():
            yield Fault(("tls", key), f"there is no file {value} (seen from {folder})")


def _check_stow(stow: Table, folder: Path) -> Iterator[Fault]:
    tokens = stow.get("token_file")
    if isinstance(tokens, str) and tokens and not (folder / Path(tokens).expanduser()).is_file():
        yield Fault(("stow", "token_file"), f"there is no file {tokens} (seen from {folder})")
    if stow.get("tls") is True and stow.get("client_certificates") is False and tokens is None:
        yield Fault(("stow", "client_certificates"), "nobody would have to say who it is → name a token_file, or leave this out")


def _check_disk(table: Table) -> Iterator[Fault]:
    purge = _number(_table(table, "retention").get("purge_below_free_gib"), 10)
    refuse = _number(_table(table, "listener").get("refuse_below_free_gib"), 5)
    if purge < refuse:
        yield Fault(
            ("retention", "purge_below_free_gib"),
            f"is {purge:g}, below listener.refuse_below_free_gib ({refuse:g}): images would be refused before old ones are removed → raise it",
        )


def _check_route_names(routes: Sequence[Table]) -> Iterator[Fault]:
    seen: set[str] = set()
    for index, route in enumerate(routes):
        name = route.get("name")
        if isinstance(name, str) and name in seen:
            yield Fault(("routes", index, "name"), f"there is a route {name!r} above → names tell routes apart in reasons: choose another")
        elif isinstance(name, str):
            seen.add(name)


def _keyword_fault(keyword: str, condition: object) -> str:
    vr = keyword_vrs().get(keyword)
    if vr is None:
        return f"{keyword!r} is no DICOM keyword" + did_you_mean(keyword, keyword_vrs(), "")
    if vr in UNROUTABLE_VRS:
        return f"is a sequence or bulk data ({vr}): routes look at plain elements → choose another"
    if isinstance(condition, dict) and vr in TEXT_VRS:
        return f"holds text ({vr}): min and max need numbers → give a value or a list"
    return ""


def _models_in(folder: Path) -> list[str] | None:
    return sorted(card.parent.name for card in folder.glob("*/card.toml")) if folder.is_dir() else None


def report_faults(faults: Iterable[Fault], text: str, path: Path) -> str:
    """Answers all faults in the order of the file, each with its line."""
    lines, located = text.splitlines(), locate_keys(text)
    told: list[tuple[int, str]] = []
    for fault in faults:
        number = _line_of(fault.path, located)
        message = f"{path}:{number or 1}: {'.'.join(str(part) for part in fault.path)}: {fault.text}"
        told.append((number, message + (f"\n    {lines[number - 1].strip()}" if number else "")))
    return "\n".join(message for _, message in sorted(told, key=lambda one: one[0]))


def report_syntax(message: str, text: str, path: Path) -> str:
    """Answers a fault of tomllib with its line; the parser stops at the first."""
    found = _SYNTAX_LINE.search(message)
    lines = text.splitlines()
    number = int(found[1]) if found else len(lines)
    quoted = f"\n    {lines[number - 1].strip()}" if 0 < number <= len(lines) else ""
    return f"{path}:{max(number, 1)}: no valid TOML: {_SYNTAX_LINE.sub('', message).strip()}{quoted}"


def did_you_mean(word: str, known: Iterable[str], otherwise: str) -> str:
    """Answers `; did you mean ...?`, or what there is to choose from, led in by `otherwise`."""
    choices = list(known)
    folded = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(word.lower(), folded, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {folded[close[0]]!r}?"
    return otherwise + (", ".join(choices) or "none") if otherwise else ""


def as_toml(value: object) -> str:
    """Answers a value as it would stand in the file."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "a list"
    return f'"{value}"' if isinstance(value, str) else str(value)


def _line_of(path: KeyPath, located: Mapping[KeyPath, int]) -> int:
    """The line of the key, or of the table that lacks it; 0 where neither stands in the file."""
    while path and path not in located:
        path = path[:-1]
    return located.get(path, 0)


def _table(table: Table, key: str) -> Table:
    found = table.get(key)
    return found if isinstance(found, dict) else {}


def _list(table: Table, key: str) -> list[Any]:
    found = table.get(key)
    return found if isinstance(found, list) else []


def _number(value: object, default: float) -> float:
    return float(value) if isinstance(value, int | float) else default
