"""The optimizer of the denoisers' matrices, as a recorded training step needs it."""

import math

import torch

# Keller Jordan's, https://kellerjordan.github.io/posts/muon/: steep at zero, so that five rounds are enough
COEFFICIENTS, ROUNDS = (3.4445, -4.7750, 2.0315), 5


def orthogonalized(matrices: torch.Tensor) -> torch.Tensor:
    """The matrices [n, a, b] with all their singular values brought near to 1, by Newton and Schulz's iteration."""
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonalized(matrices.mT).mT
    x = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    first, third, fifth = COEFFICIENTS
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = first * x + (third * gram + fifth * gram @ gram) @ x
    return x


class Muon(torch.optim.Optimizer):
    """`torch.optim.Muon`, but it takes all matrices of a shape at once, and its learning rate may be a tensor.

    Both matter to a step that is recorded as a CUDA graph: fewer kernels, and a rate that is not written into them.

    Args:
        matrices: Parameters [rows, ...]; a convolution's kernel is taken as a matrix, a row for each channel it makes.
        lr: An update's root mean square is 0.4 times this. AdamW's is about half of that; so a rate that suits AdamW
            may be given here.
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
        for group in self.param_groups:
            matrices, rate, kept = group["params"], group["lr"], group["momentum"]
            gradients = [matrix.grad for matrix in matrices]
            momenta = [self.state[matrix]["momentum"] for matrix in matrices]
            torch._foreach_mul_(momenta, kept)
            torch._foreach_add_(momenta, gradients)
            ahead = torch.stack(torch._foreach_add(gradients, momenta, alpha=kept)).flatten(2)  # Nesterov's
            size = 0.4 * math.sqrt(max(ahead.shape[1:]))
            update = orthogonalized(ahead) * (-size * rate)
            torch._foreach_mul_(matrices, 1 - rate * group["weight_decay"])
            torch._foreach_add_(matrices, list(update.unflatten(2, matrices[0].shape[1:]).unbind()))
