"""What the demo plays: the pool's configuration and the market, both at the demo's speed."""

from __future__ import annotations

import json
import math
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from cloud.engines.vllm_cpu import CPU_ARGS, CPU_ENV
from cloud.local.config import (
    LocalCloudConfig,
    Reclaiming,
    SyntheticSource,
    TraceSource,
    dump_config,
)
from cloud.local.synthetic import SyntheticParameters
from orchestrator.demo.options import DemoOptions

POOL = "demo"
NOTICE = 120.0
"""Seconds of the market between a notice and its deadline, as on AWS."""

_BOOT = 20.0
_TOKENS_PER_SECOND = 50


class SceneError(Exception):
    """The demo cannot be set up as asked. The message says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Where everything of one demo is."""

    directory: Path
    config: Path
    market: Path
    socket: Path
    cloud_socket: Path
    gateway_socket: Path
    url: str
    model: str
    tokens: tuple[int, int]
    streamed: tuple[int, int]
    notice_s: float
    drills: int
    start_timeout: float


def build(options: DemoOptions, directory: Path) -> Scene:
    """Write the configuration and the market of a demo. Raises SceneError."""
    vllm = options.engine == "vllm"
    notice = NOTICE / options.speed
    port = _free_port()
    model = str(_vllm_model()) if vllm else "simulated"
    config = directory / "pool.toml"
    config.write_text(_toml(options, port=port, notice=notice, model=model), encoding="utf-8")
    market = directory / "market.json"
    dump_config(_cloud(options, directory), market)
    state = directory / "state"
    return Scene(
        directory=directory,
        config=config,
        market=market,
        socket=state / "orchestrator.sock",
        cloud_socket=state / "cloud" / "cloud.sock",
        gateway_socket=state / "gateway.sock",
        url=f"http://127.0.0.1:{port}",
        model="tiny" if vllm else model,
        tokens=(8, 24) if vllm else (10, max(12, int(notice * 0.2 * _TOKENS_PER_SECOND))),
        streamed=(16, 64) if vllm else (10, max(20, int(notice * 0.5 * _TOKENS_PER_SECOND))),
        notice_s=notice,
        drills=max(1, int(options.duration / 60)) if vllm else 8,
        start_timeout=600.0 if vllm else 90.0,
    )


def _toml(options: DemoOptions, *, port: int, notice: float, model: str) -> str:
    """The pool's configuration. Times follow the notice, so that a fast market has fast rules."""
    vllm = options.engine == "vllm"
    lines = [
        "[daemon]",
        'state_dir = "./state"',
        'listen = "off"',
        'log_format = "json"',
        'tick = "500ms"',
        'poll_instances = "500ms"',
        'poll_targets = "500ms"',
        'poll_offerings = "5s"',
        'probe_interval = "500ms"',
        f'probe_timeout = "{10 if vllm else 2}s"',
        f"[pool.{POOL}]",
        f"replicas = {options.nodes}",
        f"model = {json.dumps(model)}",
        f"[pool.{POOL}.engine]",
        f'kind = "{options.engine}"',
        *(
            _vllm_engine()
            if vllm
            else ['args = ["--load-time", "0.5", "--tokens-per-second", "' + f"{_TOKENS_PER_SECOND}" + '"]']
        ),
        f"[pool.{POOL}.drain]",
        f'budget = "{notice * 0.35:.2f}s"',
        f'margin = "{notice * 0.05:.2f}s"',
        'settle = "200ms"',
        f"[pool.{POOL}.back_to_spot]",
        f'hold = "{max(2.0, notice):.2f}s"',
        f'stable = "{max(1.0, notice / 2):.2f}s"',
        f"[pool.{POOL}.placement]",
        f'refusal_half_life = "{max(2.0, notice):.2f}s"',
        f"[pool.{POOL}.health]",
        f'unhealthy_after = "{5 if vllm else 1}s"',
        f'replace_after = "{45 if vllm else 5}s"',
        f'boot_timeout = "{600 if vllm else 60}s"',
        f"[pool.{POOL}.patience]",
        'stale_after = "15s"',
        'vanish_grace = "3s"',
        'effect_timeout = "10s"',
        f"[pool.{POOL}.limits]",
        f"surge = {max(2, math.ceil(options.nodes / 2))}",
        f"launches_per_minute = {20 * options.nodes}",
        f"[pool.{POOL}.cloud]",
        f"[pool.{POOL}.gateway]",
        f'listen = "127.0.0.1:{port}"',
        'metrics_listen = "off"',
        f'drain_margin = "{notice * 0.15:.2f}s"',  # streams that outlive the budget move in time
    ]
    return "\n".join(lines) + "\n"


def _cloud(options: DemoOptions, directory: Path) -> LocalCloudConfig:
    held = max(1, math.ceil(options.nodes * 0.7 / 3))
    span = max(1.0, options.duration * options.speed)
    if options.trace is not None:
        source: TraceSource | SyntheticSource = TraceSource(
            directory=options.trace.absolute(), start="liveliest", span=span, held=held
        )
    else:
        source = SyntheticSource(parameters=SyntheticParameters(), start="liveliest", span=span, held=held)
    return LocalCloudConfig(
        state_dir=directory / "state" / "cloud",
        market=source,
        speed=options.speed,
        seed=options.seed,
        boot_delay=_BOOT,
        reclaiming=Reclaiming(notice=NOTICE, late_share=0.1, late_notice=NOTICE / 2),
    )


def _vllm_engine() -> list[str]:
    """vLLM on a CPU with the tiny model: small, one thread each, nothing fetched."""
    executable = Path(os.environ.get("ORCHESTRATOR_VLLM", ".venv-vllm/bin/vllm")).absolute()
    if not executable.exists():
        raise SceneError(f"{executable}: no vLLM here; run `make vllm-env`, or set ORCHESTRATOR_VLLM")
    pairs = ", ".join(f"{key} = {json.dumps(value)}" for key, value in CPU_ENV.items())
    return [
        f"executable = {json.dumps(str(executable))}",
        'served_name = "tiny"',
        f"args = {json.dumps(CPU_ARGS)}",
        f"env = {{ {pairs} }}",
    ]


def _vllm_model() -> Path:
    model = Path(os.environ.get("ORCHESTRATOR_VLLM_MODEL", ".cache/tiny-model")).absolute()
    if not (model / "config.json").exists():
        raise SceneError(f"{model}: no model here; run `make vllm-env`, or set ORCHESTRATOR_VLLM_MODEL")
    return model


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
