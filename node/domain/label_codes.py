"""A label of a model becomes a proposal of codes: by the project's table, by a context group of the standard, or marked as unknown."""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final

from node.codes import Code
from node.domain.snomed_labels import (
    ABNORMALITIES,
    ANATOMICAL_STRUCTURE,
    ANATOMY,
    LEFT,
    MORPHOLOGICALLY_ABNORMAL,
    RIGHT,
    TISSUE,
    TISSUES,
    KnownStructure,
)

PLACEHOLDER_SCHEME: Final = "99RADNODE"
"""Private (PS3.16 8.2: a designator that begins with 99): a label that nobody has coded yet."""

BACKGROUND_NAMES: Final = frozenset({"background", "bg", "everything else", "none", "unlabeled", "unlabelled", "ignore"})

Words = frozenset[str]
FindInStandard = Callable[[Words], tuple[Code, Code] | None]
"""Answers category and type of the concept with just these words, where the standard has one."""

_FILLERS: Final = frozenset({"the", "of", "a", "an", "and", "or", "structure", "region", "label", "class", "segmentation"})
_SIDES: Final = {"left": LEFT, "lt": LEFT, "l": LEFT, "right": RIGHT, "rt": RIGHT, "r": RIGHT}
_SPELLINGS: Final = {
    "vertebrae": "vertebra", "kideny": "kidney", "kidneis": "kidney", "gluteu": "gluteus", "metastase": "metastasis",
    "hepatic": "liver", "renal": "kidney", "pancreatic": "pancrea", "colonic": "colon", "pulmonary": "lung", "prostatic": "prostate",
    "splenic": "spleen", "cardiac": "heart",
}  # fmt: skip
"""Words that stand for another; adjectives only where the words as they are name nothing."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """What a label is proposed to be coded as."""

    category: Code
    type: Code
    anatomic_region: Code | None = None
    laterality: Code | None = None
    rgb: tuple[int, int, int] | None = None
    source: str = ""
    """Where the codes are from, '' where there are none and a placeholder stands."""

    @property
    def is_placeholder(self) -> bool:
        """Answers whether a person has to find the code."""
        return not self.source


def organ_in(text: str) -> Code | None:
    """Answers the first structure that a sentence names: `Multimodal Brain Tumor segmentation` is of the brain."""
    for word in re.findall(r"[A-Za-z]+", text):
        words = words_of(word)
        known = _known(words) or _known(_respelt(words))
        if known is not None and known.category == ANATOMICAL_STRUCTURE:
            return known.type
    return None


def words_of(label: str) -> Words:
    """Answers the words of a label, in one spelling: `Left_Kidneys` and `kidney (left)` are the same."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", label)
    parts = [part for part in re.split(r"[^a-z0-9]+", apart.lower()) if part and part not in _FILLERS]
    return frozenset(_singular(part) for part in parts)


def is_background(label: str) -> bool:
    """Answers whether a label says that nothing is there."""
    return label.strip().lower().replace("_", " ") in BACKGROUND_NAMES


def propose(label: str, find_in_standard: FindInStandard = lambda _: None) -> Proposal:
    """Answers the codes that a label of a model is proposed to stand for."""
    words = words_of(label)
    sides = [_SIDES[word] for word in sorted(words) if word in _SIDES]
    bare = words - set(_SIDES)
    laterality = sides[0] if len(set(sides)) == 1 else None
    for spelt, spelt_bare in ((words, bare), (_respelt(words), _respelt(bare))):
        whole = _known(spelt)
        if whole is not None:
            return whole
        without_side = _known(spelt_bare)
        if without_side is not None:
            return _with_side(without_side, laterality)
        part = _abnormality_of(spelt_bare, laterality)
        if part is not None:
            return part
        standard = find_in_standard(spelt_bare)
        if standard is not None:
            return Proposal(*standard, laterality=laterality, source="PS3.16, a concept of this name")
    return Proposal(ANATOMICAL_STRUCTURE, placeholder(label), laterality=laterality)


def placeholder(label: str) -> Code:
    """Answers a private code that says that the right one is not known: at most 16 characters (SH), the label as its meaning."""
    kept = re.sub(r"[^A-Z0-9]+", "_", label.upper()).strip("_")
    if len(kept) > 16:
        kept = f"{kept[:11].rstrip('_')}_{sum((place + 1) * ord(one) for place, one in enumerate(kept)) % 10000:04d}"
    return Code(kept or "UNNAMED", PLACEHOLDER_SCHEME, label.strip()[:64] or "unnamed")


def distinct_rgb(index: int) -> tuple[int, int, int]:
    """Answers the colour of the n-th structure without one of its own: of one lightness and chroma in CIELab, hues far from their neighbours'."""
    hue = math.radians(index * 137.508)
    chroma = 55.0
    while True:
        rgb = _rgb_of_lab(68.0, chroma * math.cos(hue), chroma * math.sin(hue))
        if all(0.0 <= part <= 1.0 for part in rgb):
            return (round(255 * rgb[0]), round(255 * rgb[1]), round(255 * rgb[2]))
        chroma -= 5.0  # grey, chroma 0, can always be shown


def _rgb_of_lab(lightness: float, a: float, b: float) -> tuple[float, float, float]:
    """CIELab (D65) to sRGB; parts outside 0..1 cannot be shown."""
    fy = (lightness + 16) / 116
    x, y, z = (
        white * (one**3 if one > 6 / 29 else 3 * (6 / 29) ** 2 * (one - 4 / 29))
        for white, one in ((0.95047, fy + a / 500), (1.0, fy), (1.08883, fy - b / 200))
    )
    linear = (3.2406 * x - 1.5372 * y - 0.4986 * z, -0.9689 * x + 1.8758 * y + 0.0415 * z, 0.0557 * x - 0.2040 * y + 1.0570 * z)
    red, green, blue = (12.92 * one if one <= 0.0031308 else 1.055 * one ** (1 / 2.4) - 0.055 for one in linear)
    return red, green, blue


def _singular(word: str) -> str:
    bare = word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")) else word
    return "vertebra" if bare == "vertebrae" else bare


def _respelt(words: Iterable[str]) -> Words:
    return frozenset(_SPELLINGS.get(word, word) for word in words)


def _with_side(proposal: Proposal, laterality: Code | None) -> Proposal:
    return Proposal(proposal.category, proposal.type, proposal.anatomic_region, laterality, proposal.rgb, proposal.source)


@cache
def _tables() -> Mapping[Words, tuple[Code, KnownStructure]]:
    groups = ((ANATOMICAL_STRUCTURE, ANATOMY), (TISSUE, TISSUES), (MORPHOLOGICALLY_ABNORMAL, ABNORMALITIES))
    return {words_of(name): (category, row) for category, rows in groups for row in rows for name in row.names}


def _known(words: Words) -> Proposal | None:
    found = _tables().get(words)
    if found is None:
        return None
    category, row = found
    told = {"P": "PS3.16, a context group of segments", "D": "PS3.16", "T": "TotalSegmentator's mapping to SNOMED CT"}
    return Proposal(category, row.code, rgb=row.rgb, source=told[row.source])


def _abnormality_of(words: Words, laterality: Code | None) -> Proposal | None:
    """A tumour, cyst or nodule of a structure that is known: the finding as the type, the structure as its region."""
    for size in (3, 2, 1):
        for lesion_words, (category, row) in _tables().items():
            if category != MORPHOLOGICALLY_ABNORMAL or len(lesion_words) != size or not lesion_words < words:
                continue
            organ = _known(words - lesion_words) or _known(_respelt(words - lesion_words))
            if organ is not None and organ.category != MORPHOLOGICALLY_ABNORMAL:
                return Proposal(category, row.code, organ.type, laterality, row.rgb, organ.source)
    return None
