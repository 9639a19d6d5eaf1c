"""How large gradients are."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def grad_norm(
    module: nn.Module, norm_type: float | int | str, group_separator: str = "/"
) -> dict[str, Tensor]:
    """Return the norm of each parameter's gradient, and of all of them together, without waiting for the
    device.

    Args:
        module: Whose parameters; those without a gradient are left out.
        norm_type: The p of the norm, above 0; ``"inf"`` for the largest.
        group_separator: Between the kind of norm and the parameter's name.

    Returns:
        Scalars: ``grad_2.0_norm/layer.weight`` and, where there is a gradient, ``grad_2.0_norm_total``.

    Raises:
        ValueError: `norm_type` is not above 0.

    >>> layer = nn.Linear(1, 1, bias=False)
    >>> layer.weight.grad = torch.full((1, 1), -3.0)
    >>> grad_norm(layer, 2)
    {'grad_2.0_norm/weight': tensor(3.), 'grad_2.0_norm_total': tensor(3.)}
    """
    order = float(norm_type)
    if not order > 0:
        raise ValueError(f"grad_norm(norm_type={norm_type!r}). Use a number above 0, or 'inf'.")
    gradients = {
        name: item.grad.detach() for name, item in module.named_parameters() if item.grad is not None
    }
    norms = {
        f"grad_{order}_norm{group_separator}{name}": torch.linalg.vector_norm(gradient, order)
        for name, gradient in gradients.items()
    }
    if norms:
        values = list(norms.values())
        together = torch.stack([value.to(values[0].device, torch.float32) for value in values])
        norms[f"grad_{order}_norm_total"] = torch.linalg.vector_norm(together, order)
    return norms
