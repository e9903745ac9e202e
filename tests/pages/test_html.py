"""Charts of few, equal or many points are drawn inside their frame, with round ticks."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.pages import html


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_are_few_numbers_inside_the_range(low, width):
    ticks = html.ticks(low, low + width)
    assert 2 <= len(ticks) <= 6
    assert all(low - 1e-3 * width <= tick <= low + 1.001 * width for tick in ticks)


@pytest.mark.parametrize("points", [[(3, 1.0)], [(0, 2.0), (1, 2.0)], [(n, n * n) for n in range(5000)]])
def test_chart_of_few_equal_or_many_points_is_drawn(points):
    (line,) = re.findall('points="([^"]*)"', html.chart("t", [html.Line("l", points)], "x", "y"))
    pixels = [tuple(map(float, pixel.split(","))) for pixel in line.split()]
    assert 302 >= len(pixels) >= min(len(points), 2)
    assert all(0 <= x <= html.WIDTH and 0 <= y <= html.HEIGHT for x, y in pixels)
