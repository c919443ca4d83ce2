"""The files of a job become the images that its model reads: a series, one series a channel, or single images."""

from collections.abc import Sequence
from pathlib import Path

from node.domain.channels import choose_channels
from node.domain.instance import InstanceHeader, group_into_series
from node.domain.modelcard import ModelCard
from node.domain.volume import Volume
from node.errors import CannotUnderstand, NotAVolume, OutsideIntendedUse
from node.inference.align import align
from node.inference.image_reader import read_images
from node.inference.series_reader import ON_DISK, ImageFiles
from node.intake.headers import read_header


def read_study_images(files: Sequence[Path], card: ModelCard, images: ImageFiles = ON_DISK) -> tuple[Volume, ...]:
    """Answers the images of a job as its model wants them.

    One volume of the series; one volume a channel of the card, on the grid of the first; or one slice for each single image.
    Raises InputError in one of its kinds with the reason in words.
    """
    if card.reads == "images":
        return read_images(files, images)
    if not card.channels:
        return (images.series(files),)
    found = files_of_channels(files, card, images)
    volumes = [images.series(found[channel]) for channel in card.channels]
    return align(volumes, card.channels)


def files_of_channels(files: Sequence[Path], card: ModelCard, images: ImageFiles = ON_DISK) -> dict[str, tuple[Path, ...]]:
    """Answers which files are which channel, by the rules that chose the series.

    Raises
    ------
    NotAVolume
        When a header cannot be read.
    OutsideIntendedUse
        When the files hold no series for a channel.
    """
    path_of: dict[str, Path] = {}
    headers: list[InstanceHeader] = []
    for number, path in enumerate(files, start=1):
        try:
            header = images.header(path) or read_header(path)
        except CannotUnderstand as error:
            raise NotAVolume(f"File {number} of the study cannot be read: {error}.") from error
        headers.append(header)
        path_of.setdefault(header.sop_instance_uid, path)
    chosen = choose_channels(group_into_series(headers), card)
    if isinstance(chosen, str):
        raise OutsideIntendedUse(chosen)
    return {channel: tuple(path_of[instance.sop_instance_uid] for instance in series.instances) for channel, series in chosen.items()}
