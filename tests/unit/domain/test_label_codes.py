"""The project's codes are those of the standard, and a label finds its own."""

import colorsys
import itertools
import math

import pytest
from pydicom.sr.codedict import Collection, codes

from node.codes import Code
from node.domain.label_codes import PLACEHOLDER_SCHEME, distinct_rgb, is_background, organ_in, placeholder, propose, words_of
from node.domain.snomed_labels import (
    ABNORMALITIES,
    ANATOMICAL_STRUCTURE,
    ANATOMY,
    BREAST_COMPOSITION,
    BREAST_DENSITY,
    LEFT,
    MORPHOLOGICALLY_ABNORMAL,
    RIGHT,
    TISSUE,
    TISSUES,
)
from node.inference.install.standard_terms import find_in_standard

ROWS = (*ANATOMY, *TISSUES, *ABNORMALITIES)
TOTALSEGMENTATOR = """
spleen kidney_right kidney_left gallbladder liver stomach aorta inferior_vena_cava portal_vein_and_splenic_vein pancreas
adrenal_gland_right adrenal_gland_left lung_upper_lobe_left lung_lower_lobe_left lung_upper_lobe_right lung_middle_lobe_right
lung_lower_lobe_right vertebrae_L5 vertebrae_T12 vertebrae_C1 esophagus trachea heart_myocardium heart_atrium_left heart_ventricle_left
heart_atrium_right heart_ventricle_right pulmonary_artery brain iliac_artery_left iliac_vena_right small_bowel duodenum colon rib_left_1
rib_right_12 humerus_left scapula_right clavicula_left femur_left hip_right sacrum face gluteus_maximus_left gluteus_medius_right
gluteus_minimus_left autochthon_left iliopsoas_right urinary_bladder
""".split()


def concepts_of(context_groups: range | tuple[int, ...]) -> set[tuple[str, str, str]]:
    found = set()
    for group in context_groups:
        found |= {(one.value, one.scheme_designator, one.meaning) for one in Collection(f"CID{group}").concepts.values()}
    return found


def test_codes_of_context_groups_stand_there_with_their_meaning() -> None:
    standard = concepts_of((4, 7140, 7151, 7152, 7153, 7156, 7159, 7166, 7192))
    ours = {(row.code.value, row.code.scheme, row.code.meaning) for row in ROWS if row.source == "P"}
    assert len(ours) > 100
    assert not ours - standard


def test_other_codes_of_the_standard_stand_in_its_dictionary() -> None:
    ours = {(row.code.value, row.code.meaning) for row in ROWS if row.source == "D"}
    dictionary = {(one.value, one.meaning) for name in codes.SCT.dir() if (one := getattr(codes.SCT, name))}
    assert not ours - dictionary
    assert (BREAST_COMPOSITION.value, BREAST_COMPOSITION.meaning) in dictionary


def test_categories_sides_and_breast_densities_are_those_of_their_context_groups() -> None:
    categories = {(one.value, one.scheme, one.meaning) for one in (ANATOMICAL_STRUCTURE, TISSUE, MORPHOLOGICALLY_ABNORMAL)}
    assert categories <= concepts_of((7150,))
    assert {(one.value, one.scheme, one.meaning) for one in (LEFT, RIGHT)} <= concepts_of((244,))
    assert {(one.value, one.scheme, one.meaning) for one in BREAST_DENSITY.values()} == concepts_of((6000,))


def test_no_name_stands_for_two_codes() -> None:
    meanings: dict[frozenset[str], set[Code]] = {}
    for row in ROWS:
        for name in row.names:
            meanings.setdefault(words_of(name), set()).add(row.code)
    assert not {words for words, found in meanings.items() if len(found) > 1}


@pytest.mark.parametrize("label", TOTALSEGMENTATOR)
def test_every_kind_of_label_of_the_whole_body_model_has_a_code(label: str) -> None:
    assert not propose(label).is_placeholder


@pytest.mark.parametrize(
    ("label", "meaning", "side", "region"),
    [
        ("Left_Kidneys", "Kidney", "Left", None),
        ("kidney (right)", "Kidney", "Right", None),
        ("RightKidney", "Kidney", "Right", None),
        ("heart_atrium_left", "Left atrium", None, None),
        ("left kidney cyst", "Cyst", "Left", "Kidney"),
        ("hepatic tumor", "Neoplasm", None, "Liver"),
        ("lung nodule", "Nodule", None, "Lung"),
        ("Enhancing tumor", "Enhancing Lesion", None, None),
        ("vertebrae_T10", "T10 vertebra", None, None),
        ("rib_left_12", "Twelfth rib", "Left", None),
        ("Right-Inf-Lat-Vent", "Inferior Horn of Lateral Ventricle", "Right", None),
    ],
)
def test_words_side_and_organ_are_told_apart(label: str, meaning: str, side: str | None, region: str | None) -> None:
    found = propose(label)
    assert found.type.meaning == meaning
    assert (found.laterality.meaning if found.laterality else None) == side
    assert (found.anatomic_region.meaning if found.anatomic_region else None) == region


@pytest.mark.parametrize("label", ["prostate or uterus", "vertebrae L6", "parenchyma", "blob"])
def test_what_is_not_known_gets_a_private_code_and_never_a_near_one(label: str) -> None:
    found = propose(label, find_in_standard)
    assert found.is_placeholder
    assert found.type.scheme == PLACEHOLDER_SCHEME
    assert found.type.meaning == label


def test_the_standard_itself_is_asked_where_the_table_has_nothing() -> None:
    assert propose("Left insula").is_placeholder
    found = propose("Left insula", find_in_standard)
    assert (found.type.value, found.type.scheme, found.laterality) == ("36169008", "SCT", LEFT)


def test_placeholders_are_short_and_differ() -> None:
    names = ["posterior cingulate gyrus", "posterior cingulate cortex", "x" * 80, "é", "a b"]
    made = [placeholder(name).value for name in names]
    assert len(set(made)) == len(names)
    assert all(1 <= len(value) <= 16 and value.isascii() for value in made)


def test_a_sentence_names_its_organ() -> None:
    assert organ_in("Multimodal Brain Tumor segmentation") == Code("12738006", "SCT", "Brain")
    assert organ_in("Segmentation of renal structures") == Code("64033007", "SCT", "Kidney")
    assert organ_in("a template") is None


@pytest.mark.parametrize("label", ["background", "Background", "everything_else"])
def test_background_is_no_structure(label: str) -> None:
    assert is_background(label)


def test_colours_without_a_row_differ_in_hue_and_are_neither_dark_nor_grey() -> None:
    shown = [distinct_rgb(index) for index in range(24)]
    for first, second in itertools.pairwise(shown):
        assert math.dist(first, second) > 60
    for rgb in shown:
        _, lightness, saturation = colorsys.rgb_to_hls(*(part / 255 for part in rgb))
        assert 0.3 < lightness < 0.85
        assert saturation > 0.2
