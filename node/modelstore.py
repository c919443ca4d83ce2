"""The folder of models: `models/<name>/card.toml` beside a MONAI bundle."""

import tomllib
from pathlib import Path

from node.domain.card_reader import parse_card
from node.domain.modelcard import ModelCard
from node.errors import CardInvalid, CardIsDraft, UsageError


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


def require_confirmed(card: ModelCard) -> None:
    """Raises CardIsDraft when nobody has confirmed the card: no route may name such a model."""
    if card.draft:
        raise CardIsDraft(
            f"the card of {card.name} is a draft: nobody has confirmed its labels and codes → radnode model confirm {card.name}"
        )
