"""`radnode study make`: a DICOM study out of a volume that is none, to try the node with."""

import argparse
from pathlib import Path

from node.cli.common import ProgressLine, Verbs, say
from node.codes import ExitCode


def register(verbs: Verbs) -> None:
    """Adds the verb."""
    nouns = verbs.add_parser("study", help="make a study to try the node with").add_subparsers(metavar="VERB", required=True)
    make = nouns.add_parser(
        "make",
        help="make a DICOM study out of a NIfTI file or an InVesalius project",
        description="Writes SOURCE as one series of a new study with a plainly fake patient. The same source gives the same study.",
    )
    make.add_argument("source", type=Path, metavar="SOURCE", help=".nii, .nii.gz or .inv3")
    make.add_argument("output", type=Path, metavar="OUT", help="folder for the DICOM files")
    make.add_argument("--modality", choices=("CT", "MR"), default="CT", help="default: CT")
    make.add_argument("--body-part", default="HEAD", metavar="PART", help="Body Part Examined (default: HEAD)")
    make.set_defaults(act=_make)


def _make(arguments: argparse.Namespace) -> int:
    from node.study_maker import make_study

    line = ProgressLine()
    try:
        paths = make_study(
            arguments.source,
            arguments.output,
            modality=arguments.modality,
            body_part=arguments.body_part,
            progress=lambda done, total: line("writing images", done / total),
        )
    finally:
        line.close()
    say(f"{len(paths)} images")
    print(arguments.output)
    return ExitCode.OK
