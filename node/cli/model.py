"""`radnode model`: which models there are, what they accept and report, and whether their files are right."""

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from node.cli import model_install
from node.cli.common import Verbs, add_json, add_models_dir, models_dir, print_json, print_table, say
from node.codes import ExitCode

if TYPE_CHECKING:
    from node.domain.modelcard import InputRequirement, ModelCard


def register(verbs: Verbs) -> None:
    """Adds the verbs."""
    nouns = verbs.add_parser("model", help="list, show, install, confirm, verify or remove models").add_subparsers(
        metavar="VERB", required=True
    )
    listing = nouns.add_parser("list", help="models, whether their weights are installed, and whether their cards are confirmed")
    show = nouns.add_parser("show", help="the card of a model: intended use, inputs, structures, sources, trust")
    model_install.register_install(nouns)
    verify = nouns.add_parser("verify", help="check weights and code of a model, or of all, against what was trusted")
    show.add_argument("name", metavar="MODEL")
    verify.add_argument("name", metavar="MODEL", nargs="?")
    for parser, act in ((listing, _list), (show, _show), (verify, _verify)):
        add_json(parser)
        add_models_dir(parser)
        parser.set_defaults(act=act)
    model_install.register_confirm_and_remove(nouns)


def _list(arguments: argparse.Namespace) -> int:
    from node.modelstore import load_cards

    folder = models_dir(arguments)
    cards = load_cards(folder)
    rows = [
        (card.name, card.version, _installed(folder, card), "draft" if card.draft else "yes", ", ".join(_modalities(card)), card.title)
        for card in cards.values()
    ]
    if arguments.json:
        names = ("name", "version", "weights", "confirmed", "modality", "title")
        print_json([dict(zip(names, row, strict=True)) for row in rows])
    else:
        print_table(("MODEL", "VERSION", "WEIGHTS", "CONFIRMED", "FOR", "TITLE"), rows, empty=f"no models in {folder}")
    return ExitCode.OK


def _installed(folder: Path, card: "ModelCard") -> str:
    there = all((folder / card.name / weights.file).is_file() for weights in card.weights)
    return "installed" if there else "missing"


def _modalities(card: "ModelCard") -> list[str]:
    return sorted({modality for requirement in card.inputs for modality in requirement.modality})


def _show(arguments: argparse.Namespace) -> int:
    from node.inference.manifest import read_installed
    from node.modelstore import find_card

    folder = models_dir(arguments)
    card = find_card(folder, arguments.name)
    installed = read_installed(folder / card.name)
    if arguments.json:
        print_json(dataclasses.asdict(card) | {"installed": installed})
        return ExitCode.OK
    print(f"{card.title}\n{card.name} {card.version}, {card.manufacturer}, {card.licence}\n")
    if card.draft:
        print(f"A DRAFT: nobody has confirmed labels and codes, no route may name it → radnode model confirm {card.name}\n")
    for title, text in (("intended use", card.intended_use), ("training data", card.training_data), ("performance", card.performance)):
        print(f"{title}: {text.strip()}")
    for requirement in card.inputs:
        which = f" as {requirement.channel}" if requirement.channel else ""
        print(f"\naccepts {', '.join(requirement.modality)}{which}: {_requirement(requirement) or 'any'}")
    model_install.print_outputs(card)
    print()
    print_table(("WEIGHTS", "SHA256", "FROM"), [(one.file, one.sha256, one.source) for one in card.weights], empty="")
    if installed is not None:
        held = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in installed.contents.items())
        print(
            f"\ninstalled {installed.installed_at} from {installed.origin}, trusted by {installed.trusted_by}: {held}; {len(installed.files)} files"
        )
    for reference in card.references:
        print(f"see {reference}")
    return ExitCode.OK


def _requirement(requirement: "InputRequirement") -> str:
    parts = [
        ("body part", " or ".join(requirement.body_part)),
        ("orientation", " or ".join(requirement.orientation)),
        ("slices", str(requirement.slices)),
        ("slice spacing in mm", str(requirement.slice_spacing_mm)),
        ("pixel spacing in mm", str(requirement.pixel_spacing_mm)),
        ("coverage in mm", str(requirement.coverage_mm)),
        ("contrast", requirement.contrast),
        ("descriptions with", " or ".join(requirement.words)),
        ("descriptions without", " or ".join(requirement.without_words)),
    ]
    parts += [
        (keyword, str(value) if not isinstance(value, tuple) else " or ".join(value)) for keyword, value in (requirement.when or {}).items()
    ]
    return "; ".join(f"{name} {text}" for name, text in parts if text not in {"", "any", "anything"})


def _verify(arguments: argparse.Namespace) -> int:
    from node.inference.manifest import changes_since_trusted, read_installed
    from node.inference.weights import verify_weights
    from node.modelstore import find_card, load_cards

    folder = models_dir(arguments)
    cards = [find_card(folder, arguments.name)] if arguments.name else list(load_cards(folder).values())
    rows = []
    for card in cards:
        rows += [(card.name, state.file.file, state.fault or "ok") for state in verify_weights(card, folder / card.name)]
        installed = read_installed(folder / card.name)
        if installed is not None:
            faults = changes_since_trusted(folder / card.name)
            rows += [(card.name, name, fault) for name, fault in faults.items()] or [(card.name, f"all {len(installed.files)} files", "ok")]
    if arguments.json:
        print_json([{"model": name, "file": file, "state": state} for name, file, state in rows])
    else:
        print_table(("MODEL", "FILE", "STATE"), rows, empty=f"no models in {folder}")
    if all(state == "ok" for _, _, state in rows):
        return ExitCode.OK
    say("→ radnode model install MODEL, or for a bundle of your own radnode model install PATH --replace")
    return ExitCode.FAILED
