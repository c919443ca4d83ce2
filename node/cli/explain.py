"""`radnode explain`: which rule takes or refuses each series of a study, and why."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from node.cli.common import Verbs, add_json, add_models_dir, log_to_stderr, models_dir, print_json, read_config
from node.codes import ExitCode

if TYPE_CHECKING:
    from node.cli.local_study import LocalStudy
    from node.domain.instance import SeriesHeader
    from node.domain.routing import Route, StudyDecision


def register(verbs: Verbs) -> None:
    """Adds the verb."""
    parser = verbs.add_parser(
        "explain",
        help="say for each series of a study which rule takes or refuses it",
        description="Reads the headers below STUDY_DIR and prints what the routes and model cards say to each series. Runs nothing.",
    )
    parser.add_argument("study_dir", type=Path, metavar="STUDY_DIR")
    parser.add_argument("--model", metavar="NAME", help="ask this model alone, without the routes of a configuration")
    add_models_dir(parser)
    add_json(parser)
    parser.set_defaults(act=_explain)


def _explain(arguments: argparse.Namespace) -> int:
    from node.cli.local_study import read_studies

    log_to_stderr()
    routes, models = _routes(arguments)
    from node.modelstore import find_card

    cards = {route.model: find_card(models, route.model) for route in routes}
    explained = [(study, study.decide(routes, cards)) for study in read_studies(arguments.study_dir)]
    if arguments.json:
        print_json([_as_json(study, decision) for study, decision in explained])
        return ExitCode.OK
    for study, decision in explained:
        print(f"study {study.study_instance_uid}")
        for series in study.series:
            print(f"\n  {_title(series)}")
            print(f"  {series.series_instance_uid}")
            verdicts = [verdict for verdict in decision.verdicts if verdict.series_instance_uid == series.series_instance_uid]
            for verdict in verdicts:
                print(f"    {'taken' if verdict.accepted else 'refused'} by {verdict.rule}: {verdict.reason}")
            if not verdicts:
                print("    refused by node: no route is configured")
    return ExitCode.OK


def _routes(arguments: argparse.Namespace) -> "tuple[list[Route], Path]":
    if arguments.model is not None:
        from node.domain.routing import Route

        return [Route(name=f"--model {arguments.model}", when={}, model=arguments.model, deliver_to=())], models_dir(arguments)
    config = read_config(arguments)
    return [route.as_route() for route in config.routes], arguments.models_dir or config.node.models_dir


def _title(series: "SeriesHeader") -> str:
    header = series.representative
    number = header.text("SeriesNumber") or "?"
    return f"series {number}  {header.text('Modality') or '?'}  {series.slices} images  {header.text('SeriesDescription')}".rstrip()


def _as_json(study: "LocalStudy", decision: "StudyDecision") -> dict[str, object]:
    return {
        "study_instance_uid": study.study_instance_uid,
        "selected": [
            {"series_instance_uid": uid, "model": one.route.model} for one in decision.selections for uid in one.series_instance_uids
        ],
        "verdicts": decision.verdicts,
    }
