"""Concepts of DICOM PS3.16 by their words: for labels that the project's own table does not know."""

from functools import cache
from typing import Final

from node.codes import Code
from node.domain.label_codes import Words, words_of
from node.domain.snomed_labels import ANATOMICAL_STRUCTURE, MORPHOLOGICALLY_ABNORMAL, TISSUE

_GROUPS: Final = (
    (7192, ANATOMICAL_STRUCTURE),
    (7153, ANATOMICAL_STRUCTURE),
    (7140, ANATOMICAL_STRUCTURE),
    (7166, TISSUE),
    (7159, MORPHOLOGICALLY_ABNORMAL),
)
"""Context groups of segmentation property types, and the category (CID 7150) that each is of."""


def find_in_standard(words: Words) -> tuple[Code, Code] | None:
    """Answers category and type of the one concept that has just these words."""
    return _concepts().get(words)


@cache
def _concepts() -> dict[Words, tuple[Code, Code]]:
    """From pydicom's copy of the standard; words that two concepts share are left out."""
    from pydicom.sr.codedict import Collection

    found: dict[Words, tuple[Code, Code]] = {}
    doubtful: set[Words] = set()
    for group, category in _GROUPS:
        for concept in Collection(f"CID{group}").concepts.values():
            code = Code(concept.value, concept.scheme_designator, concept.meaning)
            words = words_of(code.meaning)
            if words in found and found[words][1] != code:
                doubtful.add(words)
            found.setdefault(words, (category, code))
    return {words: concept for words, concept in found.items() if words and words not in doubtful}
