"""`radnode demo`: from C-STORE to SEG and SR in an archive, on a real study, with every step shown."""

import argparse
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import node
from node.cli.common import ProgressLine, Verbs, log_to_stderr, print_stages, print_table, say
from node.codes import ExitCode
from node.errors import UsageError

if TYPE_CHECKING:
    from node.cli.demo_node import DemoNode, Results
    from node.config import Config

KEPT_RUNS: Final = 3
DEFAULT_STUDY: Final = "chest"


@dataclass
class Stopwatch:
    """Seconds of each step, in order, and one line to the person for each."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str, told: str) -> Iterator[None]:
        """Times a step and tells that it begins."""
        say(f"demo: {told}")
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started


def register(verbs: Verbs) -> None:
    """Adds the verb."""
    parser = verbs.add_parser(
        "demo",
        help="try the whole path on a real study: C-STORE in, SEG and SR back",
        description=(
            "Fetches a chest CT (or takes --study) and model weights, starts a node and a small archive, sends the study by C-STORE as a PACS "
            "would, waits until SEG and SR are in the archive, and prints where everything is. Exit code 0 only then."
        ),
    )
    parser.add_argument(
        "--study",
        default=DEFAULT_STUDY,
        metavar="STUDY",
        help="chest (a CT that pip fetches; the default), head (a CT of Debian's invesalius-examples), or a folder with a study of your own",
    )
    parser.add_argument("--model", metavar="NAME", help="another model than the study's, or than those of the configuration's routes")
    parser.add_argument("--config", type=Path, metavar="FILE", help="default: configs/demo.toml")
    parser.add_argument(
        "--cache", type=Path, default=Path(".cache/demo"), metavar="DIR", help="study and runs lie here (default: .cache/demo)"
    )
    parser.add_argument("--timeout", type=float, default=900.0, metavar="S", help="seconds to wait for the results (default: 900)")
    parser.set_defaults(act=_demo)


def _demo(arguments: argparse.Namespace) -> int:
    from node.cli.demo_node import DemoNode
    from node.config import load_config

    log_to_stderr("error")
    watch = Stopwatch()
    path = _config_path(arguments.config)
    config = load_config(path)
    models = _models(arguments, config)
    with watch.step("weights", f"weights of {', '.join(models)}: checking, fetching what is missing"):
        for model in models:
            _install_weights(config, model)
    with watch.step("study", "study: preparing the images"):
        images = _study(arguments)
    work = _fresh_run(arguments.cache / "runs")
    demo = DemoNode(path, work, models=models, timeout_s=arguments.timeout)
    try:
        with watch.step("start", f"starting an archive and a node in {work}"):
            demo.start()
        _run(demo, images, watch)
    finally:
        demo.stop()
    return ExitCode.OK


def _run(demo: "DemoNode", images: list[Path], watch: Stopwatch) -> None:
    with watch.step("send", f"sending {len(images)} images to {demo.ae_title} by C-STORE"):
        demo.send(images)
    sent = time.perf_counter()
    say("demo: waiting for the results; the node works")
    results = demo.wait_for_results(images, lambda text: say(f"demo: {time.perf_counter() - sent:6.1f} s  {text}"))
    _print(results, watch, total_s=time.perf_counter() - sent)


def _config_path(given: Path | None) -> Path:
    places = [given] if given is not None else [Path("configs/demo.toml"), Path(node.__file__).parents[1] / "configs" / "demo.toml"]
    for place in places:
        if place.is_file():
            return place.resolve()
    raise UsageError(f"there is no {places[0]} → run the demo in a checkout of radnode, or name a configuration with --config")


def _install_weights(config: "Config", model: str) -> None:
    from node.inference.weights import install_weights
    from node.modelstore import find_card

    install_weights(find_card(config.node.models_dir, model), config.node.models_dir / model, progress=say)


def _models(arguments: argparse.Namespace, config: "Config") -> tuple[str, ...]:
    """Answers the one that is asked for, or the study's; for a study of the user's own those of all routes."""
    from node.demo_data import STUDIES

    if arguments.model is not None:
        return (arguments.model,)
    if arguments.study in STUDIES:
        return (STUDIES[arguments.study].model,)
    return tuple(dict.fromkeys(route.model for route in config.routes))


def _study(arguments: argparse.Namespace) -> list[Path]:
    from node.cli.local_study import dicom_files
    from node.demo_data import STUDIES, fetch_study

    if arguments.study not in STUDIES:
        folder = Path(arguments.study)
        return _not_empty(dicom_files(folder), folder)
    say(f"demo: {STUDIES[arguments.study].title}")
    line = ProgressLine()
    try:
        folder = fetch_study(arguments.study, arguments.cache, line)
    finally:
        line.close()
    return _not_empty(dicom_files(folder), folder)


def _not_empty(files: list[Path], folder: Path) -> list[Path]:
    if not files:
        raise UsageError(f"{folder} holds no files → name a folder with the images of a study")
    return files


def _fresh_run(runs: Path) -> Path:
    """Answers a new folder for this run; the oldest runs make room."""
    runs.mkdir(parents=True, exist_ok=True)
    for old in sorted(runs.iterdir())[: -(KEPT_RUNS - 1) or None]:
        shutil.rmtree(old, ignore_errors=True)
    work = runs / time.strftime("%Y%m%d-%H%M%S")
    work.mkdir(exist_ok=True)
    return work.resolve()


def _print(results: "Results", watch: Stopwatch, *, total_s: float) -> None:
    print(f"outcome: {results.job.outcome}" + (f" ({results.job.reason})" if results.job.reason else ""))
    print()
    print_table(("RESULT", "FILE"), list(results.paths.items()), empty="")
    print()
    print_stages({**watch.seconds, **results.stages})
    print()
    print(f"from the last image sent to SEG and SR in the archive: {total_s:.1f} s")
