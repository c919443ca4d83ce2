"""Makes a network fast on the CPU without changing what it computes. Modules are swapped; the bundle's network stays plain torch.

What is gained, on two cores for a MeshNet of 25 dilated convolutions (docs/README.md of the bundle brain-extraction has figures):
convolutions go straight to oneDNN with the channels last, where torch's own choice for one volume is to unfold it (im2col);
instance norm and the activation after it are done in place, piece by piece in the cache, on all cores side by side.
"""

import copy
import math
from collections.abc import Iterator
from typing import Final

import torch
from torch import nn

from node.inference.parallel import map_on_all_cores

_SQRT_2_OVER_PI: Final = math.sqrt(2 / math.pi)

_CHUNK_ELEMENTS: Final = 1 << 17
"""A piece of activations that stays in the cache between the passes over it."""

_SHARES: Final = 64
"""Parts of a volume of activations that the cores take one by one."""

_ROW_VOXELS: Final = 64
"""Voxels side by side in one row of a piece: rows of a few channels alone would be too short for vector instructions."""

_IN_PLACE: Final = (nn.ELU, nn.LeakyReLU, nn.ReLU, nn.ReLU6, nn.SiLU, nn.CELU, nn.SELU, nn.Hardswish)
"""Activations of torch that have an in-place form and no weights."""


def optimise_for_cpu(network: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Answers a network that computes the same, faster on a CPU; `network` itself is taken apart.

    Convolutions compute and answer in `dtype`, sums are always float32; statistics of instance norms are float64.
    Equal to the plain network up to rounding: see tests/inference/test_cpu.py.
    """
    if not torch.backends.mkldnn.is_available():
        return network
    return _ChannelsLast(_swap(network, dtype))


def is_swappable(network: nn.Module) -> bool:
    """Answers whether every module with weights is one that `optimise_for_cpu` swaps: then it may run in bfloat16."""
    return all(
        isinstance(module, nn.Conv3d | nn.InstanceNorm3d) and _is_plain(module)
        for module in network.modules()
        if any(True for _ in module.parameters(recurse=False)) or any(True for _ in module.buffers(recurse=False))
    ) and not isinstance(network, torch.jit.ScriptModule)


def _swap(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    if isinstance(module, torch.jit.ScriptModule):
        return module
    if isinstance(module, nn.Conv3d) and _is_plain(module):
        return _DirectConvolution(module, dtype)
    if isinstance(module, nn.InstanceNorm3d) and _is_plain(module):
        return _InstanceNorm(module)
    for name, child in module.named_children():
        setattr(module, name, _swap(child, dtype))
    if type(module) is nn.Sequential:
        return nn.Sequential(*_fused(list(module)))
    return module


def _is_plain(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv3d):
        return module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return isinstance(module, nn.InstanceNorm3d) and not module.track_running_stats


def _fused(modules: list[nn.Module]) -> Iterator[nn.Module]:
    """Yields the modules of a Sequential, each norm or activation that follows a convolution in place: nobody else sees its input.

    An activation that joined the norm before it leaves an Identity, so that every module keeps its place.
    """
    before: nn.Module | None = None
    for module in modules:
        after = module
        if isinstance(module, _InstanceNorm):
            module.owns_input = isinstance(before, _DirectConvolution)
        elif isinstance(before, _InstanceNorm) and _has_in_place_form(module):
            before.activation = _in_place(module)
            after = nn.Identity()
        elif isinstance(before, _DirectConvolution) and isinstance(module, _IN_PLACE):
            after = _in_place(module)
        before = after
        yield after


def _has_in_place_form(module: nn.Module) -> bool:
    return isinstance(module, _IN_PLACE) or (isinstance(module, nn.GELU) and module.approximate == "tanh")


def _in_place(activation: nn.Module) -> nn.Module:
    if isinstance(activation, nn.GELU):
        return _TanhGelu()
    in_place = copy.copy(activation)  # the network may use the same object elsewhere, on what must not change
    in_place.inplace = True
    return in_place


class _ChannelsLast(nn.Module):
    """A network whose input comes in the order of memory that oneDNN is fastest in."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return self.network(batch.contiguous(memory_format=torch.channels_last_3d))  # type: ignore[no-any-return]


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


class _InstanceNorm(nn.Module):
    """An InstanceNorm3d, with the activation after it, piece by piece; float32 inside whatever the type of the batch."""

    def __init__(self, norm: nn.InstanceNorm3d) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps
        self.activation: nn.Module | None = None
        self.owns_input = False

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        if not (self.owns_input and batch.is_contiguous(memory_format=torch.channels_last_3d)):
            batch = batch.clone(memory_format=torch.channels_last_3d)
        for one in batch:
            self._normalise(one.permute(1, 2, 3, 0).view(-1, one.shape[0]))
        return batch

    def _normalise(self, voxels: torch.Tensor) -> None:
        """Changes (voxels, channels) in place."""
        mean, variance = _moments(voxels)
        scale = torch.rsqrt(variance + self.eps)
        if self.weight is not None:
            scale *= self.weight
        shift = -mean * scale
        if self.bias is not None:
            shift += self.bias
        scales, shifts = _rows_of(scale.float()), _rows_of(shift.float())

        def normalise(share: torch.Tensor) -> None:
            for piece, work in _pieces(share):
                work.mul_(scales[: piece.shape[1]]).add_(shifts[: piece.shape[1]])
                piece.copy_(work if self.activation is None else self.activation(work))

        map_on_all_cores(normalise, _shares(voxels))


class _TanhGelu(nn.Module):
    """GELU in its tanh form, in place: x sigmoid(2 u) for u = sqrt(2 / pi) (x + 0.044715 x³).

    The same as x (1 + tanh u) / 2, at half the time: torch's sigmoid is fast, its tanh is not.
    """

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        gate = torch.mul(batch, batch).mul_(2 * _SQRT_2_OVER_PI * 0.044715).add_(2 * _SQRT_2_OVER_PI)
        return batch.mul_(gate.mul_(batch).sigmoid_())


def _moments(voxels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Answers mean and variance of each channel of (voxels, channels), float64.

    Sums run over the differences to the mean of the first piece, so that a large mean does not drown a small variance.
    """
    channels = voxels.shape[1]
    pilot = voxels[: _CHUNK_ELEMENTS // channels].float().mean(dim=0)
    pilots = _rows_of(pilot)

    def sums_of(share: torch.Tensor) -> torch.Tensor:
        sums = torch.zeros(2, channels, dtype=torch.float64)
        for _, work in _pieces(share):
            work.sub_(pilots[: work.shape[1]])
            sums[0] += work.sum(dim=0).view(-1, channels).sum(dim=0, dtype=torch.float64)
            sums[1] += work.square_().sum(dim=0).view(-1, channels).sum(dim=0, dtype=torch.float64)
        return sums

    mean, square = torch.stack(map_on_all_cores(sums_of, _shares(voxels))).sum(dim=0) / len(voxels)
    return mean + pilot, (square - mean.square()).clamp_(min=0)


def _shares(voxels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Answers views that cover (voxels, channels), several for every core."""
    rows = -(-len(voxels) // (_ROW_VOXELS * _SHARES))
    return torch.split(voxels, max(1, rows) * _ROW_VOXELS)


def _pieces(voxels: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields views that cover (voxels, channels), each with a float32 copy that lives until the next one.

    A view has the shape (rows, voxels side by side x channels) and at most _CHUNK_ELEMENTS elements.
    """
    count, channels = voxels.shape
    wide = count - count % _ROW_VOXELS
    rows_at_once = max(1, _CHUNK_ELEMENTS // (_ROW_VOXELS * channels))
    scratch = torch.empty(max(_CHUNK_ELEMENTS, _ROW_VOXELS * channels), dtype=torch.float32)
    pieces = [*torch.split(voxels[:wide].view(-1, _ROW_VOXELS * channels), rows_at_once), voxels[wide:]]
    for piece in pieces:
        if piece.numel():
            yield piece, scratch[: piece.numel()].view(piece.shape).copy_(piece)


def _rows_of(values: torch.Tensor) -> torch.Tensor:
    """Answers the values of the channels for a whole row of voxels side by side."""
    return values.repeat(_ROW_VOXELS)
