"""The Muon optimizer in a form that a training step recorded as a CUDA graph can use."""

import math

import torch

# From https://kellerjordan.github.io/posts/muon/ (Keller Jordan): steep at zero, so that five rounds are enough.
COEFFICIENTS, ROUNDS = (3.4445, -4.7750, 2.0315), 5


def orthogonalized(matrices: torch.Tensor) -> torch.Tensor:
    """The matrices [n, a, b] with all singular values close to 1, by Newton-Schulz iteration."""
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonalized(matrices.mT).mT
    x = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    first, third, fifth = COEFFICIENTS
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = first * x + (third * gram + fifth * gram @ gram) @ x
    return x


class Muon(torch.optim.Optimizer):
    """`torch.optim.Muon` that updates all matrices of a shape at once and accepts a tensor as the learning rate.

    Both matter for a step recorded as a CUDA graph: it launches fewer kernels, and the rate can change after recording.

    Args:
        matrices: Parameters [rows, ...]. A convolution kernel is treated as a matrix with one row per output channel.
        lr: The root mean square of an update is 0.4 times this value. That of AdamW is about half as large, so a rate
            that suits AdamW also suits Muon.
    """

    def __init__(self, matrices, lr: float | torch.Tensor, momentum: float = 0.95, weight_decay: float = 0.01):
        shapes = {}
        for matrix in matrices:
            shapes.setdefault(tuple(matrix.shape), []).append(matrix)
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__([{"params": alike} for alike in shapes.values()], defaults)
        for group in self.param_groups:
            for matrix in group["params"]:
                self.state[matrix]["momentum"] = torch.zeros_like(matrix)

    @torch.no_grad()
    def step(self) -> None:
        """Update all matrices that have a gradient."""
        for group in self.param_groups:
            matrices = [matrix for matrix in group["params"] if matrix.grad is not None]
            if not matrices:
                continue
            rate, kept = group["lr"], group["momentum"]
            gradients = [matrix.grad for matrix in matrices]
            momenta = [self.state[matrix]["momentum"] for matrix in matrices]
            torch._foreach_mul_(momenta, kept)
            torch._foreach_add_(momenta, gradients)
            ahead = torch.stack(torch._foreach_add(gradients, momenta, alpha=kept)).flatten(2)  # Nesterov momentum
            size = 0.4 * math.sqrt(max(ahead.shape[1:]))
            update = orthogonalized(ahead) * (-size * rate)
            torch._foreach_mul_(matrices, 1 - rate * group["weight_decay"])
            torch._foreach_add_(matrices, list(update.unflatten(2, matrices[0].shape[1:]).unbind()))
