"""UIDs, AE titles and job keys."""

import re
from collections.abc import Iterable
from typing import Final

_UID: Final = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))*")
_LENIENT_UID: Final = re.compile(r"[0-9]+(\.[0-9]+)*")
MAX_UID_LENGTH: Final = 64
MAX_AE_TITLE_LENGTH: Final = 16

_NAMESPACE: Final = "80099cd6-9c31-4b0c-8b86-5c53d7f3a9f0"


def is_uid(text: str) -> bool:
    """Answers whether `text` is a valid UID (PS3.5 §9.1)."""
    return len(text) <= MAX_UID_LENGTH and _UID.fullmatch(text) is not None


def is_usable_uid(text: str) -> bool:
    """Answers whether `text` can name something: digits and dots, at most 64 characters.

    Components with a leading zero are against PS3.5 §9.1 but common in hospitals; such instances are kept.
    """
    return len(text) <= MAX_UID_LENGTH and _LENIENT_UID.fullmatch(text) is not None


def is_ae_title(text: str) -> bool:
    """Answers whether `text` is an AE title: 1 to 16 printable ASCII characters, no backslash (PS3.5 Table 6.2-1)."""
    stripped = text.strip()
    return 0 < len(stripped) <= MAX_AE_TITLE_LENGTH and all(" " <= character <= "~" for character in stripped) and "\\" not in stripped


def derive_uid(*parts: str) -> str:
    """Answers the UID that belongs to `parts`: the same parts give the same UID, on every node (2.25, PS3.5 B.2)."""
    from uuid import UUID, uuid5  # takes longer to import than all else that is needed to send a file

    return f"2.25.{uuid5(UUID(_NAMESPACE), '|'.join(parts)).int}"


def derive_job_key(model_digest: str, study_instance_uid: str, instance_digests: Iterable[str]) -> str:
    """Answers the key under which a model runs once over one set of instances.

    Equal inputs and an equal model give an equal key, whatever the order of arrival; every result UID derives from it.
    """
    import hashlib

    digest = hashlib.sha256()
    for part in (model_digest, study_instance_uid, *sorted(instance_digests)):
        digest.update(part.encode())
        digest.update(b"\0")
    return digest.hexdigest()
