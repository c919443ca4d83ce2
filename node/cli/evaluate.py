"""`radnode evaluate`: how well a model does on cases whose truth is known; the site's acceptance test before it goes live."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from node.cli.common import Verbs, add_json, add_models_dir, log_to_stderr, models_dir, print_json, print_table, say
from node.cli.engine import ENGINES, add_engines_dir, engine_wish
from node.codes import ExitCode

if TYPE_CHECKING:
    from node.domain.modelcard import ModelCard
    from node.evaluation.scorecard import Scorecard
    from node.pipeline import Model

DESCRIPTION = """\
Runs MODEL on every case of a data set and writes scorecard.json and scorecard.html.

  DIR/CASE/…       images of one study, and the truth: a DICOM SEG, or a NIfTI label map with the card's label values
  DIR/answers.csv  for classifiers:  case,answer[,question]
  DIR/lesions.csv  for detectors:    case,x_mm,y_mm,z_mm,diameter_mm[,label]
"""


def register(verbs: Verbs) -> None:
    """Adds the verb."""
    parser = verbs.add_parser(
        "evaluate",
        help="score a model on cases whose truth is known",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="`radnode model list` names them")
    parser.add_argument("--dataset", type=Path, required=True, metavar="DIR", help="folder with a folder for each case")
    parser.add_argument("-o", "--output", type=Path, default=Path("evaluation"), metavar="OUT", help="folder for the scorecard")
    parser.add_argument("--device", default="cpu", metavar="DEVICE", help="cpu (default), cuda, cuda:1, …")
    parser.add_argument("--engine", choices=ENGINES, default="auto", help="as of `radnode run`")
    parser.add_argument(
        "--against", default="", metavar="OTHER", help="another engine, or another model with the same structures: how far do the two agree"
    )
    add_models_dir(parser)
    add_engines_dir(parser)
    add_json(parser)
    parser.set_defaults(act=_evaluate)


def _evaluate(arguments: argparse.Namespace) -> int:
    from node.evaluation.dataset import read_dataset
    from node.evaluation.page import render_scorecard
    from node.evaluation.run import compare, evaluate
    from node.files import write_durably
    from node.modelstore import find_card

    log_to_stderr()
    models = models_dir(arguments)
    card = find_card(models, arguments.model)
    cases = read_dataset(arguments.dataset, card)
    say(f"{card.name} {card.version} on {len(cases)} cases")
    scorecard, answered = evaluate(_load(arguments, card, arguments.engine), cases, _progress)
    content = scorecard.as_json()
    agreed = None
    if arguments.against:
        other, model = _other(arguments, card)
        say(f"against {other}")
        second, answered_too = evaluate(model, cases, _progress)
        agreed = compare(answered, answered_too, card)
        content["against"] = {"name": other, "scorecard": second.as_json(), "agreement": _lowest(agreed)}
    write_durably(arguments.output / "scorecard.json", json.dumps(content, indent=2).encode())
    page = render_scorecard(scorecard, other=arguments.against, agreed=agreed)
    write_durably(arguments.output / "scorecard.html", page.encode())
    if arguments.json:
        print_json(content)
    else:
        _print(scorecard)
    say(f"scorecard: {arguments.output / 'scorecard.html'}")
    return ExitCode.OK if scorecard.evaluated else ExitCode.FAILED


def _load(arguments: argparse.Namespace, card: "ModelCard", engine: str) -> "Model":
    from node.inference.bundle import load_bundle

    engines = engine_wish(argparse.Namespace(**{**vars(arguments), "engine": engine}))
    return load_bundle(models_dir(arguments) / card.name, card, device=arguments.device, engines=engines)


def _other(arguments: argparse.Namespace, card: "ModelCard") -> "tuple[str, Model]":
    """Answers what `--against` means: an engine, or another model."""
    from node.errors import UsageError
    from node.modelstore import find_card

    if arguments.against in ENGINES:
        return f"engine {arguments.against}", _load(arguments, card, arguments.against)
    other = find_card(models_dir(arguments), arguments.against)
    if [one.label_value for one in other.segments] != [one.label_value for one in card.segments]:
        raise UsageError(f"{other.name} has other structures than {card.name}: they cannot be compared voxel by voxel")
    return f"{other.name} {other.version}", _load(arguments, other, arguments.engine)


def _lowest(agreed: object) -> dict[str, dict[str, float | None]]:
    from node.evaluation.page import agreement

    return {
        label: {"lowest_dice": dice, "largest_volume_difference_percent": difference}
        for label, (dice, difference) in agreement(agreed).items()  # type: ignore[arg-type]
    }


def _progress(name: str, number: int, count: int) -> None:
    say(f"  case {number} of {count}: {name}")


def _print(scorecard: "Scorecard") -> None:
    failed = [case for case in scorecard.cases if case.reason]
    print(f"{len(scorecard.evaluated)} of {len(scorecard.cases)} cases analysed, {scorecard.engine}")
    for case in failed:
        print(f"  {case.name}: {case.outcome}: {case.reason}")
    if summary := scorecard.summary():
        rows = [
            (label, *(f"{figures[name].mean:.3g}" if name in figures else "-" for name in _COLUMNS)) for label, figures in summary.items()
        ]
        print_table(("STRUCTURE", "DICE", "VOLUME ERROR %", "SURFACE MM", "HD95 MM"), rows, empty="")
    for question, answers in scorecard.discriminations.items():
        print(f"{question}: right in {100 * scorecard.accuracy[question]:.0f} %")
        rows = [
            (one.answer, f"{one.positives}/{one.positives + one.negatives}", _number(one.roc_auc), _number(one.brier), _number(one.calibration_error))
            for one in answers
        ]  # fmt: skip
        print_table(("ANSWER", "TRUE", "ROC AREA", "BRIER", "CALIBRATION ERROR"), rows, empty="")
    if froc := scorecard.free_response:
        print(
            f"lesions found {froc.found} of {froc.lesions}, {froc.false_positives_per_case:.3g} false positives a case, FROC {_number(froc.score)}"
        )
    if latency := scorecard.latency():
        print(f"seconds a case: median {latency.median:.1f}, at most {latency.worst:.1f}")


_COLUMNS = ("dice", "volume_error_percent", "surface_distance_mm", "hausdorff95_mm")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
