"""How the simulated engine is started and stopped."""

from __future__ import annotations

import sys

import pytest

from cloud.clock import SystemClock
from cloud.engines.simulated import SimulatedEngine
from cloud.engines.simulated_server.options import parse_options
from cloud.ports import EngineSpec


def test_the_command_is_one_its_server_understands() -> None:
    engine = SimulatedEngine(
        SystemClock(), model_name="sim", load_time=1.5, tokens_per_second=80, max_num_seqs=3
    )
    spec = EngineSpec(model="m", served_name="sim", args=("--max-num-seqs=5", "--seed", "9"), drain_budget=12)
    command = engine.command(spec)
    assert command.argv[:3] == (sys.executable, "-m", "cloud.engines.simulated_server")
    filled = [word.replace("{host}", "127.0.0.2").replace("{port}", "81") for word in command.argv[3:]]
    options = parse_options(filled)
    assert (options.host, options.port) == ("127.0.0.2", 81)
    assert (options.model, options.served_model_name) == ("m", "sim")
    assert (options.load_time, options.tokens_per_second) == (1.5, 80.0)
    assert (options.max_num_seqs, options.seed) == (5, 9), "the user's flags win"
    assert options.shutdown_timeout == 12
    assert options.enable_scale_out
    assert command.stop_grace > 12


def test_another_interpreter_and_environment() -> None:
    engine = SimulatedEngine(SystemClock(), model_name="sim")
    spec = EngineSpec(model="m", served_name="sim", executable="/opt/python", env={"X": "y"})
    command = engine.command(spec)
    assert command.argv[0] == "/opt/python"
    assert command.env == {"X": "y", "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "75"}


def test_idle_connections_are_kept_as_vllms_variable_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_HTTP_TIMEOUT_KEEP_ALIVE", raising=False)
    assert parse_options(["--model", "m"]).keep_alive == 5.0, "vLLM's own"
    monkeypatch.setenv("VLLM_HTTP_TIMEOUT_KEEP_ALIVE", "0.25")
    assert parse_options(["--model", "m"]).keep_alive == 0.25
    monkeypatch.setenv("VLLM_HTTP_TIMEOUT_KEEP_ALIVE", "soon")
    with pytest.raises(SystemExit):
        parse_options(["--model", "m"])
