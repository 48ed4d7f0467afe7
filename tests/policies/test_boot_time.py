"""The sum of a boot: weights over the slowest link, and the rest."""

import pytest

from policies.boot_time import HUGGING_FACE, LOCAL_NVME, REST, S3, Boot, Link

GP3 = Link("a gp3 volume", 125.0)


@pytest.mark.parametrize(
    ("weights", "links", "seconds"),
    [
        (130.4, (GP3,), 1068),  # 140 GB from a volume of which nothing is said
        (37.3, (GP3,), 305),  # the same in four bits
        (130.4, (HUGGING_FACE, LOCAL_NVME), 534),
        (130.4, (S3, LOCAL_NVME), 267),
        (130.4, (S3, GP3), 1068),
        (130.4, (LOCAL_NVME,), 67),
        (0.0, (GP3,), 0),
    ],
)
def test_the_slowest_link_decides(weights, links, seconds):
    assert Boot(weights=weights, links=links).seconds == pytest.approx(REST + seconds, abs=1.0)


def test_the_formula_has_the_numbers_of_the_sum() -> None:
    assert Boot(weights=15.0, links=(S3, GP3)).formula == (
        "15 GiB of weights / 125 MiB/s (a gp3 volume) + 180 s for machine and engine = 303 s"
    )
