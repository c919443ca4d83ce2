"""`radnode run`: one model on one study of the disk, by the pipeline that the node runs."""

import argparse
import hashlib
import time
from pathlib import Path
from typing import TYPE_CHECKING

from node.cli.common import (
    ProgressLine,
    Verbs,
    add_json,
    add_models_dir,
    log_to_stderr,
    models_dir,
    print_json,
    print_stages,
    print_table,
    say,
)
from node.cli.engine import ENGINES, add_engines_dir, engine_wish
from node.codes import ExitCode
from node.domain.objects import CONFIGURABLE, DEFAULT_OBJECTS, ResultObject

if TYPE_CHECKING:
    from node.cli.local_study import LocalStudy
    from node.domain.modelcard import ModelCard
    from node.pipeline import OfflineResult

OFFLINE_AE_TITLE = "RADNODE"
OFFLINE_SERIAL_NUMBER = "offline"


def register(verbs: Verbs) -> None:
    """Adds the verb."""
    parser = verbs.add_parser(
        "run",
        help="run a model on a folder of images, without network",
        description="Chooses the right series below DIR, runs the model, writes seg.dcm, sr.dcm, key_image.png and report.html.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder with the images of one study")
    parser.add_argument("--model", required=True, metavar="NAME", help="`radnode model list` names them")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="folder for the results")
    parser.add_argument("--device", default="cpu", metavar="DEVICE", help="cpu (default), cuda, cuda:1, …")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="CPU threads (default: all cores)")
    parser.add_argument(
        "--engine", choices=ENGINES, default="auto", help="auto (default): the fastest that `radnode engine build` has made; else torch"
    )
    further = ", ".join(one for one in CONFIGURABLE if one not in DEFAULT_OBJECTS)
    parser.add_argument(
        "--objects", default="", metavar="LIST", help=f"further results besides SEG and SR, with commas between: {further}; or all"
    )
    parser.add_argument("--language", choices=["en", "zh"], default="en", help="of the PDF report")
    add_models_dir(parser)
    add_engines_dir(parser)
    add_json(parser)
    parser.set_defaults(act=_run)


def _run(arguments: argparse.Namespace) -> int:
    from node.cli.local_study import read_study
    from node.domain.states import Outcome
    from node.modelstore import find_card

    log_to_stderr()
    models = models_dir(arguments)
    card = find_card(models, arguments.model)
    study = read_study(arguments.folder)
    files = chosen_files(study, card)
    wanted = _wanted(arguments.objects)
    say(f"loading {card.name} {card.version}")
    done = _analyse(arguments, models, card, study, files, wanted)
    if arguments.json:
        print_json(_as_json(done))
    else:
        _print(done)
    return ExitCode.OK if done.result.outcome in {Outcome.FOUND, Outcome.NOTHING_FOUND} else ExitCode.FAILED


def _wanted(listed: str) -> "frozenset[ResultObject]":
    from node.errors import UsageError

    names = list(CONFIGURABLE) if listed == "all" else [name for name in listed.replace(",", " ").split() if name]
    unknown = [name for name in names if name not in set(CONFIGURABLE)]
    if unknown:
        raise UsageError(f"there is no result {unknown[0]!r} → {', '.join(CONFIGURABLE)}")
    return frozenset(DEFAULT_OBJECTS) | frozenset(ResultObject(name) for name in names)


def chosen_files(study: "LocalStudy", card: "ModelCard") -> tuple[Path, ...]:
    """Answers the files of the series that a model takes of a study, told on stderr; raises OutsideIntendedUse where it takes none."""
    from node.domain.routing import Route
    from node.errors import OutsideIntendedUse

    route = Route(name="run", when={}, model=card.name, deliver_to=())
    decision = study.decide([route], {card.name: card})
    if not decision.selections:
        reasons = "\n".join(
            f"  series {one.representative.text('SeriesNumber') or '?'}: {decision.reason_for(one.series_instance_uid)}"
            for one in study.series
        )
        raise OutsideIntendedUse(f"{card.name} accepts no series of this study:\n{reasons}")
    chosen = decision.selections[0].series_instance_uids
    for uid in chosen:
        why = next(verdict.reason for verdict in decision.verdicts if verdict.series_instance_uid == uid and verdict.accepted)
        say(f"series {uid}: {why}")
    return tuple(path for uid in chosen for path in study.files[uid])


def _analyse(
    arguments: argparse.Namespace,
    models: Path,
    card: "ModelCard",
    study: "LocalStudy",
    files: tuple[Path, ...],
    objects: frozenset[ResultObject],
) -> "OfflineResult":
    from node.domain.identifiers import derive_job_key
    from node.inference.bundle import load_bundle
    from node.pipeline import Wanted, context_for, run_offline

    engines = engine_wish(arguments)
    model = load_bundle(models / card.name, card, device=arguments.device, threads=arguments.threads, engines=engines)
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    context = context_for(
        derive_job_key(card.digest, study.study_instance_uid, digests),
        run=0,
        encoded_at_s=time.time(),
        ae_title=OFFLINE_AE_TITLE,
        device_serial_number=OFFLINE_SERIAL_NUMBER,
    )
    progress = ProgressLine()
    wanted = Wanted(objects, arguments.language)
    try:
        return run_offline(files, model, context, arguments.output, progress, wanted)
    finally:
        progress.close()
        for skipped in wanted.skipped:
            say(skipped)


def _as_json(done: "OfflineResult") -> dict[str, object]:
    result = done.result
    return {
        "outcome": result.outcome,
        "reason": result.reason,
        "model": {"name": result.card.name, "version": result.card.version},
        "segments": [
            {
                "label": segment.definition.label,
                "present": segment.present,
                "measurements": [{"name": m.name, "value": m.value, "unit": m.unit.value} for m in segment.measurements],
            }
            for segment in result.segments
        ],
        "evaluations": [
            {
                "question": one.definition.concept.meaning,
                "probabilities": {answer.label: p for answer, p in zip(one.definition.answers, one.probabilities, strict=True)},
                "image": one.image.sop_instance_uid if one.image else None,
            }
            for one in result.evaluations
        ],
        "detections": [
            {"label": one.definition.label, "score": one.score, "centre_mm": one.centre_mm, "half_axes_mm": one.half_axes_mm}
            for one in result.detections
        ],
        "landmarks": [{"label": one.definition.label, "score": one.score, "position_mm": one.position_mm} for one in result.landmarks],
        "notes": result.notes,
        "paths": done.paths,
        "stages": done.stages,
    }


def _print(done: "OfflineResult") -> None:
    result = done.result
    print(f"{result.card.name} {result.card.version}: {result.outcome}" + (f" ({result.reason})" if result.reason else ""))
    rows = [
        (segment.definition.label, measurement.name, f"{measurement.value:.4g}", measurement.unit.value)
        for segment in result.segments
        if segment.present
        for measurement in segment.measurements
    ]
    if rows:
        print()
        print_table(("STRUCTURE", "MEASUREMENT", "VALUE", "UNIT"), rows, empty="")
    for evaluation in result.evaluations:
        told = ", ".join(f"{a.label} {100 * p:.0f} %" for a, p in zip(evaluation.definition.answers, evaluation.probabilities, strict=True))
        print(f"{evaluation.definition.concept.meaning}: {told}")
    places = [(one.definition.label, one.score, one.centre_mm) for one in result.detections]
    places += [(one.definition.label, one.score, one.position_mm) for one in result.landmarks]
    for label, score, place in places:
        print(f"{label}: score {score:.2f} at " + " ".join(f"{value:.1f}" for value in place) + " mm")
    for note in result.notes:
        print(f"note: {note.text}")
    print()
    print_table(("RESULT", "FILE"), list(done.paths.items()), empty="")
    print()
    print_stages(done.stages)
