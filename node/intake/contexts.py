"""What the listener accepts: every storage SOP class, in every transfer syntax, verification, and reports on commitments."""

from functools import cache
from typing import Final

from pynetdicom import ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts
from pynetdicom.presentation import PresentationContext, build_context

from node.network import NATIVE_TRANSFER_SYNTAXES, STORAGE_COMMITMENT, VERIFICATION, commitment

_LOSSLESS: Final = (
    "1.2.840.10008.1.2.5",  # RLE
    "1.2.840.10008.1.2.4.80",  # JPEG-LS
    "1.2.840.10008.1.2.4.70",  # JPEG, first-order prediction
    "1.2.840.10008.1.2.4.57",  # JPEG, process 14
    "1.2.840.10008.1.2.4.90",  # JPEG 2000
    "1.2.840.10008.1.2.4.201",  # HTJ2K
    "1.2.840.10008.1.2.4.202",  # HTJ2K with RPCL
)
_RETIRED_JPEG: Final = tuple(f"1.2.840.10008.1.2.4.{number}" for number in (52, 53, 54, 55, 56, 58, 59, 60, 61, 62, 63, 64, 65, 66))

TRANSFER_SYNTAXES: Final = tuple(
    dict.fromkeys(
        (*NATIVE_TRANSFER_SYNTAXES[:2], *_LOSSLESS, *NATIVE_TRANSFER_SYNTAXES[2:], *map(str, ALL_TRANSFER_SYNTAXES), *_RETIRED_JPEG)
    )
)
"""All that we take, what we would rather have first: native, then lossless, then the rest. The choice matters only when a sender
offers several in one context; the retired JPEG processes cannot be decoded, but are kept and answered with a reason."""


@cache
def supported_contexts(*, reports: bool) -> tuple[PresentationContext, ...]:
    """Answers what this node accepts: verification, every storage SOP class in every transfer syntax, `reports` on commitments.

    Of Storage Commitment we are the SCU: a requestor may be its SCP, and not its SCU (PS3.4 J.2, PS3.7 D.3.3.4).
    """
    classes = [context.abstract_syntax for context in AllStoragePresentationContexts]
    storage = [build_context(sop_class, list(TRANSFER_SYNTAXES)) for sop_class in classes if sop_class]
    if not reports:
        return (build_context(VERIFICATION), *storage)
    push_model = build_context(STORAGE_COMMITMENT, list(commitment.TRANSFER_SYNTAXES))
    push_model.scu_role, push_model.scp_role = False, True
    return (build_context(VERIFICATION), push_model, *storage)
