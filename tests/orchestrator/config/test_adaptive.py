"""The adaptive mix in the configuration: what is chosen when it is not written, and kept when it is."""

import pytest

from orchestrator.config.load import ConfigError, build_config
from policies.model import AdaptiveRules


def wanted(**pool):
    return build_config({"pool": {"x": {"replicas": 8, **pool}}}).wanted


def test_without_it_the_mix_is_fixed():
    assert wanted().adaptive is None
    assert wanted().on_demand_floor == 3


def test_what_is_not_written_is_chosen_for_the_adaptive_mix():
    pool = wanted(mix="adaptive")
    assert pool.adaptive == AdaptiveRules()
    assert (pool.on_demand_floor, pool.limits.surge, pool.standby.stopped) == (0, 8, 8)


def test_what_is_written_holds():
    pool = wanted(
        mix="adaptive",
        availability="99.5%",
        on_demand_floor=2,
        limits={"surge": 3},
        standby={"stopped": 1},
        starts={"spot": "10m", "on_demand": "90s", "standby": "20s", "notice": "30s"},
    )
    assert pool.adaptive == AdaptiveRules(
        availability=pytest.approx(0.995),
        spot_start=600.0,
        on_demand_start=90.0,
        standby_start=20.0,
        notice=30.0,
    )
    assert (pool.on_demand_floor, pool.limits.surge, pool.standby.stopped) == (2, 3, 1)
    assert wanted(mix="adaptive", spot_share="50%").on_demand_floor == 4


def test_standbys_that_do_not_fit_into_the_notice_are_not_kept():
    assert wanted(mix="adaptive", starts={"notice": "30s"}).standby.stopped == 0


def test_an_unknown_mix_is_refused():
    with pytest.raises(ConfigError, match="mix"):
        wanted(mix="clever")


def test_it_keeps_no_hot_standby_of_its_own():
    with pytest.raises(ConfigError, match=r"standby.hot: the adaptive mix finds itself .* leave hot out"):
        wanted(mix="adaptive", standby={"hot": 1})
    assert wanted(mix="adaptive", standby={"hot": 0}).adaptive is not None
