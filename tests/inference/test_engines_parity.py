"""The gate: what agrees passes, what does not is refused with the reason."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from node.inference.engines.onnx_export import Window
from node.inference.engines.parity import Comparison, Figures, Verdict, judge, record_of, sentence_of
from node.inference.engines.phantom import phantom_windows

CUBE = (24, 24, 24)


def scores(seed: int = 0, classes: int = 3) -> torch.Tensor:
    """Two windows with a ball of each class, scores far apart."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.zeros(2, *CUBE, dtype=torch.long)
    for one in range(1, classes):
        labels[:, 8 * (one - 1) : 8 * one, 4:20, 4:20] = one
    one_hot = torch.nn.functional.one_hot(labels, classes).movedim(-1, 1).float()
    return 10 * one_hot + torch.randn(one_hot.shape, generator=generator)


def figures_of(reference: torch.Tensor, output: torch.Tensor, threshold: float | None = None) -> Figures:
    comparison = Comparison(lambda one: one, threshold)
    comparison.add(reference, output)
    return comparison.figures()


def verdict_of(reference: torch.Tensor, output: torch.Tensor, precision: str = "fp32", threshold: float | None = None) -> Verdict:
    return judge(figures_of(reference, output, threshold), precision)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), classes=st.integers(1, 5), threshold=st.sampled_from([None, 0.5]))
def test_the_same_answer_passes_with_nothing_to_be_said(seed: int, classes: int, threshold: float | None) -> None:
    reference = torch.randn(2, classes, 6, 7, 8, generator=torch.Generator().manual_seed(seed))
    figures = figures_of(reference, reference.clone(), threshold)
    assert (figures.relative_l2, figures.agreement, figures.least_dice, figures.windows) == (0, 1, 1, 2)
    assert judge(figures, "fp32").passed


@pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-4), ("fp16", 2e-3), ("bf16", 1e-2)])
def test_each_precision_has_its_own_limit_of_rounding(precision: str, limit: float) -> None:
    reference = scores()
    noise = torch.randn(reference.shape, generator=torch.Generator().manual_seed(1))
    noise *= reference.norm() / noise.norm()
    assert verdict_of(reference, reference + 0.9 * limit * noise, precision).passed
    refused = verdict_of(reference, reference + 1.1 * limit * noise, precision)
    assert [fault.partition(" ")[0] for fault in refused.faults] == ["relative"]


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(wrong: float) -> None:
    output = scores()
    output[1, 0, 3, 3, 3] = wrong
    assert "it answers NaN, infinity or another shape" in verdict_of(scores(), output).faults


def test_another_shape_is_refused() -> None:
    assert not verdict_of(scores(classes=3), scores(classes=4)).passed


def test_labels_that_move_are_refused_even_where_scores_hardly_differ() -> None:
    """Near ties: the scores of two classes differ by a thousandth, and change places."""
    reference = scores()
    reference[:, 2] = reference[:, 1] + 1e-6
    output = reference.clone()
    output[:, 2] -= 2e-6
    refused = verdict_of(reference, output)
    assert figures_of(reference, output).relative_l2 < 1e-6
    assert any("band agree" in fault for fault in refused.faults)
    assert any("Dice of channel" in fault for fault in refused.faults)


def test_only_the_band_around_what_is_found_counts() -> None:
    """Far from everything a label that flips would drown in background: the share is of the band alone."""
    reference = torch.zeros(1, 2, 40, 40, 40)
    reference[:, 0] = 1
    reference[:, 1, 10:14, 10:14, 10:14] = 2
    figures = figures_of(reference, reference)
    assert figures.band_voxels == 10**3
    assert figures.voxels == {"1": 64}


def test_a_small_structure_may_lose_two_voxels_and_no_more() -> None:
    reference = torch.zeros(1, 2, 40, 40, 40)
    reference[:, 0] = 1
    reference[:, 1, 10:12, 10:12, 10:12] = 1 + 1e-6
    for lost, passes in ((2, True), (3, False)):
        output = reference.clone()
        corner = output[0, 1, 10, 10:12, 10:12].reshape(-1)
        corner[:lost] = 1 - 1e-6
        output[0, 1, 10, 10:12, 10:12] = corner.reshape(2, 2)
        verdict = verdict_of(reference, output)
        assert passes is not any("Dice" in fault for fault in verdict.faults)


def test_structures_that_overlap_are_compared_one_by_one() -> None:
    reference = torch.rand(1, 3, *CUBE, generator=torch.Generator().manual_seed(3))
    output = reference.clone()
    output[0, 1] = 1 - output[0, 1]
    refused = verdict_of(reference, output, threshold=0.5)
    assert figures_of(reference, output, threshold=0.5).dice["0"] == 1
    assert any("Dice of channel 1" in fault for fault in refused.faults)


def test_the_bundles_activation_comes_before_its_threshold() -> None:
    comparison = Comparison(torch.sigmoid, 0.5)
    logits = torch.tensor([[[[[-0.1, 0.1]]]]])
    comparison.add(logits, logits)
    assert comparison.figures().voxels == {"0": 1}


def test_half_precision_is_not_believed_where_nothing_was_found() -> None:
    """A network that sees nothing in the phantom agrees with anything; rounding of float32 in another library is another matter."""
    nothing = torch.zeros(1, 2, *CUBE)
    nothing[:, 0] = 1
    assert verdict_of(nothing, nothing, "fp32").passed
    assert "--sample" in verdict_of(nothing, nothing, "bf16").faults[0]


def test_the_record_names_the_gate_by_what_it_found() -> None:
    verdict = verdict_of(scores(), scores())
    record = record_of(verdict, {"reference": "torch", "engine": "other"})
    again = record_of(verdict, {"reference": "torch", "engine": "other"})
    another = record_of(verdict, {"reference": "torch", "engine": "third"})
    assert record["gate"] == again["gate"] != another["gate"]
    said = sentence_of(json.loads(json.dumps(record)))
    assert said == f"gate {record['gate']} against torch: relative L2 0.0e+00, labels 1.00000, least Dice 1.0000, 2 windows"


@pytest.mark.parametrize("window", [Window(1, (16, 20, 24)), Window(4, (16, 16, 16)), Window(3, (32, 32))], ids=str)
def test_the_phantom_is_the_same_every_time_and_not_empty(window: Window) -> None:
    windows = phantom_windows(window, 4)
    assert windows.shape == window.batch(4)
    assert torch.equal(windows, phantom_windows(window, 4))
    assert 0 <= windows[0].min() < windows[0].max() <= 1
    assert abs(float(windows[1].mean())) < 1e-5
    assert not torch.equal(windows[0], windows[2])
