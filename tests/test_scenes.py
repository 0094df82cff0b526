"""The renderer, whose seeds give the same scene everywhere, and the sample clips drawn with it."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from data.make.clips.sample_clips import SCENES, THEN
from data.make.clips.scenes import ACTIONS, FPS, MACHINES, PROMPTS, SPEEDS, prompt_of, render
from helpers import clips

SEED = 7
EVERY_ACTION = [(machine, action) for machine in MACHINES for action in ACTIONS[machine]]


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """PSNR in dB of frames in 0..1."""
    return float(-10 * torch.log10(((a - b) ** 2).mean().clamp(min=1e-10)))


def step(a: np.ndarray, b: np.ndarray) -> float:
    """Mean absolute difference of two frames, on the scale 0 to 255."""
    return float(np.abs(a.astype(np.int16) - b).mean())


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Several threads draw small pictures no faster, and much slower while another program uses the CPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# One seed is one scene


@pytest.mark.parametrize("machine", MACHINES)
def test_frames_and_prompts(machine):
    frames, prompts = render(machine, [SEED, 8], frames=2, size=(96, 64))
    assert frames.shape == (2, 2, 3, 64, 96) and frames.dtype == torch.float32
    assert 0 <= frames.min() and frames.max() <= 1
    assert set(prompts) <= set(PROMPTS) and all(prompt.startswith(f"the {machine} ") for prompt in prompts)


@pytest.mark.parametrize("machine", MACHINES)
def test_same_seed_twice_is_identical(machine):
    before = torch.get_rng_state()
    (first, prompt), (second, again) = (render(machine, [SEED], frames=2) for _ in range(2))
    assert torch.equal(first, second) and prompt == again
    assert torch.equal(torch.get_rng_state(), before)  # the global generator is not used


@pytest.mark.parametrize("machine", MACHINES)
def test_one_seed_is_one_scene_in_any_batch(machine):
    # On the CPU, only the rows and columns that a shape can touch in any scene of the batch are painted. Other scenes
    # enlarge that area, and so reveal a shape that was cut off when drawn alone.
    seeds = [2, SEED, 6, 11]
    together, prompts = render(machine, seeds, frames=1)
    for index, seed in enumerate(seeds):
        alone, prompt = render(machine, [seed], frames=1)
        assert prompt == [prompts[index]]
        difference = (alone[0] - together[index]).abs().amax((0, 1))
        rows = torch.where(difference.amax(1) > 1e-3)[0].tolist()
        assert not rows, f"seed {seed} differs by {difference.max():.3f} in rows {rows[0]} to {rows[-1]}"


@pytest.mark.parametrize("machine", MACHINES)
def test_one_seed_is_one_scene_at_any_size(machine):
    small, prompt = render(machine, [SEED], frames=2)
    large, same = render(machine, [SEED], frames=2, size=(576, 320))
    assert prompt == same
    assert psnr(F.avg_pool2d(large.flatten(0, 1), 2), small[0]) > 30  # only antialiasing differs


@pytest.mark.parametrize("machine", MACHINES)
def test_different_seeds_differ(machine):
    frames, _ = render(machine, [1, 2, 3], ACTIONS[machine][0], "", frames=1)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert psnr(frames[one], frames[other]) < 25


# Action, speed and time


def test_action_and_speed_are_as_asked():
    pictures = {}
    for machine, action in EVERY_ACTION:
        for speed in SPEEDS:
            frames, prompts = render(machine, [SEED], action, speed, start=1.0, frames=1, size=(144, 80))
            assert prompts == [prompt_of(machine, action, speed)]
            pictures[machine, action, speed] = frames
    assert set(PROMPTS) == {prompt_of(*case) for case in pictures}
    for (machine, action, speed), picture in pictures.items():
        for other_action in ACTIONS[machine]:
            if other_action != action:
                assert not torch.equal(picture, pictures[machine, other_action, speed])
        for other_speed in SPEEDS:
            if other_speed != speed:
                assert not torch.equal(picture, pictures[machine, action, other_speed])


@pytest.mark.parametrize("machine, action", EVERY_ACTION)
def test_the_seed_keeps_its_scene_whatever_the_action(machine, action):
    """The action changes the motion of the machine, not the place: the pictures hardly differ at its start."""
    asked, other = (render(machine, [SEED], a, "", start=0.0, frames=1)[0] for a in (action, ACTIONS[machine][0]))
    assert (asked - other).abs().amax(2).gt(0.02).float().mean() < 0.25


@pytest.mark.parametrize("machine, action", EVERY_ACTION)
def test_motion_continues(machine, action):
    longer, _ = render(machine, [SEED], action, "quickly", start=0.25, frames=14)
    later, _ = render(machine, [SEED], action, "quickly", start=0.25 + 12 / FPS, frames=2)
    # Not bit-identical, because the times are summed in another order. Something must have moved in between.
    assert (longer[:, 12:] - later).abs().max() < 1e-3
    assert psnr(longer[:, 0], longer[:, -1]) < 35


@pytest.mark.parametrize("machine", MACHINES)
def test_a_machine_does_one_thing_after_another(machine):
    first, second = ACTIONS[machine][:2]
    look = {"start": 0.5, "fps": 4, "size": (144, 80)}
    alone, _ = render(machine, [SEED], first, "", frames=12, **look)
    both, prompts = render(machine, [SEED], first, "", frames=12, then=[(1.5, second)], **look)
    assert prompts == [f"{prompt_of(machine, first)} | {prompt_of(machine, second)}"]
    assert (both[:, :6] - alone[:, :6]).abs().max() < 1e-3, "until then nothing differs"
    assert (both[:, -1] - alone[:, -1]).abs().amax(1).gt(0.05).any(), "the other action shows"
    steps = both.diff(dim=1).abs().mean((0, 2, 3, 4))
    assert steps[6] < 2 * steps.max() / 1.2, "nothing jumps where the action changes"
    drawn = [render(machine, [SEED, 8], first, "", frames=1, then=[(1.0, None)])[1] for _ in range(2)]
    assert drawn[0] == drawn[1] and all(" | " in prompt for prompt in drawn[0]), "a seed draws its further actions"


def test_the_log_disappears_in_the_chipper():
    late, _ = render("wood chipper", [SEED], "pulls in the log", "quickly", start=6.0, frames=2)
    without, _ = render("wood chipper", [SEED], "pulls in the log", "quickly", start=9.0, frames=2)
    assert psnr(late[:, 0], without[:, 0]) > 25, "nothing comes out on the other side"


def test_frame_rate_is_time():
    fast, _ = render("wheel loader", [SEED], "drives to the left", "", start=0.0, frames=9, fps=48)
    slow, _ = render("wheel loader", [SEED], "drives to the left", "", start=0.0, frames=5, fps=24)
    assert (fast[:, ::2] - slow).abs().max() < 1e-3


@pytest.mark.parametrize("machine", MACHINES)
def test_the_camera_can_be_held_still_from_a_frame_on(machine):
    swaying, _ = render(machine, [SEED], frames=9)
    steady, _ = render(machine, [SEED], frames=9, steady_from=4)
    assert torch.equal(steady[:, :5], swaying[:, :5])
    corner = (..., slice(8), slice(8))  # of the sky, where nothing else moves
    assert (steady[corner][:, 5:] - steady[corner][:, 4:5]).abs().max() < 1e-5
    assert (swaying[corner][:, 8] - swaying[corner][:, 4]).abs().max() > 1e-4
    assert psnr(steady[:, 4], steady[:, 8]) < 50, "the machine moves on"


@pytest.mark.parametrize("machine", MACHINES)
def test_the_amount_is_how_much_moves_and_the_machine_stops(machine):
    look = {"start": 1.0, "size": (160, 80), "fps": 7}
    acting, _ = render(machine, [7], frames=1, **look)
    stills, names = render(machine, [7, 7, 7], frames=5, ambient=[0.0, 0.3, 1.0], **look)
    assert names == [f"the {machine} idles"] * 3
    assert (stills[:, 0] - acting[:, 0]).abs().max() < 2e-3  # it begins where the action stopped
    moved = (stills[:, 1:] - stills[:, :1]).abs().mean((1, 2, 3, 4)).tolist()
    assert moved[0] < 1e-6 and moved[2] > 1.5 * moved[1] > 0


@pytest.mark.parametrize(
    "asked, named",
    [
        (("digger",), MACHINES),
        (("excavator", "drives to the left"), ACTIONS["excavator"]),
        (("wood chipper", "pulls in the log", "fast"), tuple(SPEEDS)),
    ],
)
def test_unknown_names(asked, named):
    machine, action, speed = (*asked, None, None)[:3]
    with pytest.raises(ValueError) as error:
        render(machine, [SEED], action, speed, frames=1)
    assert repr(asked[-1]) in str(error.value)
    assert all(repr(name) in str(error.value) for name in named)


# The sample clips


@pytest.fixture(scope="module")
def pairs():
    """Each sample clip, and five seconds of its true continuation."""
    files = {name: (clips.CLIPS / f"{name}.mp4", clips.CLIPS / f"{name}_continues.mp4") for name in SCENES}
    with ThreadPoolExecutor(2) as pool:  # ffmpeg does the work
        first = partial(clips.read, max_seconds=5.0, from_start=True)
        return {name: tuple(pool.map(first, paths)) for name, paths in files.items()}


def test_sample_files(pairs):
    files = sorted(path.name for path in clips.CLIPS.iterdir())
    assert files == sorted(f"{name}{ending}.mp4" for name in SCENES for ending in ("", "_continues"))
    assert sum(path.stat().st_size for path in clips.CLIPS.iterdir()) <= 8_000_000
    assert clips.bundled() == sorted(SCENES)


def test_sample_sizes_and_rates(pairs):
    for clip, continues in pairs.values():
        assert clip.size == continues.size == (1280, 720)
        assert clip.fps == continues.fps == FPS == 24
        assert (len(clip), len(continues)) == (72, 120)
        with av.open(continues.path) as file:
            assert file.streams.video[0].frames == 20 * FPS


def test_exactly_one_pair_has_sound(pairs):
    sound = {name: (clip.has_audio, continues.has_audio) for name, (clip, continues) in pairs.items()}
    assert sorted(sound.values()) == [(False, False), (False, False), (True, True)], sound


@pytest.mark.parametrize("name", SCENES)
def test_the_sentences_say_what_happens_after_a_sample_clip(name):
    machine, action, speed, _ = SCENES[name]
    actions = ((0, action), *THEN[name])
    assert clips.what_happens(name) == tuple((at, prompt_of(machine, what, speed)) for at, what in actions)
    assert clips.what_happens("my_clip.mp4") == ()


@pytest.mark.parametrize("name", SCENES)
def test_sample_clip_continues_smoothly(pairs, name):
    clip, continues = pairs[name]
    around = clips.fit(np.stack([clip.frames[-1], continues.frames[0], continues.frames[23]]), 288, 160)
    jump, a_second_later = step(around[0], around[1]), step(around[0], around[2])
    # A new file begins with a key frame, whose coding adds some noise to the step.
    assert jump < 0.5 * a_second_later and jump < 2.5


@pytest.mark.parametrize("name", SCENES)
def test_sample_clip_is_what_the_renderer_draws(pairs, name):
    """Draws the frames before and after the cut again, 71 and 72 frames after the action began."""
    machine, action, speed, seed = SCENES[name]
    clip, continues = pairs[name]
    drawn, prompts = render(machine, [seed], action, speed, start=71 / FPS, frames=2, size=clip.size)
    assert prompts == [prompt_of(machine, action, speed)]
    drawn = (drawn[0] * 255).round().byte().permute(0, 2, 3, 1).numpy()
    for mine, coded in zip(drawn, (clip.frames[-1], continues.frames[0]), strict=True):
        assert clips.psnr(mine, coded) > 30
        # Coding noise is spread over the picture. A patch with a large error was drawn differently.
        patches = np.abs(mine.astype(np.float32) - coded).mean(-1).reshape(45, 16, 80, 16).mean((1, 3))
        assert patches.max() < 20
