"""What radnode and `monai.bundle run` are compared on: bundles of the zoo with weights at random, this project's models with their own."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

MODELS: Final = Path(__file__).resolve().parent.parent / "models"


@dataclass(frozen=True, slots=True)
class Case:
    """A bundle and a volume on the disk."""

    title: str
    bundle: str
    volume: str
    """A pickled Volume."""
    nifti: str
    run: Mapping[str, Any]
    """What `monai.bundle run` is told."""
    written: str
    """Where MONAI writes its labels."""
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class Scale:
    """How large the cases are."""

    slices: int = 120
    rows: int = 256
    window: int = 96
    rounds: int = 3
    memory_slices: int = 600
    memory_rows: int = 512
    memory_classes: int = 105
    titles: tuple[str, ...] = ()
    """The cases to run, by words of their titles; all, where none is named."""
    device: str = "cpu"

    def wants(self, title: str) -> bool:
        """Answers whether a case is to be run."""
        return not self.titles or any(one.lower() in title.lower() for one in self.titles)


ON_GPU: Final = Scale(slices=300, rows=512, device="cuda")
"""What a GPU is measured with."""

SMALL: Final = Scale(slices=40, rows=64, window=32, rounds=1, memory_slices=60, memory_rows=64, memory_classes=20)
"""To try the program with."""


def cases(folder: Path, scale: Scale) -> Iterator[Case]:
    """Yields what can be run here: bundles of the zoo with weights at random, the models of this project with their own."""
    from tests import realdata
    from tests.bundles import copy_bundle, write_card, write_random_weights

    window = [scale.window] * 3
    changes = {"inferer#roi_size": window}
    for title, name, classes in (
        ("spleen UNet", "spleen_ct_segmentation", 2),
        ("whole body, 105 classes", "wholeBody_ct_segmentation", 105),
    ):
        if not scale.wants(title):
            continue
        volume = synthetic_volume(scale.slices, scale.rows, seed=1)
        bundle = copy_bundle(name, folder, changes)
        write_random_weights(bundle, [volume], crop=scale.window)
        write_card(bundle, {value: f"structure {value}" for value in range(1, classes)})
        run = {"dataloader#num_workers": 0, "separate_folder": False, "output_dir": str(folder / f"{name}-out")}
        yield _case(folder, Source(title, bundle, volume), run, scale.device)
    for title, name, files in (
        ("body organs, CT", "body-ct-organs", lambda: sorted(realdata.chest_ct_dir().rglob("*.dcm"))),
        ("brain extraction, CT", "brain-extraction", lambda: sorted(realdata.head_ct_debian_dir().rglob("*.dcm"))),
        ("brain structures, T1", "brain-structures-t1", realdata.adi_t1_files),
        ("brain volumes, T1", "brain-volumes-t1", realdata.adi_t1_files),
    ):
        if scale.wants(title):
            yield from _own_case(folder, title, MODELS / name, files, scale.device)


def _own_case(folder: Path, title: str, bundle: Path, files: Callable[[], Sequence[Path]], device: str) -> Iterator[Case]:
    """Yields a model of this project on real images, where its weights and they are at hand."""
    from _pytest.outcomes import Skipped

    from node.errors import NodeError
    from node.inference.series_reader import read_series
    from node.inference.weights import require_weights
    from node.modelstore import load_card

    try:
        require_weights(load_card(bundle), bundle)
        volume = read_series(files())
    except (NodeError, Skipped) as error:
        print(f"{title:26}skipped: {error}")
        return
    run = {"output_dir": str(folder / f"{bundle.name}-out")}
    yield _case(folder, Source(title, bundle, volume), run, device)


@dataclass(frozen=True, slots=True)
class Source:
    """A bundle and a volume."""

    title: str
    bundle: Path
    volume: Any


def _case(folder: Path, source: Source, run: dict[str, Any], device: str) -> Case:
    import pickle

    import nibabel

    bundle, volume = source.bundle, source.volume
    home = folder / f"{bundle.name}-in"
    home.mkdir(parents=True, exist_ok=True)
    kept, nifti = home / "volume.pickle", home / "image0.nii"
    kept.write_bytes(pickle.dumps(volume))
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.geometry.patient_from_voxel[:, [2, 1, 0, 3]]
    nibabel.save(nibabel.Nifti1Image(volume.voxels.transpose(2, 1, 0), affine), nifti)  # type: ignore[no-untyped-call]
    configuration = json.loads((bundle / "configs" / "inference.json").read_text())
    data = {"dataset#data": [{"image": str(nifti)}]} if "dataset" in configuration else {"datalist": [str(nifti)]}
    arguments = {
        "config_file": str(bundle / "configs" / "inference.json"),
        "meta_file": str(bundle / "configs" / "metadata.json"),
        "bundle_root": str(bundle),
        "device": f"$torch.device('{device}')",
        **data,
        **run,
    }
    postfix = configuration.get("output_postfix", "trans")
    written = Path(run["output_dir"]) / (f"image0_{postfix}.nii.gz" if "separate_folder" in run else f"image0/image0_{postfix}.nii.gz")
    return Case(source.title, str(bundle), str(kept), str(nifti), arguments, str(written), device)


def synthetic_volume(slices: int, rows: int, *, seed: int, spacing_mm: tuple[float, float, float] = (1.25, 0.8, 0.8)) -> Any:
    """Answers a CT of a body-like ellipse with smooth texture."""
    from node.domain.volume import Plane, SourceGrid, Volume, VolumeGeometry

    generator = np.random.default_rng(seed)
    coarse = generator.normal(size=(slices // 8 + 2, rows // 8 + 2, rows // 8 + 2)).astype(np.float32)
    voxels = np.repeat(np.repeat(np.repeat(coarse, 8, 0)[:slices], 8, 1)[:, :rows], 8, 2)[:, :, :rows]
    y, x = np.mgrid[-1 : 1 : rows * 1j, -1 : 1 : rows * 1j]
    voxels = np.where((x / 0.9) ** 2 + (y / 0.65) ** 2 < 1, np.float32(40) + 60 * voxels, np.float32(-1000)).astype(np.float32)
    planes = tuple(Plane("1.2", f"1.{n}", (-200.0, -180.0, n * spacing_mm[0])) for n in range(slices))
    source = SourceGrid(rows, rows, spacing_mm[1], spacing_mm[2], (1.0, 0.0, 0.0, 0.0, 1.0, 0.0), planes, "1.9")
    matrix = np.eye(4)
    matrix[:3, :3] = np.array([[0, 0, spacing_mm[2]], [0, spacing_mm[1], 0], [spacing_mm[0], 0, 0]])
    matrix[:3, 3] = planes[0].image_position_patient
    return Volume(voxels, VolumeGeometry(source.shape, matrix), source, "CT")
