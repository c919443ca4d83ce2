"""Where the seconds of a run go: the stages of `radnode run` on real studies, where their weights and images are at hand."""

import resource
import time
from collections.abc import Callable
from pathlib import Path

from node.errors import NodeError
from node.inference.bundle import load_bundle
from node.modelstore import load_card
from node.pipeline import context_for, run_offline

MODELS = Path(__file__).resolve().parent.parent / "models"


def measure(folder: Path) -> None:
    """Prints a table: study, model, seconds per stage, peak memory."""
    from tests import realdata

    cases: tuple[tuple[str, str, Callable[[], list[Path]]], ...] = (
        ("head CT, Debian", "brain-extraction", lambda: sorted(realdata.head_ct_debian_dir().rglob("*.dcm"))),
        ("head CT, GE, tilted", "brain-extraction", lambda: sorted(p for p in realdata.ge_head_ct_dir().rglob("*") if p.is_file())),
    )
    print(f"\n{'study':24}{'model':20}{'total s':>9}{'CPU s':>9}  stages")
    for title, model, files in cases:
        try:
            _run_one(title, model, files(), folder / title.replace(" ", "-"))
        except NodeError as error:
            print(f"{title:24}{model:20}skipped: {error}")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


def _run_one(title: str, name: str, files: list[Path], output: Path) -> None:
    model = load_bundle(MODELS / name, load_card(MODELS / name))
    context = context_for("bench", run=0, encoded_at_s=0.0, ae_title="BENCH", device_serial_number="bench")
    started, cpu = time.perf_counter(), time.process_time()
    done = run_offline(files, model, context, output, lambda *_: None)
    total_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu
    stages = "  ".join(f"{stage} {seconds:.2f}" for stage, seconds in done.stages.items())
    print(f"{title:24}{name:20}{total_s:9.2f}{cpu_s:9.2f}  {stages}")
