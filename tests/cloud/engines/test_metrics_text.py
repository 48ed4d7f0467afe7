"""The few numbers a probe reads out of /metrics."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cloud.engines.dialect import VLLM
from cloud.engines.metrics_text import read_samples

RUNNING, WAITING, (GENERATED,) = VLLM.running, VLLM.waiting, VLLM.progress["generate"]

NAMES = (RUNNING, WAITING, GENERATED)

# The relevant lines, and their treacherous neighbours, as vLLM 0.32 writes them.
BUSY = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="tiny"} 4.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="tiny"} 2.0
# TYPE vllm:num_requests_waiting_by_reason gauge
vllm:num_requests_waiting_by_reason{engine="0",model_name="tiny",reason="capacity"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="tiny",reason="deferred"} 0.0
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0",model_name="tiny"} 443.0
# TYPE vllm:generation_tokens_created gauge
vllm:generation_tokens_created{engine="0",model_name="tiny"} 1.7954723619e+09
vllm:request_generation_tokens_count{engine="0",model_name="tiny"} 2.0
"""
IDLE = """\
vllm:num_requests_running{engine="0",model_name="tiny"} 0.0
vllm:num_requests_waiting{engine="0",model_name="tiny"} 0.0
vllm:generation_tokens_total{engine="0",model_name="tiny"} 1.2031e+06
"""


def test_a_busy_engine() -> None:
    assert read_samples(BUSY, NAMES) == {RUNNING: 4.0, WAITING: 2.0, GENERATED: 443.0}


def test_an_idle_engine() -> None:
    assert read_samples(IDLE, NAMES) == {RUNNING: 0.0, WAITING: 0.0, GENERATED: 1_203_100.0}


def test_several_engine_cores_add_up() -> None:
    body = f'{RUNNING}{{engine="0"}} 3\n{RUNNING}{{engine="1"}} 4\n'
    assert read_samples(body, (RUNNING,)) == {RUNNING: 7.0}


def test_odd_but_valid_lines() -> None:
    body = f'{RUNNING} 5 1700000000000\n{WAITING}{{model_name="a}} b"}}\t6\n{GENERATED}{{}} 7e2'
    assert read_samples(body, NAMES) == {RUNNING: 5.0, WAITING: 6.0, GENERATED: 700.0}


def test_what_is_missing_or_no_number_is_left_out() -> None:
    lines = ("{} NaN", "{}", "# {} 7", "x{} 8", "{}_more 9", "{} many", "{} +Inf", "{}{{")
    body = "\n".join(line.format(name) for name in NAMES for line in lines)
    assert read_samples(body, NAMES) == {}
    assert read_samples("", NAMES) == {}


@given(st.text())
def test_no_text_breaks_it(text: str) -> None:
    for body in (text, RUNNING + text, f"{text}\n{RUNNING}{{{text}}} 3\n"):
        assert read_samples(body, NAMES).keys() <= set(NAMES)
