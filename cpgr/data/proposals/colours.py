"""The colour words of a region from its pixels, for detectors that name no attributes."""

from __future__ import annotations

import numpy as np

SAMPLES = 32  # the crop is looked at in this many rows and columns
MIN_SHARE = 0.3  # of the weighted pixels, for a colour to be named
HUES = ((15, "red"), (42, "orange"), (68, "yellow"), (165, "green"), (255, "blue"), (295, "purple"), (342, "pink"), (360, "red"))
TERMS = ("black", "white", "grey", "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown")


def pixel_colours(crop: np.ndarray) -> list[str]:
    """The basic colour terms that make up a region, the largest share first; empty where none is large enough.

    crop: uint8 [H, W, 3] RGB. Pixels count by a Gaussian around the middle, since a box's border is mostly
    background; each is named by its hue, saturation and value, dark and pale ones apart.
    """
    height, width = crop.shape[:2]
    if height == 0 or width == 0:
        return []
    # Cell centres, not every n-th pixel from 0: a thin crop is sampled evenly as well.
    rows = ((np.arange(min(SAMPLES, height)) + 0.5) * height / min(SAMPLES, height)).astype(int)
    columns = ((np.arange(min(SAMPLES, width)) + 0.5) * width / min(SAMPLES, width)).astype(int)
    names = _name(crop[rows][:, columns].astype(np.float32) / 255)
    weights = _gaussian(len(rows))[:, None] * _gaussian(len(columns))
    shares = np.bincount(names.ravel(), weights.ravel(), minlength=len(TERMS)) / weights.sum()
    order = np.argsort(-shares, kind="stable")
    return [TERMS[i] for i in order if shares[i] >= MIN_SHARE]


def _gaussian(count: int) -> np.ndarray:
    at = (np.arange(count) + 0.5) / count - 0.5
    return np.exp(-0.5 * (at / 0.22) ** 2)


def _name(rgb: np.ndarray) -> np.ndarray:
    """[H, W, 3] in 0..1 -> [H, W] indices into TERMS."""
    value, least = rgb.max(-1), rgb.min(-1)
    chroma = value - least
    saturation = chroma / np.maximum(value, 1e-6)
    red, green, blue = np.moveaxis(rgb, -1, 0)
    safe = np.maximum(chroma, 1e-6)
    hue = np.where(
        value == red, (green - blue) / safe % 6, np.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4)
    )
    hue = hue * 60
    limits = np.array([limit for limit, _ in HUES[:-1]])
    named = np.array([TERMS.index(name) for _, name in HUES])[np.searchsorted(limits, hue, side="right")]

    def put(where, name):
        named[where] = TERMS.index(name)

    reddish = (hue < 20) | (hue >= 330)
    put(reddish & (value > 0.75) & (saturation < 0.55), "pink")
    put((hue >= 8) & (hue < 45) & (value < 0.7) & (saturation < 0.9), "brown")
    put((hue >= 15) & (hue < 45) & (value < 0.5), "brown")
    put((saturation < 0.16) | (chroma < 0.08), "grey")
    put((named == TERMS.index("grey")) & (value > 0.8), "white")
    put((value < 0.2) | ((value < 0.3) & (saturation < 0.3)), "black")
    return named
