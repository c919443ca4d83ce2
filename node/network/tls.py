"""TLS for both ends of an association: the profile of PS3.15 B.12 (BCP 195), certificates on both sides, secrets from files.

TLS 1.2 and 1.3; of 1.2 only what gives forward secrecy and authenticates what it encrypts. No compression, no renegotiation, and
no session tickets: a resumed session would outlive the certificate that opened it.
"""

import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from node.errors import ConfigError

CIPHERS_OF_TLS_1_2: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""As RFC 9325 4.2 recommends; those of TLS 1.3 are all of this kind."""


class TlsFilesUnusable(ConfigError):
    """A certificate, key or list of authorities cannot be used."""


class TlsFiles(Protocol):
    """Where certificates and keys lie: `node.config.TlsSection` has it."""

    @property
    def certificate_file(self) -> Path:
        """Our certificate and those between it and the authority, PEM."""

    @property
    def private_key_file(self) -> Path:
        """Its key, PEM."""

    @property
    def trusted_ca_file(self) -> Path:
        """The authorities whose certificates peers must show, PEM."""

    @property
    def private_key_password_file(self) -> Path | None:
        """Holds the password of the key, where that has one."""


@dataclass(frozen=True, slots=True)
class ClientTls:
    """How we speak TLS to a peer that we call."""

    files: TlsFiles
    verify_host: bool = True
    """Whether the peer's certificate must name the host that we call; its chain is verified in any case."""


def listener_context(files: TlsFiles) -> ssl.SSLContext:
    """Answers what a listener needs to take TLS connections of peers that show a certificate; raises TlsFilesUnusable."""
    return _context(ssl.PROTOCOL_TLS_SERVER, files)


def accept_tls(connection: socket.socket, context: ssl.SSLContext) -> ssl.SSLSocket:
    """Answers an accepted connection as TLS; nothing has been said over it yet (`Link.shake_hands`)."""
    return context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)


def request_tls(connection: socket.socket, tls: ClientTls, host: str) -> ssl.SSLSocket:
    """Answers a connection of ours as TLS; nothing has been said over it yet. The files are read anew: certificates are renewed.

    Raises
    ------
    TlsFilesUnusable
        When a file cannot be used.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT, tls.files)
    context.check_hostname = tls.verify_host
    return context.wrap_socket(connection, server_hostname=host, do_handshake_on_connect=False)


def words_of_tls(error: ssl.SSLError) -> str:
    """Answers a fault of TLS in a few words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({error.verify_message})"
    if error.reason is None:
        return type(error).__name__
    reason = error.reason.replace("_", " ").lower()
    return f"it sent the {reason.partition('alert ')[2]} alert of TLS" if "alert" in reason else f"{reason} (TLS)"


def _context(protocol: int, files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET | ssl.OP_CIPHER_SERVER_PREFERENCE
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0
    context.set_ciphers(CIPHERS_OF_TLS_1_2)
    password = "" if files.private_key_password_file is None else _password(files.private_key_password_file)
    for file, what in (
        (files.certificate_file, "the certificate"),
        (files.private_key_file, "the private key"),
        (files.trusted_ca_file, "the list of trusted authorities"),
    ):
        _read(file, what)
    try:
        # A password in any case: OpenSSL would ask for one at the terminal.
        context.load_cert_chain(files.certificate_file, files.private_key_file, password=password)
    except ssl.SSLError as error:
        advice = "name the file with its password as private_key_password_file" if password == "" else "check the password"
        raise TlsFilesUnusable(
            f"{files.certificate_file} and {files.private_key_file} are no certificate (PEM) and its key ({_reason(error)})"
            f" → make them a pair; if the key is encrypted, {advice}"
        ) from error
    try:
        context.load_verify_locations(files.trusted_ca_file)
    except ssl.SSLError as error:
        raise TlsFilesUnusable(
            f"{files.trusted_ca_file} holds no certificate ({_reason(error)}) → put the certificates of the authorities there, PEM"
        ) from error
    return context


def _password(path: Path) -> str:
    try:
        return _read(path, "the password of the private key").decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise TlsFilesUnusable(f"{path} holds no text → put the password of the private key there, alone in its line") from error


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TlsFilesUnusable(
            f"{what} {path} cannot be read: {error.strerror} → give [tls] the right path, and the node's user the right to read it"
        ) from error


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or error.strerror or type(error).__name__).replace("_", " ").lower()
