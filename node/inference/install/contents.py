"""What a bundle holds that runs: expressions in its configuration, scripts, pickles. Read as text; nothing of it is executed."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from node.errors import BundleInvalid

WEIGHT_SUFFIXES: Final = frozenset({".pt", ".pth", ".ckpt", ".ts", ".pkl", ".pickle", ".bin"})
MAX_CONFIGURATION_BYTES: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class Contents:
    """What a person is told before trusting a bundle."""

    expressions: Mapping[str, int]
    """Configuration file → number of `$` expressions, each a piece of Python."""
    imports: tuple[str, ...]
    """What the configuration imports, and the targets that it calls outside MONAI and torch."""
    scripts: Mapping[str, int]
    """Python file → number of lines."""
    pickles: tuple[str, ...]
    """Files of weights that are pickles or TorchScript: converted, never loaded as they are."""
    others: int
    """Further files: documents, licences, lists."""

    @property
    def counts(self) -> dict[str, int]:
        """For the manifest."""
        return {
            "expressions": sum(self.expressions.values()),
            "scripts": len(self.scripts),
            "script_lines": sum(self.scripts.values()),
            "pickles": len(self.pickles),
        }

    def sentences(self) -> list[str]:
        """Answers what a person is told, line by line."""
        lines = [f"{sum(self.expressions.values())} expressions of Python in {', '.join(self.expressions) or 'no configuration'}"]
        lines += [f"{name}: {count} lines of Python" for name, count in self.scripts.items()]
        if self.imports:
            lines.append(f"uses {', '.join(self.imports)}")
        lines += [f"{name}: weights, converted to safetensors in a process without network" for name in self.pickles]
        lines.append(f"{self.others} other files")
        return lines


def inspect(folder: Path, names: Sequence[PurePosixPath]) -> Contents:
    """Answers what a bundle holds that runs."""
    expressions: dict[str, int] = {}
    found: set[str] = set()
    for name in names:
        if name.parent.name == "configs" and name.suffix in {".json", ".yaml", ".yml"}:
            texts = list(_texts(read_configuration(folder / name)))
            count = sum(text.startswith("$") for text in texts)
            if count:
                expressions[str(name)] = count
            found |= {imported for text in texts for imported in re.findall(r"^\$\s*(?:import|from)\s+([\w.]+)", text)}
            found |= {text.partition(".")[0] for text in _targets(read_configuration(folder / name)) if "." in text}
    scripts = {str(name): _lines(folder / name) for name in names if name.suffix == ".py"}
    pickles = tuple(str(name) for name in names if name.suffix in WEIGHT_SUFFIXES)
    rest = len(names) - len(expressions) - len(scripts) - len(pickles)
    return Contents(expressions, tuple(sorted(found - {"monai", "torch"})), scripts, pickles, rest)


def read_configuration(path: Path) -> Any:
    """Answers a configuration file as plain values: nothing of it is resolved."""
    if path.stat().st_size > MAX_CONFIGURATION_BYTES:
        raise BundleInvalid(f"{path.name} has {path.stat().st_size / 1e6:.0f} MB: no configuration is as large")
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        if path.suffix == ".json":
            return json.loads(text)
        import yaml

        return yaml.safe_load(text)
    except ImportError as error:
        raise BundleInvalid(f"{path.name} is YAML, and PyYAML is not installed → pip install pyyaml") from error
    except (ValueError, RecursionError) as error:
        raise BundleInvalid(f"{path.name} cannot be read: {error}") from error
    except Exception as error:
        # yaml.YAMLError, which has no name before the import
        raise BundleInvalid(f"{path.name} cannot be read: {error}") from error


def inference_configuration(folder: Path) -> tuple[str, dict[str, Any]]:
    """Answers name and content of the configuration that a bundle infers with."""
    for suffix in ("json", "yaml", "yml"):
        path = folder / "configs" / f"inference.{suffix}"
        if path.is_file():
            configuration = read_configuration(path)
            if not isinstance(configuration, dict):
                raise BundleInvalid(f"{path.name} holds no table of settings")
            return path.name, configuration
    raise BundleInvalid("configs/inference.json (or .yaml) is absent: a bundle says there how to run its network")


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def _targets(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        if isinstance(value.get("_target_"), str):
            yield value["_target_"]
        for item in value.values():
            yield from _targets(item)
    elif isinstance(value, list):
        for item in value:
            yield from _targets(item)


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") + 1
