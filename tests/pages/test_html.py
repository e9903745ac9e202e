"""Charts stay inside their frame, and ticks are round."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pages.browser import Page

from engine.pages import html


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_are_few_round_numbers_inside_the_range(low, width):
    found = html.ticks(low, low + width)
    assert 2 <= len(found) <= 6
    assert all(low - 1e-3 * width <= tick <= low + 1.001 * width for tick in found)


@pytest.mark.parametrize("points", [[(3, 1.0)], [(0, 2.0), (1, 2.0)], [(n, n * n) for n in range(5000)]])
def test_a_chart_of_few_equal_or_many_points_is_drawn(points):
    (line,) = Page(html.chart("t", [html.Line("l", points)], "x", "y")).lines
    assert len(line) <= 302 and len(line) >= min(len(points), 2)
    assert all(0 <= x <= html.WIDTH and 0 <= y <= html.HEIGHT for x, y in line)
