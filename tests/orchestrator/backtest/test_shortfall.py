"""What is missing is put down to the losses that explain it."""

import pytest

from orchestrator.backtest import shortfall
from orchestrator.backtest.shortfall import ShortfallCauses


@pytest.fixture
def four():
    return ShortfallCauses(wanted=4, spot_start=180.0, on_demand_start=180.0, notice=120.0)


def ready(four, begin, end, nodes):
    four.span(begin, end, spot=nodes, on_demand=0, dollars=0.0)


def test_two_nodes_of_a_zone_told_in_time_and_replaced_as_soon_as_can_be(four):
    ready(four, 0.0, 1000.0, 4)
    for node in "ab":
        four.noticed(880.0, node)
        four.lost(1000.0, node, "z")
    ready(four, 1000.0, 1060.0, 2)
    ready(four, 1060.0, 2000.0, 4)
    assert four.shares() == pytest.approx({shortfall.ALONE: 60 / 8000, shortfall.MORE: 60 / 8000})


def test_a_loss_without_notice_explains_a_whole_start_and_a_brief_notice_part_of_it(four):
    ready(four, 0.0, 1000.0, 4)
    four.lost(1000.0, "a", "y")
    ready(four, 1000.0, 1200.0, 3)
    four.noticed(1200.0, "b")
    four.lost(1230.0, "b", "z")
    ready(four, 1200.0, 1230.0, 4)
    ready(four, 1230.0, 1400.0, 3)
    expected = {shortfall.UNNOTICED: 180 / 5600, shortfall.BRIEF: 150 / 5600, shortfall.LATER: 40 / 5600}
    assert four.shares() == pytest.approx(expected)


def test_what_no_loss_explains_is_said(four):
    ready(four, 0.0, 100.0, 3)
    assert four.shares() == pytest.approx({shortfall.NO_LOSS: 0.25})
