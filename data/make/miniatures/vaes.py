"""What the VAEs of the families share: forward passes over whole clips, scaling, and the weights of the channels."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


@contextmanager
def forward_replaced(layer: type[torch.nn.Module], forward: Callable) -> Iterator[None]:
    """A context, or a decorator, in which all layers of a class use another `forward`."""
    usual, layer.forward = layer.forward, forward
    try:
        yield
    finally:
        layer.forward = usual


def maybe_compiled(compiled: bool, *functions: Callable) -> tuple[Callable, ...]:
    """The functions, compiled for static shapes if `compiled` is true."""
    return tuple(torch.compile(function, dynamic=False) for function in functions) if compiled else functions


def scale_to_one(vae, mean: torch.Tensor, std: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Set the scaling factor of a VAE whose pipeline only scales the latents, all channels alike.

    Args:
        mean, std: Of each channel of the latents, [C].

    Returns:
        The mean and the standard deviation [C] that the scaling amounts to: 0, and the same value in all channels.
    """
    size = float((mean**2 + std**2).mean().sqrt())
    vae.register_to_config(scaling_factor=round(1 / size, 5))
    return torch.zeros_like(mean), torch.full_like(std, 1 / vae.config.scaling_factor)


def channel_weights(posterior_std: torch.Tensor) -> torch.Tensor:
    """How much an error in each latent channel affects the picture, [C], 1 on average.

    A VAE learns to encode a channel the more precisely the more its decoder depends on it, so the squared error in
    pixels is proportional to `posterior_std ** -2`. In the Wan miniatures the channels differ by a factor of several
    hundred.
    """
    weights = posterior_std**-2
    return weights / weights.mean()
