"""A bundle's own pre- and postprocessing, run on a volume in memory as MONAI's evaluators run them.

This is for bundles that do something radnode does not do itself: transforms of their own after the network, several images that are put
together by a transform, votes of several networks, an interpolation that only MONAI undoes equally. The network runs on the same engine.
What is held is what MONAI holds: the scores of all classes on the whole grid.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor, decollate_batch
from monai.data.utils import list_data_collate
from monai.transforms import Compose, MapTransform, Resized, Spacingd
from monai.transforms.utils import reset_ops_id

from node.domain.bundle_inputs import IMAGE
from node.domain.findings import Findings
from node.domain.volume import LabelMap, Volume
from node.errors import BundleInvalid, DeviceOutOfMemory, NodeError
from node.inference.configuration import Component, is_dictionary_form
from node.inference.engines import Engine
from node.inference.label_steps import from_dense
from node.inference.preprocess import RAS_FROM_LPS, Prepared, as_meta_tensor
from node.inference.restore import WayBack
from node.inference.tail import ChannelSets, Decided, Decision, Tail, decide, label_values

PREDICTION: Final = "pred"

Transform = Callable[[dict[str, Any]], dict[str, Any]]
Run = Callable[[torch.Tensor], torch.Tensor]
Inferer = Callable[[torch.Tensor, Run], Any]

_LINEAR: Final = frozenset({"bilinear", "trilinear", "linear"})
_LABELS_FROM: Final = frozenset({"AsDiscrete", "VoteEnsemble", "Lambda", "MapLabelValue", "LabelFilter"})
"""Transforms of MONAI that may make labels of scores; a bundle's own transform may as well."""


@dataclass(frozen=True, slots=True)
class AsMonai:
    """What of a bundle MONAI does, and why."""

    reason: str
    preprocessing: Transform
    postprocessing: Transform
    image_key: str = IMAGE
    """What the network sees."""
    channel_keys: tuple[str, ...] = ()
    """Names of the images that the bundle loads apart, in the order of the card's channels; nothing where it is one image."""
    prediction_keys: tuple[str, ...] = (PREDICTION,)
    """Of the network's answers: several where several networks answer."""
    prediction: str = PREDICTION
    """What the postprocessing ends with."""
    inverts: bool = False
    """The postprocessing brings the answer back to the image's grid."""
    decision: Decision | None = None
    """Where nothing of the postprocessing decides."""


def why_not_ours(preprocessing: Transform, tail: Tail, *, inverts: bool) -> str:
    """Answers what keeps radnode from bringing a result back itself, '' where nothing does."""
    flat = preprocessing.flatten().transforms if inverts and isinstance(preprocessing, Compose) else []  # type: ignore[no-untyped-call]
    for transform in flat:
        if not isinstance(transform, (Resized, Spacingd)):
            continue
        modes = {str(getattr(mode, "value", mode)) for mode in transform.mode}
        if isinstance(transform, Resized) and (tail.decides_first or not modes <= _LINEAR):
            return f"{type(transform).__name__} with mode {', '.join(sorted(modes))} is undone by MONAI"
        if isinstance(transform, Spacingd) and not tail.decides_first and not modes <= _LINEAR:
            return f"{type(transform).__name__} with mode {', '.join(sorted(modes))} is undone by MONAI"
    return ""


def build_postprocessing(parser: ConfigParser, items: Sequence[Component], keys: Sequence[str]) -> Compose:
    """Answers the postprocessing as MONAI builds it, without what writes files.

    Raises BundleInvalid for what works on nothing that there is: `keys` are the names of the network's answers.
    """
    known = {IMAGE, *keys}
    built: list[Any] = []
    for item in items:
        if "Save" in item.name or "Write" in item.name:
            continue
        transform = item.build(parser)
        of = getattr(transform, "keys", None)
        names = [of] if isinstance(of, str) else [str(key) for key in of or ()]
        is_monais = type(transform).__module__.startswith("monai.")
        if is_monais and of is None and not is_dictionary_form(item.told):
            raise BundleInvalid(f"postprocessing holds {item.told}, which takes no dictionary → its dictionary form, {item.told}d")
        if is_monais and names and not known & set(names):
            raise BundleInvalid(
                f"postprocessing holds {item.told}: it works on {', '.join(names)}, and there is {', '.join(sorted(known))} → its keys"
            )
        output = getattr(transform, "output_key", None)
        known |= {*names, *([str(output)] if output else [])}
        built.append(transform)
    return Compose(built)


def decides(items: Sequence[Component], transforms: Sequence[Any]) -> bool:
    """Answers whether something of a postprocessing may make labels of scores."""
    return any(item.name in _LABELS_FROM for item in items) or any(
        not type(transform).__module__.startswith("monai.transforms") for transform in transforms
    )


def usual_decision(transforms: Sequence[Any]) -> Decision:
    """Answers how scores become labels where a postprocessing leaves that open."""
    sigmoid = any(any(getattr(transform, "sigmoid", ())) for transform in transforms)
    return Decision(threshold=0.5 if sigmoid else None)


def prediction_of(parser: ConfigParser, items: Sequence[Component], answers: Sequence[str]) -> str:
    """Answers under which name a postprocessing leaves its result: what it writes, else `pred`, else what an ensemble makes."""
    made = [*answers]
    for item in items:
        raw = parser[item.id] if item.value is None else {}
        if "Save" in item.name and isinstance(raw, dict) and "keys" in raw:
            keys = parser.get_parsed_content(f"{item.id}::keys")
            return keys if isinstance(keys, str) else str(keys[0])
        if isinstance(raw, dict) and "output_key" in raw:
            made.append(str(parser.get_parsed_content(f"{item.id}::output_key")))
    return PREDICTION if PREDICTION in made else made[-1]


def segment_as_monai(
    images: Sequence[Volume], own: AsMonai, inferer: Inferer, engine: Engine, progress: Callable[[float], None]
) -> Findings:
    """Answers what the network outlines on the grid of the first of `images`.

    Raises BundleInvalid where the bundle's own code fails, or answers no labels.
    """
    began = time.perf_counter()
    seconds = 0.0

    def run(batch: torch.Tensor) -> torch.Tensor:
        nonlocal seconds
        started = time.perf_counter()
        plain = batch.as_tensor() if isinstance(batch, MetaTensor) else batch
        output = engine.infer(plain)
        seconds += time.perf_counter() - started
        return _like(output, batch)

    with _blamed():
        data = own.preprocessing(_as_loaded(images, own))
        batch = list_data_collate([data])
        ready = time.perf_counter()
        answer = inferer(batch[own.image_key], run)
        progress(0.8)
        answers = _answers(answer, own)
        item = {**decollate_batch(batch)[0], **decollate_batch({own.image_key: batch[own.image_key], **answers})[0]}
        ended = time.perf_counter()
        done = own.postprocessing(reset_ops_id(item))[own.prediction]  # type: ignore[no-untyped-call]
    decided, affine = _read(done, images[0], own)
    _require_labels(decided, channels=answer.shape[1])
    way = WayBack(Prepared(torch.empty(1).expand(1, *decided.values.shape), affine), images[0].source)
    labels, members = label_values(replace(decided, values=way.bring_labels(decided.values)))
    finished = time.perf_counter()
    progress(1.0)
    stages = {"preprocess": ready - began, "network": seconds, "stitch": max(0.0, ended - ready - seconds), "restore": finished - ended}
    return Findings(
        LabelMap(labels, images[0].source, members),
        stages=stages,
        provenance_notes=(f"before and after the network MONAI's own transforms did the work: {own.reason}",),
    )


def _like(output: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
    """Answers an output with the metadata of what the network saw, as every module of torch leaves it."""
    if not isinstance(batch, MetaTensor):
        return output
    like: torch.Tensor = MetaTensor(output).copy_meta_from(batch, copy_attr=False)  # type: ignore[no-untyped-call]
    return like


def _as_loaded(images: Sequence[Volume], own: AsMonai) -> dict[str, Any]:
    """Answers what MONAI's loaders would answer: an image a name, with its metadata beside it."""
    if not own.channel_keys:
        named = {own.image_key: as_meta_tensor(images)}
    elif len(own.channel_keys) == len(images):
        named = {key: as_meta_tensor([image]) for key, image in zip(own.channel_keys, images, strict=True)}
    else:
        raise BundleInvalid(
            f"the bundle loads {', '.join(own.channel_keys)}, {len(images)} images came → an [[inputs]] for each in card.toml"
        )
    return {**named, **{f"{key}_meta_dict": dict(image.meta) for key, image in named.items()}}


def _answers(answer: Any, own: AsMonai) -> dict[str, torch.Tensor]:
    if not isinstance(answer, torch.Tensor):
        raise BundleInvalid(f"the inferer answers a {type(answer).__name__} and no tensor → one that answers the scores of all channels")
    if len(own.prediction_keys) == 1:
        return {own.prediction_keys[0]: answer}
    return dict(zip(own.prediction_keys, answer.chunk(len(own.prediction_keys), dim=1), strict=True))


def _read(done: Any, image: Volume, own: AsMonai) -> tuple[Decided, Any]:
    """Answers the labels of what a postprocessing ends with, and where its voxels lie: LPS millimetres of (i, j, k, 1)."""
    values = done.as_tensor() if isinstance(done, MetaTensor) else torch.as_tensor(done)
    if values.ndim == 3:
        values = values[None]
    if values.ndim != 4:
        raise BundleInvalid(f"the postprocessing ends with an array of shape {tuple(values.shape)}: radnode reads (channels, i, j, k)")
    values = values.detach().cpu()
    grid = image.geometry.patient_from_voxel[:, [2, 1, 0, 3]]
    is_on_image = own.inverts and tuple(values.shape[1:]) == tuple(reversed(image.voxels.shape))
    affine = grid if is_on_image or not isinstance(done, MetaTensor) else RAS_FROM_LPS @ np.asarray(done.affine, dtype=np.float64)
    if not is_on_image and not isinstance(done, MetaTensor) and tuple(values.shape[1:]) != tuple(reversed(image.voxels.shape)):
        raise BundleInvalid("the postprocessing ends with an array that does not say where it lies and is not as large as the image")
    return _decided(values, own), affine


def _decided(values: torch.Tensor, own: AsMonai) -> Decided:
    if own.decision is not None:
        return decide(values.float(), own.decision, ChannelSets())
    if len(values) > 1 and bool(((values == 0) | (values == 1)).all() and (values.sum(dim=0) == 1).all()):
        return decide(values.float(), Decision(), ChannelSets())  # a class a voxel, in the form of channels
    return from_dense(values, "its postprocessing")


@contextmanager
def _blamed() -> Iterator[None]:
    """Whatever a bundle's own transforms raise is the bundle's fault, but for want of memory."""
    try:
        yield
    except (NodeError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        # The bundle's own code can raise anything; whatever it was, the cause is chained.
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ is not None else error
        if "allocate memory" in str(cause):
            raise DeviceOutOfMemory("too little memory for the scores of all classes at once, which MONAI's own transforms hold") from error
        told = f"the bundle's own transforms fail on this study: {type(cause).__name__}: {cause}"
        raise BundleInvalid(f"{told} → where `python -m monai.bundle run` fails on it too, only its author can mend that") from error


def _require_labels(decided: Decided, *, channels: int) -> None:
    """Refuses the image that some bundles end with (a brain without its skull): small integers would pass for labels."""
    values = int(np.count_nonzero(np.bincount(decided.values.reshape(-1))))
    if not decided.members and values > 2 * channels + 2:
        raise BundleInvalid(
            f"the postprocessing answers {values} different values, and the network has {channels} channels: that is an image and no labels "
            "→ radnode reports structures; a bundle that answers images runs by `python -m monai.bundle run`"
        )


def settle(transforms: Sequence[Any]) -> Compose:
    """Answers a preprocessing that does not ask for labels, which are not there."""
    for transform in transforms:
        if isinstance(transform, MapTransform) and len(getattr(transform, "keys", ())) > 1:
            transform.allow_missing_keys = True
    return Compose(list(transforms))
