"""`make bench`: how fast a study is received, beside the C++ listeners, how a segmentation is encoded, where a run spends its seconds.

And how the way from volume to labels compares with MONAI's own: `--only volume-path`.
"""

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks import decode_ahead, encoding, engines, listener, main_path, sending, stow, volume_cases, volume_path

CHOICES = ("encoding", "main-path", "volume-path", "engines", "listener", "decode-ahead", "sending", "stow")


def main() -> int:
    """Runs the chosen measurements; answers 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds, of which the median is printed (default 3)")
    parser.add_argument("--encoded-slices", type=int, default=600, help="slices of the segmentations that are encoded (default 600)")
    parser.add_argument("--only", choices=CHOICES, help="one of them alone")
    parser.add_argument(
        "--small", action="store_true", help="volume-path, listener, sending: sizes to try the program with; the figures mean nothing"
    )
    parser.add_argument("--device", default="cpu", help="of engines and volume-path: cpu or cuda:0 (default cpu)")
    parser.add_argument("--case", nargs="+", default=[], help="volume-path: words of the cases to run, for example 'spleen UNet'")
    parser.add_argument("--trials", nargs="+", default=[], help=f"listener: some of {', '.join(listener.Settings().trials)}")
    parser.add_argument("--receivers", nargs="+", default=[], help="listener: some of those that the trials name")
    parser.add_argument("--longest-pdu", type=int, default=131072, help="listener: of the sender, e.g. 16384 (default 131072)")
    parser.add_argument("--quiet", type=float, default=5.0, help="listener: seconds to wait at most for an idle machine (default 5)")
    parser.add_argument("--disk", help="listener: a folder on the disk to measure on, where the system's temporary folder is none")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="radnode-bench-", dir=arguments.disk) as folder:
        if arguments.only is None:  # the whole table takes half an hour: `make bench-listener`
            quick = listener.Settings(rounds=arguments.rounds, trials=("ct500", "ct500 disk"), quiet_s=arguments.quiet)
            listener.measure(Path(folder) / "listener", quick, None)
        if arguments.only in {None, "encoding"}:
            encoding.measure(Path(folder) / "encoding", slices=arguments.encoded_slices)
        if arguments.only in {None, "main-path"}:
            main_path.measure(Path(folder) / "main-path")
        if arguments.only in {None, "volume-path"}:
            usual = volume_cases.Scale() if arguments.device == "cpu" else volume_cases.ON_GPU
            usual = replace(usual, rounds=arguments.rounds, device=arguments.device)
            scale = replace(volume_cases.SMALL if arguments.small else usual, titles=tuple(arguments.case))
            volume_path.measure(Path(folder) / "volume-path", scale, None if arguments.small else volume_path.RESULTS)
        if arguments.only == "engines":  # minutes on two cores: by name alone
            engines.measure(device=arguments.device, rounds=arguments.rounds)
        if arguments.only == "decode-ahead":
            decode_ahead.measure(Path(folder) / "decode-ahead", rounds=arguments.rounds)
        if arguments.only == "stow":
            stow.measure(Path(folder) / "stow", rounds=arguments.rounds, quiet_s=arguments.quiet)
        if arguments.only == "sending":
            part, results = (0.04, None) if arguments.small else (1.0, sending.RESULTS)
            sending.measure(Path(folder) / "sending", rounds=arguments.rounds, scale=part, results=results)
        if arguments.only == "listener":  # half an hour
            _measure_listener(Path(folder), arguments)
    return 0


def _measure_listener(folder: Path, arguments: argparse.Namespace) -> None:
    settings = listener.Settings(
        rounds=arguments.rounds,
        trials=tuple(arguments.trials) or listener.Settings().trials,
        receivers=tuple(arguments.receivers),
        longest_pdu_bytes=arguments.longest_pdu,
        quiet_s=arguments.quiet,
        scale=0.04 if arguments.small else 1.0,
    )
    whole = not (arguments.small or arguments.receivers or arguments.longest_pdu != 131072)
    listener.measure(folder, settings, listener.RESULTS if whole else None)


if __name__ == "__main__":
    sys.exit(main())
