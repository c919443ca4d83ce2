"""The configuration: what a right file gives, and what every fault of a wrong one says."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.config import Config, load_config, parse_config
from node.domain.modelcard import Range
from node.errors import ConfigError, NodeError

CARDS = ("brain-extraction", "brain-volumes-t1")
RIGHT = """\
[node]
ae_title = "RADNODE"
state_dir = "state"
models_dir = "models"
[peers.pacs]
ae_title = "PACS"
host = "10.0.0.5"
port = 104
may_send = true
retry = { first_s = 5, max_s = 60 }
[[routes]]
name = "thin head CT"
when = { Modality = "ct", BodyPartExamined = ["Head", "BRAIN"], SliceThickness = { max = 3 }, EchoTime = 3.5 }
model = "brain-extraction"
deliver_to = ["pacs"]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in CARDS:
        (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "models" / name / "card.toml").touch()
    return tmp_path


def parse(folder: Path, text: str) -> Config:
    return parse_config(text, folder / "node.toml")


def faults(folder: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(folder, text)
    lines = str(caught.value).splitlines()
    return [line.removeprefix(f"{folder}/") for line in lines if not line.startswith("    ")]


def test_a_right_file_gives_its_values_and_the_defaults(folder: Path) -> None:
    config = parse(folder, RIGHT)
    assert config.node.ae_title == "RADNODE"
    assert config.node.state_dir == folder / "state"
    assert config.node.models_dir == folder / "models"
    assert config.listener.port == 11112
    assert config.listener.engine == "radnode"
    assert config.peers["pacs"].retry.max_s == 60.0
    assert config.peers["pacs"].retry.give_up_h == 72.0
    assert config.worker.devices == ["cpu"]
    assert config.worker.engine == "auto"
    assert config.worker.decode_ahead_mib == 1024


def test_a_peer_has_one_association_and_sixteen_operations_at_once_unless_told_otherwise(folder: Path) -> None:
    usual = parse(folder, RIGHT).peers["pacs"]
    assert (usual.associations, usual.async_operations) == (1, 16)
    wrong = RIGHT.replace("[peers.pacs]", "[peers.pacs]\nassociations = 17\nasync_operations = 0", 1)
    with pytest.raises(ConfigError) as caught:
        parse(folder, wrong)
    assert "peers.pacs.associations: is 17, must be 16 or less" in str(caught.value)
    assert "peers.pacs.async_operations: is 0, must be 1 or more" in str(caught.value)


def test_a_model_runs_on_the_engine_of_its_own_section_or_on_that_of_the_worker(folder: Path) -> None:
    config = parse(
        folder, RIGHT + '[worker]\nengine = "openvino"\n[models.brain-extraction]\nengine = "torch"\n[models.brain-volumes-t1]\n'
    )
    assert config.engine_of("brain-extraction") == "torch"
    assert config.engine_of("brain-volumes-t1") == config.engine_of("another") == "openvino"


def test_a_route_becomes_a_route_of_the_domain(folder: Path) -> None:
    route = parse(folder, RIGHT).routes[0].as_route()
    assert route.when == {
        "Modality": ("CT",),
        "BodyPartExamined": ("HEAD", "BRAIN"),
        "SliceThickness": Range(max=3.0),
        "EchoTime": ("3.5",),
    }
    assert route.deliver_to == ("pacs",)


def test_the_serial_number_is_the_sites_or_tells_installations_apart(folder: Path) -> None:
    assert parse(folder, RIGHT).node.device_serial_number.startswith("RADNODE@")
    named = RIGHT.replace("[peers.pacs]", 'device_serial_number = "7"\n[peers.pacs]', 1)
    assert parse(folder, named).node.device_serial_number == "7"


def test_a_file_that_is_not_there_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no file .* → copy configs/node.toml"):
        load_config(tmp_path / "absent.toml")


def test_a_file_that_is_no_text_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "node.toml")


def test_all_faults_are_told_at_once_in_the_order_of_the_file(folder: Path) -> None:
    text = """\
[node]
ae_title = "ORTHANC_MAIN_ARCHIVE"
state_dir = 5
[listner]
port = 1
[listener]
port = "104"
[peers.a]
ae_title = "A"
host = "h"
port = 70000
[[routes]]
name = "x"
when = { Modalty = "CT" }
model = "brain-extration"
sendto = ["a"]
deliver_to = ["b"]
"""
    told = faults(folder, text)
    assert [int(one.split(":")[1]) for one in told] == sorted(int(one.split(":")[1]) for one in told)
    assert told == [
        "node.toml:1: node.models_dir: is missing",
        "node.toml:2: node.ae_title: 'ORTHANC_MAIN_ARCHIVE' has 20 characters, an AE title at most 16",
        "node.toml:3: node.state_dir: must be a path in quotes, not 5",
        "node.toml:4: listner: unknown key; did you mean 'listener'?",
        'node.toml:7: listener.port: must be a whole number, not "104"',
        "node.toml:11: peers.a.port: is 70000, must be 65535 or less",
        "node.toml:14: routes.0.when.Modalty: 'Modalty' is no DICOM keyword; did you mean 'Modality'?",
        "node.toml:16: routes.0.sendto: unknown key; keys here: name, when, model, deliver_to, priority",
        "node.toml:17: routes.0.deliver_to.0: there is no peer 'b' → add a section [peers.b], or name one of: a",
    ]


def test_the_offending_line_is_quoted(folder: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(folder, RIGHT.replace("port = 104", "port = 0"))
    assert str(caught.value).splitlines() == [f"{folder}/node.toml:8: peers.pacs.port: is 0, must be 1 or more", "    port = 0"]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('ae_title = "PACS"', 'ae_title = ""', "is no AE title"),
        ('ae_title = "PACS"', 'ae_title = "PÄCS"', "is no AE title"),
        ('ae_title = "PACS"', "ae_title = true", "must be a text in quotes, not true"),
        ("may_send = true", "may_send = 1", "must be true or false, not 1"),
        ("may_send = true", "may_sendd = true", "did you mean 'may_send'?"),
        ("first_s = 5", "first_s = 500", "first_s is longer than max_s → lower first_s"),
        ("first_s = 5", "first = 5", "did you mean 'first_s'?"),
        ("[[routes]]", "[study_complete]\nquiet_s = 1000\n[[routes]]", "quiet_s is longer than max_wait_s"),
        ("[[routes]]", '[worker]\ndevices = ["gpu"]\n[[routes]]', 'is "gpu", must be like cpu, cuda or cuda:0'),
        ("[[routes]]", "[worker]\ndevices = []\n[[routes]]", "must name at least one"),
        ("[[routes]]", "[worker]\ndecode_ahead_mib = -1\n[[routes]]", "is -1, must be 0 or more"),
        ("[[routes]]", '[worker]\nengine = "tensorflow"\n[[routes]]', "must be 'auto', 'torch', 'openvino', 'onnxruntime' or 'tensorrt'"),
        ("[[routes]]", '[models.brain-extraction]\nengine = "fast"\n[[routes]]', "models.brain-extraction.engine: is"),
        ("[[routes]]", '[models.brain-extraction]\nengin = "torch"\n[[routes]]', "did you mean 'engine'?"),
        ("[[routes]]", "[models.brain-extracton]\n[[routes]]", "there is no model 'brain-extracton' in models; did you mean 'brain-extraction'?"),
        ("[[routes]]", '[log]\nlevel = "loud"\n[[routes]]', "must be 'debug', 'info', 'warning' or 'error'"),
        ('deliver_to = ["pacs"]', "deliver_to = []", "must name at least one"),
        ('deliver_to = ["pacs"]', 'deliver_to = "pacs"', 'must be a list in square brackets, not "pacs"'),
        ('deliver_to = ["pacs"]', 'deliver_to = ["pcas"]', "there is no peer 'pcas'; did you mean 'pacs'?"),
        ('model = "brain-extraction"', 'model = "brain-volume-t1"', "did you mean 'brain-volumes-t1'?"),
        ('model = "brain-extraction"', 'model = "x"', "→ models there: brain-extraction, brain-volumes-t1"),
        ('models_dir = "models"', 'models_dir = "model"', "there is no folder model"),
        ('Modality = "ct"', "Modality = { min = 3 }", "holds text (CS): min and max need numbers"),
        ('Modality = "ct"', "Modality = []", "an empty list matches nothing"),
        ('Modality = "ct"', "Modality = true", "must be a text, a number, a list"),
        ('Modality = "ct"', 'ReferencedStudySequence = "x"', "is a sequence or bulk data (SQ)"),
        ("{ max = 3 }", "{ min = 4, max = 3 }", "min 4 is above max 3"),
        ("{ max = 3 }", "{}", "an empty range holds everything"),
        ("{ max = 3 }", "{ mx = 3 }", "a range has the keys min and max, not mx"),
        ("{ max = 3 }", '{ max = "3" }', 'max must be a number, not "3"'),
        ('name = "thin head CT"', 'nam = "x"', "name: is missing"),
        ("port = 104", "port = ", "no valid TOML"),
    ],
)  # fmt: skip
def test_each_fault_says_what_is_wrong(folder: Path, old: str, new: str, expected: str) -> None:
    assert old in RIGHT
    assert any(expected in fault for fault in faults(folder, RIGHT.replace(old, new, 1)))


def test_two_peers_with_one_ae_title_and_host_are_a_fault(folder: Path) -> None:
    twin = '[peers.twin]\nae_title = "PACS"\nhost = "10.0.0.5"\nport = 105\n'
    assert faults(folder, RIGHT + twin) == [
        "node.toml:16: peers.twin: has the AE title and host of [peers.pacs]: a sender could be either → join them, or correct one"
    ]


def test_two_routes_of_one_name_are_a_fault(folder: Path) -> None:
    route = RIGHT[RIGHT.index("[[routes]]") :]
    assert "there is a route 'thin head CT' above" in faults(folder, RIGHT + route)[0]


def test_a_missing_section_is_named(folder: Path) -> None:
    assert faults(folder, "[log]\n") == ["node.toml:1: node: the section [node] is missing"]


def test_the_text_that_breaks_toml_is_quoted_with_its_line(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"node\.toml:2: no valid TOML: .*\n    ae_title = RADNODE"):
        parse(folder, "[node]\nae_title = RADNODE\n")


_BITS = st.sampled_from(
    [
        *RIGHT.splitlines(keepends=True),
        "[listener]\n",
        "port = 1\n",
        "[",
        "]",
        "=",
        '"',
        "'''",
        "{",
        "}",
        ",",
        "\\",
        "#",
        "x",
        "\n",
        "1",
        "é",
    ]
)


@given(st.lists(_BITS, max_size=25))
def test_any_text_is_accepted_or_a_config_error(bits: list[str]) -> None:
    said = ""
    try:
        parse_config("".join(bits), Path("/nowhere/node.toml"))
    except NodeError as error:
        said = str(error)
    assert all(re.match(r"/nowhere/node\.toml:\d+: |    ", line) for line in said.splitlines())


@pytest.mark.parametrize("name", ["demo.toml", "compose.toml", "compose.gpu.toml", "node.toml"])
def test_the_files_in_configs_have_no_faults(name: str) -> None:
    load_config(Path(__file__).parents[2] / "configs" / name)


def test_node_toml_names_every_key_and_its_default() -> None:
    text = (Path(__file__).parents[2] / "configs" / "node.toml").read_text(encoding="utf-8")
    from node import config

    for section in (
        config.NodeSection, config.ListenerSection, config.StudyCompleteSection, config.PeerSection, config.RouteSection,
        config.WorkerSection, config.LogSection, config.RetrySection, config.RetentionSection, config.BackupSection, config.TlsSection,
        config.StowSection, config.ModelSection,
    ):  # fmt: skip
        for key in section.model_fields:
            assert re.search(rf"\b{key}\b( =|\])", text), f"{section.__name__}.{key} is absent from configs/node.toml"
    commented = re.sub(r"(?m)^# (?=[A-Za-z_]+ = )", "", text)
    told = parse_config(commented, Path(__file__).parents[2] / "configs" / "node.toml")
    assert told.listener == config.ListenerSection()
    assert told.stow == config.StowSection()
    assert told.study_complete == config.StudyCompleteSection()
    assert told.worker == config.WorkerSection()
    assert told.log == config.LogSection()
    assert (told.retention, told.backup) == (config.RetentionSection(), config.BackupSection())
    assert told.peers["pacs"].retry == config.RetrySection()


def test_the_gpu_compose_file_differs_only_in_the_device() -> None:
    configs = Path(__file__).parents[2] / "configs"
    cpu, gpu = load_config(configs / "compose.toml"), load_config(configs / "compose.gpu.toml")
    assert gpu.worker.devices == ["cuda:0"]
    assert gpu.model_copy(update={"worker": cpu.worker}) == cpu
