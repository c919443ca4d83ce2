"""`python -m node.inference.install.trial_child`: loads a model that was just installed, as a worker would. Runs confined (`sandbox.py`)."""

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from node.inference.install.sandbox import answer, read_job


def main() -> None:
    """Confines this process, then does its job."""
    job, _ = read_job()
    answer(perform(job))


def perform(job: Mapping[str, Any]) -> dict[str, Any]:
    """Loads the model in a folder; answers its fault, or the package that it misses, or nothing."""
    from node.domain.card_reader import parse_card  # here, and not above: only a process of a single thread can leave its namespaces
    from node.errors import NodeError
    from node.inference.bundle import load_bundle

    folder = Path(job["folder"])
    card = parse_card(tomllib.loads((folder / "card.toml").read_text(encoding="utf-8")))
    try:
        load_bundle(folder, card).close()
    except NodeError as error:
        missing = next(_missing_packages(error, folder), "")
        return {"missing": missing} if missing else {"fault": str(error)}
    return {}


def _missing_packages(error: BaseException, folder: Path) -> Iterator[str]:
    """Yields packages that the bundle imports and that are not here; its own scripts are none."""
    following: BaseException | None = error
    while following is not None:
        if isinstance(following, ModuleNotFoundError) and following.name:
            package = following.name.partition(".")[0]
            if not any((folder / place / name).exists() for place in ("", "scripts") for name in (package, f"{package}.py")):
                yield package
        following = following.__cause__ or following.__context__


if __name__ == "__main__":
    main()
