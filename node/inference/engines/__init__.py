"""What runs a network: one protocol, so that a bundle does not know on what it runs."""

from typing import Protocol

import torch


class Engine(Protocol):
    """A network, loaded and warm, on a device."""

    @property
    def preferred_batch(self) -> int:
        """How many windows at once are fastest; fewer and more are taken too."""

    def infer(self, batch: torch.Tensor) -> torch.Tensor:
        """Answers the network's output for a batch of shape (N, C, i, j, k), float32, on the CPU.

        Raises DeviceOutOfMemory or NonFiniteOutput.
        """

    def describe(self) -> str:
        """Names library, version, device and precision, for the SR and the log."""

    def close(self) -> None:
        """Frees the device's memory."""
