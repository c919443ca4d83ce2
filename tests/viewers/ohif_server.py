"""OHIF as a site has it: the built viewer out of the npm tarball, and an archive's DICOMweb behind the same host."""

import http.client
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from mimetypes import guess_type
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from tests.peers import HOST, OrthancPeer, orthanc

PLUGIN: Final = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
_PROXY_TIMEOUT_S: Final = 30.0

CONFIGURATION: Final[Mapping[str, Any]] = {
    "name": "radnode tests",
    "routerBasename": "/",
    "extensions": [],
    "modes": [],
    "showStudyList": True,
    "maxNumberOfWebWorkers": 1,
    "showWarningMessageForCrossOrigin": False,
    "showCPUFallbackMessage": False,
    "showLoadingIndicator": True,
    "disableConfirmationPrompts": True,
    "investigationalUseDialog": {"option": "never"},
    "defaultDataSourceName": "archive",
    "dataSources": [
        {
            "namespace": "@ohif/extension-default.dataSourcesModule.dicomweb",
            "sourceName": "archive",
            "configuration": {
                "friendlyName": "Orthanc",
                "name": "archive",
                "wadoUriRoot": "/dicom-web",
                "qidoRoot": "/dicom-web",
                "wadoRoot": "/dicom-web",
                "qidoSupportsIncludeField": False,
                "imageRendering": "wadors",
                "thumbnailRendering": "wadors",
                "supportsFuzzyMatching": False,
                "supportsWildcard": True,
                "singlepart": "bulkdata,video",
                "omitQuotationForMultipartRequest": True,
                "bulkDataURI": {"enabled": True},
            },
        }
    ],
}
"""What a site writes into `app-config.js`; nothing in it is there for radnode."""


@contextmanager
def archive(folder: Path) -> Iterator[OrthancPeer]:
    """Debian's Orthanc with its DICOMweb plugin."""
    with orthanc(folder, Plugins=[str(PLUGIN)], DicomWeb={"Enable": True, "Root": "/dicom-web/"}) as peer:
        yield peer


@contextmanager
def ohif(viewer: Path, peer: OrthancPeer, configuration: Mapping[str, Any] = CONFIGURATION) -> Iterator[str]:
    """Serves the viewer in the folder `viewer`, and `/dicom-web` of an archive; gives its address."""
    handler = type("Handler", (_Handler,), {"viewer": viewer, "archive_port": peer.http_port, "configuration": dict(configuration)})
    server = ThreadingHTTPServer((HOST, 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://{HOST}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    """Files, the configuration, and a way through to the archive."""

    viewer: Path
    archive_port: int
    configuration: dict[str, Any]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path.startswith("/dicom-web"):
            self._pass_on()
        elif path == "/app-config.js":
            self._answer(f"window.config = {json.dumps(self.configuration)};".encode(), "text/javascript")
        else:
            file = self.viewer / path.lstrip("/")
            found = file if file.is_file() and file.resolve().is_relative_to(self.viewer.resolve()) else self.viewer / "index.html"
            self._answer(found.read_bytes(), guess_type(found.name)[0] or "application/octet-stream")

    do_HEAD = do_GET  # noqa: N815 - the name that http.server looks for

    def _pass_on(self) -> None:
        """Asks the archive the same, and answers what it answers; it gives its own address in what it writes."""
        connection = http.client.HTTPConnection(HOST, self.archive_port, timeout=_PROXY_TIMEOUT_S)
        host = self.headers["Host"]
        connection.request(
            "GET", self.path, headers={"Accept": self.headers.get("Accept", "*/*"), "Host": host, "Forwarded": f"host={host};proto=http"}
        )
        answer = connection.getresponse()
        body = answer.read()
        self._answer(body, answer.headers.get("Content-Type", ""), HTTPStatus(answer.status))
        connection.close()

    def _answer(self, body: bytes, content_type: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        if content_type == "text/javascript" or content_type.startswith("application/wasm"):
            self.send_header("Cache-Control", "max-age=3600")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: what failed stands in what the browser reports."""
