"""Where the values of an object come from, found by comparing specimens: what changes with the source images comes from there."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

Path = tuple[str, ...]
"""From the outside in: keywords of a data set, or items of a content tree."""

Tree = dict[str, "Tree"]

ORIGINS: Final[Mapping[str, str]] = {
    "source": "SOURCE",
    "bare source": "SOURCE",
    "lossy tilted source": "SOURCE",
    "multi-frame source": "SOURCE",
    "model": "MODEL",
    "result": "RESULT",
    "one structure": "RESULT",
    "findings": "RESULT",
    "degraded": "RESULT",
    "nothing found": "RESULT",
    "not attempted, with a prior": "RESULT",
    "failed": "RESULT",
    "job": "AUTO",
    "late image": "AUTO",
    "configuration": "CONFIG",
}
"""Specimen → what it says of a value that is another one in it."""

ONLY_IN: Final[Mapping[str, str]] = {**ORIGINS, "not attempted, with a prior": "SOURCE"}
"""Specimen → what it says of a value that the first one has not."""

LEGEND: Final[Mapping[str, str]] = {
    "COPY": "the value of the source images; identity of patient and study byte for byte, in the character set of the source",
    "SOURCE": "derived from the source images",
    "RESULT": "what the analysis found, or how it ended",
    "MODEL": "from the model: its card (`models/*/card.toml`), its weights, its engine",
    "CONFIG": "from the configuration of the installation",
    "AUTO": "generated: identifiers, dates and times, references to earlier reports",
    "FIXED": "always the value that is shown",
}

FIRST: Final = "first"
ITEMS: Final = "items"
_PARTS_OF_CODES: Final = frozenset({"CodeValue", "CodingSchemeDesignator", "CodeMeaning"})
_LONGEST: Final = 60
_MOST_CHOICES: Final = 4


@dataclass
class Seen:
    """What one specimen showed: the values at each path, and how many items could have had one."""

    values: dict[Path, list[str]] = field(default_factory=dict)
    holders: dict[Path, int] = field(default_factory=dict)
    """Of a path: how many items have it as their place."""
    having: dict[Path, int] = field(default_factory=dict)
    """Of a path: in how many of the items around it there is at least one such value."""

    def note(self, path: Path, value: str) -> None:
        """Adds a value; '' where it is empty."""
        self.values.setdefault(path, []).append(value)

    def hold(self, place: Path, paths: Iterable[Path]) -> None:
        """Adds an item, in which there are values at `paths`."""
        self.holders[place] = self.holders.get(place, 0) + 1
        for path in paths:
            self.having[path] = self.having.get(path, 0) + 1


def read_dataset(dataset: Dataset, leaves: frozenset[str]) -> Seen:
    """Answers what a data set shows; sequences among `leaves` are taken as one value each."""
    seen = Seen()
    _read_into(seen, dataset, (), leaves)
    return seen


def _read_into(seen: Seen, dataset: Dataset, outer: Path, leaves: frozenset[str]) -> None:
    seen.hold(outer, {(*outer, element.keyword) for element in dataset})
    for element in dataset:
        if element.keyword in _PARTS_OF_CODES and "CodeMeaning" in dataset:
            continue
        path = (*outer, element.keyword)
        if element.VR != "SQ" or (not outer and element.keyword in leaves):
            seen.note(path, told(element))
            continue
        if not element.value:
            seen.note(path, "")
        elif "CodeMeaning" in element.value[0]:
            seen.note(path, ", ".join(told_code(item) for item in element.value))
        else:
            seen.note(path, ITEMS)
        for item in element.value:
            _read_into(seen, item, path, leaves)


def merged_paths(all_seen: Iterable[Seen]) -> list[Path]:
    """Answers every path that any specimen showed, each behind the last of its siblings that came before."""
    tree: Tree = {}
    for seen in all_seen:
        for path in seen.values:
            branch = tree
            for step in path:
                branch = branch.setdefault(step, {})
    return list(_paths_of(tree, ()))


def _paths_of(tree: Tree, outer: Path) -> Iterable[Path]:
    for step, branch in tree.items():
        yield (*outer, step)
        yield from _paths_of(branch, (*outer, step))


def presence_of(path: Path, all_seen: Iterable[Seen]) -> str:
    """Answers ALWAYS, VNAP (may be empty), ANAP (may be absent) or EMPTY, as PS3.2 abbreviates them."""
    holders, having, values = 0, 0, []
    for seen in all_seen:
        holders += seen.holders.get(path[:-1], 0)
        having += seen.having.get(path, 0)
        values += seen.values.get(path, [])
    if having < holders:
        return "ANAP"
    if all(values):
        return "ALWAYS"
    return "VNAP" if any(values) else "EMPTY"


def origins_of(path: Path, seen: Mapping[str, Seen]) -> tuple[str, ...]:
    """Answers where the values at a path come from, in the words of LEGEND; none where they are always the same."""
    first = set(seen[FIRST].values.get(path, ()))
    if not first:
        return tuple(dict.fromkeys(word for name, word in ONLY_IN.items() if name in seen and path in seen[name].values))
    others = {name: set(seen[name].values[path]) for name in ORIGINS if name in seen and path in seen[name].values}
    # That there are more or fewer of the same values matters only where nothing else does.
    other_values = [name for name, values in others.items() if values - first and first - values]
    other_number = [name for name, values in others.items() if values != first]
    return tuple(dict.fromkeys(ORIGINS[name] for name in other_values or other_number))


def choices_of(path: Path, all_seen: Iterable[Seen]) -> tuple[str, ...]:
    """Answers the different values at a path, none where they are too many or too long to be shown."""
    values = tuple(dict.fromkeys(value for seen in all_seen for value in seen.values.get(path, []) if value))
    return values if len(values) <= _MOST_CHOICES and all(len(value) <= _LONGEST for value in values) else ()


def offered_by(sources: Iterable[Dataset]) -> dict[str, set[str]]:
    """Answers every value in source images, by keyword."""
    found: dict[str, set[str]] = {}
    for source in sources:
        for element in source:
            if element.VR != "SQ":
                found.setdefault(element.keyword, set()).add(told(element))
                continue
            for keyword, values in offered_by(element.value).items():
                found.setdefault(keyword, set()).update(values)
    return found


def is_copied(path: Path, seen: Mapping[str, Seen], offered: Mapping[str, Mapping[str, set[str]]]) -> bool:
    """Answers whether the values at a path are, in every specimen, among those that its sources offer under the same keyword."""
    keyword = path[-1]
    plain = keyword.removeprefix("Referenced")
    return all(
        set(one.values.get(path, ())) <= offered[name].get(keyword, set()) | offered[name].get(plain, set()) for name, one in seen.items()
    )


def told(element: DataElement) -> str:
    """Answers a value as text, '' where it is empty."""
    if element.is_empty:
        return ""
    return "\\".join(map(str, element.value)) if element.VM > 1 else str(element.value)


def told_code(item: Dataset) -> str:
    """Answers a code sequence item as PS3.16 writes it."""
    return f"({item.CodeValue}, {item.CodingSchemeDesignator}, {item.CodeMeaning})"
