"""One run of a detector: boxes with scores, in the patient. The bundle's own detector decides; its boxes are read here."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data.box_utils import clip_boxes_to_image
from numpy.typing import NDArray

from node.domain.findings import Detection, Findings, Point
from node.domain.modelcard import ModelCard
from node.domain.result import Provenance
from node.domain.volume import Volume
from node.errors import BundleInvalid, DeviceOutOfMemory, EngineError, NonFiniteOutput
from node.inference.classify import prepare
from node.inference.configuration import importable, network_key, open_configuration
from node.inference.preprocess import RAS_FROM_LPS
from node.inference.recipe import DETECTION, Recipe, guarded, read_recipe

DETECTOR: Final = "detector"
"""Where the bundles of the Model Zoo keep what turns the network's answer into boxes."""

LoadWeights = Callable[[torch.nn.Module], None]


class Detector:
    """A loaded detector, warm."""

    def __init__(self, card: ModelCard, recipe: Recipe, parts: tuple[Any, Any, torch.nn.Module], device: torch.device) -> None:
        """Use `load_detector`. `parts`: the detector, the bundle's inferer or None, the network."""
        self.card = card
        self.recipe = recipe
        self._detector, self._inferer, self._network = parts
        self._device = device

    @property
    def provenance(self) -> Provenance:
        """What made the boxes."""
        return Provenance(
            engine=f"torch {torch.__version__.partition('+')[0]} {self._device} fp32",
            weights_sha256=tuple(weights.sha256 for weights in self.card.weights),
            device_uid=self.card.device_uid,
        )

    def predict(self, images: Sequence[Volume], progress: Callable[[float], None] = lambda _: None) -> Findings:
        """Answers the boxes whose class the card names and whose score reaches its `min_score`, the best first."""
        progress(0.0)
        began = time.perf_counter()
        prepared = prepare(images, self.recipe)
        ready = time.perf_counter()
        found = self._run(prepared.as_tensor().float().to(self._device))
        patient_from_index = RAS_FROM_LPS @ np.asarray(prepared.affine, dtype=np.float64)
        detections = self._read(found, prepared.shape[1:], patient_from_index)
        stages = {"preprocess": ready - began, "network": time.perf_counter() - ready}
        progress(1.0)
        return Findings(detections=detections, stages=stages)

    def warm_up(self) -> None:
        """Does nothing: what a detector is fed has no fixed size."""

    def close(self) -> None:
        """Drops the network."""
        self._detector = self._inferer = self._network = None  # type: ignore[assignment]

    def _run(self, image: torch.Tensor) -> Mapping[str, torch.Tensor]:
        try:
            with torch.inference_mode():
                if self._inferer is not None:
                    answer = self._inferer([image], self._network)
                else:
                    answer = self._detector([image], use_inferer=getattr(self._detector, "inferer", None) is not None)
        except torch.OutOfMemoryError as error:
            raise DeviceOutOfMemory(f"{self._device} has too little memory for an image of shape {tuple(image.shape)}") from error
        except RuntimeError as error:
            raise EngineError(f"the detector failed on an image of shape {tuple(image.shape)} ({type(error).__name__})") from error
        found: Mapping[str, torch.Tensor] = answer[0]
        return found

    def _read(
        self, found: Mapping[str, torch.Tensor], shape: Sequence[int], patient_from_index: NDArray[np.float64]
    ) -> tuple[Detection, ...]:
        detector = self._detector
        clipped, keep = clip_boxes_to_image(found[detector.target_box_key].cpu(), list(shape), remove_empty=True)
        boxes = torch.as_tensor(clipped)
        scores = found[detector.pred_score_key].cpu()[keep].float()
        labels = found[detector.target_label_key].cpu()[keep]
        if not bool(torch.isfinite(scores).all() and torch.isfinite(boxes).all()):
            raise NonFiniteOutput("the detector answered NaN or infinity")
        definition_of = {definition.class_index: definition for definition in self.card.detections}
        detections = []
        for box, score, label in zip(boxes.double().tolist(), scores.tolist(), labels.tolist(), strict=True):
            definition = definition_of.get(int(label))
            if definition is not None and score >= definition.min_score:
                centre, half_axes = _in_patient(np.array(box[:3]), np.array(box[3:]), patient_from_index)
                detections.append(Detection(definition, min(max(score, 0.0), 1.0), centre, half_axes))
        return tuple(sorted(detections, key=lambda one: (-one.score, one.centre_mm)))


def load_detector(folder: Path, card: ModelCard, load_weights: LoadWeights, *, device: str) -> Detector:
    """Loads a detection bundle: its network with weights, its detector around it, set up by its `detector_ops`.

    Raises
    ------
    BundleInvalid
        When the bundle has no detector, or a part that is not understood.
    """
    recipe = read_recipe(folder, task=DETECTION)
    where = torch.device(device)

    def build() -> tuple[Any, Any, torch.nn.Module]:
        parser = open_configuration(folder)
        key = network_key(parser)
        if key is None or DETECTOR not in parser:
            raise BundleInvalid(f"{folder.name} names no network_def and {DETECTOR}: radnode knows detectors of MONAI's kind")
        network: torch.nn.Module = parser.get_parsed_content(key)
        load_weights(network)
        detector, inferer = _set_up(parser)
        if not all(hasattr(detector, name) for name in ("target_box_key", "target_label_key", "pred_score_key")):
            raise BundleInvalid(f"the {DETECTOR} of {folder.name} does not say under which keys it answers boxes, labels and scores")
        detector.to(where).eval()
        return detector, inferer, network

    with importable(folder):
        return Detector(card, recipe, guarded(folder, build), where)


def _set_up(parser: ConfigParser) -> tuple[Any, Any]:
    detector = parser.get_parsed_content(DETECTOR)
    if "detector_ops" in parser:
        parser.get_parsed_content("detector_ops")
    inferer = parser.get_parsed_content("inferer") if parser.get("inferer") else None
    return detector, inferer if hasattr(inferer, DETECTOR) else None


def _in_patient(
    low: NDArray[np.float64], high: NDArray[np.float64], patient_from_index: NDArray[np.float64]
) -> tuple[Point, tuple[Point, Point, Point]]:
    """Answers centre and half axes of a box of indices; its corners are taken as points, as MONAI does (AffineBox)."""
    centre = patient_from_index @ np.array([*((low + high) / 2), 1.0])
    axes = (patient_from_index[:3, :3] * ((high - low) / 2)).T
    return _point(centre), (_point(axes[0]), _point(axes[1]), _point(axes[2]))


def _point(values: NDArray[np.float64]) -> Point:
    return (float(values[0]), float(values[1]), float(values[2]))
