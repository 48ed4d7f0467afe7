"""Whether weights of fewer bits would fit twice, on both sides of each edge."""

from __future__ import annotations

import pytest

from policies.formats import AWQ, FP8, WHOLE
from policies.model_fit import Gpus, Need, Split, check
from policies.packing import pack
from policies.value import replace

L4 = Gpus(kind="L4", count=1, memory=22.35)
H100 = Gpus(kind="H100", count=8, memory=80.0)


FORMS = {4: AWQ, 8: FP8, 16: WHOLE}


def need(billions: float, bits: int = 16, context: int = 8192) -> Need:
    return Need(parameters=billions * 1e9, form=FORMS[bits], context=context)


@pytest.mark.parametrize(
    ("billions", "gpus", "parallel", "bits"),
    [
        (1, L4, 1, None),  # fits twice as it is
        (6, L4, 1, 8),
        (8, L4, 1, 4),
        (24, L4, 1, None),  # does not fit at all: that is an error, and said elsewhere
        (24, H100, 1, 8),
        (32, H100, 1, 4),
        (30, H100, 2, None),
        (70, H100, 2, 4),
        (70, H100, 4, None),
        (120, H100, 4, 8),
        (405, H100, 8, None),
    ],
)
def test_the_most_bits_that_fit_twice(billions: float, gpus: Gpus, parallel: int, bits: int | None) -> None:
    found = pack(need(billions), gpus, Split(tensor=parallel))
    assert (found and found.bits) == bits


def test_what_is_said_holds_by_the_rule_that_validate_goes_by() -> None:
    """Half of the GPUs hold the smaller weights with one full request, and do not hold those of today."""
    asked = need(70)
    found = pack(asked, H100, Split(tensor=2))
    assert found is not None
    assert check(replace(asked, form=FORMS[found.bits]), H100, Split(tensor=1)).fits
    assert not check(asked, H100, Split(tensor=1)).fits
    assert found.before == pytest.approx(70e9 * 2 / 2**30)
    assert found.after < found.before / 3
    assert found.gain > 1


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_weights_are_left_alone(bits: int) -> None:
    assert pack(need(40, bits=bits), H100, Split(tensor=1)) is None


def test_volta_reads_gptq_alone() -> None:
    volta = Gpus(kind="V100", count=8, memory=32.0)
    found = pack(need(12), volta, Split(tensor=1))
    assert found is not None
    assert (found.bits, found.methods) == (4, "GPTQ")


def test_a_long_request_is_counted_in() -> None:
    assert pack(need(6), L4, Split(tensor=1)) is not None
    assert pack(need(6, context=40_000), L4, Split(tensor=1)) is None


def test_the_share_of_the_engine_counts() -> None:
    assert pack(need(6), L4, Split(tensor=1), utilisation=0.9) is not None
    assert pack(need(6), L4, Split(tensor=1), utilisation=0.6) is None
