"""Needle-grid pictures: what a cell's colour means never depends on the grid it is in."""

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from farside.train.eval.heatmap import (
    AMBER,
    GREEN,
    RED,
    check_result,
    color_map,
    count_green,
    draw_grid,
    draw_grids,
)


def grid_of(scores: list[list[float]], languages: tuple[str, ...] = ("en",), trained: int = 256) -> dict[str, Any]:
    rows, columns = len(scores), len(scores[0])
    return {
        "name": "base",
        "title": "before extension, 5$ a_token",  # no TeX: a lone dollar must not raise
        "trained_length": trained,
        "lengths": [128 * (1 + c) for c in range(columns)],
        "depths": [100 * r / max(1, rows - 1) for r in range(rows)],
        "needles_per_cell": 3,
        "grids": {language: {"scores": scores} for language in languages},
    }


def pixels_of(result: dict[str, Any], path: Path) -> np.ndarray:
    draw_grid(result, path)
    return imread(path)[..., :3]


def share(pixels: np.ndarray, color: str) -> float:
    """Share of pixels within rounding of ``color``."""
    return float((np.abs(pixels - np.array(to_rgb(color))).max(axis=-1) < 0.01).mean())


def lightness(color: str | tuple[float, ...]) -> float:
    """CIE L*, 0 to 100 (IEC 61966-2-1 and CIE 15)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    luminance = float(np.dot(linear, (0.2126, 0.7152, 0.0722)))
    return 116 * luminance ** (1 / 3) - 16


@pytest.mark.parametrize(("score", "color"), [(0.0, RED), (0.5, AMBER), (1.0, GREEN)])
def test_uniform_grid_has_the_colour_of_the_fixed_scale(tmp_path: Path, score: float, color: str) -> None:
    pixels = pixels_of(grid_of([[score] * 4] * 4, trained=0), tmp_path / "grid.png")
    assert share(pixels, color) > 0.3
    for other in {RED, AMBER, GREEN} - {color}:
        assert share(pixels, other) < 0.01  # only the colour bar


def test_all_green_is_green_and_all_red_is_red(tmp_path: Path) -> None:
    for score, channel in ((1.0, 1), (0.0, 0)):
        pixels = pixels_of(grid_of([[score] * 3] * 3), tmp_path / "grid.png")
        height, width = pixels.shape[:2]
        red, green, blue = pixels[int(height * 0.45), int(width * 0.46)]
        assert max(red, green, blue) == (red, green, blue)[channel]
        assert max(red, green, blue) > 1.4 * sorted((red, green, blue))[1]


def test_first_depth_is_on_top_and_first_length_left(tmp_path: Path) -> None:
    pixels = pixels_of(grid_of([[1.0, 0.0], [0.0, 0.0]], trained=0), tmp_path / "grid.png")
    found = np.argwhere(np.abs(pixels - np.array(to_rgb(GREEN))).max(axis=-1) < 0.01)
    found = found[found[:, 1] < pixels.shape[1] * 0.8]  # left of the colour bar
    row, column = found.mean(axis=0) / pixels.shape[:2]
    assert row < 0.45
    assert column < 0.45


def test_lightness_separates_the_scores_of_three_needles() -> None:
    steps = [lightness(color_map()(score)[:3]) for score in (0.0, 1 / 3, 2 / 3, 1.0)]
    assert all(b - a > 8 for a, b in itertools.pairwise(steps)), steps


def test_rows_share_the_scale_and_missing_languages_leave_a_gap(tmp_path: Path) -> None:
    one, two = grid_of([[1.0] * 3] * 3), grid_of([[0.0] * 3] * 3, ("en", "zh"))
    draw_grids([one, two], tmp_path / "grids.png")
    pixels = imread(tmp_path / "grids.png")[..., :3]
    assert share(pixels, RED) > 1.7 * share(pixels, GREEN) > 0.1


def test_same_grid_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        draw_grid(grid_of([[1.0, 0.0]]), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_trained_length_beyond_the_grid_draws_no_line(tmp_path: Path) -> None:
    scores = [[1.0] * 4] * 4
    inside = pixels_of(grid_of(scores, trained=256), tmp_path / "inside.png")
    beyond = pixels_of(grid_of(scores, trained=4096), tmp_path / "beyond.png")
    dark = [
        float((p[: int(p.shape[0] * 0.8), int(p.shape[1] * 0.2) : int(p.shape[1] * 0.8)] < 0.2).mean())
        for p in (inside, beyond)
    ]
    assert dark[0] > dark[1]


def test_green_means_every_needle() -> None:
    assert count_green({"scores": [[1.0, 2 / 3], [1, 0.999]]}) == (2, 4)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("lengths", None, "'lengths'"),
        ("lengths", [], "at least one length"),
        ("depths", ["0", 1], "must be numbers"),
        ("grids", {"en": {"scores": [[1.0]]}}, "2 depth rows of 2 lengths"),
        ("grids", {"en": {"scores": [[1.0, 1.5], [0, 0]]}}, "between 0 and 1"),
        ("grids", {"en": {"scores": [[1.0, float("nan")], [0, 0]]}}, "between 0 and 1"),
    ],
)
def test_malformed_grid_is_named(key: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_result(grid_of([[1.0, 0.0], [0.0, 1.0]]) | {key: value})


def test_no_grids_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no needle grids"):
        draw_grids([], tmp_path / "grids.png")


def test_importing_the_report_does_not_import_matplotlib() -> None:
    code = "import sys, farside.report.page; sys.exit('matplotlib' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
