"""Series stay apart for readers who do not see all colours, in both themes.

Colours are turned into what is seen with Machado, Oliveira & Fernandes' matrices (2009, IEEE Transactions on Visualization
and Computer Graphics 15(6), 1291-1298, severity 1), which apply to linear RGB, and compared in OKLab (Ottosson 2020), where a
distance of 0.02 is about what is just noticed (CSS Color 4 maps gamuts by it). A mark is a few pixels wide: three times that.
"""

from itertools import combinations

import numpy as np
import pytest

from distill.report.palette import DARK, LIGHT

SEEN = {
    "all": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
SERIES = ("blue", "orange", "purple", "green", "gold", "grey")  # what arms and comparators are drawn in
APART = 3 * 0.02
_LMS = [
    [0.4122214708, 0.5363325363, 0.0514459929],
    [0.2119034982, 0.6806995451, 0.1073969566],
    [0.0883024619, 0.2817188376, 0.6299787005],
]
_LAB = [
    [0.2104542553, 0.7936177850, -0.0040720468],
    [1.9779984951, -2.4285922050, 0.4505937099],
    [0.0259040371, 0.7827717662, -0.8086757660],
]


def linear(colour: str) -> np.ndarray:
    value = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def oklab(rgb: np.ndarray) -> np.ndarray:
    return np.asarray(_LAB) @ np.cbrt(np.asarray(_LMS) @ rgb)


def test_the_colour_space_is_the_published_one():
    assert oklab(np.ones(3)) == pytest.approx([1, 0, 0], abs=1e-6)
    assert oklab(linear("#ff0000")) == pytest.approx([0.627955, 0.224863, 0.125846], abs=1e-4)
    for matrix in SEEN.values():  # grey is grey to everybody
        assert np.asarray(matrix) @ np.ones(3) == pytest.approx(np.ones(3), abs=1e-4)


@pytest.mark.parametrize("seen", SEEN)
@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_series_differ_for_every_kind_of_sight(theme, seen):
    lab = {role: oklab(np.clip(np.asarray(SEEN[seen]) @ linear(theme[role]), 0, 1)) for role in SERIES}
    apart = {pair: float(np.linalg.norm(lab[pair[0]] - lab[pair[1]])) for pair in combinations(SERIES, 2)}
    closest = min(apart, key=apart.__getitem__)
    assert apart[closest] >= APART, (closest, apart[closest])
