"""Training on a context that an earlier hop made.

A clip that goes on hop after hop is continued from frames that the model itself made, with their mistakes. A denoiser
trained only on the latents of real frames trusts these mistakes and adds its own to them. Here the training set
consists of chains of clips, each of which begins with the last frames of the one before it. The context of a clip is
what the denoiser predicts at the end of the one before, and that was predicted from such a context in turn, so the
denoiser sees what many hops accumulate; its target is the truth. (Stable Video Infinity, arXiv:2510.09212, fine-tunes
Wan on its own errors in the same spirit.)
"""

import torch

GIVEN = (1, 2, 3, 3, 3, 3, 4, 5)  # a clip is conditioned on one of these numbers of latent frames
TAIL = 2  # latent frames that are handed over; the one before them holds a single frame
ALMOST_CLEAN = 0.35  # noise level below which a prediction is about what the last denoising step returns


class HandedOver:
    """The contexts of the clips of a training set, and the latest predictions that they are made from.

    Args:
        latents: [N, C, T, H, W] fp16, normalised, in chains of `hops` clips, one chain after another.
        prompts: [N] long. Where it changes within a chain, it does so where the context ends.
        hops: Clips per chain.
    """

    def __init__(self, latents: torch.Tensor, prompts: torch.Tensor, hops: int):
        self.latents, self.ends, self.hops = latents, latents.clone(), hops
        place = torch.arange(len(latents), device=latents.device) % hops
        self.follows = place > 0
        self.changes = self.follows & (prompts != prompts.roll(1))
        self.chain = torch.arange(len(latents), device=latents.device) - place
        self.counts = torch.tensor(GIVEN, device=latents.device)

    def given(self, pick: torch.Tensor, several: torch.Tensor) -> torch.Tensor:
        """How many latent frames the clips `pick` [n] are conditioned on, [n]: 1, or where `several` is true and where
        the prompt changes, a random number; after a change the context is needed whole.
        """
        drawn = self.counts[torch.randint(len(GIVEN), pick.shape, device=pick.device)]
        drawn = torch.where(self.changes[pick], drawn.clamp(min=1 + TAIL), drawn)
        return torch.where(several | self.changes[pick], drawn, 1)

    def context(self, pick: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
        """The latents [n, C, T, H, W] to condition the clips `pick` on, whose true latents are `clean`.

        Half of the time the first latent frame, a single frame, is an *anchor*: one of anywhere in the chain. The
        handed-over ones lie between the truth and the prediction, or a little beyond it.
        """
        n, device = len(pick), pick.device
        shape = (-1, 1, 1, 1, 1)
        there = self.chain[pick] + torch.randint(self.hops, (n,), device=device)
        anchor = self.latents[there.clamp(max=len(self.latents) - 1)][:, :, :1].float()
        first = torch.where((torch.rand(n, device=device) < 0.5).view(shape), anchor, clean[:, :, :1])
        wrong = 1.25 * torch.rand(n, device=device) * (torch.rand(n, device=device) < 0.75) * self.follows[pick]
        tail = min(TAIL, clean.shape[2] - 1)
        made = self.ends[(pick - 1).clamp(min=0)][:, :, -tail:].float()
        handed = torch.lerp(clean[:, :, 1 : 1 + tail], made, wrong.view(shape))
        return torch.cat([first, handed, clean[:, :, 1 + tail :]], dim=2)

    def keep(self, pick: torch.Tensor, predicted: torch.Tensor, sigma: torch.Tensor, given: torch.Tensor) -> None:
        """Keep the predictions [n, C, T, H, W] that are almost clean and whose context is one that is handed over."""
        which = (sigma.flatten() < ALMOST_CLEAN) & ((given > 1) | ~self.follows[pick])
        which = which.view(-1, 1, 1, 1, 1)
        predicted = predicted.detach().to(self.ends.dtype)
        self.ends.index_copy_(0, pick, torch.where(which, predicted, self.ends[pick]))
