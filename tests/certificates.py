"""Certificates for tests, made by the openssl command in a moment: an authority, and what it signs."""

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from node.delivery.upper_layer import Peer
from node.network.tls import ClientTls
from tests.peers import HOST, tool


@dataclass(frozen=True)
class Files:
    """What [tls] names."""

    certificate_file: Path
    private_key_file: Path
    trusted_ca_file: Path
    private_key_password_file: Path | None = None

    def as_table(self) -> dict[str, str]:
        """As a section of the configuration."""
        return {name: str(path) for name, path in vars(self).items() if path is not None}

    def as_tool_options(self) -> list[str]:
        """For DCMTK: TLS with our key and certificate, and whom to trust."""
        return ["+tls", str(self.private_key_file), str(self.certificate_file), "+cf", str(self.trusted_ca_file)]


class Authority:
    """A certification authority in a folder."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.certificate = folder / f"{name}.pem"
        self._key = folder / f"{name}.key"
        _openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
                 "-subj", f"/CN=Test {name}", "-keyout", self._key, "-out", self.certificate)  # fmt: skip

    def issue(self, name: str, subject_alternative: str = f"IP:{HOST},DNS:localhost", *, password: str = "") -> Files:
        """Answers a certificate for a host, its key, and this authority as the one to trust."""
        key, request, certificate = (self.folder / f"{name}.{kind}" for kind in ("key", "csr", "pem"))
        encrypt = ["-passout", f"pass:{password}"] if password else ["-nodes"]
        _openssl("req", "-newkey", "rsa:2048", *encrypt, "-subj", f"/CN={name}", "-keyout", key, "-out", request)
        extensions = self.folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName={subject_alternative}\nextendedKeyUsage=serverAuth,clientAuth\n")
        _openssl("x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self._key, "-CAcreateserial", "-days", "2",
                 "-extfile", extensions, "-out", certificate)  # fmt: skip
        secret = None
        if password:
            secret = self.folder / f"{name}.password"
            secret.write_text(f"{password}\n")
        return Files(certificate, key, self.certificate, secret)


def tls_peer(port: int, files: Files, *, host: str = HOST, called: str = "RADNODE", verify_host: bool = True) -> Peer:
    """Answers a peer on this machine that is called by TLS."""
    return Peer(host, port, called, "TESTER", ClientTls(files, verify_host=verify_host))


def _openssl(*arguments: Any) -> None:
    subprocess.run([tool("openssl"), *map(str, arguments)], check=True, capture_output=True, timeout=30)
