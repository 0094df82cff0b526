"""Learning to go on from one's own answers.

At work only a denoiser's first step sees nothing but noise. Each later one sees noise over what the step before took
for the clean latents, mistakes included; one that has only ever seen noise over the truth takes the mistakes for true.
Shown its own answers in training, it learns to mend them, and every step makes the clip better.
"""

import torch

FROM = 0.9  # of the noise: from here on up next to nothing is to be seen of what lies below


class Drafts:
    """For each clip of the training set the latest answer to almost pure noise; at first the truth.

    Args:
        latents: [N, C, T, H, W] fp16, the true ones.
    """

    def __init__(self, latents: torch.Tensor):
        self.kept = latents.clone()

    def under_noise(self, pick: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
        """What to lay noise over, [n, C, T, H, W], for the clips `pick` [n] whose true latents are `clean`.

        Half of it are drafts as they are, half somewhere between draft and truth, as a later step's answers are.
        """
        n, device = len(pick), clean.device
        draft = self.kept[pick].float()
        nearer = torch.rand(n, device=device) * (torch.rand(n, device=device) < 0.5)
        return torch.lerp(draft, clean, nearer.view(-1, 1, 1, 1, 1))

    def keep(self, pick: torch.Tensor, made: torch.Tensor, which: torch.Tensor) -> None:
        """Put the answers `made` [n, C, T, H, W] in place of the clips' drafts, those with `which` [n] only."""
        which = which.view(-1, 1, 1, 1, 1)
        self.kept.index_copy_(0, pick, torch.where(which, made.detach().to(self.kept.dtype), self.kept[pick]))


def prompt_or_none(prompts: torch.Tensor, none: int) -> torch.Tensor:
    """The prompts' indices [n], some at random that of no prompt: guidance compares with it."""
    return torch.where(torch.rand(len(prompts), device=prompts.device) < 0.08, none, prompts)
