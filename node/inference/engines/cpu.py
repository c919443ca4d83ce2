"""Makes a network fast on the CPU without changing what it computes. Modules are swapped; the bundle's network stays plain torch.

What is gained: convolutions go straight to oneDNN with the channels last, where torch's own choice for one volume is to unfold it
(im2col); a row of convolutions with norms and activations runs slab by slab in two buffers (`chain`); norms and activations work in
pieces that stay in the cache, on all cores side by side (`channels`). Figures: docs/README.md of the bundle brain-extraction.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Final

import torch
from torch import nn

from node.inference.engines.chain import Chain, Layer, keeps_size, layer_of
from node.inference.engines.channels import Activation, Moments, as_voxels, change, merge, moments_of, scale_and_shift, tanh_gelu
from node.inference.parallel import map_on_all_cores

_PART_VOXELS: Final = 1 << 16

_IN_PLACE: Final = (nn.ELU, nn.LeakyReLU, nn.ReLU, nn.ReLU6, nn.SiLU, nn.CELU, nn.SELU, nn.Hardswish)
"""Activations of torch that have an in-place form and no weights."""


def optimise_for_cpu(network: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Answers a network that computes the same, faster on a CPU; `network` itself is taken apart.

    Convolutions compute and answer in `dtype`, their sums are float32; statistics of instance norms are float64.
    Equal to the plain network up to rounding: see tests/inference/test_cpu.py.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return network
    return _ChannelsLast(_swap(network, dtype))


def is_swappable(network: nn.Module) -> bool:
    """Answers whether every module with weights is one that `optimise_for_cpu` swaps: then it may run in bfloat16."""
    return not isinstance(network, torch.jit.ScriptModule) and all(
        _is_plain(module) for module in network.modules() if [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    )


def _swap(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    if isinstance(module, (torch.jit.ScriptModule, Chain, _DirectConvolution, _InstanceNorm, _GroupNorm)):
        return module  # some networks hold the same module under two names: what was swapped already stays
    if isinstance(module, nn.Conv3d) and _is_plain(module):
        return _DirectConvolution(module, dtype)
    if isinstance(module, nn.InstanceNorm3d) and _is_plain(module):
        return _InstanceNorm(module)
    if isinstance(module, nn.GroupNorm):
        return _GroupNorm(module)
    if type(module) is nn.Sequential and (layers := _layers(list(module), dtype)):
        return Chain(layers)
    for name, child in module.named_children():
        setattr(module, name, _swap(child, dtype))
    return module


def _is_plain(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv3d):
        return module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return isinstance(module, nn.InstanceNorm3d) and not module.track_running_stats


def _layers(modules: list[nn.Module], dtype: torch.dtype) -> list[Layer]:
    """Answers a Sequential as layers of a chain; none where it is anything else than convolutions, each with norm and activation."""
    layers: list[Layer] = []
    rest = list(modules)
    while rest:
        convolution = rest.pop(0)
        if not isinstance(convolution, nn.Conv3d) or not keeps_size(convolution):
            return []
        norm = rest[0] if rest and isinstance(rest[0], nn.InstanceNorm3d) and _is_plain(rest[0]) else None
        rest = rest[norm is not None :]
        activation = _in_place(rest[0]) if rest else None
        rest = rest[activation is not None :]
        layers.append(layer_of(convolution, norm, activation, dtype))
    return layers


def _in_place(module: nn.Module) -> Activation | None:
    """Answers the in-place form of an activation, None where it has none or is no activation."""
    if isinstance(module, nn.GELU) and module.approximate == "tanh":
        return tanh_gelu
    if not isinstance(module, _IN_PLACE):
        return None
    in_place = copy.copy(module)  # the network may use the same object elsewhere, on what must not change
    setattr(in_place, "inplace", True)  # noqa: B010 - torch's types do not know the attribute of all activations

    def apply(work: torch.Tensor, _: torch.Tensor) -> None:
        in_place(work)

    return apply


class _ChannelsLast(nn.Module):
    """A network whose input comes in the order of memory that oneDNN is fastest in."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        if batch.ndim == 5:
            batch = batch.contiguous(memory_format=torch.channels_last_3d)
        return self.network(batch)  # type: ignore[no-any-return]


class _DirectConvolution(nn.Module):
    """A Conv3d that goes straight to oneDNN."""

    def __init__(self, convolution: nn.Conv3d, dtype: torch.dtype) -> None:
        super().__init__()
        weight = convolution.weight.detach().to(dtype).contiguous(memory_format=torch.channels_last_3d)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if convolution.bias is None else nn.Parameter(convolution.bias.detach().to(dtype), requires_grad=False)
        self.padding = [int(voxels) for voxels in convolution.padding]
        self.stride, self.dilation = convolution.stride, convolution.dilation
        self.groups = convolution.groups

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        batch = batch.to(self.weight.dtype).contiguous(memory_format=torch.channels_last_3d)
        output = torch.mkldnn_convolution(batch, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups)
        return output.contiguous(memory_format=torch.channels_last_3d)


class _GroupNorm(nn.Module):
    """A group norm that leaves the channels last.

    torch's own takes the variance as a difference of large sums there: at a mean of 30 standard deviations the answer is wrong in the
    third digit, and a network of 105 classes decides otherwise (measured; tests/inference/test_cpu.py). To put the channels first for
    it, and last again for the convolution, took as long as a third of the convolutions.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self._norm = norm

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        if batch.ndim != 5:
            return self._norm(batch.contiguous())  # type: ignore[no-any-return]
        return _normalised(batch, self._norm, lambda moments: moments.grouped(self._norm.num_groups))


class _InstanceNorm(nn.Module):
    """An InstanceNorm3d that leaves the channels last."""

    def __init__(self, norm: nn.InstanceNorm3d) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return _normalised(batch, self.norm, lambda moments: moments)


def _normalised(batch: torch.Tensor, norm: nn.InstanceNorm3d | nn.GroupNorm, over: Callable[[Moments], Moments]) -> torch.Tensor:
    """Answers a batch after a norm, image by image; `over` answers the moments that count out of those of the channels."""
    batch = batch.contiguous(memory_format=torch.channels_last_3d)
    output = torch.empty_like(batch)
    for image, target in zip(torch.split(batch, 1), torch.split(output, 1), strict=True):
        parts, targets = (torch.split(as_voxels(one), _PART_VOXELS) for one in (image, target))
        factors = scale_and_shift(norm, over(merge(map_on_all_cores(moments_of, parts))))
        changed = partial(_change_into, factors=factors)
        map_on_all_cores(changed, zip(parts, targets, strict=True))
    return output


def _change_into(part_and_target: tuple[torch.Tensor, torch.Tensor], factors: tuple[torch.Tensor, torch.Tensor]) -> None:
    part, target = part_and_target
    change(part, factors, None, target)
