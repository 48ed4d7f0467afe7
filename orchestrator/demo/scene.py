"""What the demo plays: the configuration and the market, both at the demo's speed."""

from __future__ import annotations

import json
import math
import os
import socket
import sys
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
from orchestrator.demo.options import PROVIDER, DemoOptions

POOL = "demo"
SMALL = "small"
"""The pool that is lost as a whole, and the name that its requests ask for."""
ROUTE = "assistant"
"""The name that requests for the first pool ask for."""
NOTICE = 120.0
"""Seconds of the market between a notice and its deadline, as on AWS."""

_BOOT = 20.0
_TOKENS_PER_SECOND = 50
_SMALL_NODES = 2
_OUTSIDE = (
    *(sys.executable, "-m", "cloud.engines.simulated_server", "--model", "big-model"),
    *("--tokens-per-second", "200", "--max-num-seqs", "256"),
)
"""A server that plays an API outside."""


class SceneError(Exception):
    """The demo cannot be set up as asked. The message says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cast:
    """What the nodes run, and what can be asked of a machine that plays all of them. Times in seconds."""

    model: str
    served_name: str
    engine: tuple[str, ...]  # lines of its table
    provider: tuple[str, ...] = ()  # command of the server that plays an API; none: no second pool either
    speaks: str = "openai"  # kind of that API
    continues: bool = True  # another node can go on with a stream
    tokens: tuple[int, int]  # least and most of plain answers
    streamed: tuple[int, int]  # least and most of streams
    drills: int = 8  # nodes that are taken with notice
    start_timeout: float = 90.0
    boot_timeout: int = 60
    probe_timeout: int = 2
    unhealthy_after: int = 1
    replace_after: int = 5


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
    model: str  # of requests for the first pool
    tokens: tuple[int, int]
    streamed: tuple[int, int]
    notice_s: float
    drills: int
    start_timeout: float
    provider: tuple[str, ...] = ()  # command that plays an API; empty: none
    chats: bool = False  # that API has chat only
    small: str = ""  # model of requests for the second pool; empty: there is none
    continues: bool = True  # a stream that loses its node can go on at another


def build(options: DemoOptions, directory: Path) -> Scene:
    """Write the configuration and the market of a demo. Raises SceneError."""
    notice = NOTICE / options.speed
    cast = {"simulated": _simulated, "vllm": _vllm, "llamacpp": _llamacpp}[options.engine](options, notice)
    port, outside = _free_port(), _free_port()
    config = directory / "pool.toml"
    config.write_text(_toml(options, cast, port=port, outside=outside, notice=notice), encoding="utf-8")
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
        model=ROUTE if cast.provider else cast.served_name,
        tokens=cast.tokens,
        streamed=cast.streamed,
        notice_s=notice,
        drills=cast.drills,
        start_timeout=cast.start_timeout,
        provider=(*cast.provider, "--port", str(outside)) if cast.provider else (),
        chats=cast.speaks != "openai",
        small=SMALL if cast.provider else "",
        continues=cast.continues,
    )


def _toml(options: DemoOptions, cast: _Cast, *, port: int, outside: int, notice: float) -> str:
    """The configuration. Times follow the notice, so that a fast market has fast rules."""
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
        f'probe_timeout = "{cast.probe_timeout}s"',
        "[gateway]",
        f'listen = "127.0.0.1:{port}"',
        'metrics_listen = "off"',
        *_pool(POOL, options, cast, notice),
        *(_second(options, cast, outside, notice) if cast.provider else ()),
    ]
    return "\n".join(lines) + "\n"


def _second(options: DemoOptions, cast: _Cast, outside: int, notice: float) -> list[str]:
    """The pool that is lost, the provider, and the routes that lead from both pools to it."""
    api = f'provider = "{PROVIDER}", model = "big-model"'
    return [
        *_pool(SMALL, options, cast, notice),
        f"[provider.{PROVIDER}]",
        f'kind = "{cast.speaks}"',
        f'url = "http://127.0.0.1:{outside}"',
        'usd_per_day = "100"',
        f'[provider.{PROVIDER}.price."big-model"]',
        'input = "3"',
        'output = "15"',
        "most_output = 4096",
        "[[route]]",
        f'models = ["{ROUTE}"]',
        f'to = [{{ pool = "{POOL}" }}, {{ {api}, when = ["down", "saturated"] }}]',
        "[[route]]",
        f'models = ["{SMALL}"]',
        f'to = [{{ pool = "{SMALL}" }}, {{ {api} }}]',
    ]


def _pool(name: str, options: DemoOptions, cast: _Cast, notice: float) -> list[str]:
    """The tables of one pool. No market can take the second."""
    first = name == POOL
    nodes = options.nodes if first else _SMALL_NODES
    return [
        f"[pool.{name}]",
        f"replicas = {nodes}",
        *(() if first else ('spot_share = "0%"',)),
        f"model = {json.dumps(cast.model)}",
        f"[pool.{name}.engine]",
        f'kind = "{options.engine}"',
        f"served_name = {json.dumps(cast.served_name if first else SMALL)}",
        *cast.engine,
        f"[pool.{name}.drain]",
        f'budget = "{notice * 0.35:.2f}s"',
        f'margin = "{notice * 0.05:.2f}s"',
        'settle = "200ms"',
        f"[pool.{name}.back_to_spot]",
        f'hold = "{max(2.0, notice):.2f}s"',
        f'stable = "{max(1.0, notice / 2):.2f}s"',
        f"[pool.{name}.placement]",
        f'refusal_half_life = "{max(2.0, notice):.2f}s"',
        f"[pool.{name}.health]",
        f'unhealthy_after = "{cast.unhealthy_after}s"',
        f'replace_after = "{cast.replace_after}s"',
        f'boot_timeout = "{cast.boot_timeout}s"',
        f"[pool.{name}.patience]",
        'stale_after = "15s"',
        'vanish_grace = "3s"',
        'effect_timeout = "10s"',
        f"[pool.{name}.limits]",
        f"surge = {max(2, math.ceil(nodes / 2))}",
        f"launches_per_minute = {20 * nodes}",
        f"[pool.{name}.gateway]",
        f'drain_margin = "{notice * 0.15:.2f}s"',  # streams that outlive the budget move in time
    ]


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


def _simulated(_options: DemoOptions, notice: float) -> _Cast:
    """Servers without a model, whose texts last for a good part of a notice."""
    args = ["--load-time", "0.5", "--tokens-per-second", str(_TOKENS_PER_SECOND)]
    return _Cast(
        model="simulated",
        served_name="simulated",
        engine=(f"args = {json.dumps(args)}",),
        provider=_OUTSIDE,
        tokens=(10, max(12, int(notice * 0.2 * _TOKENS_PER_SECOND))),
        streamed=(10, max(20, int(notice * 0.5 * _TOKENS_PER_SECOND))),
    )


def _vllm(options: DemoOptions, _notice: float) -> _Cast:
    """vLLM on a CPU with the tiny model: small, one thread each, nothing fetched.

    One pool and no provider: minutes would pass until a pool that was lost is back.
    """
    executable = _installed("ORCHESTRATOR_VLLM", ".venv-vllm/bin/vllm", "make vllm-env")
    model = _installed("ORCHESTRATOR_VLLM_MODEL", ".cache/tiny-model", "make vllm-env")
    pairs = ", ".join(f"{key} = {json.dumps(value)}" for key, value in CPU_ENV.items())
    return _Cast(
        model=str(model),
        served_name="tiny",
        engine=(
            f"executable = {json.dumps(str(executable))}",
            f"args = {json.dumps(CPU_ARGS)}",
            f"env = {{ {pairs} }}",
        ),
        tokens=(8, 24),
        streamed=(16, 64),
        drills=max(1, int(options.duration / 60)),
        start_timeout=600.0,
        boot_timeout=600,
        probe_timeout=10,
        unhealthy_after=5,
        replace_after=45,
    )


def _llamacpp(_options: DemoOptions, _notice: float) -> _Cast:
    """llama.cpp on a CPU with the tiny model: thousands of tokens a second, so answers of hundreds."""
    executable = _installed("ORCHESTRATOR_LLAMACPP", ".venv-llamacpp/bin/llama-server", "make llamacpp-env")
    model = _installed("ORCHESTRATOR_LLAMACPP_MODEL", ".cache/tiny-model.gguf", "make llamacpp-env")
    small = ("--threads", "1", "--parallel", "4", "--ctx-size", "16384")
    program = f"executable = {json.dumps(str(executable))}"
    return _Cast(
        model=str(model),
        served_name="tiny",
        engine=(program, f"args = {json.dumps(small)}"),
        provider=(str(executable), "--model", str(model), *small),
        speaks="anthropic",
        continues=False,
        tokens=(50, 200),
        streamed=(100, 800),
    )


def _installed(variable: str, usual: str, recipe: str) -> Path:
    """A part of an engine, as a whole path. Raises SceneError where it is missing."""
    found = Path(os.environ.get(variable, usual)).absolute()
    if not found.exists():
        raise SceneError(f"{found} is missing; run `{recipe}`, or set {variable}")
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
