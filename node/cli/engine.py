"""`radnode engine`: builds, lists, verifies, measures and clears away what networks are compiled into on this machine."""

import argparse
import ctypes
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from node.cli.common import (
    CONFIG_PLACES,
    Verbs,
    add_json,
    add_models_dir,
    local_time,
    log_to_stderr,
    models_dir,
    print_json,
    print_table,
    say,
)
from node.codes import ExitCode

if TYPE_CHECKING:
    from node.inference.engines.build import Trial
    from node.inference.engines.select import EngineWish
    from node.inference.engines.store import EngineStore, Kept

ENGINES: Final = ("auto", "torch", "openvino", "onnxruntime", "tensorrt")

_NICENESS: Final = 10
_PR_SET_PDEATHSIG: Final = 1
_SAMPLES: Final = 4


def register(verbs: Verbs) -> None:
    """Adds the verbs."""
    nouns = verbs.add_parser(
        "engine",
        help="build, list, verify or measure compiled networks",
        description="A network runs on torch, or on a faster engine built on this machine that gives the same labels (docs/explanation/engines.md).",
    ).add_subparsers(metavar="VERB", required=True)
    build = nouns.add_parser("build", help="make the engines of a model, hold them against torch, keep those that agree")
    listing = nouns.add_parser("list", help="the engines that are kept, and which of a model's is the fastest")
    verify = nouns.add_parser("verify", help="check that every file is as this node built it; exit code 1 where one is not")
    bench = nouns.add_parser("bench", help="measure every engine that this machine can make of a model; keeps nothing")
    prune = nouns.add_parser("prune", help="remove engines that no present choice needs, and those that are refused")
    for parser, act in ((build, _build), (listing, _list), (verify, _verify), (bench, _bench), (prune, _prune)):
        if parser in {build, bench}:
            parser.add_argument("name", metavar="MODEL", help="`radnode model list` names them")
            parser.add_argument("--device", default="cpu", metavar="DEVICE", help="cpu (default), cuda, cuda:1, …")
            parser.add_argument("--threads", type=int, default=0, metavar="N", help="CPU threads (default: all cores)")
            parser.add_argument("--engine", choices=ENGINES, default="auto", help="only this library (default: all that are there)")
        else:
            parser.add_argument("name", metavar="MODEL", nargs="?", default="", help="of this model only")
        add_json(parser)
        add_models_dir(parser)
        add_engines_dir(parser)
        parser.set_defaults(act=act)
    build.add_argument("--sample", type=Path, metavar="DIR", help="a study of your own: engines must agree on it too")
    build.add_argument("--child-of", type=int, default=0, metavar="PID", help=argparse.SUPPRESS)
    bench.add_argument("--rounds", type=int, default=3, metavar="N", help="interleaved rounds, of which the median counts (default 3)")
    prune.add_argument("--all", action="store_true", help="remove every engine; they are built anew when they are needed")


def add_engines_dir(parser: argparse.ArgumentParser) -> None:
    """Adds --engines-dir."""
    parser.add_argument(
        "--engines-dir", type=Path, metavar="DIR", help="folder of engines (default: in the node's state_dir, else engines beside models)"
    )


def engines_dir(arguments: argparse.Namespace) -> Path:
    """Answers the folder of engines: --engines-dir, that of the configured node, or `engines` beside the folder of models."""
    if arguments.engines_dir is not None:
        return Path(arguments.engines_dir).resolve()
    if arguments.config is not None or (arguments.models_dir is None and any(place.is_file() for place in CONFIG_PLACES)):
        from node.cli.common import read_config

        return read_config(arguments).node.state_dir / "engines"
    return models_dir(arguments).parent / "engines"


def engine_wish(arguments: argparse.Namespace) -> "EngineWish":
    """Answers what a run on the command line wants: what is there, or what is named, built now where it is not there."""
    from node.inference.engines.select import Build, EngineWish

    named = arguments.engine not in {"auto", "torch"}
    return EngineWish(arguments.engine, engines_dir(arguments), Build.NOW if named else Build.NEVER)


def _build(arguments: argparse.Namespace) -> int:
    from node.inference.engines.build import build_engines
    from node.inference.engines.store import EngineStore
    from node.locks import LockHeld

    if arguments.child_of:
        _serve_in_background(arguments.child_of)
    log_to_stderr()
    trial = _trial(arguments)
    if trial is None:
        return ExitCode.FAILED
    samples = _samples(arguments, trial) if arguments.sample is not None else []
    store = EngineStore(engines_dir(arguments))
    try:
        choice = build_engines(trial, store, samples=samples, progress=say)
    except LockHeld:
        say(f"another process builds the engines of {arguments.name} at this moment → radnode engine list")
        return ExitCode.FAILED
    if arguments.json:
        print_json({"model": arguments.name, "chosen": choice.ranking[0].name, "engines": choice.results})
    else:
        _print_results(choice.results)
        print(f"\n{arguments.name} runs on {choice.ranking[0].name}")
    wanted = arguments.engine in {"auto", *(candidate.backend for candidate in choice.ranking)}
    if not wanted:
        say(f"no engine of {arguments.engine} may serve {arguments.name}: see the reasons above")
    return ExitCode.OK if wanted else ExitCode.FAILED


def _bench(arguments: argparse.Namespace) -> int:
    from node.inference.engines.build import bench_engines

    log_to_stderr()
    trial = _trial(arguments)
    if trial is None:
        return ExitCode.FAILED
    results = bench_engines(trial, rounds=arguments.rounds, progress=say)
    if arguments.json:
        print_json({"model": arguments.name, "window": list(trial.material.window.batch(1)), "engines": results})
    else:
        _print_results(results)
    return ExitCode.OK


def _trial(arguments: argparse.Namespace) -> "Trial | None":
    """Answers the network of the model that is named; None, with the reason told, where torch alone can run it."""
    from node.inference.bundle import network_task, read_network, task_of
    from node.inference.engines.build import Trial
    from node.inference.engines.task import Place
    from node.inference.engines.torch_engine import require_device
    from node.inference.recipe import DETECTION
    from node.modelstore import find_card

    require_device(arguments.device)
    folder = models_dir(arguments)
    card = find_card(folder, arguments.name)
    if task_of(card) == DETECTION:
        say(f"{card.name} runs on torch: it is a detector, and engines are compared by the labels of segmentations")
        return None
    network, recipe = read_network(folder / card.name, card)
    task = network_task(folder / card.name, card, network, recipe)
    if task.window is None:
        say(f"{card.name} runs on torch: {task.why_no_window}")
        return None
    return Trial(network.eval(), task, Place(arguments.device, arguments.threads), arguments.engine)


def _samples(arguments: argparse.Namespace, trial: "Trial") -> list[Any]:
    """Answers the windows of a study in which the network finds the most."""
    from node.cli.local_study import read_study
    from node.cli.run import chosen_files
    from node.inference.bundle import Bundle, read_network
    from node.inference.engines.candidates import reference_engine
    from node.inference.engines.serving import Chosen, Recorder, ServingEngine
    from node.modelstore import find_card
    from node.pipeline import Stopwatch, analyse

    folder = models_dir(arguments)
    card = find_card(folder, arguments.name)
    files = chosen_files(read_study(arguments.sample), card)
    recorder = Recorder(reference_engine(trial.material), _SAMPLES)
    _, recipe = read_network(folder / card.name, card)
    say("running torch on the sample")
    analysis = analyse(files, Bundle(card, ServingEngine(Chosen(recorder)), recipe), Stopwatch(lambda *_: None))
    if not recorder.windows:
        say(f"the sample was not analysed: {analysis.result.reason}; engines are compared on the phantom alone")
    return recorder.windows


def _serve_in_background(parent: int) -> None:
    """A worker started this: it gives way to studies, ends with the worker, and ends by itself."""
    from node.inference.engines.select import BUILD_LIMIT_S

    os.nice(_NICENESS)
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        raise SystemExit(ExitCode.FAILED)
    signal.alarm(BUILD_LIMIT_S)


def _print_results(results: "list[dict[str, Any]] | tuple[dict[str, Any], ...]") -> None:
    base = next((one["window_ms"] for one in results if one["window_ms"]), None)
    rows = []
    for one in results:
        wall, cpu = one["window_ms"], one["cpu_ms"]
        rows.append(
            (
                one["engine"],
                f"{wall:.1f}" if wall else "",
                f"{cpu:.1f}" if cpu else "",
                f"{base / wall:.2f}x" if wall and base else "",
                f"{one['relative_l2']:.1e}" if one["relative_l2"] is not None else "",
                f"{one['agreement']:.5f}" if one["agreement"] is not None else "",
                f"{one['least_dice']:.4f}" if one["least_dice"] is not None else "",
                "agrees" if one["passed"] else one["why_not"],
            )
        )
    print_table(("ENGINE", "MS/WINDOW", "CPU MS", "SPEED", "REL L2", "LABELS", "LEAST DICE", "GATE"), rows, empty="nothing was measured")


def _list(arguments: argparse.Namespace) -> int:
    store = _store(arguments)
    told = [_as_record(kept) for kept in store.contents(arguments.name)]
    if arguments.json:
        print_json(told)
        return ExitCode.OK
    rows = [
        (one["model"], one["key"][:12], one["kind"], one["what"], f"{one['bytes'] / 1e6:.1f}", local_time(one["built_at_s"]), one["state"])
        for one in told
    ]
    print_table(
        ("MODEL", "KEY", "KIND", "WHAT", "MB", "BUILT", "STATE"), rows, empty=f"no engines in {store.folder} → radnode engine build MODEL"
    )
    return ExitCode.OK


def _verify(arguments: argparse.Namespace) -> int:
    store = _store(arguments)
    contents = list(store.contents(arguments.name))
    faults = [kept for kept in contents if kept.fault]
    if arguments.json:
        print_json([{"model": kept.model, "key": kept.key, "state": kept.fault or "ok"} for kept in contents])
    else:
        rows = [(kept.model, kept.key[:12], kept.fault or "ok") for kept in contents]
        print_table(("MODEL", "KEY", "STATE"), rows, empty=f"no engines in {store.folder}")
    if faults:
        say("→ radnode engine prune, then radnode engine build MODEL")
    return ExitCode.FAILED if faults else ExitCode.OK


def _prune(arguments: argparse.Namespace) -> int:
    from node.inference.engines.build import superfluous

    store = _store(arguments)
    doomed = list(store.contents(arguments.name)) if arguments.all else list(superfluous(store, arguments.name))
    for kept in doomed:
        store.refuse(kept)
    leftovers = store.sweep()
    if arguments.json:
        print_json({"removed": [{"model": kept.model, "key": kept.key, "why": kept.fault or "not needed"} for kept in doomed]})
    else:
        print_table(
            ("REMOVED", "KEY", "WHY"), [(one.model, one.key[:12], one.fault or "not needed") for one in doomed], empty="nothing to remove"
        )
    if leftovers:
        say(f"{leftovers} half-made entries removed")
    return ExitCode.OK


def _store(arguments: argparse.Namespace) -> "EngineStore":
    from node.inference.engines.store import EngineStore

    return EngineStore(engines_dir(arguments))


def _as_record(kept: "Kept") -> dict[str, Any]:
    entry = kept.entry
    fields = entry.fields if entry is not None else {}
    candidate = fields.get("candidate", {})
    what = " ".join(str(candidate[name]) for name in ("backend", "precision", "variant") if candidate.get(name))
    return {
        "model": kept.model,
        "key": kept.key,
        "kind": fields.get("kind", ""),
        "what": what or _fastest(kept),
        "bytes": entry.size_bytes if entry is not None else 0,
        "built_at_s": entry.built_at_s if entry is not None else None,
        "state": kept.fault or "ok",
    }


def _fastest(kept: "Kept") -> str:
    from node.inference.engines.build import read_choice

    if kept.entry is None or kept.entry.fields.get("kind") != "choice":
        return ""
    return f"{kept.entry.fields['device']}: {read_choice(kept.entry).ranking[0].name}"
