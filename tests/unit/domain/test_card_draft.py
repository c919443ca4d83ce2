"""What a bundle says of itself becomes a card that a person can confirm, and that reads back as it was written."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from node.codes import Code
from node.domain.card_draft import Draft, draft_card, task_of
from node.domain.card_reader import parse_card
from node.domain.card_writer import write_card
from node.domain.label_values import label_values
from node.domain.modelcard import (
    AnswerDefinition,
    DetectionDefinition,
    EvaluationDefinition,
    InputRequirement,
    LandmarkDefinition,
    ModelCard,
    Range,
    SegmentDefinition,
    WeightsFile,
)

BUNDLES = Path(__file__).parents[4] / "shared" / "bundles"
WEIGHTS = [WeightsFile("models/model.safetensors", "safetensors", "0" * 64, "installed:models/model.pt")]


def drafted(name: str) -> Draft:
    folder = BUNDLES / name / "configs"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    metadata, configuration = (json.loads((folder / f"{one}.json").read_text()) for one in ("metadata", "inference"))
    draft = draft_card(name.lower(), metadata, configuration, WEIGHTS)
    assert parse_card(tomllib.loads(write_card(draft.card, head="one\ntwo", remarks=draft.remarks))) == draft.card
    return draft


def test_the_spleen_model_is_told_without_a_question() -> None:
    draft = drafted("spleen_ct_segmentation")
    (spleen,) = draft.card.segments
    assert (spleen.label_value, spleen.type.value) == (1, "78961009")
    assert draft.card.inputs == (InputRequirement(("CT",)),)
    assert draft.card.draft
    assert draft.card.title == "DRAFT Spleen CT segmentation"
    assert not draft.notes


def test_the_whole_body_model_has_its_104_structures_all_coded() -> None:
    draft = drafted("wholeBody_ct_segmentation")
    assert [segment.label_value for segment in draft.card.segments] == list(range(1, 105))
    assert {segment.type.scheme for segment in draft.card.segments} == {"SCT"}
    assert not draft.notes
    pairs = {(segment.type.value, segment.laterality) for segment in draft.card.segments}
    assert len(pairs) == 104, "two structures with one code and side could not be told apart"


def test_the_brain_tumour_model_has_four_inputs_and_the_labels_that_its_function_writes() -> None:
    draft = drafted("brats_mri_segmentation")
    assert draft.card.channels == ("T1c", "T1", "T2", "FLAIR")
    assert {segment.label_value: segment.type.meaning for segment in draft.card.segments} == {
        1: "Non-Enhancing Lesion", 2: "Edema", 4: "Enhancing Lesion",
    }  # fmt: skip
    assert {segment.anatomic_region.meaning for segment in draft.card.segments if segment.anatomic_region} == {"Brain"}


def test_the_breast_density_model_answers_a_question_on_each_image() -> None:
    card = drafted("breast_density_classification").card
    assert card.reads == "images"
    assert card.inputs[0].modality == ("MG",)
    (question,) = card.evaluations
    assert question.concept.meaning == "Breast composition"
    assert [answer.code.value for answer in question.answers] == ["129716005", "129717001", "129718006", "129719003"]


def metadata(**changes: Any) -> dict[str, Any]:
    image = {"type": "image", "modality": "CT", "num_channels": 1, "spatial_shape": [96, 96, 96], "channel_def": {"0": "image"}}
    pred = {"type": "image", "format": "segmentation", "num_channels": 2, "spatial_shape": [96, 96, 96], "channel_def": {}}
    return {
        "version": "1",
        "name": "Something",
        "network_data_format": {"inputs": {"image": image | changes.get("image", {})}, "outputs": {"pred": pred | changes.get("pred", {})}},
    }


def test_a_detector_finds_what_its_task_names() -> None:
    told = {**metadata(pred={"type": "object", "format": "dict"}), "task": "CT lung nodule detection"}
    draft = draft_card("nodules", told, {"network_def": {"_target_": "RetinaNet", "num_classes": 1}}, WEIGHTS)
    (nodule,) = draft.card.detections
    assert (nodule.type.meaning, nodule.anatomic_region.meaning if nodule.anatomic_region else "") == ("Nodule", "Lung")
    assert parse_card(tomllib.loads(write_card(draft.card))) == draft.card


def test_points_of_a_landmark_model_get_names_and_a_question_about_their_codes() -> None:
    told = {**metadata(pred={"type": "tuples", "format": "points"}), "coordinate_meanings": {"0": "mitral anterior", "1": "aortic septal"}}
    draft = draft_card("valves", told, {}, WEIGHTS)
    assert [point.label for point in draft.card.landmarks] == ["mitral anterior", "aortic septal"]
    assert len(draft.notes) == 2
    assert "99RADNODE" in draft.notes[0]


def test_what_is_not_said_is_told_as_a_thing_to_do() -> None:
    draft = draft_card("odd", metadata(image={"modality": "thermography", "num_channels": 2}), {}, WEIGHTS)
    assert draft.card.inputs[0].modality == ("OT",)
    assert draft.card.segments[0].type.scheme == "99RADNODE"
    assert len([note for note in draft.notes if "→" in note]) == len(draft.notes) == 4


@pytest.mark.parametrize("stated", ["MR", "MRI", "mri", "Magnetic resonance MRI"])
def test_modalities_are_understood_in_other_words(stated: str) -> None:
    assert draft_card("x", metadata(image={"modality": stated}), {}, WEIGHTS).card.inputs[0].modality == ("MR",)


@pytest.mark.parametrize(
    ("pred", "configuration", "task"),
    [
        ({}, {}, "segmentation"),
        ({"format": "labels", "spatial_shape": [96, 96, 96]}, {}, "segmentation"),
        ({"format": "labels", "spatial_shape": [1, 4]}, {}, "classification"),
        ({"type": "probabilities", "format": "classes"}, {}, "classification"),
        ({}, {"detector": {"_target_": "RetinaNetDetector"}}, "detection"),
        ({"format": "points"}, {}, "landmarks"),
    ],
)
def test_what_a_bundle_is_for_is_read_from_its_outputs(pred: dict[str, Any], configuration: dict[str, Any], task: str) -> None:
    assert task_of(metadata(pred=pred), configuration) == task


def steps(*transforms: dict[str, Any]) -> dict[str, Any]:
    return {"_target_": "Compose", "transforms": list(transforms)}


def test_label_values_follow_the_postprocessing() -> None:
    names = {0: "background", 1: "liver", 2: "spleen"}
    sigmoid, cut = {"_target_": "Activationsd", "sigmoid": True}, {"_target_": "AsDiscreted", "threshold": 0.5}
    argmax = {"_target_": "AsDiscreted", "argmax": True}
    table = {"_target_": "MapLabelValued", "orig_labels": [1, 2], "target_labels": [6, 1]}
    assert label_values(names, steps(argmax)) == names
    assert label_values({0: "liver", 1: "spleen"}, steps(sigmoid, cut)) == {1: "liver", 2: "spleen"}
    assert label_values(names, steps(argmax, table)) == {0: "background", 6: "liver", 1: "spleen"}
    assert label_values(names, "$@something") == names


def test_every_key_of_a_card_survives_writing_and_reading() -> None:
    code = Code("1", "SCT", 'a "quoted" \\ meaning\n\x7f')
    card = ModelCard(
        name="all", version="1", title="DRAFT t", manufacturer="m", intended_use="i", training_data="d", performance="p", licence="l",
        weights=tuple(WEIGHTS),
        inputs=(
            InputRequirement(
                ("CT", "MR"), channel="A", body_part=("HEAD",), orientation=("axial",), slices=Range(1, 2), slice_spacing_mm=Range(max=2.5),
                pixel_spacing_mm=Range(min=0.5), coverage_mm=Range(min=10), contrast="with", words=("T1*",), without_words=("T2",),
                when={"EchoTime": Range(max=12), "BodyPartExamined": ("HEAD",)},
            ),
        ),
        segments=(SegmentDefinition(3, "s", code, code, code, code, (1, 2, 3), ("volume", "diameter")),),
        evaluations=(EvaluationDefinition(code, (AnswerDefinition(0, "yes", code), AnswerDefinition(1, "no", code)), 0.25),),
        detections=(DetectionDefinition(0, "box", code, code, code, code, (4, 5, 6), 0.75),),
        landmarks=(LandmarkDefinition(2, "tip", code, (7, 8, 9), 0.125),),
        reads="images", prefer_words=("A",), avoid_words=("B",), references=("https://example.org",), draft=True,
    )  # fmt: skip
    assert parse_card(tomllib.loads(write_card(card))) == card


def test_a_draft_has_another_digest_than_what_is_confirmed() -> None:
    draft = drafted("spleen_ct_segmentation").card
    text = write_card(draft)
    confirmed = parse_card(tomllib.loads("\n".join(line for line in text.splitlines() if not line.startswith("draft"))))
    assert not confirmed.draft
    assert confirmed.title == "Spleen CT segmentation"
    assert confirmed.digest != draft.digest, "the same UIDs would stand for two different reports"
