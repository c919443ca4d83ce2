"""Weights in safetensors as a network wants them: names that share a tensor are written once and stand here again."""

import json
from pathlib import Path
from typing import Final

import torch
from safetensors import safe_open
from safetensors.torch import load_file

ALIASES: Final = "radnode.aliases"
"""Key of the file's metadata: JSON of name → name whose tensor it shares."""


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """Answers the tensors of a safetensors file by name.

    Raises safetensors.SafetensorError when it is none.
    """
    state = load_file(path)
    with safe_open(path, framework="pt") as opened:
        aliases: dict[str, str] = json.loads((opened.metadata() or {}).get(ALIASES, "{}"))
    return state | {name: state[target] for name, target in aliases.items()}
