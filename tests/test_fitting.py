"""Clips of any shape fitted to a model's size, and back."""

import numpy as np
import pytest

from helpers.clips import FITS, fit, unfit

pytestmark = pytest.mark.clips


def picture(width, height, count=3):
    rows, columns = np.mgrid[:height, :width]
    shade = 128 + 60 * np.sin(rows / height * 6) + 60 * np.cos(columns / width * 6)
    return np.repeat(shade[None, :, :, None], count, axis=0).repeat(3, axis=-1).round().astype(np.uint8)


def far(a, b):
    return np.abs(a.astype(float) - b).mean()


@pytest.mark.parametrize("how", FITS)
@pytest.mark.parametrize("size", [(320, 180), (180, 320), (160, 160), (257, 129)])
def test_there_and_back_again(size, how):
    around = picture(*size)
    there = fit(around, 256, 128, how)
    assert there.shape == (3, 128, 256, 3)
    back = unfit(there, around[-1], how)
    assert back.shape == around.shape and back.dtype == np.uint8
    assert far(back, around) < 2.5


def test_pad_keeps_the_whole_picture_and_crop_does_not():
    around = picture(90, 320)
    marked = around.copy()
    marked[:, :10] = 0  # the uppermost rows of a portrait
    assert far(fit(marked, 256, 128, "pad"), fit(around, 256, 128, "pad")) > 0.1
    assert far(fit(marked, 256, 128, "crop"), fit(around, 256, 128, "crop")) == 0


def test_what_was_cut_off_comes_from_around():
    around = picture(90, 320)
    black = np.zeros((2, 128, 256, 3), np.uint8)
    back = unfit(black, around[-1], "crop")
    assert back.shape == (2, 320, 90, 3)
    assert far(back[:, :100], around[-1, :100]) == 0, "the clip's own pixels"
    assert back[:, 150:170].max() == 0
    border = back[0, 130:150, 45, 0].astype(int)
    assert np.abs(np.diff(border)).max() < 60, "a narrow blend, and no hard edge"


def test_an_unknown_fit_is_named():
    with pytest.raises(ValueError, match="squeeze.*crop"):
        fit(picture(64, 64), 32, 32, "squeeze")
