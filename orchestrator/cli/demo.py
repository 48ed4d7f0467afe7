"""`orchestrator demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal

from cyclopts import Parameter, validators

from orchestrator.cli.shared import PlainOutput, Seconds
from orchestrator.demo.options import DemoOptions

_DEFAULTS: Final = DemoOptions()


def demo(
    *,
    duration: Annotated[
        Seconds, Parameter(help="How long the market plays.", validator=validators.Number(gte=10, lte=86400))
    ] = _DEFAULTS.duration,
    seed: Annotated[int, Parameter(help="The same seed plays the same market.")] = _DEFAULTS.seed,
    nodes: Annotated[
        int, Parameter(help="Nodes of the first pool.", validator=validators.Number(gte=1, lte=200))
    ] = _DEFAULTS.nodes,
    speed: Annotated[
        float,
        Parameter(
            help="Seconds of the market that pass in one second.",
            validator=validators.Number(gt=0, lte=3600),
        ),
    ] = _DEFAULTS.speed,
    rate: Annotated[
        float, Parameter(help="Requests per second.", validator=validators.Number(gt=0, lte=10000))
    ] = _DEFAULTS.rate,
    kills: Annotated[
        int,
        Parameter(
            help="Engines to end with kill -9 besides, on machines that stay.",
            validator=validators.Number(gte=0, lte=1000),
        ),
    ] = _DEFAULTS.kills,
    engine: Annotated[
        Literal["simulated", "vllm", "llamacpp"], Parameter(help="What the nodes run.")
    ] = _DEFAULTS.engine,
    trace: Annotated[
        Path | None,
        Parameter(
            help="Play the recorded market in this directory (spotset/1) instead of a synthetic one.",
            validator=validators.Path(exists=True, file_okay=False),
        ),
    ] = None,
    state_dir: Annotated[
        Path | None, Parameter(help="Where to keep state. [default: a temporary directory]")
    ] = None,
    keep: Annotated[bool, Parameter(negative="", help="Keep the state at the end.")] = False,
    quiet: Annotated[
        bool, Parameter(name=["--quiet", "-q"], negative="", help="Print only the summary.")
    ] = False,
    output: PlainOutput = "table",
) -> int:
    """Play a spot market on this machine and show what the orchestrator does about it.

    Starts a local cloud, the daemon, the gateway and a load generator, takes spot nodes
    away, five of them without any notice, kills a small pool as a whole while an API answers
    for it, and ends by itself. Nothing outside this machine is used.

    For example:
      orchestrator demo
      orchestrator demo --duration 90 --seed 7 -o json
      orchestrator demo --kills 10
      orchestrator demo --nodes 4 --engine llamacpp
      orchestrator demo --trace traces/aws-p5
    """
    options = DemoOptions(
        duration=duration,
        seed=seed,
        nodes=nodes,
        speed=speed,
        engine=engine,
        trace=trace,
        rate=rate,
        kills=kills,
        output=output,
        state_dir=state_dir,
        keep=keep,
        quiet=quiet,
    )
    from orchestrator.demo.main import main

    return main(options)
