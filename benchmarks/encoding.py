"""How long a segmentation takes to encode: radnode beside plain highdicom and beside bare bit packing by numpy, in the same run.

Then how long our gate takes to examine it, from its bytes, beside what it takes to make it. Organ-like ellipsoids on 512x512 slices.
What is timed ends with the bytes of the file; each runs in a process of its own, so that the peak of memory is its own.
"""

import json
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path

KINDS = ("radnode", "highdicom", "numpy")
EXAMINED = (("seg", "sr"), ("labelmap",), ("rtstruct",))


def measure(folder: Path, *, slices: int) -> None:
    """Prints a table: seconds of wall and CPU, peak MiB, size of the file; for 1, 17 and 105 segments."""
    folder.mkdir(parents=True, exist_ok=True)
    print(f"\nencoding a BINARY segmentation, {slices} slices of 512x512; `numpy` packs the bits alone, and makes no file")
    print(f"{'segments':>8}  {'encoder':10}{'frames':>8}{'wall s':>8}{'CPU s':>8}{'peak MiB':>10}{'MB':>8}{'x highdicom':>13}")
    for segments in (1, 17, 105):
        found = {kind: _in_process(kind, segments, slices) for kind in KINDS}
        for kind, told in found.items():
            ratio = found["highdicom"]["cpu_s"] / told["cpu_s"]
            print(
                f"{segments:8}  {kind:10}{told['frames']:8.0f}{told['wall_s']:8.2f}{told['cpu_s']:8.2f}{told['peak_mib']:10.0f}"
                f"{told['megabytes']:8.1f}{ratio:13.1f}"
            )

    print("\nthe same results through the gate, read from their bytes; CPU seconds to make them and to examine them")
    print(f"{'segments':>8}  {'objects':18}{'encode s':>9}{'gate s':>8}{'gate MiB':>10}")
    for segments in (1, 17, 105):
        for objects in EXAMINED:
            told = _in_process("+".join(objects), segments, slices)
            print(f"{segments:8}  {' and '.join(objects):18}{told['encode_s']:9.2f}{told['gate_s']:8.2f}{told['gate_mib']:10.0f}")


def _in_process(kind: str, segments: int, slices: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.encoding", kind, str(segments), str(slices)]
    print(f"{segments} segments: {kind}", file=sys.stderr)
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    told: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return told


def run_one(kind: str, segments: int, slices: int) -> dict[str, float]:
    """Encodes once; answers what it cost."""
    import resource
    import tempfile

    from node.evidence.frames import frames_of, labels_of_planes, pack_frames
    from node.evidence.segmentation import encode_segmentation, segments_of
    from node.evidence.sop_common import part10_bytes
    from tests.conformance.large import large_case
    from tests.conformance.plain import plain_highdicom

    with tempfile.TemporaryDirectory() as folder:
        case = large_case(Path(folder), segments, slices)
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    if kind == "radnode":
        made = encode_segmentation(case.result, case.sources, case.context)
        frames, size = int(made.NumberOfFrames), len(part10_bytes(made))
    elif kind == "highdicom":
        plain = plain_highdicom(case)
        buffer = BytesIO()
        plain.save_as(buffer, enforce_file_format=True)
        frames, size = int(plain.NumberOfFrames), len(buffer.getvalue())
    else:
        found = frames_of(labels_of_planes(case.label_map), [one.label_value for one in segments_of(case.result)])
        frames, size = len(found), len(pack_frames(case.label_map, found))
    return {
        "frames": frames,
        "wall_s": time.perf_counter() - wall_s,
        "cpu_s": time.process_time() - cpu_s,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "megabytes": size / 1e6,
    }


def examine_one(roles: str, segments: int, slices: int) -> dict[str, float]:
    """Encodes the objects of some roles, and examines them; answers what each cost."""
    import resource
    import tempfile

    from pydicom import dcmread

    from node.evidence.gate import examine_set
    from node.evidence.measurement_report import encode_report
    from node.evidence.segmentation import encode_label_map, encode_segmentation
    from node.evidence.sop_common import part10_bytes
    from node.evidence.structure_set import encode_structure_set
    from tests.conformance.large import large_case

    with tempfile.TemporaryDirectory() as folder:
        case = large_case(Path(folder), segments, slices)
    begun_s = time.process_time()
    asked = (case.result, case.sources, case.context)
    if roles == "seg+sr":
        seg = encode_segmentation(*asked)
        made = [part10_bytes(seg), part10_bytes(encode_report(case.result, case.sources, seg, case.context))]
        del seg
    else:
        made = [part10_bytes((encode_label_map if roles == "labelmap" else encode_structure_set)(*asked))]
    encoded_s = time.process_time()
    held_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    examine_set([dcmread(BytesIO(made[-1]))])  # a worker reads the tables of the standard once
    ready_s = time.process_time()
    faults = examine_set([dcmread(BytesIO(content)) for content in made], case.sources)
    assert not faults, [str(fault) for _, fault in faults]
    return {
        "encode_s": encoded_s - begun_s,
        "gate_s": time.process_time() - ready_s,
        "gate_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - held_mib,
    }


if __name__ == "__main__":
    run = run_one if sys.argv[1] in KINDS else examine_one
    print(json.dumps(run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
