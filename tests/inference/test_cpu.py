"""A network made fast computes what the plain one computes."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.networks.nets import AttentionUnet, BasicUNet, DynUNet, SegResNet, UNet
from torch import nn

from node.inference.engines.cpu import is_swappable, optimise_for_cpu
from node.inference.engines.torch_engine import TorchEngine, multiplies_bf16
from node.inference.parallel import map_on_all_cores

ACTIVATIONS = [nn.GELU("tanh"), nn.GELU(), nn.ELU(), nn.ReLU(), nn.LeakyReLU(0.1), nn.PReLU(), nn.Tanh(), nn.SiLU()]


def fast(network: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    return optimise_for_cpu(copy.deepcopy(network), dtype)


def difference(network: nn.Module, batch: torch.Tensor, dtype: torch.dtype = torch.float32) -> float:
    """Largest difference, in standard deviations of the plain output (or as it is, where that is constant)."""
    network = network.eval()
    with torch.inference_mode():
        plain = network(batch)
        return float((fast(network, dtype)(batch).float() - plain).abs().max() / (plain.std() or 1.0))


@settings(max_examples=25, deadline=None)
@given(
    channels=st.lists(st.integers(1, 17), min_size=1, max_size=3),
    dilation=st.integers(1, 5),
    affine=st.booleans(),
    bias=st.booleans(),
    activation=st.sampled_from(ACTIVATIONS),
    size=st.tuples(*[st.integers(8, 19)] * 3),
    images=st.integers(1, 2),
)
def test_meshnets_of_every_kind(
    channels: list[int], dilation: int, affine: bool, bias: bool, activation: nn.Module, size: tuple[int, int, int], images: int
) -> None:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in zip([1, *channels], channels, strict=False):
        norm = nn.InstanceNorm3d(after, affine=affine)
        if norm.weight is not None:
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
        layers += [nn.Conv3d(before, after, 3, padding=dilation, dilation=dilation, bias=bias), norm, activation]
    network = nn.Sequential(*layers, nn.Conv3d(channels[-1], 2, 1), activation)
    assert difference(network, torch.randn(images, 1, *size)) < 1e-4


@pytest.mark.parametrize(
    "network",
    [
        UNet(3, 1, 3, (8, 16, 32), (2, 2), num_res_units=2, norm="instance"),
        UNet(3, 1, 3, (8, 16, 32), (2, 2), num_res_units=2, norm="batch"),
        SegResNet(spatial_dims=3, init_filters=8, out_channels=3),
        BasicUNet(3, 1, 3, (8, 8, 16, 16, 32, 8)),
        AttentionUnet(3, 1, 3, (8, 16, 32), (2, 2)),
        DynUNet(3, 1, 3, [3, 3, 3], [1, 2, 2], [2, 2], filters=[8, 16, 32]),
    ],
    ids=["unet-instance", "unet-batch", "segresnet", "basicunet", "attentionunet", "dynunet"],
)
def test_networks_of_monai(network: nn.Module) -> None:
    torch.manual_seed(0)
    assert difference(network, torch.randn(1, 1, 32, 32, 32)) < 1e-3


class Residual(nn.Module):
    """Uses the output of a convolution twice, and an activation in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.activation = nn.ReLU()
        self.first = nn.Conv3d(1, 4, 3, padding=1)
        self.branch = nn.Sequential(nn.InstanceNorm3d(4), self.activation, nn.Conv3d(4, 4, 3, padding=1), self.activation)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        before = self.first(batch)
        activated = self.activation(before)
        return before + activated + self.branch(before)  # type: ignore[no-any-return]


def test_what_another_layer_still_needs_is_left_alone() -> None:
    assert difference(Residual(), torch.randn(1, 1, 9, 10, 11)) < 1e-4


def test_a_large_mean_does_not_drown_the_variance() -> None:
    network = nn.Sequential(nn.Conv3d(1, 3, 3, padding=1), nn.InstanceNorm3d(3))
    with torch.no_grad():
        network[0].bias.fill_(300.0)
    assert difference(network, torch.randn(1, 1, 24, 24, 24)) < 1e-3


def test_bfloat16_is_near() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(1, 8, 3, padding=1), nn.InstanceNorm3d(8), nn.GELU("tanh"), nn.Conv3d(8, 2, 1))
    assert difference(network, torch.randn(1, 1, 16, 16, 16), torch.bfloat16) < 0.05


def test_only_networks_that_we_know_whole_may_run_in_bfloat16() -> None:
    assert is_swappable(nn.Sequential(nn.Conv3d(1, 2, 3), nn.InstanceNorm3d(2), nn.GELU()))
    assert not is_swappable(nn.Sequential(nn.Conv3d(1, 2, 3), nn.BatchNorm3d(2)))
    assert not is_swappable(nn.Sequential(nn.Conv3d(1, 2, 3, padding=1, padding_mode="reflect")))
    assert not is_swappable(torch.jit.script(nn.Conv3d(1, 2, 3)))


@pytest.mark.parametrize("asked", ["fp32", "bf16"])
def test_the_engine_says_its_precision(asked: str) -> None:
    engine = TorchEngine(nn.Conv3d(1, 2, 3), device="cpu", cpu_precision=asked)
    assert engine.infer(torch.zeros(1, 1, 5, 5, 5)).dtype == torch.float32
    assert engine.describe().endswith("bf16" if asked == "bf16" and multiplies_bf16() else "fp32")


def test_work_on_all_cores_keeps_its_order_and_torchs_threads() -> None:
    before = torch.get_num_threads()
    assert map_on_all_cores(lambda number: (number * number, torch.get_num_threads()), range(50)) == [(n * n, 1) for n in range(50)]
    assert torch.get_num_threads() == before


def test_a_fault_in_one_piece_of_work_is_not_swallowed() -> None:
    with pytest.raises(ZeroDivisionError):
        map_on_all_cores(lambda number: 1 // number, [1, 0])


@pytest.mark.parametrize(("groups", "channels", "affine"), [(1, 6, True), (4, 12, False), (5, 5, True)])
def test_group_norms_of_every_kind_leave_what_comes_in_as_it_is(groups: int, channels: int, affine: bool) -> None:
    torch.manual_seed(0)
    norm = nn.GroupNorm(groups, channels, affine=affine)
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    batch = torch.randn(2, channels, 9, 10, 11) * torch.rand(1, channels, 1, 1, 1) + torch.randn(1, channels, 1, 1, 1)
    before = batch.clone()
    assert difference(norm, batch) < 1e-5
    assert torch.equal(batch, before)


def test_a_group_norm_keeps_its_digits_where_the_mean_is_large() -> None:
    """Of activations far from zero, channels last, torch's own group norm is wrong in the third digit."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv3d(1, 8, 1), torch.nn.GroupNorm(8, 8), torch.nn.Sigmoid(), torch.nn.Conv3d(8, 2, 1))
    image = torch.randn(1, 1, 16, 16, 16) * 0.1 + 3
    with torch.inference_mode():
        exact = copy.deepcopy(network).double()(image.double())
        fast = optimise_for_cpu(network)(image)
    assert (fast - exact).norm() / exact.norm() < 1e-5
