"""Colour words of painted crops."""

import numpy as np
import pytest

from cpgr.data.proposals.colours import pixel_colours

PAINT = {
    "black": (15, 15, 18), "white": (245, 244, 240), "grey": (128, 130, 127), "red": (205, 30, 35), "orange": (245, 140, 20),
    "yellow": (250, 220, 50), "green": (40, 150, 60), "blue": (45, 95, 220), "purple": (135, 60, 190), "pink": (255, 150, 195),
    "brown": (120, 72, 35),
}  # fmt: skip


def crop(colour, noise=12, size=(40, 60), seed=0):
    pixels = np.array(PAINT[colour]) + np.random.default_rng(seed).normal(0, noise, (*size, 3))
    return pixels.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", PAINT)
def test_a_plain_crop_has_its_colour_in_noise_and_dimmer_light(name):
    assert pixel_colours(crop(name)) == [name]
    if name not in ("white", "grey", "black", "orange", "pink"):  # dimmed, those are rightly called something else
        assert pixel_colours((crop(name) * 0.85).astype(np.uint8)) == [name]


def test_the_middle_counts_more_than_the_border():
    pixels = crop("green", size=(60, 60))
    pixels[12:48, 12:48] = crop("red", size=(36, 36))  # 36 % of the area
    assert pixel_colours(pixels)[0] == "red"


def test_two_colours_come_by_their_share():
    pixels = crop("black", size=(64, 64))
    pixels[:, 26:] = crop("white", size=(64, 38))
    assert pixel_colours(pixels) == ["white", "black"]


def test_a_motley_crop_has_none_and_an_empty_one_neither():
    pixels = np.concatenate([crop(name, size=(40, 8)) for name in ("red", "green", "blue", "yellow", "white", "black", "pink")], 1)
    assert pixel_colours(pixels) == []
    assert pixel_colours(np.zeros((0, 5, 3), np.uint8)) == []
    assert pixel_colours(np.full((1, 1, 3), 250, np.uint8)) == ["white"]
