"""The reconstruction loss of the VAEs."""

import torch
import torch.nn.functional as F


def block_ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean structural similarity of videos [B, 3, T, H, W] in -1..1, over 7 x 7 windows; a scalar."""
    a, b = ((v.transpose(1, 2).flatten(0, 1) + 1) / 2 for v in (a, b))
    mean = lambda v: F.avg_pool2d(v, 7, stride=2)  # noqa: E731
    ma, mb = mean(a), mean(b)
    va, vb, cov = mean(a * a) - ma * ma, mean(b * b) - mb * mb, mean(a * b) - ma * mb
    return (((2 * ma * mb + 1e-4) * (2 * cov + 9e-4)) / ((ma * ma + mb * mb + 1e-4) * (va + vb + 9e-4))).mean()


def reconstruction_loss(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The loss of the reconstructions `y` of the videos `x`, both [B, 3, T, H, W] in -1..1; a scalar.

    Moving pixels count five times as much as still ones.
    """
    error = y - x
    moves = ((x - x.median(dim=2, keepdim=True).values).abs().amax(1, keepdim=True) > 0.08).float()
    weight = 1 + 4 * moves
    weight = weight / weight.mean()
    edges = sum(error.diff(dim=d).abs().mean() for d in (2, 3, 4))
    exact = (weight * error.abs()).mean() + 0.5 * edges + 5 * (weight * error**2).mean()
    return exact + 0.1 * (1 - block_ssim(y, x))
