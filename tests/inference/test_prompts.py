"""A network that is asked for structures (VISTA3D) is asked for those of its card; labels are those of the bundle's own inferer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms.utils import reset_ops_id
from numpy.typing import NDArray

from node.domain.label_values import prompts
from node.domain.volume import Volume
from node.errors import BundleInvalid
from node.inference.bundle import load_bundle
from node.inference.configuration import importable
from node.inference.engines.onnx_export import network_digest
from node.inference.prompts import prompted
from node.inference.recipe import read_recipe
from node.inference.series_reader import read_series
from node.modelstore import load_card
from tests.factories import make_ct_series
from tests.monai_reference import assert_equal_labels, step, textured, write_bundle, write_model, write_nifti

NETWORK: Final = """
import torch
from monai.networks.nets.vista3d import VISTA3D, ClassMappingClassify, SegResNetDS2

def make():
    torch.manual_seed(3)
    clicks = torch.nn.Module()
    clicks.last_supported = 20
    encoder = SegResNetDS2(in_channels=1, blocks_down=(1, 1), norm="instance", out_channels=8, init_filters=8, dsdepth=1)
    return VISTA3D(image_encoder=encoder, class_head=ClassMappingClassify(n_classes=24, feature_size=8), point_head=clicks)
"""

INFERERS: Final = {
    "a function": """
from monai.inferers import Inferer, sliding_window_inference

class Asking(Inferer):
    def __call__(self, inputs, network, point_coords, point_labels, class_vector, labels=None, label_set=None):
        assert (class_vector <= network.point_head.last_supported).all()
        return sliding_window_inference(
            inputs, [16, 16, 16], 1, network, 0.4, mode="gaussian", transpose=True, class_vector=class_vector, point_coords=point_coords
        )
""",
    "a class": """
from monai.inferers import Inferer, SlidingWindowInfererAdapt

class Asking(Inferer):
    def __call__(self, inputs, network, point_coords, point_labels, class_vector, labels=None, label_set=None):
        lay = SlidingWindowInfererAdapt(roi_size=[16, 32, 16], sw_batch_size=1, with_coord=True, padding_mode="replicate")
        return lay(inputs, network, transpose=True, class_vector=class_vector, point_coords=point_coords)
""",
}

EVERYTHING: Final = (3, 5, 6, 9, 14)


def write_vista(folder: Path, inferer: str) -> Path:
    scaled = step("ScaleIntensityRanged", a_min=-900, a_max=900, b_min=0, b_max=1, clip=True)
    before = [
        step("EnsureTyped", device="@device"), step("Spacingd", pixdim=[2.0, 1.75, 1.75], mode="bilinear"),
        step("CropForegroundd", source_key="image", allow_smaller=True, margin=2),
        step("monai.apps.vista3d.transforms.VistaPreTransformd", subclass={"2": [14, 5]}),
        scaled, step("Orientationd", axcodes="RAS"), step("CastToTyped", dtype="$torch.float32"),
    ]  # fmt: skip
    after = [
        step("monai.apps.vista3d.transforms.VistaPostTransformd", "pred"),
        step("Invertd", "pred", transform="$copy.deepcopy(@preprocessing)", orig_keys="image", nearest_interp=True),
        step("Lambdad", "pred", func="$lambda x: torch.nan_to_num(x, nan=255)"),
    ]
    return write_bundle(
        folder, network={"_target_": "scripts.net.make"}, states={}, scripts={"net.py": NETWORK, "asking.py": inferer},
        preprocessing=before, postprocessing=after, imports=["$import copy"],
        everything_labels=f"$sorted({list(EVERYTHING)})", subclass={"2": [14, 5]}, inferer={"_target_": "scripts.asking.Asking"},
    )  # fmt: skip


def reference(folder: Path, image: Path, asked: Sequence[int]) -> NDArray[np.int64]:
    """Answers the labels of the bundle's own parts, called as its evaluator calls them."""
    with importable(folder), torch.inference_mode():
        parser = ConfigParser()
        parser.read_config(folder / "configs" / "inference.json")
        network = parser.get_parsed_content("network").eval()
        data = parser.get_parsed_content("preprocessing")({"image": str(image)})
        vector = torch.tensor(list(asked))
        inferer = parser.get_parsed_content("inferer")
        scores = inferer(data["image"][None], network, point_coords=None, point_labels=None, class_vector=vector[:, None])
        item: Any = reset_ops_id({"image": data["image"], "pred": scores[0], "label_prompt": vector})  # type: ignore[no-untyped-call]
        for transform in parser.get_parsed_content("postprocessing").transforms[:-1]:
            item = transform(item)
    return np.asarray(item["pred"].as_tensor()[0]).astype(np.int64).transpose()


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Volume, Path]:
    root = tmp_path_factory.mktemp("study")
    made = make_ct_series(root / "s", edit=textured(1), slices=18, rows=34, columns=30, spacing_mm=(3.0, 1.25, 1.5))
    volume = read_series(made.paths)
    return volume, write_nifti(volume, root / "image.nii")


@pytest.mark.parametrize("way", INFERERS)
def test_the_structures_of_the_card_are_asked_for(tmp_path: Path, study: tuple[Volume, Path], way: str) -> None:
    """Windows, their weights and the padding are those of the bundle's own inferer, whatever it calls of MONAI."""
    volume, image = study
    folder = write_vista(tmp_path / "vista", INFERERS[way])
    asked = (3, 6, 14)
    expected = reference(folder, image, asked)
    write_model(folder, read_recipe(folder).make_network().state_dict(), asked)
    findings = load_bundle(folder, load_card(folder)).predict([volume])
    assert findings.label_map is not None
    assert_equal_labels(findings.label_map, expected, asked)
    assert set(np.unique(findings.label_map.labels).tolist()) <= {0, *asked}


def test_an_engine_for_other_structures_is_another_engine() -> None:
    network = torch.nn.Identity()
    digests = {network_digest(prompted(network, asked)) for asked in ((3, 6), (3, 6, 14), (3, 7))}
    assert len(digests) == 3


def test_without_a_card_everything_is_asked_for(tmp_path: Path) -> None:
    assert read_recipe(write_vista(tmp_path / "vista", INFERERS["a class"])).prompts == EVERYTHING


def test_an_inferer_that_lays_no_windows_of_monai_is_refused(tmp_path: Path) -> None:
    own = "class Asking:\n    def __call__(self, inputs, network, **more):\n        return inputs\n"
    with pytest.raises(BundleInvalid, match="Asking does not use MONAI's sliding window"):
        read_recipe(write_vista(tmp_path / "vista", own))


def test_a_label_that_no_label_map_holds_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleInvalid, match="lie between 3 and 300 → 1 to 255"):
        read_recipe(write_vista(tmp_path / "vista", INFERERS["a class"]), wanted=[3, 300])


@pytest.mark.parametrize(
    ("everything", "askable"),
    [
        ([1, 3, 4], {1, 3, 4}),
        ("$list(set([i+1 for i in range(5)]) - set([4, 5]))", {1, 3}),
        ("$[label for label in @all]", {1, 3, 4, 5}),
    ],
)  # fmt: skip
def test_a_draft_asks_for_what_the_bundle_asks_for(everything: Any, askable: set[int]) -> None:
    """Groups of several structures are left out: their members are there."""
    post = {"transforms": [{"_target_": "VistaPostTransformd"}]}
    configuration = {"postprocessing": post, "everything_labels": everything, "subclass": {"2": [1, 3]}}
    assert prompts(range(6), configuration) == askable
    assert prompts(range(6), {"postprocessing": {"transforms": []}}) is None
