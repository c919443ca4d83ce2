"""Convolutions one after the other, each keeping the size of the image, in two buffers and slab by slab.

Every core works at a slab of its own. What a slab's convolution answers is still in the cache when its sums are taken, and lies in
the same small block of memory as that of the slab before: a layer's whole output, fetched fresh from the kernel, would be filled
with zeros first, which alone took a fifth of the time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn

from node.inference.engines.channels import Activation, Moments, as_voxels, change, merge, moments_of, scale_and_shift
from node.inference.parallel import map_on_all_cores

_SLAB_BYTES: Final = 3 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """A convolution with what comes after it."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    padding: tuple[int, int, int]
    dilation: tuple[int, int, int]
    norm: nn.InstanceNorm3d | None
    activation: Activation | None

    def convolve(self, image: torch.Tensor, padding: tuple[int, int, int]) -> torch.Tensor:
        """Answers the convolution of (1, channels, i, j, k) by oneDNN, channels last."""
        output = torch.mkldnn_convolution(image, self.weight, self.bias, padding, (1, 1, 1), self.dilation, 1)
        return output.contiguous(memory_format=torch.channels_last_3d)


def layer_of(convolution: nn.Conv3d, norm: nn.InstanceNorm3d | None, activation: Activation | None, dtype: torch.dtype) -> Layer:
    """Answers a convolution, for which `keeps_size` holds, as a layer that computes in `dtype`."""
    return Layer(
        weight=convolution.weight.detach().to(dtype).contiguous(memory_format=torch.channels_last_3d),
        bias=None if convolution.bias is None else convolution.bias.detach().to(dtype),
        padding=_three(convolution.padding),
        dilation=_three(convolution.dilation),
        norm=norm,
        activation=activation,
    )


def keeps_size(convolution: nn.Conv3d) -> bool:
    """Answers whether the output is as large as the input, padded with zeros."""
    if isinstance(convolution.padding, str) or convolution.padding_mode != "zeros" or convolution.groups != 1:
        return False
    if any(step != 1 for step in convolution.stride):
        return False
    sizes = zip(convolution.kernel_size, convolution.dilation, convolution.padding, strict=True)
    return all(2 * int(padding) == dilation * (kernel - 1) for kernel, dilation, padding in sizes)


class Chain(nn.Module):
    """Layers one after the other; only the last output is seen from outside."""

    def __init__(self, layers: list[Layer]) -> None:
        """Use `layer_of`."""
        super().__init__()
        self._layers = layers

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Answers the output of the last layer, channels last."""
        return torch.cat([self._run(one[None]) for one in batch]) if len(batch) > 1 else self._run(batch)

    def _run(self, image: torch.Tensor) -> torch.Tensor:
        """Every buffer has planes of zeros before and after the image: the padding of the widest layer along the first axis."""
        margin = max(layer.padding[0] for layer in self._layers)
        inside = slice(margin, margin + image.shape[2])
        current = _buffer(image.shape[1], image, margin, self._layers[0].weight.dtype)
        current[:, :, inside].copy_(image)
        spare: torch.Tensor | None = None
        for layer in self._layers:
            if spare is None or spare.shape[1] != len(layer.weight):
                spare = _buffer(len(layer.weight), image, margin, layer.weight.dtype)
            padded = current[:, :, margin - layer.padding[0] : inside.stop + layer.padding[0]]
            _apply(layer, padded, spare[:, :, inside])
            current, spare = spare, current
        return current[:, :, inside]


def _apply(layer: Layer, padded: torch.Tensor, target: torch.Tensor) -> None:
    """Fills `target` with the output of a layer; `padded` holds the padding along the first axis already."""
    planes = target.shape[2]
    thickness = max(1, _SLAB_BYTES // (target[:, :, 0].numel() * target.element_size()))
    slabs = [slice(start, min(start + thickness, planes)) for start in range(0, planes, thickness)]

    def convolve(slab: slice) -> Moments | None:
        answer = layer.convolve(padded[:, :, slab.start : slab.stop + 2 * layer.padding[0]], (0, *layer.padding[1:]))
        if layer.norm is None and layer.activation is not None:
            change(as_voxels(answer), None, layer.activation)
        target[:, :, slab].copy_(answer)
        return None if layer.norm is None else moments_of(as_voxels(answer))

    moments = [found for found in map_on_all_cores(convolve, slabs) if found is not None]
    if layer.norm is not None:
        factors = scale_and_shift(layer.norm, merge(moments))
        map_on_all_cores(lambda slab: change(as_voxels(target[:, :, slab]), factors, layer.activation), slabs)


def _buffer(channels: int, image: torch.Tensor, margin: int, dtype: torch.dtype) -> torch.Tensor:
    planes, rows, columns = image.shape[2:]
    shape = (1, channels, planes + 2 * margin, rows, columns)
    buffer = torch.empty(shape, dtype=dtype, memory_format=torch.channels_last_3d)
    buffer[:, :, :margin] = 0
    buffer[:, :, margin + planes :] = 0
    return buffer


def _three(sizes: Sequence[int | str] | str) -> tuple[int, int, int]:
    first, second, third = (int(size) for size in sizes)
    return first, second, third
