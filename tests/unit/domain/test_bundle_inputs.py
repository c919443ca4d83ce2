"""What a bundle loads and what it switches off is read from the text of its configuration."""

from typing import Any

import pytest

from node.domain.bundle_inputs import channel_keys, switched_steps
from node.domain.card_draft import draft_card


def load(keys: Any) -> dict[str, Any]:
    return {"_target_": "monai.transforms.LoadImaged", "keys": keys}


@pytest.mark.parametrize(
    ("steps", "more", "names"),
    [
        ([load("image")], {}, ()),
        ([load(["image", "label"])], {}, ()),
        ([load(["t2", "t2_mask"])], {}, ()),
        ([load(["artery", "vein", "label"])], {}, ("artery", "vein")),
        ([load("t2"), load("adc"), load("t2")], {}, ("t2", "adc")),
        ([load("@phases")], {"phases": ["artery", "vein"]}, ("artery", "vein")),
        ([load("@image_key")], {"image_key": "image"}, ()),
    ],
)
def test_images_that_are_loaded_apart_are_told_in_their_order(steps: list[Any], more: dict[str, Any], names: tuple[str, ...]) -> None:
    assert channel_keys({"preprocessing": {"_target_": "Compose", "transforms": steps}, **more}) == names


def test_a_step_that_a_setting_switches_is_told_with_that_setting() -> None:
    spacing = {"_target_": "Spacingd", "keys": "image", "pixdim": [1, 1, 1], "_disabled_": "@is_resampled"}
    reading = {**load("image"), "_disabled_": "@is_raw"}
    configuration = {
        "is_raw": False,
        "is_resampled": "$(not @is_raw)",
        "preprocessing": {"_target_": "Compose", "transforms": [reading, spacing, {"_target_": "EnsureTyped", "_disabled_": True}]},
    }
    assert switched_steps(configuration) == (("Spacingd", "is_raw"),)
    (told,) = (note for note in draft_card("some", {}, configuration, []).notes if "Spacingd" in note)
    assert "--set is_raw=VALUE" in told
