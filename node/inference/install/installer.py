"""Installs a model of others: looked through, trusted by a person, converted, described by a draft of a card, put into place in one step."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, Final

from node.domain.card_draft import Draft, draft_card
from node.domain.card_writer import write_card
from node.domain.modelcard import ModelCard, WeightsFile
from node.errors import BundleInvalid, UsageError
from node.files import write_durably
from node.inference.configuration_files import OVERRIDES
from node.inference.install.contents import Contents, inference_configuration, inspect, read_configuration
from node.inference.install.convert import Converted, Part, convert, convert_by_bundle, rewrite
from node.inference.install.loaders import member_files, own_loader
from node.inference.install.nnunet_folder import MIRRORING, NOT_MIRRORED, is_trained_folder, write_bundle
from node.inference.install.source import copy_file, files_below, opened
from node.inference.install.standard_terms import find_in_standard
from node.inference.install.trial import require_loadable
from node.inference.install.zoo import PREFIX, fetched
from node.inference.manifest import Installed, digest_files, sha256_of, write_installed

WEIGHTS: Final = "models/model.safetensors"
TORCHSCRIPT: Final = "models/model.ts"

HEAD: Final = """A draft, written by radnode from what the author of the model says. Before it serves a route, a person looks at every line:
what the model is for, which series it takes, what its labels mean. Then: radnode model confirm {name}
What each key means: models/CARD.md"""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user said."""

    name: str = ""
    """'' takes the name of the folder or zip."""
    weights: str = ""
    """Which file of weights, where there are several."""
    orientation: str = ""
    """nnU-Net: how its training images lay."""
    folds: tuple[int, ...] = ()
    """nnU-Net: '' takes all."""
    checkpoint: str = "checkpoint_final.pth"
    replace: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of the configuration, as `monai.bundle run --KEY VALUE` sets them."""


@dataclass(frozen=True, slots=True)
class Installation:
    """What was installed."""

    card: ModelCard
    folder: Path
    contents: Contents
    notes: tuple[str, ...]
    """What a person has to look at."""


@dataclass(slots=True)
class _Work:
    """A model on its way: where it comes from, where it goes."""

    root: Path
    staging: Path
    name: str
    wishes: Wishes
    names: Sequence[PurePosixPath]
    notes: list[str] = field(default_factory=list)
    converted: dict[str, str] = field(default_factory=dict)


Trust = Callable[[Contents, str], str]
"""Asked once, with what the bundle holds and its name: answers how trust was given, or raises."""
Progress = Callable[[str], None]


def install(reference: str, models_dir: Path, wishes: Wishes, trust: Trust, progress: Progress = lambda _: None) -> Installation:
    """Installs a model from a folder, a zip or `monai:NAME` and answers what a person has to confirm.

    Raises
    ------
    BundleRefused
        When the source is hostile, its weights are more than weights, or nobody trusts it.
    BundleInvalid
        When it is no bundle that radnode can use, or its weights do not fit its network.
    UsageError
        When a model of this name is there.
    """
    with _fetched(reference, progress) as (path, origin), opened(path) as root:
        name = wishes.name or safe_name(origin if root == path or path.is_file() else root.name)
        _require_free(models_dir, name, replace=wishes.replace)
        names = files_below(root)
        contents = inspect(root, names)
        how = trust(contents, name)
        with _staging(models_dir, name) as staging:
            work = _Work(root, staging, name, wishes, names)
            draft = _nnunet(work, progress) if is_trained_folder(root) else _monai(work, progress)
            head = HEAD.format(name=name) + "".join(f"\n- {note}" for note in (*work.notes, *draft.notes))
            write_durably(staging / "card.toml", write_card(draft.card, head=head, remarks=draft.remarks).encode())
            write_installed(
                staging,
                Installed(
                    origin=origin,
                    installed_at=datetime.now(UTC).isoformat(timespec="seconds"),
                    trusted_by=how,
                    contents=contents.counts,
                    files=digest_files(staging),
                    converted=work.converted,
                ),
            )
            progress("loading it for a trial, in a process without network")
            notes = (*work.notes, *draft.notes, *require_loadable(staging, name))
            _put_into_place(staging, models_dir / name)
    return Installation(draft.card, models_dir / name, contents, notes)


def safe_name(text: str) -> str:
    """Answers a name for a folder: `Spleen CT v0.5.9.zip` is spleen_ct."""
    stem = re.sub(r"\.zip$", "", text, flags=re.IGNORECASE)
    stem = re.sub(r"[_-]?v?\d+\.\d+(\.\d+)?$", "", stem)
    name = re.sub(r"[^a-z0-9._-]+", "_", stem.lower()).strip("._-")
    if not name:
        raise UsageError(f"{text!r} gives no name for a model → name it with --name")
    return name[:64]


@contextmanager
def _fetched(reference: str, progress: Progress) -> Iterator[tuple[Path, str]]:
    if reference.startswith(PREFIX):
        progress(f"fetching {reference}")
        with fetched(reference) as found:
            yield found
    else:
        yield Path(reference), Path(reference).resolve().name


def _require_free(models_dir: Path, name: str, *, replace: bool) -> None:
    if re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", name) is None:
        raise UsageError(f"{name!r} cannot name a model → small letters, digits, dot, minus and underscore, at most 64")
    there = models_dir / name
    if there.exists() and not replace:
        raise UsageError(f"there is a model {name} → --replace to replace it, or --name for another name")
    if there.exists() and not (there / "installed.json").is_file():
        raise UsageError(f"{name} did not come by `radnode model install PATH`: it is not replaced → --name for another name")


@contextmanager
def _staging(models_dir: Path, name: str) -> Iterator[Path]:
    """Gives a folder beside the models, under a name that no model has; what is left of it afterwards goes."""
    staging = models_dir / f".installing-{name}-{os.getpid()}"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _put_into_place(staging: Path, target: Path) -> None:
    if target.exists():
        old = staging.with_name(f"{staging.name}-old")
        target.rename(old)
        staging.rename(target)
        shutil.rmtree(old)
    else:
        staging.rename(target)


def _monai(work: _Work, progress: Progress) -> Draft:
    file_name, configuration = inference_configuration(work.root)
    metadata_path = work.root / "configs" / "metadata.json"
    if not metadata_path.is_file():
        raise BundleInvalid("configs/metadata.json is absent: a bundle says there what its inputs and outputs are")
    metadata = read_configuration(metadata_path)
    if not isinstance(metadata, dict):
        raise BundleInvalid("configs/metadata.json holds no table")
    configuration = _with_overrides(work, configuration)
    members = member_files(configuration, _weight_files(work)) if not work.wishes.weights else ()
    main = members or (_main_weights(work, (work.root / "configs" / file_name).read_text(encoding="utf-8", errors="replace")),)
    progress(f"{', '.join(map(str, main))}: converting to safetensors, in a process without network")
    weights = _convert_members(work, members) if members else _convert_main(work, main[0], configuration)
    _copy_rest(work, main)
    told = {"license": _licence(work), **metadata} if not metadata.get("license") else metadata
    return draft_card(work.name, told, configuration, [weights], find_in_standard)


def _main_weights(work: _Work, configuration: str) -> PurePosixPath:
    """The file of weights that the configuration loads: model.pt, or the one that it names."""
    weights = _weight_files(work)
    if work.wishes.weights:
        chosen = [name for name in weights if work.wishes.weights in {str(name), name.name}]
    else:
        chosen = [name for name in weights if str(name) == "models/model.pt"]
        chosen = chosen or [
            name for name in weights if name.parent.name == "models" and name.name in configuration and name.suffix != ".ts"
        ]
        chosen = chosen or [name for name in weights if str(name) in {WEIGHTS, TORCHSCRIPT}] or weights
    if len(chosen) == 1:
        return chosen[0]
    large = [name for name in work.names if name.name.startswith("large_files")]
    if not weights and large:
        raise BundleInvalid(
            f"the weights are not in this folder: {large[0]} says where they are → fetch them, put them there, install again"
        )
    if not weights:
        raise BundleInvalid("there are no weights: models/model.pt is absent → put it there, install again")
    names = ", ".join(str(name) for name in chosen or weights)
    raise UsageError(f"which weights? {names} → name one with --weights")


def _weight_files(work: _Work) -> list[PurePosixPath]:
    return [name for name in work.names if name.suffix in {".pt", ".pth", ".ckpt", ".ts", ".safetensors"}]


def _with_overrides(work: _Work, configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Answers the configuration with what the user has set, and keeps that beside the bundle."""
    if not work.wishes.settings:
        return dict(configuration)
    unknown = [key for key in work.wishes.settings if re.split(r"#|::", key)[0] not in configuration]
    if unknown:
        raise UsageError(f"the configuration has no {unknown[0]} → it has {', '.join(sorted(configuration))}")
    path = work.staging / "configs" / OVERRIDES
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, json.dumps(dict(work.wishes.settings), indent=1).encode())
    work.notes += [f"{key} is set to {value!r}, otherwise than its author has it" for key, value in work.wishes.settings.items()]
    return {**configuration, **{key: value for key, value in work.wishes.settings.items() if key in configuration}}


def _convert_members(work: _Work, members: Sequence[PurePosixPath]) -> WeightsFile:
    """The networks of an ensemble, in one file."""
    work.converted |= {str(name): sha256_of(work.root / name) for name in members}
    parts = [Part(work.root / name, f"networks.{index}.") for index, name in enumerate(members)]
    _tell(work, convert(parts, work.staging / WEIGHTS))
    return WeightsFile(WEIGHTS, "safetensors", sha256_of(work.staging / WEIGHTS), f"installed:{', '.join(map(str, members))}")


def _convert_main(work: _Work, main: PurePosixPath, configuration: Mapping[str, Any]) -> WeightsFile:
    source = work.root / main
    work.converted[str(main)] = sha256_of(source)
    network = configuration.get("network_def", configuration.get("network"))
    if main.suffix == ".ts" and not isinstance(network, Mapping):
        copy_file(source, work.staging / TORCHSCRIPT)
        work.notes.append("the network is TorchScript and the bundle does not say how to build it: it runs as it is, by torch alone")
        return WeightsFile(TORCHSCRIPT, "torchscript", sha256_of(work.staging / TORCHSCRIPT), f"installed:{main}")
    by = own_loader(configuration, main)
    done = convert_by_bundle(work.root, by, source, work.staging / WEIGHTS) if by else convert([Part(source)], work.staging / WEIGHTS)
    _tell(work, done)
    return WeightsFile(WEIGHTS, "safetensors", sha256_of(work.staging / WEIGHTS), f"installed:{main}")


def _tell(work: _Work, done: Converted) -> None:
    work.notes += done.notes
    if not done.is_isolated:
        work.notes.append("this system gives no process without network: the weights were read with limits on memory and time alone")


def _copy_rest(work: _Work, main: Sequence[PurePosixPath]) -> None:
    """Copies what is no pickle; a pickle that the configuration loads by itself (DiNTS: search_code.pt) is written anew."""
    told = "\n".join(
        (work.root / name).read_text(encoding="utf-8", errors="replace") for name in work.names if name.parent.name == "configs"
    )
    for name in work.names:
        if name in main or str(name) in {WEIGHTS, "card.toml", "installed.json", f"configs/{OVERRIDES}"}:
            continue
        if name.suffix in {".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".bin"}:
            if name.name in told and "torch.load" in told and name.suffix in {".pt", ".pth"}:
                rewrite(work.root / name, work.staging / name)
                work.converted[str(name)] = sha256_of(work.root / name)
            else:
                work.notes.append(f"{name} is a pickle that inference does not need: left out")
        elif name.suffix in {".ts", ".onnx", ".plan", ".engine", ".trt"}:
            work.notes.append(f"{name} is left out: engines are built here, from the weights")
        else:
            copy_file(work.root / name, work.staging / name)


def _licence(work: _Work) -> str:
    """The name of the licence whose text lies beside the bundle."""
    for name in work.names:
        if len(name.parts) <= 2 and name.stem.upper() in {"LICENSE", "LICENCE", "COPYING"}:
            text = re.sub(r"\s+", " ", (work.root / name).read_text(encoding="utf-8", errors="replace")[:4000])
            for pattern, licence in (("Apache License,? Version 2", "Apache-2.0"), ("MIT License", "MIT"), ("BSD 3", "BSD-3-Clause")):
                if re.search(pattern, text, re.IGNORECASE):
                    return licence
            return f"see {name}"
    return ""


def _nnunet(work: _Work, progress: Progress) -> Draft:
    bundle = write_bundle(
        work.root, work.staging, folds=work.wishes.folds, checkpoint=work.wishes.checkpoint, orientation=work.wishes.orientation
    )
    progress(f"{len(bundle.checkpoints)} folds: converting to safetensors, in a process without network")
    parts = [Part(path, f"folds.{index}.") for index, path in enumerate(bundle.checkpoints)]
    done = convert(parts, work.staging / WEIGHTS, keep=(MIRRORING,))
    _tell(work, done)
    work.notes += bundle.notes if done.kept.get(MIRRORING, True) in (None, [], ()) else (*bundle.notes, NOT_MIRRORED)
    work.converted |= {path.relative_to(work.root).as_posix(): sha256_of(path) for path in bundle.checkpoints}
    weights = WeightsFile(WEIGHTS, "safetensors", sha256_of(work.staging / WEIGHTS), f"installed:{len(bundle.checkpoints)} folds")
    metadata = {"license": _licence(work), **bundle.metadata, "version": version_of(work)}
    return draft_card(work.name, metadata, bundle.configuration, [weights], find_in_standard)


def version_of(work: _Work) -> str:
    """Answers a version for a model that states none: the beginning of its weights' digest."""
    return f"0+{hashlib.sha256(sha256_of(work.staging / WEIGHTS).encode()).hexdigest()[:8]}"
