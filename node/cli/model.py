"""`radnode model`: which models there are, what they accept and report, and whether their weights are right."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from node.cli.common import Verbs, add_json, add_models_dir, models_dir, print_json, print_table, say
from node.codes import ExitCode

if TYPE_CHECKING:
    from node.domain.modelcard import InputRequirement, ModelCard


def register(verbs: Verbs) -> None:
    """Adds the verbs."""
    nouns = verbs.add_parser("model", help="list, show, install or verify models").add_subparsers(metavar="VERB", required=True)
    listing = nouns.add_parser("list", help="models, and whether their weights are installed")
    show = nouns.add_parser("show", help="the card of a model: intended use, inputs, structures, sources")
    install = nouns.add_parser("install", help="fetch the weights of a model and check their sha256")
    verify = nouns.add_parser("verify", help="check the weights of a model, or of all, against their cards")
    show.add_argument("name", metavar="MODEL")
    install.add_argument("name", metavar="MODEL")
    install.add_argument(
        "--from", dest="origin", type=Path, metavar="FILE", help="take the weights from this file or folder, without network"
    )
    verify.add_argument("name", metavar="MODEL", nargs="?")
    for parser, act in ((listing, _list), (show, _show), (install, _install), (verify, _verify)):
        if parser is not install:
            add_json(parser)
        add_models_dir(parser)
        parser.set_defaults(act=act)


def _list(arguments: argparse.Namespace) -> int:
    from node.modelstore import load_cards

    folder = models_dir(arguments)
    cards = load_cards(folder)
    rows = [(card.name, card.version, _installed(folder, card), ", ".join(_modalities(card)), card.title) for card in cards.values()]
    if arguments.json:
        names = ("name", "version", "weights", "modality", "title")
        print_json([dict(zip(names, row, strict=True)) for row in rows])
    else:
        print_table(("MODEL", "VERSION", "WEIGHTS", "FOR", "TITLE"), rows, empty=f"no models in {folder}")
    return ExitCode.OK


def _installed(folder: Path, card: "ModelCard") -> str:
    there = all((folder / card.name / weights.file).is_file() for weights in card.weights)
    return "installed" if there else "missing"


def _modalities(card: "ModelCard") -> list[str]:
    return sorted({modality for requirement in card.inputs for modality in requirement.modality})


def _show(arguments: argparse.Namespace) -> int:
    from node.modelstore import find_card

    card = find_card(models_dir(arguments), arguments.name)
    if arguments.json:
        print_json(card)
        return ExitCode.OK
    print(f"{card.title}\n{card.name} {card.version}, {card.manufacturer}, {card.licence}\n")
    for title, text in (("intended use", card.intended_use), ("training data", card.training_data), ("performance", card.performance)):
        print(f"{title}: {text.strip()}")
    for requirement in card.inputs:
        print(f"\naccepts {', '.join(requirement.modality)}: {_requirement(requirement)}")
    print()
    rows = [(one.label_value, one.label, f"{one.type.value} {one.type.scheme} {one.type.meaning}") for one in card.segments]
    print_table(("LABEL", "STRUCTURE", "CODE"), rows, empty="")
    print()
    print_table(("WEIGHTS", "SHA256", "FROM"), [(one.file, one.sha256, one.source) for one in card.weights], empty="")
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


def _install(arguments: argparse.Namespace) -> int:
    from node.inference.weights import install_weights
    from node.modelstore import find_card

    folder = models_dir(arguments)
    card = find_card(folder, arguments.name)
    install_weights(card, folder / card.name, origin=arguments.origin, progress=say)
    say(f"{card.name} {card.version} is installed")
    return ExitCode.OK


def _verify(arguments: argparse.Namespace) -> int:
    from node.inference.weights import verify_weights
    from node.modelstore import find_card, load_cards

    folder = models_dir(arguments)
    cards = [find_card(folder, arguments.name)] if arguments.name else list(load_cards(folder).values())
    rows = [(card.name, state.file.file, state.fault or "ok") for card in cards for state in verify_weights(card, folder / card.name)]
    if arguments.json:
        print_json([{"model": name, "file": file, "state": state} for name, file, state in rows])
    else:
        print_table(("MODEL", "FILE", "STATE"), rows, empty=f"no models in {folder}")
    if all(state == "ok" for _, _, state in rows):
        return ExitCode.OK
    say("→ radnode model install MODEL")
    return ExitCode.FAILED
