"""The float models in torch, with the weights that their exports have."""

from __future__ import annotations

from typing import Any

from models import SEED, Model, blur


def torch_module(model: Model) -> Any:
    """Return the model with its random weights, the same ones every time."""
    import torch

    torch.manual_seed(SEED)
    module = model.build().eval()
    blur(module)
    return module
