"""The keys of the configuration file, read off the models that check it."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from node.config import Config
from node.conformance_statement.markdown import paragraphs, table

MEANINGS: Final[Mapping[str, str]] = {
    "node.ae_title": "our AE title, as SCP and as SCU",
    "node.state_dir": "spool, journal and results",
    "node.models_dir": "folder of models, each with card.toml",
    "node.language": "Language of the PDF report.",
    "node.device_serial_number": "of this installation, in every result; by default AE title @ host name",
    "listener.host": "interface on which the SCP listens",
    "listener.port": "TCP port of the SCP; 0: any free port",
    "listener.max_associations": "open at once as SCP; a further one is rejected for the moment",
    "listener.network_timeout_s": "silence after which an association is aborted; a PDU must be whole in it, plus 1 s a KiB",
    "listener.refuse_below_free_gib": "with less free disk, C-STORE is answered 0xA700",
    "listener.accept_unlisted_peers": "whether anybody may send",
    "listener.max_pdu_bytes": "Maximum Length that the SCP asks for",
    "listener.durability": "whether success is answered after every flush to the disk",
    "listener.processes": "processes that receive, on one port; 0: one for each core, four at the most",
    "listener.preallocated_mib": "disk given to arriving instances before they come; 0: none",
    "listener.engine": "what speaks the upper layer and DIMSE as SCP: radnode itself, or stock pynetdicom as its reference",
    "listener.tls": "whether the port speaks TLS, and TLS alone",
    "stow.port": "TCP port of STOW-RS; without one there is none; 0: any free port",
    "stow.host": "interface on which STOW-RS listens",
    "stow.path": "base path of STOW-RS",
    "stow.calling_ae_title": "AE title under which instances that came by STOW-RS are recorded",
    "stow.token_file": "bearer tokens of which senders must show one; without it senders are known by address",
    "stow.tls": "whether STOW-RS speaks HTTPS, and HTTPS alone",
    "stow.client_certificates": "whether senders must show a certificate there",
    "stow.max_connections": "STOW-RS requests at once; a further one is answered 503",
    "stow.max_body_mib": "longest STOW-RS request, which is answered 413 else; 0: no limit",
    "study_complete.quiet_s": "a study without a new image for this long, and without an open association, is complete",
    "study_complete.max_wait_s": "a study is complete at the latest after this",
    "peers.NAME.ae_title": "AE title of the peer: Calling as sender, Called as destination",
    "peers.NAME.host": "its name or address",
    "peers.NAME.port": "where it listens",
    "peers.NAME.may_send": "whether its AE title is accepted as Calling AE Title, from the addresses of its host",
    "peers.NAME.objects": "The objects that it gets, of those in the table of IODs.",
    "peers.NAME.confirm": "how it is asked whether it keeps results: storage commitment, query, not at all; auto: the best it offers",
    "peers.NAME.tls": "whether we speak TLS to it",
    "peers.NAME.tls_verify_host": "whether its certificate must name its host",
    "peers.NAME.deflate": "whether segmentations are also offered in Deflated Explicit VR Little Endian",
    "peers.NAME.rle": "whether label maps are also offered in RLE Lossless",
    "peers.NAME.associations": "associations at once on which results are sent to it",
    "peers.NAME.async_operations": "operations invoked at once that are proposed to it, for storing; 1: the window is not negotiated",
    "peers.NAME.retry.first_s": "wait after the first failed attempt; it doubles",
    "peers.NAME.retry.max_s": "longest wait between attempts",
    "peers.NAME.retry.give_up_h": "time after which a delivery is given up, and a person is asked",
    "routes[].name": "of the route, in reasons and logs",
    "routes[].when": "DICOM keyword = value, list of values, or range: which series the route takes",
    "routes[].model": "a folder in models_dir",
    "routes[].deliver_to": "peers that get the results",
    "routes[].priority": "of jobs and deliveries; also Priority (0000,0700) of the C-STORE request",
    "worker.devices": "where models run: a process for each",
    "worker.max_attempts": "failures after which a job ends, with a report that says why",
    "worker.threads": "CPU threads of a worker; 0: all cores",
    "worker.decode_ahead_mib": "memory of a worker for images of studies that still arrive, decoded while it has no job; 0: off",
    "worker.models_gib": "memory for models that wait for their next study; 0: half of the device's",
    "worker.engine": "library that networks run on; auto: the fastest that gives the labels of torch",
    "worker.attempt_timeout_s": "an attempt that takes longer is ended and tried again",
    "worker.heartbeat_timeout_s": "a worker without a sign of life for this long is ended",
    "models.NAME.engine": "the same for one model alone; without it, what the worker says",
    "retention.purge_below_free_gib": "with less free disk the oldest delivered studies are removed",
    "retention.delivered_h": "how long the files of a delivered and confirmed study stay",
    "retention.declined_h": "how long the files of a study stay that no route wanted",
    "retention.failed_h": "how long the files of a study stay whose job failed",
    "backup.every_h": "how often the journal is copied; 0: never",
    "backup.keep": "how many copies stay",
    "backup.folder": "where they lie; by default in state_dir",
    "tls.certificate_file": "our certificate, and those between it and its CA",
    "tls.private_key_file": "its key",
    "tls.trusted_ca_file": "authorities whose certificates peers must show",
    "tls.private_key_password_file": "password of the key, where that is encrypted",
    "log.level": "how much is logged",
    "log.format": "lines for people, or JSON",
}
"""What a key means to other systems; `configs/node.toml` says more."""

_CHOICE_OF_TYPE: Final = {"string": "text", "integer": "number", "number": "number", "boolean": "true, false", "object": "table"}


def configuration_parameters() -> str:
    """Answers every key with what it may be, its default and its meaning."""
    rows = [(f"`{key}`", _allowed(schema), _default(schema), MEANINGS.get(key, "")) for key, schema in keys_of_configuration()]
    return paragraphs(
        "One file in TOML; every key, and nothing else, is checked at the start. `peers.NAME` stands for each peer, `routes[]` for "
        "each route. Times are in seconds (`_s`) or hours (`_h`).",
        table(("key", "allowed", "default", "meaning"), rows),
    )


def keys_of_configuration() -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Answers every key that a configuration file may have, and the JSON schema of its value."""
    schema = Config.model_json_schema()
    yield from _keys_of(schema, schema["$defs"], "")


def _keys_of(schema: Mapping[str, Any], known: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    required = schema.get("required", ())
    for name, value in schema["properties"].items():
        below, path = _section_in(value, f"{prefix}{name}")
        if below:
            yield from _keys_of(known[below], known, f"{path}.")
        else:
            yield path, {**value, "required": name in required}


def _section_in(schema: Mapping[str, Any], path: str) -> tuple[str, str]:
    """Answers the section that a value is made of, '' where it is none, and what to call it."""
    inner = schema.get("items")
    if inner is not None:
        path, schema = f"{path}[]" if "$ref" in inner else path, inner
    elif isinstance(schema.get("additionalProperties"), dict):
        path, schema = f"{path}.NAME", schema["additionalProperties"]
    reference = next((one["$ref"] for one in (schema, *schema.get("anyOf", ())) if "$ref" in one), "")
    return reference.rpartition("/")[2], path


def _allowed(schema: Mapping[str, Any]) -> str:
    one = next((choice for choice in schema.get("anyOf", ()) if choice.get("type") != "null"), schema)
    if "enum" in one:
        return ", ".join(one["enum"])
    if one.get("type") == "array":
        return "list"
    if one.get("format") == "path":
        return "path"
    bounds = [
        f"{word} {_number(one[key])}"
        for key, word in (("minimum", "at least"), ("exclusiveMinimum", "above"), ("maximum", "at most"))
        if key in one
    ]
    return ", ".join(bounds) or _CHOICE_OF_TYPE.get(one.get("type", ""), "")


def _default(schema: Mapping[str, Any]) -> str:
    if schema["required"]:
        return "(required)"
    value = schema.get("default")
    if value is None or value == {}:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return _number(value) if isinstance(value, float) else str(value)


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)
