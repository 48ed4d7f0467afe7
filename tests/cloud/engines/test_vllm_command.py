"""How vLLM is started and stopped."""

from __future__ import annotations

from typing import Any

from cloud.clock import SystemClock
from cloud.engines.vllm import VllmEngine
from cloud.ports import EngineSpec


def engine() -> VllmEngine:
    return VllmEngine(SystemClock(), model_name="llama")


def test_our_flags_where_the_user_gives_none() -> None:
    command = engine().command(EngineSpec(model="org/llama", served_name="llama", drain_budget=24.2))
    assert command.argv == (
        *("vllm", "serve", "org/llama", "--served-model-name", "llama"),
        *("--host", "{host}", "--port", "{port}", "--shutdown-timeout", "25"),
        *("--enable-scale-out", "--enable-prompt-tokens-details"),
    )
    assert command.stop_signal == "SIGTERM"
    assert command.stop_grace > 25


def test_the_users_flags_pass_through_and_win() -> None:
    args = ("--max-num-seqs", "4", "--shutdown_timeout=90", "--host", "127.0.0.9", "-tp=2")
    spec = EngineSpec(model="m", served_name="llama", args=args, env={"A": "b"}, executable="/opt/vllm")
    command = engine().command(spec)
    ours = ("/opt/vllm", "serve", "m", "--served-model-name", "llama", "--port", "{port}")
    assert command.argv == (*ours, "--enable-scale-out", "--enable-prompt-tokens-details", *args)
    assert command.env == {"A": "b", "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "75"}
    assert command.stop_grace > 90


def test_idle_connections_are_kept_longer_than_by_a_balancer_unless_the_user_says_otherwise() -> None:
    def kept(**given: Any) -> str:
        spec = EngineSpec(model="m", served_name="m", **given)
        return engine().command(spec).env["VLLM_HTTP_TIMEOUT_KEEP_ALIVE"]

    assert kept() == "75"
    assert kept(keep_alive=615.2) == "616", "vLLM takes whole seconds only"
    assert kept(keep_alive=90.0, env={"VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "300"}) == "300"


def test_a_vllm_that_does_not_know_our_switch_can_be_started() -> None:
    args = ("--no-enable-scale-out", "--seed", "1", "--no-enable-prompt-tokens-details")
    command = engine().command(EngineSpec(model="m", served_name="llama", args=args, drain_budget=1.0))
    assert not [word for word in command.argv if "scale-out" in word or "details" in word]
    assert command.argv[-2:] == ("--seed", "1")


def test_a_drain_is_always_given_time_to_be_taken_down() -> None:
    for args in ((), ("--shutdown-timeout", "0"), ("--shutdown-timeout=nonsense",)):
        command = engine().command(EngineSpec(model="m", served_name="m", args=args, drain_budget=0.0))
        assert command.stop_grace >= 15, "taking vLLM down took up to 14 s"
