"""Training a denoiser on its own predictions.

At inference only the first denoising step sees pure noise. Each later step sees noise added to the clean latents that
the previous step predicted, with its mistakes. A denoiser trained only on noise added to the true latents trusts these
mistakes; trained on its own predictions it learns to correct them, and every step improves the clip.
"""

import torch

ALMOST_PURE = 0.9  # noise level from which next to nothing of the latents is visible


class OwnPredictions:
    """The latest prediction for each clip of the training set, made from almost pure noise; initially the truth.

    Args:
        latents: [N, C, T, H, W] fp16, the true ones.

    Attributes:
        latest: [N, C, T, H, W] fp16.
    """

    def __init__(self, latents: torch.Tensor):
        self.latest = latents.clone()

    def estimates(self, pick: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
        """The latents [n, C, T, H, W] to add noise to, for the clips `pick` [n] whose true latents are `clean`.

        Half of them are predictions as they are. The other half lie at a random point between prediction and truth, as
        the predictions of later steps do.
        """
        n, device = len(pick), clean.device
        predicted = self.latest[pick].float()
        nearer = torch.rand(n, device=device) * (torch.rand(n, device=device) < 0.5)
        return torch.lerp(predicted, clean, nearer.view(-1, 1, 1, 1, 1))

    def keep(self, pick: torch.Tensor, predicted: torch.Tensor, which: torch.Tensor) -> None:
        """Replace the predictions of the clips `pick` [n] by `predicted` [n, C, T, H, W] where `which` [n] is true."""
        which = which.view(-1, 1, 1, 1, 1)
        predicted = predicted.detach().to(self.latest.dtype)
        self.latest.index_copy_(0, pick, torch.where(which, predicted, self.latest[pick]))
