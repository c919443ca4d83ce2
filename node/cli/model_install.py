"""`radnode model install | confirm | remove`: models come, are looked at by a person, and go."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from node.cli.common import add_models_dir, models_dir, print_table, say
from node.codes import ExitCode

if TYPE_CHECKING:
    from node.codes import Code
    from node.domain.modelcard import ModelCard
    from node.inference.install.contents import Contents

    Nouns = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001 - no public name for what add_subparsers answers
else:
    Nouns = argparse.Action


def register_install(nouns: Nouns) -> None:
    """Adds `install`."""
    install = nouns.add_parser(
        "install",
        help="fetch the weights of a model, or install a MONAI bundle or a trained folder of nnU-Net",
        description="MODEL: a model whose card is here already (its weights are fetched and checked); or a folder or zip with a MONAI bundle "
        "or a trained folder of nnU-Net v2; or monai:NAME[==VERSION] of MONAI's Model Zoo. A bundle is code: it is shown what it holds, and "
        "installed once you say that you trust it. It gets a draft of a card: `radnode model confirm` before it serves a route.",
    )
    install.add_argument("name", metavar="MODEL")
    install.add_argument(
        "--from", dest="origin", type=Path, metavar="FILE", help="take the weights from this file or folder, without network"
    )
    install.add_argument("--trust", action="store_true", help="trust the code of the bundle, without being asked")
    install.add_argument(
        "--name", dest="wished_name", default="", metavar="NAME", help="name of the model here (default: of folder or zip)"
    )
    install.add_argument("--weights", default="", metavar="FILE", help="which file of weights in the bundle, where there are several")
    install.add_argument("--replace", action="store_true", help="replace a model of this name that was installed so before")
    install.add_argument("--folds", default="", metavar="LIST", help="nnU-Net: folds to average, with commas between (default: all)")
    install.add_argument("--checkpoint", default="checkpoint_final.pth", metavar="FILE", help="nnU-Net: default checkpoint_final.pth")
    install.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a value of the bundle's configuration, as monai.bundle run takes it",
    )
    install.add_argument("--orientation", default="", metavar="AXES", help="nnU-Net: how the training images lay: LPS, RAS, LAS, …")
    add_models_dir(install)
    install.set_defaults(act=_install)


def register_confirm_and_remove(nouns: Nouns) -> None:
    """Adds `confirm` and `remove`."""
    confirm = nouns.add_parser("confirm", help="look at the labels and codes of a draft card, and confirm them")
    remove = nouns.add_parser("remove", help="remove a model that was installed from a bundle")
    for parser, act in ((confirm, _confirm), (remove, _remove)):
        parser.add_argument("name", metavar="MODEL")
        parser.add_argument("--yes", action="store_true", help="without being asked")
        add_models_dir(parser)
        parser.set_defaults(act=act)


def _install(arguments: argparse.Namespace) -> int:
    folder = models_dir(arguments)
    if is_known_model(arguments.name, folder):
        return _install_weights(arguments, folder)
    from node.inference.install.installer import Wishes, install

    wishes = Wishes(
        name=arguments.wished_name, weights=arguments.weights, orientation=arguments.orientation.upper(),
        folds=_folds(arguments.folds), checkpoint=arguments.checkpoint, replace=arguments.replace, settings=_settings(arguments.set),
    )  # fmt: skip
    done = install(arguments.name, folder, wishes, lambda contents, name: _trust(contents, name, given=arguments.trust), progress=say)
    print(f"{done.card.name} {done.card.version} is installed: {done.card.title}")
    for note in done.notes:
        print(f"  - {note}")
    print(f"\nits card is a draft: {done.folder / 'card.toml'}")
    print(f"→ read and correct it, try it (radnode run DIR --model {done.card.name} -o OUT), then radnode model confirm {done.card.name}")
    return ExitCode.OK


def is_known_model(name: str, folder: Path) -> bool:
    """Answers whether `install NAME` means the weights of a model whose card is here: a bare name, and no folder or file of the user."""
    from node.inference.manifest import MANIFEST

    is_path = "/" in name or "\\" in name or name.startswith(("monai:", ".")) or Path(name).exists()
    return not is_path and not (folder / name / MANIFEST).is_file()


def _install_weights(arguments: argparse.Namespace, folder: Path) -> int:
    from node.inference.weights import install_weights
    from node.modelstore import find_card

    card = find_card(folder, arguments.name)
    install_weights(card, folder / card.name, origin=arguments.origin, progress=say)
    say(f"{card.name} {card.version} is installed")
    return ExitCode.OK


def _folds(listed: str) -> tuple[int, ...]:
    from node.errors import UsageError

    try:
        return tuple(int(one) for one in listed.replace(",", " ").split())
    except ValueError as error:
        raise UsageError(f"--folds {listed}: numbers with commas between, for example 0,1,2") from error


def _settings(pairs: list[str]) -> dict[str, Any]:
    """Answers `KEY=VALUE` as values: JSON where it is such, else text."""
    from node.errors import UsageError

    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise UsageError(f"--set {pair}: a key of the bundle's configuration and a value, for example --set overlap=0.5")
        try:
            settings[key] = json.loads(value)
        except ValueError:
            settings[key] = value
    return settings


def _trust(contents: "Contents", name: str, *, given: bool) -> str:
    """Asks once. What is printed goes to stderr: stdout is for the result."""
    from node.errors import BundleRefused

    say(f"{name} is a bundle, and a bundle is code that runs with the rights of the node. It holds:")
    for sentence in contents.sentences():
        say(f"  - {sentence}")
    if given:
        return "--trust"
    if not sys.stdin.isatty():
        raise BundleRefused(f"nobody has said that {name} is trusted, and there is no terminal to ask → look at it, then --trust")
    if _answer("Do you trust its author and where you have it from? Type yes: "):
        return "typed yes"
    raise BundleRefused(f"{name} is not trusted: nothing was installed")


def _answer(question: str) -> bool:
    sys.stderr.write(question)
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() == "yes"


def _confirm(arguments: argparse.Namespace) -> int:
    from node.errors import UsageError
    from node.inference.install.confirm import confirm_card, placeholders
    from node.modelstore import find_card

    folder = models_dir(arguments)
    card = find_card(folder, arguments.name)
    if not card.draft:
        say(f"the card of {card.name} is no draft: nothing to confirm")
        return ExitCode.OK
    print(f"{card.title}\n{card.name} {card.version}\n\nintended use: {card.intended_use}")
    for requirement in card.inputs:
        print(f"accepts {', '.join(requirement.modality)}" + (f" as {requirement.channel}" if requirement.channel else ""))
    print_outputs(card)
    for code in placeholders(card):
        print(f"no code of a standard: {code.value} {code.scheme} {code.meaning}")
    print()
    if not arguments.yes:
        if not sys.stdin.isatty():
            raise UsageError(f"there is no terminal to ask → look at {folder / card.name / 'card.toml'}, then --yes")
        if not _answer("Are intended use, series, labels and codes right? Type yes: "):
            say(f"{card.name} stays a draft → correct {folder / card.name / 'card.toml'}")
            return ExitCode.FAILED
    confirm_card(folder / card.name)
    say(f"{card.name} is confirmed: routes may name it")
    return ExitCode.OK


def _remove(arguments: argparse.Namespace) -> int:
    from node.errors import UsageError
    from node.inference.install.confirm import remove_model

    folder = models_dir(arguments)
    routes = [route.name for route in _routes(arguments) if route.model == arguments.name]
    if routes:
        raise UsageError(f"route {routes[0]} names {arguments.name} → take the route out of the configuration first")
    if not arguments.yes:
        if not sys.stdin.isatty():
            raise UsageError("there is no terminal to ask → --yes")
        if not _answer(f"Remove {folder / arguments.name} with its card? Type yes: "):
            return ExitCode.FAILED
    remove_model(folder, arguments.name)
    say(f"{arguments.name} is removed")
    return ExitCode.OK


def _routes(arguments: argparse.Namespace) -> list[Any]:
    from node.cli.common import read_config
    from node.errors import UsageError

    try:
        return list(read_config(arguments).routes)
    except UsageError:
        return []  # no configuration: no routes


def print_outputs(card: "ModelCard") -> None:
    """Prints what a model reports, with its codes."""
    if card.segments:
        print()
        rows = [(one.label_value, one.label, _code(one.type), _side(one.laterality), _code(one.anatomic_region)) for one in card.segments]
        print_table(("LABEL", "STRUCTURE", "CODE", "SIDE", "OF"), rows, empty="")
    for evaluation in card.evaluations:
        print(f"\nanswers {_code(evaluation.concept)}")
        print_table(("CHANNEL", "ANSWER", "CODE"), [(one.channel, one.label, _code(one.code)) for one in evaluation.answers], empty="")
    if card.detections:
        print()
        finds = [(one.class_index, one.label, _code(one.type), _code(one.anatomic_region), f"{one.min_score:g}") for one in card.detections]
        print_table(("CLASS", "FINDS", "CODE", "OF", "FROM SCORE"), finds, empty="")
    if card.landmarks:
        print()
        print_table(("CHANNEL", "POINT", "CODE"), [(one.channel, one.label, _code(one.type)) for one in card.landmarks], empty="")


def _code(code: "Code | None") -> str:
    return f"{code.value} {code.scheme} {code.meaning}" if code is not None else ""


def _side(code: "Code | None") -> str:
    return code.meaning.lower() if code is not None else ""
