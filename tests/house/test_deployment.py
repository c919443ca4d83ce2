"""The files by which radnode is run elsewhere: compose, systemd, Orthanc's configuration. Checked as far as can be without them."""

import configparser
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from node.config import load_config

ROOT = Path(__file__).parents[2]
SERVICE_KEYS = {
    "build", "command", "depends_on", "deploy", "environment", "healthcheck", "hostname", "image", "init", "ports", "restart",
    "stop_grace_period", "volumes",
}  # fmt: skip


def compose(*names: str) -> dict[str, Any]:
    """Compose files laid over one another as compose does: maps join, volumes by their target, scalars replace."""
    merged: dict[str, Any] = {}
    for name in names:
        merged = overlay(merged, yaml.safe_load((ROOT / name).read_text(encoding="utf-8")))
    return merged


def overlay(below: Any, above: Any, key: str = "") -> Any:
    if isinstance(below, dict) and isinstance(above, dict):
        return below | {name: overlay(below.get(name), value, name) for name, value in above.items()}
    if key == "volumes" and isinstance(below, list):
        targets = {volume.split(":")[1] for volume in above}
        return [volume for volume in below if volume.split(":")[1] not in targets] + above
    return above


@pytest.fixture(params=[("docker-compose.yml",), ("docker-compose.yml", "compose.gpu.yaml")], ids=["cpu", "gpu"])
def project(request: pytest.FixtureRequest) -> dict[str, Any]:
    return compose(*request.param)


def test_services_have_what_compose_needs(project: dict[str, Any]) -> None:
    assert set(project) <= {"name", "services", "volumes"}
    assert set(project["services"]) == {"orthanc", "radnode"}
    for service in project["services"].values():
        assert not set(service) - SERVICE_KEYS
        assert "image" in service or "build" in service
        assert set(service.get("depends_on", ())) <= set(project["services"])
        for port in service["ports"]:
            assert re.fullmatch(r"(127\.0\.0\.1:)?\d+:\d+", port)


def test_images_are_pinned(project: dict[str, Any]) -> None:
    for service in project["services"].values():
        assert re.fullmatch(r"[\w/.-]+:[\d.]+", service.get("image", "x:1"))


def test_named_volumes_are_declared_and_bound_files_exist(project: dict[str, Any]) -> None:
    for service in project["services"].values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (ROOT / source).is_file()
            else:
                assert source in project["volumes"]


def test_no_password_is_in_the_files() -> None:
    orthanc = compose("docker-compose.yml")["services"]["orthanc"]
    assert "${ORTHANC_PASSWORD:?" in orthanc["environment"]["ORTHANC__REGISTERED_USERS"]


def test_the_build_uses_files_that_exist() -> None:
    build = compose("docker-compose.yml")["services"]["radnode"]["build"]
    text = (ROOT / build["dockerfile"]).read_text(encoding="utf-8")
    copied = [name for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE) for name in line.split()[:-1]]
    assert copied
    assert not [name for name in copied if not (ROOT / name).exists()]
    assert set(re.findall(r"^ARG (\w+)", text, re.MULTILINE)) == set(
        compose("docker-compose.yml", "compose.gpu.yaml")["services"]["radnode"]["build"]["args"]
    )


def test_the_gpu_is_asked_for_only_in_the_override() -> None:
    assert "deploy" not in compose("docker-compose.yml")["services"]["radnode"]
    gpu = compose("docker-compose.yml", "compose.gpu.yaml")["services"]["radnode"]
    (device,) = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}


def test_both_ends_of_the_compose_project_know_each_other(project: dict[str, Any]) -> None:
    bound = next(volume for volume in project["services"]["radnode"]["volumes"] if volume.startswith("./configs"))
    config = load_config(ROOT / bound.split(":")[0])
    orthanc = json.loads((ROOT / "configs" / "orthanc.json").read_text(encoding="utf-8"))
    known = orthanc["DicomModalities"]["radnode"]
    assert known == {"AET": config.node.ae_title, "Host": "radnode", "Port": config.listener.port}
    pacs = config.peers["pacs"]
    assert (pacs.ae_title, pacs.host, pacs.port) == (orthanc["DicomAet"], "orthanc", orthanc["DicomPort"])
    assert pacs.may_send
    command = project["services"]["radnode"]["command"]
    assert bound.split(":")[1] == command[command.index("--config") + 1]


def test_orthanc_loads_the_script_that_is_mounted(project: dict[str, Any]) -> None:
    orthanc = json.loads((ROOT / "configs" / "orthanc.json").read_text(encoding="utf-8"))
    targets = {volume.split(":")[1] for volume in project["services"]["orthanc"]["volumes"]}
    assert set(orthanc["LuaScripts"]) <= targets


@pytest.fixture
def unit() -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(strict=True, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string((ROOT / "configs" / "radnode.service").read_text(encoding="utf-8"))
    return parser


def test_the_systemd_unit_starts_checks_and_stops_the_node(unit: configparser.RawConfigParser) -> None:
    service = unit["Service"]
    assert service["Type"] == "notify"
    assert re.fullmatch(r"/\S+/radnode serve --config /etc/radnode/node.toml", service["ExecStart"])
    assert "radnode config check" in service["ExecStartPre"]
    assert service["Restart"] == "always"
    assert service["User"] == "radnode"
    assert service["StateDirectory"] == "radnode"
    assert unit["Install"]["WantedBy"] == "multi-user.target"


def test_systemd_itself_accepts_the_unit(tmp_path: Path, unit: configparser.RawConfigParser) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed: only the keys were checked")
    text = (ROOT / "configs" / "radnode.service").read_text(encoding="utf-8")
    copy = tmp_path / "radnode.service"  # with a command that exists here
    copy.write_text(text.replace("/opt/radnode/bin/radnode", "/bin/true"))
    ended = subprocess.run(["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "radnode.service" not in ended.stderr, ended.stderr


def test_pre_commit_accepts_its_configuration() -> None:
    ended = subprocess.run([sys.executable, "-m", "pre_commit", "validate-config"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
