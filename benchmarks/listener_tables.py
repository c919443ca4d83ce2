"""The figures of `make bench-listener` as tables in Markdown, read from what was kept of the rounds."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

Rounds = Mapping[str, Sequence[Mapping[str, float]]]
"""The rounds of every receiver, or of every number of associations."""

PEAK_MIB: Final = 150
"""At most, whatever the size of an object."""

FLOOR, LIMIT = "flush floor", "physical limit"

TITLES: Final = {
    "ct500": "500 CT slices of 512x512, 1 association",
    "ct500 x4": "500 CT slices of 512x512, 4 associations",
    "ct500 pc disk": "500 CT slices of 512x512 in the page cache of the disk, nothing flushed, 1 association",
    "ct500 disk": "500 CT slices of 512x512 on the disk, 1 association",
    "ct500 disk x4": "500 CT slices of 512x512 on the disk, 4 associations",
    "small5000": "5000 objects of 10 kB, 1 association",
    "storescu": "100 CT slices from storescu with its defaults (Nagle on, PDUs of 16 kB)",
    "echo": "association set-up, C-ECHO, release, one after the other",
    "ct2000": "2000 CT slices of 512x512, 1 association",
    "multi-frame": "one enhanced multi-frame object of 1.5 GB",
    "slow sender": "900 CT slices over 15 associations; `+slow`: beside a 16th that sends 10 kB a second",
}
"""Of the trials, in the order of the tables."""


@dataclass(frozen=True, slots=True)
class Target:
    """How many times as fast as another a receiver of ours is to be."""

    ours: str
    other: str
    times: float


def markdown(kept: Mapping[str, Any], targets: Mapping[str, Sequence[Target]]) -> str:
    """Answers all tables that the kept figures are enough for."""
    machine = kept["machine"]
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, kernel {machine['kernel']}, Python {machine['python']}.",
        "",
    ]
    trials = kept["trials"]
    for name, title in TITLES.items():
        if name in trials:
            trial = trials[name]
            lines += [f"### {title}", "", *trial_table(trial["rounds"]), ""]
            lines += [f"- {line}" for line in ratios(trial["rounds"], targets.get(name, ()))]
            lines += [f"- {line}" for line in _of_size(name, trials)]
            lines += [f"- {line}" for line in _of_limits(name, trials)]
            lines += [f"- medians of {max(map(len, trial['rounds'].values()))} rounds, measured {trial['measured']} UTC", ""]
    if FLOOR in trials or LIMIT in trials:
        lines += ["### The limits of the machine", "", *_limits_table(trials), ""]
    return "\n".join(lines)


def trial_table(rounds: Rounds) -> Iterator[str]:
    """Answers the lines of a table with the medians of a trial."""
    yield "| receiver | MB/s | inst/s | CPU s/GB | peak MiB | p50 / p99 ms | identical | CPU of others |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    for receiver, found in rounds.items():
        middle = medians(found)
        megabytes = middle.get("megabytes", 0.0)
        yield (
            "| "
            + " | ".join(
                (
                    receiver,
                    f"{megabytes / middle['wall_s']:.0f}" if megabytes else "",
                    f"{middle['instances'] / middle['wall_s']:.0f}" if middle["instances"] > 1 else "",
                    f"{1000 * middle['cpu_s'] / megabytes:.2f}" if megabytes else "",
                    f"{max(one['peak_mib'] for one in found):.0f}",
                    f"{middle['p50_ms']:.2f} / {middle['p99_ms']:.1f}" if "p50_ms" in middle else "",
                    f"{min(one['identical'] for one in found):.0f} of {middle['expected']:.0f}" if middle["expected"] else "",
                    f"{100 * middle['others']:.0f} %",
                )
            )
            + " |"
        )


def ratios(rounds: Rounds, targets: Sequence[Target]) -> Iterator[str]:
    """Answers a line for every ratio that is to be reached, beside what was: the median of the ratios within a round."""
    for target in targets:
        if target.ours in rounds and target.other in rounds:
            pairs = [
                theirs["wall_s"] / mine["wall_s"] for mine, theirs in zip(rounds[target.ours], rounds[target.other], strict=False)
            ]  # who is very slow has fewer rounds
            spread = f"{min(pairs):.2f} to {max(pairs):.2f}"
            yield f"{target.ours} is {statistics.median(pairs):.2f} times as fast as {target.other} ({spread}); target {target.times:g}"


def medians(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Answers the median of every figure over the rounds."""
    return {key: statistics.median(one[key] for one in found) for key in found[0]}


def _speed(trials: Mapping[str, Any], name: str, receiver: str) -> float:
    """Answers MB/s; 0 where it was not measured."""
    found = trials.get(name, {}).get("rounds", {}).get(receiver)
    return statistics.median(one["megabytes"] / one["wall_s"] for one in found) if found else 0.0


def _of_size(name: str, trials: Mapping[str, Any]) -> Iterator[str]:
    """Answers what becomes of speed and memory where there is more to receive."""
    if name not in {"ct2000", "multi-frame"}:
        return
    for receiver, found in trials[name]["rounds"].items():
        if receiver.startswith("radnode"):
            peak = max(one["peak_mib"] for one in found)
            before = _speed(trials, "ct500", receiver)
            beside = f"{_speed(trials, name, receiver) / before:.2f} times the MB/s of 500 slices, " if before else ""
            yield f"{receiver}: {beside}peak {peak:.0f} MiB; target {PEAK_MIB} at most"


def _of_limits(name: str, trials: Mapping[str, Any]) -> Iterator[str]:
    """Answers what part of the machine's own speed is reached."""
    if not name.startswith("ct500") or "pc" in name:
        return
    at_once = "at 4" if name.endswith("x4") else "at 1"
    on_disk = "disk" in name
    limits = trials.get(FLOOR if on_disk else LIMIT, {}).get("rounds", {}).get(at_once)
    if not limits:
        return
    for receiver, found in trials[name]["rounds"].items():
        if receiver.startswith("radnode"):
            mine = statistics.median(one["instances"] / one["wall_s"] for one in found)
            if on_disk:
                best, new = (1 / medians(limits)[key] for key in ("preallocated", "new_file"))
                yield f"{receiver}: {mine / best:.2f} of one flush an instance on files that are there, {mine / new:.2f} of one on new files"
            else:
                yield f"{receiver}: {_speed(trials, name, receiver) / medians(limits)['files_megabytes_per_s']:.2f} of the sink that writes new files"


def _limits_table(trials: Mapping[str, Any]) -> Iterator[str]:
    yield "| | 1 at a time | 4 at once |"
    yield "| --- | ---: | ---: |"
    named = (
        (LIMIT, "files_megabytes_per_s", "socket to new files in memory, no DICOM: MB/s", 1),
        (LIMIT, "files_cpu_s_per_gb", "its CPU, s/GB", 1),
        (LIMIT, "small_per_s", "the same with objects of 10 kB: a second", 1),
        (LIMIT, "nowhere_megabytes_per_s", "loopback copy alone: MB/s", 1),
        (FLOOR, "preallocated", "pwrite and fdatasync of 525 kB on files that have their blocks: a second", -1),
        (FLOOR, "new_file", "a new file of 525 kB, written and flushed: a second", -1),
    )
    for trial, key, words, power in named:
        rounds = trials.get(trial, {}).get("rounds")
        if rounds:
            told = (f"{medians(rounds[at_once])[key] ** power:.4g}" for at_once in ("at 1", "at 4"))
            yield f"| {words} | {' | '.join(told)} |"
