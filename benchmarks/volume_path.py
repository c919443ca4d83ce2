"""One study through one bundle: radnode beside `python -m monai.bundle run`, the same weights and the same volume, on the CPU or a GPU.

Each run is a process of its own, so that its peak of memory is its own; they take turns. radnode begins with the volume in memory (its
series reader has made it), MONAI with the same volume as NIfTI; both end with labels on the grid of the source. Imports and loading the
weights are told apart. Where there is no network worth its time, a convolution of one voxel stands for it: peak memory alone.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, cast

import numpy as np

from benchmarks.volume_cases import Case, Scale, cases, synthetic_volume

RESULTS: Final = Path(__file__).resolve().parent / "results" / "volume_path.json"
SIDES: Final = ("radnode", "radnode auto", "monai")
"""`auto`: on the fastest engine that has passed the gate, as a node runs; it is built and compared before, which is not counted."""
BUDGET: Final = 3.0
"""../shared/DESIGN.md: how many times faster than MONAI the whole path has to be."""


def measure(folder: Path, scale: Scale, results: Path | None = RESULTS) -> None:
    """Prints a table for every case, and keeps the figures as JSON: those of earlier runs stay where a case is not run again."""
    folder.mkdir(parents=True, exist_ok=True)
    print(f"\nfrom volume to labels on the source grid, {scale.device}, medians of {scale.rounds} rounds that take turns")
    print(f"{'case':26}{'side':14}{'wall s':>8}{'CPU s':>8}{'peak MiB':>10}  work s: preprocess, network, stitch, restore")
    for case in cases(folder, scale):
        runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
        built = _in_process(["build", _written(case, folder)])
        for _ in range(scale.rounds):
            for side in SIDES:
                runs[side].append(_in_process([side, _written(case, folder)]))
        told = _told(case, runs) | {"auto": built["engine"], "scale": asdict(scale), "machine": _machine(scale.device)}
        _keep(results, f"{case.title}, {scale.device}", told)
    for order in ("whole body", "spleen"):
        if scale.device == "cpu" and scale.wants(f"memory {order}"):
            _keep(results, f"memory {order}", _measure_memory(order, scale))


def _measure_memory(order: str, scale: Scale) -> dict[str, Any]:
    found = _in_process(["memory", order, str(scale.memory_slices), str(scale.memory_rows), str(scale.memory_classes)])
    print(
        f"{scale.memory_classes} classes, {order:12} {scale.memory_rows}x{scale.memory_rows}x{scale.memory_slices}, network's grid "
        f"{'x'.join(map(str, found['grid']))}: peak {found['peak_mib'] / 1024:.2f} GiB; "
        f"MONAI's scores alone: {found['scores_gib']:.1f} GiB; CPU {found['cpu_s']:.0f} s"
    )
    return found


def _keep(results: Path | None, name: str, told: Mapping[str, Any]) -> None:
    if results is None:
        return
    results.parent.mkdir(parents=True, exist_ok=True)
    kept = json.loads(results.read_text()) if results.is_file() else {}
    results.write_text(json.dumps({**kept, name: told}, indent=2) + "\n")


def _told(case: Case, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for side, of_side in runs.items():
        stages = {name: statistics.median(run["stages"][name] for run in of_side) for name in of_side[0]["stages"]}
        told[side] = {
            key: statistics.median(run[key] for run in of_side)
            for key in ("wall_s", "cpu_s", "peak_mib", "work_s", "work_cpu_s", "gpu_peak_mib")
            if key in of_side[0]
        } | {"stages": stages}
        parts = ", ".join(f"{name} {seconds:.2f}" for name, seconds in stages.items())
        print(
            f"{case.title:26}{side:14}{told[side]['wall_s']:8.2f}{told[side]['cpu_s']:8.2f}{told[side]['peak_mib']:10.0f}"
            f"  {told[side]['work_s']:.2f}: {parts}"
        )
    for side in SIDES[:-1]:
        ratios = {key: told["monai"][key] / max(told[side][key], 1e-9) for key in ("wall_s", "cpu_s", "peak_mib", "work_s", "work_cpu_s")}
        dice = _dice(_labels_of(case, side), case)
        told[side] |= {"ratios": ratios, "dice": dice, "engine": _engine_of(runs[side])}
        print(
            f"{'':26}{side}, {_engine_of(runs[side])}: x MONAI in wall {ratios['wall_s']:.1f}, CPU {ratios['cpu_s']:.1f}, memory "
            f"{ratios['peak_mib']:.1f}; without imports and loading wall {ratios['work_s']:.1f}, CPU {ratios['work_cpu_s']:.1f} "
            f"(budget {BUDGET:.0f}); least Dice {min(dice.values(), default=1):.4f}"
        )
    return told


def _engine_of(runs: Sequence[Mapping[str, Any]]) -> str:
    """Answers on what the last run ran, with what it did otherwise than planned."""
    return "; ".join((runs[-1]["engine"], *runs[-1]["notes"]))


def _labels_of(case: Case, side: str) -> Path:
    return Path(case.volume).with_suffix(f".{side.replace(' ', '-')}.npy")


def _dice(ours: Path, case: Case) -> dict[int, float]:
    """Answers the Dice of every label that either side has, on the planes of the scanner: where one is missing, the volume has one more."""
    import pickle

    import nibabel

    mine = np.load(ours)
    reference = np.asarray(nibabel.load(case.written).dataobj).astype(np.int64).transpose()  # type: ignore[attr-defined]
    if reference.ndim == 4:  # one channel a structure
        reference = sum((channel > 0) * (number + 1) for number, channel in enumerate(reference))
    volume = pickle.loads(Path(case.volume).read_bytes())  # noqa: S301 - written by this program
    index_from_patient = np.linalg.inv(volume.geometry.patient_from_voxel)
    reference = reference[[round((index_from_patient @ [*plane.image_position_patient, 1.0])[0]) for plane in volume.source.planes]]
    sizes = [np.bincount(labels.reshape(-1), minlength=256) for labels in (mine, reference)]
    both = np.bincount(mine[mine == reference], minlength=256)
    return {
        int(label): float(2 * both[label] / (sizes[0][label] + sizes[1][label]))
        for label in range(1, 256)
        if sizes[0][label] + sizes[1][label]
    }


# ── one run a process ───────────────────────────────────────────────────────


def _in_process(arguments: Sequence[str]) -> dict[str, Any]:
    """Runs one side; answers what it told, with the cost of its whole process."""
    print(" ".join(arguments[:2]), file=sys.stderr)
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "benchmarks.volume_path", *arguments], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    words = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(arguments)} ended with {process.returncode}")
    told: dict[str, Any] = json.loads(words.splitlines()[-1])
    told |= {
        "wall_s": time.perf_counter() - began,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_mib": usage.ru_maxrss / 1024,
    }
    return told


def run_radnode(case: Case, side: str) -> dict[str, Any]:
    """Answers what our path took, model loaded and volume in memory; keeps the labels beside the volume."""
    import pickle

    volume = pickle.loads(Path(case.volume).read_bytes())  # noqa: S301 - written by this program
    bundle = _load(case, side)
    began, cpu = time.perf_counter(), time.process_time()
    findings = bundle.predict([volume])
    cost = {"work_s": time.perf_counter() - began, "work_cpu_s": time.process_time() - cpu}
    assert findings.label_map is not None
    np.save(_labels_of(case, side), findings.label_map.labels)
    return {
        **cost,
        **_gpu_peak(case.device),
        "stages": dict(findings.stages),
        "engine": bundle.provenance.engine,
        "notes": list(findings.provenance_notes),
    }


def _load(case: Case, side: str) -> Any:
    from node.inference.bundle import load_bundle
    from node.inference.engines.select import Build, EngineWish
    from node.modelstore import load_card

    build = {"radnode auto": Build.NEVER, "build": Build.NOW}
    wish = EngineWish("auto", Path(case.volume).parent / "engines", build[side]) if side in build else EngineWish()
    return load_bundle(Path(case.bundle), load_card(Path(case.bundle)), device=case.device, engines=wish)


def _gpu_peak(device: str) -> dict[str, float]:
    """Answers how much of a GPU's memory torch took at most; what TensorRT and ONNX Runtime take is not among it."""
    import torch

    return {} if device == "cpu" else {"gpu_peak_mib": torch.cuda.max_memory_allocated() / 2**20}


def run_monai(case: Case) -> dict[str, Any]:
    """Answers what `monai.bundle run` took: from the first transform to the labels on the disk."""
    import monai.bundle
    from monai.inferers import Inferer
    from monai.transforms import Compose, Invertd, SaveImaged

    marks: list[tuple[str, float, float]] = []

    def timed(owner: Any, name: str) -> None:
        plain = owner.__call__

        def call(self: Any, *arguments: Any, **options: Any) -> Any:
            began, cpu = time.perf_counter(), time.process_time()
            try:
                return plain(self, *arguments, **options)
            finally:
                marks.append((name, time.perf_counter() - began, time.process_time() - cpu))

        owner.__call__ = call

    timed(Compose, "compose")
    timed(Invertd, "restore")
    timed(SaveImaged, "save")
    for kind in {of for of in _subclasses(Inferer) if "__call__" in vars(of)}:
        timed(kind, "network")
    monai.bundle.run(**dict(case.run))
    network = [mark for mark in marks if mark[0] == "network"]
    composed = [mark for mark in marks if mark[0] == "compose"]
    of = {name: sum(mark[1] for mark in marks if mark[0] == name) for name in ("restore", "save")}
    network_s = max(mark[1] for mark in network)
    stages = {"preprocess": composed[0][1], "network": network_s, "restore": sum(mark[1] for mark in composed[1:]) - of["save"]}
    cpu_s = sum(mark[2] for mark in composed) + max(mark[2] for mark in network) - sum(mark[2] for mark in marks if mark[0] == "save")
    return {"work_s": sum(stages.values()), "work_cpu_s": cpu_s, **_gpu_peak(case.device), "stages": stages}


def _subclasses(kind: Any) -> Iterator[Any]:
    for child in kind.__subclasses__():
        yield child
        yield from _subclasses(child)


def run_memory(order: str, slices: int, rows: int, classes: int) -> dict[str, Any]:
    """Answers the network's grid, and how much MONAI's scores would take there; the peak is the process's own."""
    import torch
    from monai.inferers import SlidingWindowInferer
    from monai.transforms import Compose, NormalizeIntensityd, Orientationd, ScaleIntensityd, ScaleIntensityRanged, Spacingd

    from node.inference.recipe import Recipe
    from node.inference.segment import segment
    from node.inference.tail import ScoreStep, Tail

    turned = Orientationd("image", axcodes="RAS", labels=(("L", "R"), ("P", "A"), ("I", "S")))
    scaled: list[Any]
    if order == "whole body":
        spacing, scaled = (1.5, 1.5, 1.5), [NormalizeIntensityd("image", nonzero=True), ScaleIntensityd("image", minv=-1.0, maxv=1.0)]
        inferer = SlidingWindowInferer((96, 96, 96), overlap=0.25, padding_mode="replicate", mode="gaussian")
        tail = Tail(decides_first=True)
    else:
        spacing, scaled = (1.5, 1.5, 2.0), [ScaleIntensityRanged("image", a_min=-57, a_max=164, b_min=0, b_max=1, clip=True)]
        inferer = SlidingWindowInferer((96, 96, 96), sw_batch_size=4, overlap=0.5)
        tail = Tail(scores_first=(ScoreStep("softmax", lambda scores: torch.softmax(scores, dim=0)),))
    preprocessing = Compose([turned, Spacingd("image", pixdim=spacing, mode="bilinear"), *scaled])
    recipe = Recipe(preprocessing, cast("Any", inferer), tail, torch.nn.Identity, loads_torchscript=False)
    volume = synthetic_volume(slices, rows, seed=1, spacing_mm=(1.0, 0.8, 0.8))
    network = _OneVoxel(classes)
    findings = segment([volume], recipe, network)
    assert findings.label_map is not None
    assert len(np.unique(findings.label_map.labels)) > classes // 4, "too few classes to be worth a measurement"
    grid = [
        round((size - 1) * from_mm / to_mm) + 1 for size, from_mm, to_mm in zip((rows, rows, slices), (0.8, 0.8, 1.0), spacing, strict=True)
    ]
    return {"grid": grid, "scores_gib": 4 * classes * np.prod(grid) / 2**30, "stages": dict(findings.stages)}


class _OneVoxel:
    """A network that costs next to nothing: every class is a parabola of the image, so that each wins somewhere."""

    preferred_batch = 1

    def __init__(self, classes: int) -> None:
        import torch

        self._centres = torch.linspace(-1, 1.2, classes)[:, None, None, None]

    def infer(self, batch: Any) -> Any:
        return (batch * (2 * self._centres)).sub_(self._centres**2)

    def describe(self) -> str:
        return "one voxel"

    def close(self) -> None:
        """Holds nothing."""


def _written(case: Case, folder: Path) -> str:
    path = folder / "case.json"
    path.write_text(json.dumps(asdict(case)))
    return str(path)


def _machine(device: str) -> dict[str, Any]:
    import monai
    import torch

    gpu = {} if device == "cpu" else {"gpu": torch.cuda.get_device_name(device)}
    load = round(os.getloadavg()[0], 1)
    return {"cores": os.cpu_count(), "torch": torch.__version__, "monai": monai.__version__, "load": load} | gpu


def _main(arguments: Sequence[str]) -> dict[str, Any]:
    if arguments[0] == "memory":
        return run_memory(arguments[1], *(int(number) for number in arguments[2:]))
    case = Case(**json.loads(Path(arguments[1]).read_text()))
    if arguments[0] == "build":
        return {"engine": _load(case, "build").provenance.engine}
    return run_monai(case) if arguments[0] == "monai" else run_radnode(case, arguments[0])


if __name__ == "__main__":
    print(json.dumps(_main(sys.argv[1:])))
