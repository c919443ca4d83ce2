"""`make bench`: how fast a study is received, beside the C++ listeners, how a segmentation is encoded, where a run spends its seconds.

And how the way from volume to labels compares with MONAI's own: `--only volume-path`.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks import encoding, engines, main_path, receiving, volume_path


def main() -> int:
    """Runs the chosen measurements; answers 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--slices", type=int, default=200, help="CT slices of 512x512 a study (default 200)")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds, of which the median is printed (default 3)")
    parser.add_argument("--encoded-slices", type=int, default=600, help="slices of the segmentations that are encoded (default 600)")
    parser.add_argument("--only", choices=["receiving", "encoding", "main-path", "volume-path", "engines"], help="one of them alone")
    parser.add_argument("--small", action="store_true", help="volume-path in sizes to try the program with; the figures mean nothing")
    parser.add_argument("--device", default="cpu", help="of the engines (default cpu)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="radnode-bench-") as folder:
        if arguments.only in {None, "receiving"}:
            receiving.measure(Path(folder) / "receiving", slices=arguments.slices, rounds=arguments.rounds)
        if arguments.only in {None, "encoding"}:
            encoding.measure(Path(folder) / "encoding", slices=arguments.encoded_slices)
        if arguments.only in {None, "main-path"}:
            main_path.measure(Path(folder) / "main-path")
        if arguments.only in {None, "volume-path"}:
            scale = volume_path.SMALL if arguments.small else volume_path.Scale(rounds=arguments.rounds)
            volume_path.measure(Path(folder) / "volume-path", scale, None if arguments.small else volume_path.RESULTS)
        if arguments.only == "engines":  # minutes on two cores: by name alone
            engines.measure(device=arguments.device, rounds=arguments.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
