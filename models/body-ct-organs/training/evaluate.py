"""Measures the bundle's weights (Dice per class) on what training never saw.

    python evaluate.py --volumes volumes.npz [--weights ../models/net.safetensors]

Three tables: the held-out slab of the chest CT, the held-out slab of the abdominal CT, and a third subject of which training saw
nothing (4 cm of an upper abdomen). In float32; windows, overlap and argmax as in configs/inference.json, the largest component kept.
"""

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from monai.inferers import SlidingWindowInferer
from monai.transforms import KeepLargestConnectedComponent
from prepare import CLASSES
from safetensors.torch import load_file
from train import CLASS_COUNT, HELD_OUT_MM, HIGHEST_HU, LOWEST_HU, SPACING_MM, dice_of, make_network

ONE_PIECE = [1, 2, 3, 5, 6, 7, 8]


def segment(network: torch.nn.Module, image: np.ndarray) -> torch.Tensor:
    """Answers the labels of a volume on the 3 mm grid."""
    inferer = SlidingWindowInferer(roi_size=(96, 96, 96), sw_batch_size=2, overlap=0.25, mode="gaussian")
    scaled = ((torch.from_numpy(image).float()[None, None] - LOWEST_HU) / (HIGHEST_HU - LOWEST_HU)).clamp(0, 1)
    with torch.inference_mode():
        labels = inferer(scaled, network).argmax(1)
    return torch.as_tensor(KeepLargestConnectedComponent(applied_labels=ONE_PIECE, independent=True)(labels.clone()))[0]


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volumes", type=Path, required=True)
    parser.add_argument("--weights", type=Path, default=Path(__file__).resolve().parents[1] / "models" / "net.safetensors")
    arguments = parser.parse_args()
    volumes = np.load(arguments.volumes)
    network = make_network()
    network.load_state_dict(load_file(arguments.weights))
    network.eval()
    rows = {}
    for title, name, limits in (
        ("chest CT, held-out slab", "chest3", HELD_OUT_MM["chest"]),
        ("abdominal CT, held-out slab", "abdomen", HELD_OUT_MM["abdomen"]),
        ("third subject, unseen", "third", (0.0, math.inf)),
        ("chest CT, whole (mostly seen)", "chest3", (0.0, math.inf)),
    ):
        labels = segment(network, volumes[f"{name}_image"])
        truth = torch.from_numpy(volumes[f"{name}_labels"])
        first, last = (labels.shape[2] if math.isinf(edge) else round(edge / SPACING_MM) for edge in limits)
        rows[title] = dice_of(labels[..., first:last], truth[..., first:last])
        litres = torch.bincount(labels.flatten().long(), minlength=CLASS_COUNT) * SPACING_MM**3 / 1000
        print(title, "| cm3 found:", [round(float(value)) for value in litres[1:]])
    print("| |", " | ".join(CLASSES[1:]), "|")
    for title, values in rows.items():
        print(f"| {title} |", " | ".join("" if math.isnan(value) else f"{value:.2f}" for value in values), "|")


if __name__ == "__main__":
    main()
