"""What an earlier hop hands over, in training: chains of clips, and predictions with their mistakes as context."""

import torch

from data.make.clips.scenes import PROMPTS
from data.make.miniatures.dataset import draw_chains
from data.make.miniatures.families import family_of
from data.make.miniatures.families.handed_over import TAIL, HandedOver


def chains(count=4, hops=3):
    """Latents whose value is their clip's number, in chains in which the second clip has another prompt."""
    latents = torch.arange(count * hops).view(-1, 1, 1, 1, 1).expand(-1, 2, 5, 2, 3).half()
    return latents, torch.tensor([0, 1, 1] * count), HandedOver(latents, torch.tensor([0, 1, 1] * count), hops)


def test_clips_follow_each_other_and_a_change_of_prompt_needs_the_context():
    _, _, handed = chains()
    assert handed.follows.tolist() == [False, True, True] * 4 and handed.changes.tolist() == [False, True, False] * 4
    pick = torch.arange(12).repeat(200)
    given = handed.given(pick, torch.zeros_like(pick).bool())
    assert set(given[~handed.changes[pick]].tolist()) == {1}
    assert given[handed.changes[pick]].min() == 1 + TAIL
    several = handed.given(pick, torch.ones_like(pick).bool())
    assert {1, 2, 3, 4, 5} >= set(several.tolist()) and several.float().mean() > 2


def test_the_context_is_what_the_clip_before_has_ended_with():
    latents, _, handed = chains()
    pick = torch.arange(12).repeat(400)
    clean = latents[pick].float()
    predicted = torch.full_like(clean, -100.0)
    handed.keep(pick[:12], predicted[:12], torch.full((12, 1), 0.2), torch.full((12,), 3))
    context = handed.context(pick, clean)
    assert torch.equal(context[:, :, 1 + TAIL :], clean[:, :, 1 + TAIL :]), "only the tail is handed over"
    first = pick % 3 == 0
    assert torch.equal(context[first, :, 1:], clean[first, :, 1:]), "the first clip of a chain follows a real one"
    share = ((clean - context) / (clean + 100))[~first, 0, 1, 0, 0]
    assert share.min() == 0 and 1.1 < share.max() < 1.26 and 0.3 < (share == 0).float().mean() + 0.1 < 0.5
    anchors = context[:, 0, 0, 0, 0] // 3
    assert torch.equal(anchors, (pick // 3).float()), "an anchor comes from the same chain"
    assert 0.2 < (context[:, 0, 0, 0, 0] != pick).float().mean() < 0.5


def test_only_what_is_almost_clean_is_kept():
    latents, _, handed = chains()
    pick, predicted = torch.arange(12), torch.full((12, 2, 5, 2, 3), -1.0)
    handed.keep(pick, predicted, torch.full((12, 1), 0.9), torch.full((12,), 3))
    assert torch.equal(handed.ends, latents)
    handed.keep(pick, predicted, torch.full((12, 1), 0.2), torch.full((12,), 1))  # from a single frame
    assert (handed.ends[handed.follows] != -1).all() and (handed.ends[~handed.follows] == -1).all()


def test_drawn_chains_overlap_by_the_context():
    family, changed = family_of("ltx_video"), 0
    step = family.frames - family.context
    for seed in (0, 24, 48):
        clips, prompts = draw_chains("wheel loader", [seed], family, "cpu")
        assert clips.shape == (family.hops, family.frames, 3, 160, 288) and clips.dtype == torch.uint8
        for before, after in zip(clips, clips[1:], strict=False):
            assert torch.equal(before[step:], after[: family.context])
        machines = {PROMPTS[index].split(" ")[1] for index in prompts}
        assert machines == {"wheel"} and len(set(prompts.tolist())) <= 2
        changed += len(set(prompts.tolist()))
    assert changed > 3, "in some the action changes"
