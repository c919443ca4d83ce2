"""The folder of models: `models/<name>/card.toml` beside a MONAI bundle."""

import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

from node.domain.card_reader import parse_card
from node.domain.modelcard import ModelCard
from node.errors import CardInvalid, CardIsDraft, ModelError, UsageError


def load_card(folder: Path) -> ModelCard:
    """Reads the card of a model folder.

    Raises
    ------
    CardInvalid
        When card.toml is absent or has faults, or names another model than its folder.
    """
    path = folder / "card.toml"
    try:
        with path.open("rb") as stream:
            card = parse_card(tomllib.load(stream))
    except FileNotFoundError as error:
        raise CardInvalid(f"{path} is absent: every model needs a card (see models/CARD.md)") from error
    except tomllib.TOMLDecodeError as error:
        raise CardInvalid(f"{path}: {error}") from error
    if card.name != folder.name:
        raise CardInvalid(f"{path}: name is {card.name}, the folder is {folder.name}")
    return card


def load_cards(models_dir: Path) -> dict[str, ModelCard]:
    """Reads the cards of all models, by name."""
    folders = [folder for folder in sorted(models_dir.iterdir()) if not folder.name.startswith(".") and (folder / "card.toml").is_file()]
    return {folder.name: load_card(folder) for folder in folders}


def find_card(models_dir: Path, name: str) -> ModelCard:
    """Reads the card of a model by its name; raises UsageError that lists the models there are."""
    if not (models_dir / name / "card.toml").is_file():
        there = ", ".join(sorted(card.parent.name for card in models_dir.glob("[!.]*/card.toml"))) or "none"
        raise UsageError(f"there is no model {name!r} in {models_dir} → models here: {there}")
    return load_card(models_dir / name)


def drafts_among(models_dir: Path, names: Sequence[str]) -> Iterator[tuple[int, CardIsDraft]]:
    """Yields which of the models named are drafts, by their places; one that is absent or broken is told elsewhere."""
    for index, name in enumerate(names):
        try:
            require_confirmed(find_card(models_dir, name))
        except CardIsDraft as error:
            yield index, error
        except (ModelError, UsageError):
            continue


def require_confirmed(card: ModelCard) -> None:
    """Raises CardIsDraft when nobody has confirmed the card: no route may name such a model."""
    if card.draft:
        raise CardIsDraft(
            f"the card of {card.name} is a draft: nobody has confirmed its labels and codes → radnode model confirm {card.name}"
        )
