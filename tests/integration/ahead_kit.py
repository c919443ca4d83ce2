"""A node's folder without its processes: studies arrive in spool and journal, the dispatcher decides, something works ahead."""

import hashlib
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from pydicom import dcmread

from node.ahead.work import Ahead
from node.config import Config, load_config
from node.dispatcher import Dispatcher, Rules
from node.domain.ahead import Load
from node.domain.completeness import CompletenessPolicy
from node.intake.spool import spooled_path
from node.journal import JobJournal, ReceivedInstance, ReceivedJournal, open_database
from node.modelstore import load_cards
from tests.acceptance.harness import configuration
from tests.bundles import make_bundle

IDLE = Load(0.0, float("inf"))
ASSOCIATION = "association"


def make_node(folder: Path) -> Config:
    make_bundle(folder / "models")
    (folder / "node.toml").write_text(configuration(models_dir="models", model="thresholds", quiet_s=0.0))
    (folder / "state" / "run").mkdir(parents=True)
    return load_config(folder / "node.toml")


def arrive(config: Config, *paths: Path) -> list[Path]:
    """Files come to lie in the spool and in the journal, as the listener leaves them; answers where."""
    kept = []
    with closing(open_database(config.node.state_dir)) as connection:
        for path in paths:
            content, header = path.read_bytes(), dcmread(path, stop_before_pixels=True)
            meta = header.file_meta
            body = content[132 + 12 + int(meta.FileMetaInformationGroupLength) :]
            sha256 = hashlib.sha256(body).hexdigest()
            kept.append(spooled_path(config.node.state_dir, sha256))
            kept[-1].parent.mkdir(parents=True, exist_ok=True)
            kept[-1].write_bytes(content)
            received = ReceivedInstance(
                meta.MediaStorageSOPInstanceUID, header.SeriesInstanceUID, header.StudyInstanceUID, meta.MediaStorageSOPClassUID,
                meta.TransferSyntaxUID, sha256, len(body), "ARCHIVE",
            )  # fmt: skip
            ReceivedJournal(connection).record_instance(received, association=ASSOCIATION, now_s=time.time())
    return kept


def make_ahead(config: Config, look: Callable[[], Load] = lambda: IDLE, **worker: object) -> Ahead:
    connection = open_database(config.node.state_dir)
    changed = config.model_copy(update={"worker": config.worker.model_copy(update=worker)})
    return Ahead(changed, (ReceivedJournal(connection), JobJournal(connection)), look)


def decide(config: Config) -> None:
    with closing(open_database(config.node.state_dir)) as connection:
        ReceivedJournal(connection).close_association(ASSOCIATION)
        rules = Rules(tuple(route.as_route() for route in config.routes), load_cards(config.node.models_dir), CompletenessPolicy(0.0, 60.0))
        Dispatcher(connection, config.node.state_dir, rules).tick(time.time())
