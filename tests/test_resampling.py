"""New frames at the clip's frame rate: the seconds stay, and what moves is where it should be."""

import numpy as np
import pytest

from helpers.clips import WAYS, Clip, ClipError, at_rate, resample, resample_pieces

pytestmark = pytest.mark.clips


def ball(times, height=96, width=160, speed=24.0):
    """A bright disc that moves to the right at `speed` pixels a second."""
    rows, columns = np.mgrid[:height, :width]
    shade = 40 + 20 * np.sin(rows / 5) + 20 * np.sin(columns / 7)
    frames = np.repeat(shade[None, :, :, None], len(times), axis=0).repeat(3, axis=-1)
    for frame, at in zip(frames, times, strict=True):
        frame[(rows - height / 2) ** 2 + (columns - 40 - speed * at) ** 2 < 12**2] = 230
    return frames.round().astype(np.uint8)


def places(frames):
    """The disc's middle column in each frame."""
    bright = frames[..., 0] > 150
    return np.array([np.nonzero(one)[1].mean() for one in bright])


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize(("fps", "to_fps", "count"), [(7, 24, 24), (8, 24, 16), (24, 25, 24), (24, 12, 24)])
def test_seconds_and_places_stay_true(how, fps, to_fps, count):
    path = ball(np.arange(count + 1) / fps)
    made = resample(path[1:], path[0], fps=fps, to_fps=to_fps, how=how)
    assert made.dtype == np.uint8 and made.shape == (round(count * to_fps / fps), *path.shape[1:])
    expected = 40 + 24 * np.arange(1, len(made) + 1) / to_fps
    # A frame that is held is up to one of the model's frames away from where the disc is by then.
    assert np.abs(places(made) - expected).max() < (24 / fps + 1 if how == "nearest" else 1.5)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("to_fps", [24, 25, 30, 60])
def test_frames_that_come_in_pieces_are_the_same(how, to_fps):
    path = ball(np.arange(41) / 24)
    whole = resample(path[1:], path[0], fps=24, to_fps=to_fps, how=how)
    pieces = list(resample_pieces(np.split(path[1:], [16, 19, 32]), path[0], fps=24, to_fps=to_fps, how=how))
    assert sum(map(len, pieces)) == len(whole)
    if how == "motion":  # each piece is interpolated alone
        assert np.abs(places(np.concatenate(pieces)) - places(whole)).max() < 1.5
    else:
        assert np.array_equal(np.concatenate(pieces), whole)


def test_motion_moves_where_blend_doubles():
    path = ball(np.arange(25) / 7, speed=40)
    truth = ball(np.arange(1, 81) / 24, speed=40)[: round(24 * 24 / 7)]
    errors = {}
    for how in WAYS:
        made = resample(path[1:], path[0], fps=7, to_fps=24, how=how)[: len(truth)]
        errors[how] = np.abs(made.astype(float) - truth[: len(made)]).mean()
    assert errors["motion"] < errors["blend"] < errors["nearest"]


@pytest.mark.parametrize("to_fps", [24, 25, 30, 50, 60])
@pytest.mark.parametrize("fps", [8, 16, 24])
def test_a_mark_at_constant_speed_moves_in_even_steps(fps, to_fps):
    path = ball(np.arange(17) / fps, speed=48)
    made = resample(path[1:], path[0], fps=fps, to_fps=to_fps, how="blend")
    weight = np.concatenate([path[:1], made])[..., 0].astype(float) - path[..., 0].min(axis=0)
    columns = (weight * np.arange(path.shape[2])).sum(axis=(1, 2)) / weight.sum(axis=(1, 2))
    steps = np.diff(columns)
    assert steps.max() < 1.5 * np.median(steps) and steps.min() > 0.5 * np.median(steps)


@pytest.mark.parametrize("fps", [12, 24, 30, 48, 60])
def test_the_past_at_the_models_rate_ends_in_the_same_frame(fps):
    past = Clip(ball(np.arange(fps + 1) / fps), fps)
    shown = at_rate(past, 24)
    assert np.array_equal(shown.frames[-1], past.frames[-1]) and shown.fps == 24
    assert len(shown) in (24, 25)
    expected = 40 + 24 * (1 - np.arange(len(shown))[::-1] / 24)
    assert np.abs(places(shown.frames) - expected).max() < 1


def test_many_large_frames_pass_through():
    # More than a pipe holds, both ways at once.
    frames = np.zeros((20, 360, 640, 3), np.uint8)
    frames[:] = np.arange(20, dtype=np.uint8)[:, None, None, None] * 10
    made = resample(frames[1:], frames[0], fps=8, to_fps=24, how="motion")
    assert made.shape == (57, 360, 640, 3) and abs(int(made[-1].mean()) - 190) < 3


def test_equal_rates_change_nothing():
    frames = ball(np.arange(5) / 24)
    assert resample(frames, frames[0], fps=24, to_fps=24, how="blend") is frames


def test_an_unknown_way_is_named():
    frames = ball(np.arange(5) / 24)
    with pytest.raises(ClipError, match="resample='cubic': there are blend, nearest, motion"):
        resample(frames, frames[0], fps=7, to_fps=24, how="cubic")
