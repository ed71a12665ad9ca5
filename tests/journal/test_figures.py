import subprocess
import sys

import numpy as np
import pytest

from moe_jax.journal import figures
from moe_jax.journal.figures import expert_load_image


def colours(pixels):
    """The colours that fill at least 1% of the image each, white and black aside."""
    values, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
    frequent = values[counts > 0.01 * counts.sum()]
    return [tuple(int(c) for c in value) for value in frequent if 20 < value.mean() < 250]


@pytest.mark.parametrize("layers, experts", [(1, 1), (4, 8), (60, 256)])
def test_is_an_rgb_image_of_readable_size(layers, experts):
    pixels = expert_load_image(np.random.default_rng(0).gamma(4.0, size=(layers, experts)))
    assert pixels.dtype == np.uint8
    height, width, channels = pixels.shape
    assert channels == 3 and 150 <= height <= 1200 and 400 <= width <= 1400


def test_size_depends_on_the_shape_alone():
    collapsed = np.zeros((3, 4))
    collapsed[:, 0] = 1e6
    assert expert_load_image(collapsed).shape == expert_load_image(np.ones((3, 4))).shape


def test_each_layer_is_scaled_to_a_mean_of_one():
    load = np.array([[1.0, 3.0], [2.0, 2.0]])
    np.testing.assert_array_equal(expert_load_image(load), expert_load_image(load * [[10.0], [0.5]]))


def test_overloaded_experts_are_red_and_idle_ones_blue():
    found = colours(expert_load_image(np.array([[0.0, 0.0, 3.0]])))
    assert any(red > blue + 50 for red, _, blue in found)
    assert any(blue > red + 50 for red, _, blue in found)


def test_a_layer_without_tokens_is_idle_everywhere():
    assert not any(red > blue + 50 for red, _, blue in colours(expert_load_image(np.zeros((2, 4)))))


def test_experts_that_a_layer_does_not_have_are_grey():
    load = np.array([[1.0, 1.0, np.nan, np.nan], [1.0, 1.0, 1.0, 1.0]])
    pixels = expert_load_image(load)
    grey = np.all(np.abs(pixels.astype(int) - 153) <= 1, axis=-1).mean()
    assert grey > 0.05
    assert grey > 10 * np.all(np.abs(expert_load_image(np.ones((2, 4))).astype(int) - 153) <= 1, axis=-1).mean()


def test_leaves_pyplot_alone():
    check = "import sys, moe_jax.journal.figures; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0


def test_text_is_legible_where_tensorboard_shows_the_image_300_pixels_wide():
    height_in_pixels = figures.FONT_SIZE / 72 / figures.WIDTH * 300
    assert height_in_pixels > 12
    assert all(len(figures._ticks(count)) <= 5 for count in range(1, 300))
