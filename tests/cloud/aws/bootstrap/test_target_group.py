"""What of a target group is to be changed: what would cost requests, and nothing that was chosen sensibly."""

import pytest

from cloud.aws.bootstrap.target_group import attributes_of, check_of

NEW = {
    "HealthCheckPath": "/",
    "Matcher": {"HttpCode": "200"},
    "HealthCheckIntervalSeconds": 30,
    "HealthCheckTimeoutSeconds": 5,
    "HealthyThresholdCount": 5,
    "UnhealthyThresholdCount": 2,
}
NEW_ATTRIBUTES = {
    "deregistration_delay.timeout_seconds": "300",
    "load_balancing.algorithm.type": "round_robin",
    "slow_start.duration_seconds": "0",
    "stickiness.enabled": "false",
}


def test_a_new_group_is_asked_for_health_often_enough():
    changes = check_of(NEW)
    assert changes == {
        "HealthCheckPath": "/health",
        "HealthCheckIntervalSeconds": 10,
        "HealthyThresholdCount": 2,
        "UnhealthyThresholdCount": 3,
    }
    assert check_of(NEW | changes) == {}


@pytest.mark.parametrize("pace", [(5, 4, 2, 2), (10, 5, 3, 5), (8, 2, 2, 4)], ids=["hasty", "patient", "odd"])
def test_a_pace_that_serves_is_left_alone(pace):
    sane = NEW | dict(zip(list(NEW)[2:], pace, strict=True)) | {"HealthCheckPath": "/health"}
    assert check_of(sane) == {}


@pytest.mark.parametrize("matcher", [{"HttpCode": "200-499"}, {"HttpCode": "200,503"}, None])
def test_an_engine_that_is_loading_is_not_healthy(matcher):
    group = NEW | {"Matcher": matcher} if matcher else {k: v for k, v in NEW.items() if k != "Matcher"}
    assert check_of(group)["Matcher"] == {"HttpCode": "200"}


def test_the_interval_is_never_below_the_timeout_that_it_gets():
    held = NEW | {"HealthCheckIntervalSeconds": 5, "HealthCheckTimeoutSeconds": 4}
    changes = held | check_of(held)
    assert changes["HealthCheckTimeoutSeconds"] < changes["HealthCheckIntervalSeconds"]


def test_a_new_group_counts_what_is_outstanding():
    changes = attributes_of(NEW_ATTRIBUTES)
    assert changes == {
        "load_balancing.algorithm.type": "least_outstanding_requests",
        "deregistration_delay.timeout_seconds": "90",
    }
    assert attributes_of(NEW_ATTRIBUTES | changes) == {}


def test_what_the_algorithm_excludes_is_switched_off_with_it():
    held = NEW_ATTRIBUTES | {
        "load_balancing.algorithm.type": "weighted_random",
        "load_balancing.algorithm.anomaly_mitigation": "on",
        "slow_start.duration_seconds": "60",
    }
    changes = attributes_of(held)
    assert changes["load_balancing.algorithm.anomaly_mitigation"] == "off"
    assert changes["slow_start.duration_seconds"] == "0"


@pytest.mark.parametrize(("delay", "changed"), [("59", True), ("60", False), ("90", False), ("91", True)])
def test_the_delay_fits_into_a_notice(delay, changed):
    held = NEW_ATTRIBUTES | {"deregistration_delay.timeout_seconds": delay}
    assert ("deregistration_delay.timeout_seconds" in attributes_of(held)) is changed
