"""Who may store over the web, and what a request must be: decided by the configuration and the head of the request alone."""

import hashlib
import hmac
import re
from dataclasses import dataclass
from email.message import Message
from email.utils import collapse_rfc2231_value
from http import HTTPStatus
from pathlib import Path
from typing import Final

from node.domain.identifiers import is_ae_title, is_usable_uid
from node.errors import ConfigError
from node.intake.admission import KnownSender, Resolve, is_loopback, plain_address

SHORTEST_TOKEN: Final = 16
STUDIES: Final = "/studies"

_TOKEN_LINE: Final = re.compile(r"(?:(\S+)[ \t]+)?(\S+)")
_MEDIA_TYPE: Final = "application/dicom"


class Refused(Exception):
    """The request is answered with this status, and without reading its body; the text says why, and is told to the sender."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True, slots=True)
class Token:
    """A secret that lets its bearer store, and the AE title under which what it sends is recorded."""

    name: str
    digest: bytes


@dataclass(frozen=True, slots=True)
class StoreRules:
    """What a request is judged by."""

    path: str
    calling_ae_title: str = "STOW"
    tokens: tuple[Token, ...] = ()
    trusts_certificates: bool = False
    """Whether whoever got through the handshake of TLS has shown a certificate that we trust."""
    senders: tuple[KnownSender, ...] = ()
    accept_unlisted_peers: bool = False
    max_body_bytes: int = 0
    """0: as long as it likes."""


@dataclass(frozen=True, slots=True)
class Payload:
    """What a Content-Type says of the body of a Store request."""

    boundary: bytes


def read_tokens(path: Path, calling_ae_title: str) -> tuple[Token, ...]:
    """Answers the tokens of a file: one a line, before it the AE title of its bearer where that is not the common one.

    Raises
    ------
    ConfigError
        When there is none, one is too short to be a secret, or a name is no AE title.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error} → put the tokens there, one a line") from error
    tokens = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        found = _TOKEN_LINE.fullmatch(line.strip())
        if found is None or len(found[2]) < SHORTEST_TOKEN or not is_ae_title(found[1] or calling_ae_title):
            raise ConfigError(
                f"{path}:{number}: no token → write [AE TITLE] TOKEN, the token at least {SHORTEST_TOKEN} characters, e.g. of openssl rand -hex 32"
            )
        tokens.append(Token(found[1] or calling_ae_title, _digest(found[2])))
    if not tokens:
        raise ConfigError(f"{path} holds no token → put one there, e.g. of openssl rand -hex 32")
    return tuple(tokens)


def judge_sender(authorization: str, address: str, rules: StoreRules, resolve: Resolve) -> str:
    """Answers the AE title under which a sender is recorded.

    Raises
    ------
    Refused
        When it may not store.
    """
    if rules.tokens:
        scheme, _, secret = authorization.partition(" ")
        shown = _digest(secret.strip())
        # every token is compared, and in constant time: how long it takes says nothing
        names = [token.name for token in rules.tokens if hmac.compare_digest(token.digest, shown)]
        if scheme.lower() != "bearer" or not names:
            raise Refused(HTTPStatus.UNAUTHORIZED, "a bearer token of this node is needed")
        return names[0]
    if rules.trusts_certificates or rules.accept_unlisted_peers or is_loopback(address):
        return rules.calling_ae_title
    if any(sender.may_send and plain_address(address) in resolve(sender.host) for sender in rules.senders):
        return rules.calling_ae_title
    raise Refused(HTTPStatus.FORBIDDEN, "no peer that may send has this address")


def judge_target(method: str, target: str, rules: StoreRules) -> str:
    """Answers the study that the path of a Store request names, '' where it names none.

    Raises
    ------
    Refused
        When nothing is there, or it cannot be stored to.
    """
    path = target.partition("?")[0].rstrip("/")
    below = path.removeprefix(rules.path)
    if not path.startswith(rules.path) or not (below == STUDIES or below.startswith(f"{STUDIES}/")):
        raise Refused(HTTPStatus.NOT_FOUND, f"nothing is here: instances are stored by POST to {rules.path}{STUDIES}")
    study = below.removeprefix(STUDIES).removeprefix("/")
    if "/" in study:
        raise Refused(HTTPStatus.NOT_FOUND, f"nothing can be retrieved here: instances are stored by POST to {rules.path}{STUDIES}")
    if method != "POST":
        raise Refused(
            HTTPStatus.METHOD_NOT_ALLOWED, "this service stores (STOW-RS, PS3.18 10.5), by POST; it neither searches nor retrieves"
        )
    if study and not is_usable_uid(study):
        raise Refused(HTTPStatus.BAD_REQUEST, "the path names no Study Instance UID")
    return study


def judge_payload(content_type: str, content_encoding: str) -> Payload:
    """Answers what the body of a Store request is.

    Raises
    ------
    Refused
        When it is not a multipart of DICOM files.
    """
    message = Message()
    message["Content-Type"] = content_type
    if content_encoding.strip().lower() not in {"", "identity"}:
        raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "a body with a Content-Encoding is not taken")
    root = _parameter(message, "type").strip().lower()
    if message.get_content_type() != "multipart/related" or root not in {"", _MEDIA_TYPE}:
        raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f'multipart/related; type="{_MEDIA_TYPE}" is taken, and nothing else')
    boundary = _parameter(message, "boundary")
    if not re.fullmatch(r"[ -~]{0,199}[!-~]", boundary):
        raise Refused(HTTPStatus.BAD_REQUEST, "the Content-Type names no boundary")
    return Payload(boundary.encode("ascii"))


def is_dicom_part(media_type: str, transfer_encoding: str) -> bool:
    """Answers whether a part can be a DICOM file as it is. One that does not say is what the whole is."""
    return media_type in {"", _MEDIA_TYPE} and transfer_encoding in {"", "binary", "8bit", "7bit"}


def _parameter(message: Message, name: str) -> str:
    return collapse_rfc2231_value(message.get_param(name, "") or "")


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
