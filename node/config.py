"""The configuration file as values: strict TOML, every fault at once with its line.

Only this module knows the file. What it answers is whole: routes name peers and models that exist, keywords are DICOM's.
"""

import platform
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, ValidationError, ValidationInfo

from node.config_faults import as_toml, cross_check, describe_error, report_faults, report_syntax
from node.domain.completeness import CompletenessPolicy
from node.domain.delivery import RetryPolicy
from node.domain.identifiers import MAX_AE_TITLE_LENGTH, is_ae_title
from node.domain.modelcard import Range
from node.domain.states import Priority
from node.errors import ConfigError
from node.toml_lines import KeyPath

if TYPE_CHECKING:
    from node.domain.routing import Route  # with numpy: too slow for `radnode config check`

FILE_NAME: Final = "node.toml"


def _ae_title(text: str) -> str:
    if len(text.strip()) > MAX_AE_TITLE_LENGTH:
        raise ValueError(f"{text!r} has {len(text.strip())} characters, an AE title at most {MAX_AE_TITLE_LENGTH}")
    if not is_ae_title(text):
        raise ValueError(f"{text!r} is no AE title: 1 to {MAX_AE_TITLE_LENGTH} printable ASCII characters, no backslash")
    return text.strip()


def _base_path(text: str) -> str:
    path = text.rstrip("/")
    if path and not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", path):
        raise ValueError(f"{text!r} is no path: it begins with a slash, and has letters, digits and . _ ~ - between slashes")
    return path


def _path(value: object, info: ValidationInfo) -> Path:
    if not isinstance(value, str) or not value:
        raise ValueError(f"must be a path in quotes, not {as_toml(value)}")
    folder: Path = (info.context or {}).get("folder", Path())
    return (folder / Path(value).expanduser()).resolve()


def _condition(value: object) -> tuple[str, ...] | Range:
    if isinstance(value, dict):
        return _range(value)
    values = value if isinstance(value, list) else [value]
    if not values:
        raise ValueError("an empty list matches nothing → name at least one value")
    for one in values:
        if isinstance(one, bool) or not isinstance(one, str | int | float):
            raise ValueError(f"must be a text, a number, a list of these, or {{ min = …, max = … }}, not {as_toml(one)}")
    return tuple(f"{one:g}" if isinstance(one, float) else str(one).upper() for one in values)


def _range(table: dict[str, object]) -> Range:
    bounds: dict[str, float] = {}
    for key, bound in table.items():
        if key not in {"min", "max"}:
            raise ValueError(f"a range has the keys min and max, not {key}")
        if isinstance(bound, bool) or not isinstance(bound, int | float):
            raise ValueError(f"{key} must be a number, not {as_toml(bound)}")
        bounds[key] = float(bound)
    if not bounds:
        raise ValueError("an empty range holds everything → give min, max or both")
    if bounds.get("min", float("-inf")) > bounds.get("max", float("inf")):
        raise ValueError(f"min {bounds['min']:g} is above max {bounds['max']:g}: nothing could match")
    return Range(min=bounds.get("min"), max=bounds.get("max"))


def _serial_number(fields: dict[str, object]) -> str:
    """Answers what tells this installation from others where the site gives it no number: AE title and host."""
    return f"{fields.get('ae_title', '')}@{platform.node()}"[:64]


AETitle = Annotated[str, AfterValidator(_ae_title)]
Folder = Annotated[Path, BeforeValidator(_path)]
Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(gt=0)]
EngineName = Literal["auto", "torch", "openvino", "onnxruntime", "tensorrt"]
Condition = Annotated[tuple[str, ...] | Range, PlainValidator(_condition)]


class Section(BaseModel):
    """A table of the file: exact types, no unknown keys, no change after reading."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class NodeSection(Section):
    """[node]: who we are and where things lie."""

    ae_title: AETitle
    state_dir: Folder
    models_dir: Folder
    language: Literal["en", "zh"] = "en"
    device_serial_number: Annotated[str, Field(min_length=1, max_length=64, default_factory=_serial_number)]


class TlsSection(Section):
    """[tls]: who we are to peers that we speak TLS with, and whose certificates we trust. Secrets stand in files only."""

    certificate_file: Folder
    private_key_file: Folder
    trusted_ca_file: Folder
    private_key_password_file: Folder | None = None


class ListenerSection(Section):
    """[listener]: the door to the archive."""

    host: str = "0.0.0.0"  # noqa: S104 - a PACS sends from other machines; the peers list is the guard
    port: Annotated[int, Field(ge=0, le=65535)] = 11112
    max_associations: Annotated[int, Field(ge=1, le=1024)] = 16
    network_timeout_s: Seconds = 60.0
    refuse_below_free_gib: Annotated[float, Field(ge=0)] = 5.0
    accept_unlisted_peers: bool = False
    max_pdu_bytes: Annotated[int, Field(ge=4096, le=1 << 24)] = 262144
    durability: Literal["power-loss", "process-crash"] = "power-loss"
    preallocated_mib: Annotated[int, Field(ge=0)] = 0
    processes: Annotated[int, Field(ge=0, le=64)] = 0
    engine: Literal["radnode", "pynetdicom"] = "radnode"
    tls: bool = False


class StowSection(Section):
    """[stow]: the door to senders of DICOMweb; shut unless it has a port."""

    port: Annotated[int, Field(ge=0, le=65535)] | None = None
    host: str = "0.0.0.0"  # noqa: S104 - as listener.host
    path: Annotated[str, AfterValidator(_base_path)] = "/dicom-web"
    calling_ae_title: AETitle = "STOW"
    token_file: Folder | None = None
    tls: bool = False
    client_certificates: bool = True
    max_connections: Annotated[int, Field(ge=1, le=1024)] = 16
    max_body_mib: Annotated[int, Field(ge=0)] = 0


class StudyCompleteSection(Section):
    """[study_complete]: when a study counts as whole."""

    quiet_s: Annotated[float, Field(ge=0)] = 30.0
    max_wait_s: Seconds = 900.0

    def as_policy(self) -> CompletenessPolicy:
        """Answers the same as a value of the domain."""
        return CompletenessPolicy(quiet_s=self.quiet_s, max_wait_s=self.max_wait_s)


class RetrySection(Section):
    """[peers.*.retry]: how a delivery is tried again."""

    first_s: Seconds = 10.0
    max_s: Seconds = 900.0
    give_up_h: Annotated[float, Field(gt=0)] = 72.0

    def as_policy(self) -> RetryPolicy:
        """Answers the same as a value of the domain."""
        return RetryPolicy(first_s=self.first_s, max_s=self.max_s, give_up_h=self.give_up_h)


class PeerSection(Section):
    """[peers.NAME]: another DICOM node, as sender, destination or both."""

    ae_title: AETitle
    host: Annotated[str, Field(min_length=1)]
    port: Port
    may_send: bool = False
    objects: Annotated[list[Literal["sr", "seg", "labelmap", "sc", "rtstruct", "pdf", "gsps", "kos", "pm"]], Field(min_length=1)] = [
        "sr",
        "seg",
    ]
    confirm: Literal["auto", "commitment", "query", "none"] = "auto"
    tls: bool = False
    tls_verify_host: bool = True
    deflate: bool = False
    rle: bool = False
    associations: Annotated[int, Field(ge=1, le=16)] = 1
    async_operations: Annotated[int, Field(ge=1, le=1024)] = 16
    retry: RetrySection = RetrySection()


class RouteSection(Section):
    """[[routes]]: which series go to which model, and where its results go."""

    name: Annotated[str, Field(min_length=1)]
    when: dict[str, Condition] = {}
    model: Annotated[str, Field(min_length=1)]
    deliver_to: Annotated[list[str], Field(min_length=1)]
    priority: Literal["HIGH", "MEDIUM", "LOW"] = "MEDIUM"

    def as_route(self) -> "Route":
        """Answers the same as a value of the domain."""
        from node.domain.routing import Route

        return Route(
            name=self.name,
            when=dict(self.when),
            model=self.model,
            deliver_to=tuple(self.deliver_to),
            priority=Priority(self.priority),
        )


class WorkerSection(Section):
    """[worker]: where models run."""

    devices: Annotated[list[Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$")]], Field(min_length=1)] = ["cpu"]
    max_attempts: Annotated[int, Field(ge=1, le=100)] = 3
    threads: Annotated[int, Field(ge=0, le=1024)] = 0
    decode_ahead_mib: Annotated[int, Field(ge=0, le=1 << 20)] = 1024
    models_gib: Annotated[float, Field(ge=0)] = 0.0
    engine: EngineName = "auto"
    attempt_timeout_s: Seconds = 3600.0
    heartbeat_timeout_s: Annotated[float, Field(ge=10)] = 60.0


class ModelSection(Section):
    """[models.NAME]: what holds for one model alone."""

    engine: EngineName | None = None


class RetentionSection(Section):
    """[retention]: how long received images and results stay on the disk. What is not delivered is never removed."""

    purge_below_free_gib: Annotated[float, Field(ge=0)] = 10.0
    delivered_h: Annotated[float, Field(ge=0)] = 168.0
    declined_h: Annotated[float, Field(ge=0)] = 168.0
    failed_h: Annotated[float, Field(ge=0)] = 720.0


class BackupSection(Section):
    """[backup]: copies of the journal, in the folder backups of state_dir or elsewhere."""

    every_h: Annotated[float, Field(ge=0)] = 24.0
    keep: Annotated[int, Field(ge=1, le=1000)] = 7
    folder: Folder | None = None


class LogSection(Section):
    """[log]: how much is said on stderr, and how."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["console", "json"] = "console"


class Config(Section):
    """The whole file."""

    node: NodeSection
    listener: ListenerSection = ListenerSection()
    stow: StowSection = StowSection()
    study_complete: StudyCompleteSection = StudyCompleteSection()
    peers: dict[str, PeerSection] = {}
    routes: Annotated[tuple[RouteSection, ...], Field(strict=False)] = ()
    worker: WorkerSection = WorkerSection()
    models: dict[str, ModelSection] = {}
    retention: RetentionSection = RetentionSection()
    backup: BackupSection = BackupSection()
    tls: TlsSection | None = None
    log: LogSection = LogSection()

    def engine_of(self, model: str) -> EngineName:
        """Answers what a model runs on: its own section's word, else the worker's."""
        section = self.models.get(model)
        return (section.engine if section is not None else None) or self.worker.engine


def load_config(path: Path) -> Config:
    """Reads and checks a configuration file.

    Raises
    ------
    ConfigError
        Naming every fault of the file, each with its line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"there is no file {path} → copy configs/{FILE_NAME} there, or name another with --config") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    return parse_config(text, path)


def parse_config(text: str, path: Path) -> Config:
    """Answers the configuration in `text`; `path` names the file in messages, and its folder anchors relative paths."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(report_syntax(str(error), text, path)) from error
    folder = path.resolve().parent
    try:
        config = Config.model_validate(table, context={"folder": folder})
    except ValidationError as error:
        errors = [one for one in error.errors() if one["type"] != "default_factory_not_called"]
        faults = [describe_error(one, _known_keys(tuple(one["loc"])[:-1])) for one in errors]
        told = {fault.path for fault in faults}
        faults += [fault for fault in cross_check(table, folder) if fault.path not in told]
        raise ConfigError(report_faults(faults, text, path)) from None
    faults = list(cross_check(table, folder))
    if faults:
        raise ConfigError(report_faults(faults, text, path))
    return config


def _known_keys(table: KeyPath) -> list[str]:
    """Answers the keys that a table of the file may have."""
    match table:
        case ():
            section: type[Section] = Config
        case ("peers", _):
            section = PeerSection
        case ("peers", _, "retry"):
            section = RetrySection
        case ("models", _):
            section = ModelSection
        case ("routes", int()):
            section = RouteSection
        case ("tls",):
            section = TlsSection
        case (str() as name,) if (annotation := Config.model_fields[name].annotation) and isinstance(annotation, type):
            section = annotation
        case _:
            return []
    return list(section.model_fields)
