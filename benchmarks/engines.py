"""What networks run on: every engine of this machine on two networks of the Model Zoo with weights at random, side by side.

The networks are those of spleen_ct_segmentation (UNet, 2 classes) and wholeBody_ct_segmentation (SegResNet, 105 classes), windows of
96x96x96. Weights at random have near-ties everywhere, so half precision fails the gate here: figures of speed, not of agreement.
"""

import json
import os
import platform
import time
from pathlib import Path

import torch
from monai.networks.nets import SegResNet, UNet

from node.inference.engines.build import Trial, bench_engines
from node.inference.engines.candidates import environment_of
from node.inference.engines.onnx_export import Window
from node.inference.engines.task import AUTO, NetworkTask, Place

RESULTS = Path(__file__).parent / "results"
PATCH = (96, 96, 96)


def networks() -> dict[str, torch.nn.Module]:
    """Answers the networks by name."""
    torch.manual_seed(0)
    return {
        "spleen UNet": UNet(3, 1, 2, (16, 32, 64, 128, 256), (2, 2, 2, 2), num_res_units=2, norm="batch").eval(),
        "whole body SegResNet-105": SegResNet(
            spatial_dims=3,
            init_filters=32,
            in_channels=1,
            out_channels=105,
            blocks_down=(1, 2, 2, 4),
            blocks_up=(1, 1, 1),
            dropout_prob=0.2,
        ).eval(),
    }


def measure(*, device: str = "cpu", rounds: int = 3, only: str = "") -> None:
    """Measures, prints a table a network and keeps the figures in benchmarks/results/."""
    place = Place(device)
    report = {
        "made_at": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "environment": environment_of(place),
        "rounds": rounds,
        "window": [1, *PATCH],
        "load_before": round(os.getloadavg()[0], 1),
        "networks": {},
    }
    for name, network in networks().items():
        if only not in name:
            continue
        task = NetworkTask("benchmark", Path(), Window(1, PATCH))
        results = bench_engines(Trial(network, task, place, AUTO), rounds=rounds, progress=print)
        report["networks"][name] = results
        print(f"\n{name}, window {'x'.join(map(str, PATCH))}, median of {rounds} interleaved rounds, load {os.getloadavg()[0]:.1f}")
        print(f"{'engine':44}{'ms/window':>11}{'cpu ms':>9}{'rel L2':>10}{'labels':>9}")
        for one in results:
            if one["window_ms"]:
                print(f"{one['engine']:44}{one['window_ms']:11.0f}{one['cpu_ms']:9.0f}{one['relative_l2']:10.1e}{one['agreement']:9.5f}")
            else:
                print(f"{one['engine']:44}{one['why_not']}")
    report["load_after"] = round(os.getloadavg()[0], 1)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"engines-{device.replace(':', '-')}.json").write_text(json.dumps(report, indent=1) + "\n")
