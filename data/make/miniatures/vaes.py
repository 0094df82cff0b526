"""What the families' VAEs share: layers that take a whole clip at once, statistics, and what a channel is worth."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


@contextmanager
def forward_replaced(layer: type[torch.nn.Module], forward: Callable) -> Iterator[None]:
    """Within it, or within a function that it decorates, all layers of the class have another `forward`."""
    usual, layer.forward = layer.forward, forward
    try:
        yield
    finally:
        layer.forward = usual


def scale_to_one(vae, mean: torch.Tensor, std: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`set_statistics` where the pipeline only scales, all channels alike.

    Returns the mean and the standard deviation per channel [C] that this comes to.
    """
    size = float((mean**2 + std**2).mean().sqrt())
    vae.register_to_config(scaling_factor=round(1 / size, 5))
    return torch.zeros_like(mean), torch.full_like(std, 1 / vae.config.scaling_factor)


def worth_of_channels(posterior_std: torch.Tensor) -> torch.Tensor:
    """How much an error in each latent channel [C] counts in the picture, 1 on average.

    A VAE learns to be the more exact in a channel the more its decoder makes of it, so that the squared error in pixels
    goes with `posterior_std ** -2`. In the Wan miniatures channels differ by a factor of several hundred.
    """
    worth = posterior_std**-2
    return worth / worth.mean()
