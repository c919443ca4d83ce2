"""After an installation: a person confirms the card, or the model goes again."""

import re
import shutil
import tomllib
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from node.codes import Code
from node.domain.card_reader import parse_card
from node.domain.label_codes import PLACEHOLDER_SCHEME
from node.domain.modelcard import ModelCard
from node.errors import CardInvalid, UsageError
from node.files import write_durably
from node.inference.manifest import read_installed, write_installed


def placeholders(card: ModelCard) -> tuple[Code, ...]:
    """Answers the codes of a card that stand for nothing yet."""
    used = [one.type for one in card.segments] + [one.type for one in card.detections] + [one.type for one in card.landmarks]
    used += [evaluation.concept for evaluation in card.evaluations]
    used += [answer.code for evaluation in card.evaluations for answer in evaluation.answers]
    return tuple(code for code in used if code.scheme == PLACEHOLDER_SCHEME)


def confirm_card(folder: Path) -> None:
    """Takes the mark of a draft out of card.toml, leaving all else as the person wrote it."""
    path = folder / "card.toml"
    text = path.read_text(encoding="utf-8")
    confirmed = re.sub(r"^draft\s*=\s*true[^\n]*\n+", "", text, count=1, flags=re.MULTILINE)
    if parse_card(tomllib.loads(confirmed)).draft:
        raise CardInvalid(f"{path}: the line `draft = true` was not found → take it out by hand")
    write_durably(path, confirmed.encode())
    installed = read_installed(folder)
    if installed is not None:
        write_installed(folder, replace(installed, confirmed_at=datetime.now(UTC).isoformat(timespec="seconds")))


def remove_model(models_dir: Path, name: str) -> None:
    """Removes a model that was installed from a bundle.

    Raises UsageError for one that was not: it belongs to a checkout, or to somebody.
    """
    folder = models_dir / name
    if Path(name).name != name or not folder.is_dir():
        raise UsageError(f"there is no model {name!r} in {models_dir}")
    if read_installed(folder) is None:
        raise UsageError(f"{name} did not come by `radnode model install PATH`: it is not removed → remove {folder} by hand")
    gone = folder.with_name(f".removing-{name}")
    shutil.rmtree(gone, ignore_errors=True)
    folder.rename(gone)
    shutil.rmtree(gone)
