"""Trains the network of body-ct-organs on two subjects with strong augmentation; a slab of each is never seen.

    python train.py --volumes volumes.npz --output DIR [--steps 1300] [--start net.pt]

Fixed seed; on the CPU in bfloat16. DIR gets log.csv (validation on the held-out slabs), last.pt and net.safetensors (float16).
"""

import argparse
import copy
import csv
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from monai.inferers import SlidingWindowInferer
from monai.losses import DiceCELoss
from monai.networks.nets import UNet
from safetensors.torch import save_file
from torch.nn import functional

CLASS_COUNT = 10
SPACING_MM = 3.0
PATCH = (80, 80, 48)
LOWEST_HU, HIGHEST_HU = -1000.0, 500.0

# Held out, in millimetres from the lowest slice of each subject: (from, to); the gap on both sides is not seen either.
HELD_OUT_MM = {"chest": (110.0, 146.0), "abdomen": (0.0, 24.0)}
GAP_MM = 6.0

# What shares a contrast phase, by TotalSegmentator's numbers, and where its mean goes (HU): from no contrast to arterial.
PHASES = (
    ((51, *range(52, 69)), (30.0, 350.0)),
    ((5,), (35.0, 130.0)),
    ((1,), (35.0, 150.0)),
    ((2, 3), (25.0, 220.0)),
    ((*range(25, 51), *range(69, 79), *range(91, 117)), (150.0, 450.0)),
)


def make_network(norm: str = "batch") -> UNet:
    """Answers the network; the same words stand in configs/inference.json.

    Its first stages are trained with instance norm, the last with batch norm whose statistics are fixed: what the network says of a
    voxel then does not change with how much air or lung is in the window.
    """
    return UNet(
        spatial_dims=3, in_channels=1, out_channels=CLASS_COUNT, channels=(32, 48, 80, 112), strides=(2, 2, 2), num_res_units=2,
        norm=norm, act="LEAKYRELU",
    )  # fmt: skip


def fix_statistics(network: UNet, patches: list[torch.Tensor]) -> None:
    """Gives batch norms the mean statistics that instance norms had on some patches."""
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm3d)]
    for module in norms:
        module.momentum = None  # the mean over all batches
    network.train()
    with torch.no_grad():
        for patch in patches:
            network(patch)
    network.eval()


@dataclass(frozen=True)
class Part:
    """A run of slices that training sees."""

    image: torch.Tensor  # (1, 1, x, y, z), HU
    structures: torch.Tensor  # the same shape, TotalSegmentator's numbers
    labels: torch.Tensor
    spacing_mm: float
    places: list[torch.Tensor]  # for each class that is there, voxels of it
    weight: float


def make_part(volumes: dict[str, np.ndarray], name: str, spacing_mm: float, slices: slice, weight: float) -> Part:
    """Cuts a part out of a volume."""
    image, structures, labels = (torch.from_numpy(volumes[f"{name}_{kind}"][:, :, slices]) for kind in ("image", "structures", "labels"))
    places = [torch.nonzero(labels == number) for number in range(1, CLASS_COUNT)]
    chosen = [place[torch.randperm(len(place))[:20000]] for place in places if len(place) > 50]
    return Part(image.float()[None, None], structures.float()[None, None], labels.float()[None, None], spacing_mm, chosen, weight)


def make_parts(volumes: dict[str, np.ndarray]) -> list[Part]:
    """Answers all that training sees."""
    low, high = HELD_OUT_MM["chest"]
    top = HELD_OUT_MM["abdomen"][1]
    chest_mm = 1.5
    return [
        make_part(volumes, "chest", chest_mm, slice(0, math.floor((low - GAP_MM) / chest_mm)), 0.3),
        make_part(volumes, "chest", chest_mm, slice(math.ceil((high + GAP_MM) / chest_mm), None), 0.4),
        make_part(volumes, "abdomen", SPACING_MM, slice(math.ceil((top + GAP_MM) / SPACING_MM), None), 0.3),
    ]


# ── augmentation ────────────────────────────────────────────────────────────


def uniform(low: float, high: float) -> float:
    """Answers a number between two."""
    return float(torch.empty(()).uniform_(low, high))


def chance(probability: float) -> bool:
    """Answers true as often as told."""
    return uniform(0, 1) < probability


def rotation(axis: int, angle: float) -> torch.Tensor:
    """Answers the rotation about one axis."""
    first, second = [one for one in range(3) if one != axis]
    matrix = torch.eye(3)
    matrix[first, first] = matrix[second, second] = math.cos(angle)
    matrix[first, second], matrix[second, first] = -math.sin(angle), math.sin(angle)
    return matrix


def random_grid(part: Part) -> torch.Tensor:
    """Answers where in the part each voxel of a patch is taken from, in grid_sample's coordinates."""
    place = part.places[int(torch.randint(len(part.places), ()))]
    centre_mm = place[int(torch.randint(len(place), ()))].float() * part.spacing_mm
    centre_mm = centre_mm + torch.tensor([uniform(-60, 60), uniform(-60, 60), uniform(-50, 50)])
    degree = math.pi / 180
    turn = rotation(2, uniform(-20, 20) * degree) @ rotation(1, uniform(-10, 10) * degree) @ rotation(0, uniform(-10, 10) * degree)
    matrix = turn * (uniform(0.8, 1.25) * torch.tensor([uniform(0.92, 1.08) for _ in range(3)]))
    axes = [(torch.arange(size) - (size - 1) / 2) * SPACING_MM for size in PATCH]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1) @ matrix.T + centre_mm
    if chance(0.6):
        coarse = torch.randn(1, 3, 6, 6, 4) * uniform(2, 10)
        bent = functional.interpolate(coarse, size=PATCH, mode="trilinear", align_corners=True)
        grid = grid + bent[0].permute(1, 2, 3, 0)
    size = torch.tensor(part.image.shape[2:]).float()
    return (2 * (grid / part.spacing_mm) / (size - 1) - 1).flip(-1)[None]


def smooth(image: torch.Tensor, sigmas: list[float]) -> torch.Tensor:
    """Answers the image blurred along each axis."""
    for axis, sigma in enumerate(sigmas):
        if sigma < 0.3:
            continue
        offsets = torch.arange(-3, 4).float()
        kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
        shape, padding = [1, 1, 1, 1, 1], [0, 0, 0]
        shape[axis + 2], padding[axis] = 7, 3
        image = functional.conv3d(image, (kernel / kernel.sum()).reshape(shape), padding=padding)
    return image


def change_phase(image: torch.Tensor, structures: torch.Tensor) -> torch.Tensor:
    """Answers the image as if more or less contrast medium were in vessels and organs."""
    shift = torch.zeros_like(image)
    for members, (low, high) in PHASES:
        inside = torch.isin(structures, torch.tensor(members, dtype=structures.dtype))
        if chance(0.7) and bool(inside.any()):
            mean = image[inside].mean()
            shift[inside] = uniform(low, high) - mean + (image[inside] - mean) * (uniform(0.3, 1.0) - 1)
    return image + functional.avg_pool3d(shift, 3, 1, 1)


def random_patch(part: Part) -> tuple[torch.Tensor, torch.Tensor]:
    """Answers a patch, scaled to 0..1, and its labels."""
    grid = random_grid(part)
    image = functional.grid_sample(part.image - LOWEST_HU, grid, mode="bilinear", align_corners=True) + LOWEST_HU
    labels = functional.grid_sample(part.labels, grid, mode="nearest", align_corners=True)
    if chance(0.6):
        image = change_phase(image, functional.grid_sample(part.structures, grid, mode="nearest", align_corners=True))
    if chance(0.35):
        image = smooth(image - LOWEST_HU, [uniform(0.2, 0.9), uniform(0.2, 0.9), uniform(0.2, 1.3)]) + LOWEST_HU
    if chance(0.7):
        image = image + torch.randn_like(image) * uniform(0, 45)
    image = image * uniform(0.95, 1.05) + uniform(-15, 15)
    scaled = ((image - LOWEST_HU) / (HIGHEST_HU - LOWEST_HU)).clamp(0, 1)
    if chance(0.3):
        scaled = scaled ** uniform(0.8, 1.25)
    return scaled, labels


# ── validation ──────────────────────────────────────────────────────────────


def dice_of(prediction: torch.Tensor, truth: torch.Tensor) -> list[float]:
    """Answers Dice for each class but the background; nan where the truth has none of it."""
    values = []
    for number in range(1, CLASS_COUNT):
        found, true = prediction == number, truth == number
        both = float(found.sum() + true.sum())
        values.append(2 * float((found & true).sum()) / both if bool(true.any()) else math.nan)
    return values


def held_out_dice(network: torch.nn.Module, volumes: dict[str, np.ndarray]) -> dict[str, list[float]]:
    """Answers Dice on the slabs that training never saw; the network reads the whole volume, as it is used."""
    inferer = SlidingWindowInferer(roi_size=(96, 96, 96), sw_batch_size=2, overlap=0.25, mode="gaussian")
    answer = {}
    for subject, name in (("chest", "chest3"), ("abdomen", "abdomen")):
        image = torch.from_numpy(volumes[f"{name}_image"]).float()[None, None]
        scaled = ((image - LOWEST_HU) / (HIGHEST_HU - LOWEST_HU)).clamp(0, 1)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            labels = inferer(scaled, network)[0].float().argmax(0)
        low, high = (round(edge / SPACING_MM) for edge in HELD_OUT_MM[subject])
        truth = torch.from_numpy(volumes[f"{name}_labels"])
        answer[subject] = dice_of(labels[..., low:high], truth[..., low:high])
    return answer


# ── training ────────────────────────────────────────────────────────────────


def export(network: torch.nn.Module, path: Path) -> None:
    """Writes the weights as float16."""
    save_file({key: value.half().contiguous() for key, value in network.state_dict().items()}, path)


def main() -> None:
    """Trains."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volumes", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--start", type=Path)
    parser.add_argument("--norm", choices=("instance", "batch"), default="batch")
    parser.add_argument("--steps", type=int, default=1300)
    parser.add_argument("--stop", type=int, help="end after so many steps of the schedule")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--every", type=int, default=100)
    parser.add_argument("--seed", type=int, default=20261)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    arguments.output.mkdir(parents=True, exist_ok=True)
    volumes = dict(np.load(arguments.volumes))
    parts = make_parts(volumes)
    weights = torch.tensor([part.weight for part in parts])
    network = make_network(arguments.norm).to(memory_format=torch.channels_last_3d)
    if arguments.start is not None:
        found = network.load_state_dict(torch.load(arguments.start, weights_only=True), strict=False)
        if found.missing_keys:
            fix_statistics(network, [random_patch(parts[int(torch.multinomial(weights, 1))])[0] for _ in range(48)])
    if arguments.norm == "batch":
        network.eval()  # statistics stay as they are, all else learns
    average = copy.deepcopy(network).eval()
    optimiser = torch.optim.AdamW(network.parameters(), lr=arguments.rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, arguments.rate, total_steps=arguments.steps, pct_start=0.08)
    loss_of = DiceCELoss(to_onehot_y=True, softmax=True, batch=True, include_background=False)
    started, sums = time.monotonic(), []
    with (arguments.output / "log.csv").open("w", newline="", encoding="utf-8") as stream:
        log = csv.writer(stream)
        log.writerow(["step", "seconds", "loss", *(f"{subject}_{number}" for subject in HELD_OUT_MM for number in range(1, CLASS_COUNT))])
        for step in range(1, (arguments.stop or arguments.steps) + 1):
            patches = [random_patch(parts[int(torch.multinomial(weights, 1))]) for _ in range(arguments.batch)]
            images, labels = (torch.cat(tensors) for tensors in zip(*patches, strict=True))
            with torch.autocast("cpu", torch.bfloat16):
                output = network(images.contiguous(memory_format=torch.channels_last_3d))
            loss = loss_of(output.float(), labels)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 2.0)
            optimiser.step()
            schedule.step()
            sums.append(float(loss.detach()))
            keep = min(0.995, step / (step + 20))
            with torch.no_grad():
                for old, new in zip(average.parameters(), network.parameters(), strict=True):
                    old.lerp_(new, 1 - keep)
            if step % arguments.every == 0 or step == arguments.steps:
                found = held_out_dice(average, volumes)
                row = [step, round(time.monotonic() - started), round(float(np.mean(sums)), 4)]
                log.writerow(row + [round(value, 4) for values in found.values() for value in values])
                stream.flush()
                print(row, {name: [round(value, 3) for value in values] for name, values in found.items()}, flush=True)
                sums.clear()
                torch.save(network.state_dict(), arguments.output / "last.pt")
                export(average, arguments.output / "net.safetensors")


if __name__ == "__main__":
    main()
