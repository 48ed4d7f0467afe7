"""`orchestrator demo`: the main job on this machine, with real processes, from start to summary.

Starts the local cloud, the gateway and the daemon as processes of their own and a load generator in this
one, plays a spot market, and ends by itself. Nothing outside this machine is touched.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import tempfile
from pathlib import Path

from cloud.clock import SystemClock
from orchestrator.demo.options import DemoOptions
from orchestrator.demo.play import play
from orchestrator.demo.processes import ProcessError
from orchestrator.demo.scene import SceneError, build
from orchestrator.demo.summary import text
from orchestrator.logs import configure_logging

OK, FAILED = 0, 1


def main(options: DemoOptions) -> int:
    """Run the demo; returns 0 when no request failed, no stream was cut and no node leaked, 1 otherwise.

    Streams may be cut where nobody can go on with them: in the pool that is lost as a whole, and with engines
    that go on with none.
    """
    directory = options.state_dir or Path(tempfile.mkdtemp(prefix="orchestrator-demo-"))
    directory = directory.absolute()
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "state" / "cloud").mkdir(parents=True, exist_ok=True)
    keep = options.keep or options.state_dir is not None
    configure_logging("auto", "warning")
    try:
        scene = build(options, directory)
        summary = asyncio.run(play(options, scene, SystemClock()))
    except (SceneError, ProcessError) as error:
        keep = True
        print(f"orchestrator: the demo could not run: {error}", file=sys.stderr)
        return FAILED
    finally:
        if not keep:
            shutil.rmtree(directory, ignore_errors=True)
    print(json.dumps(summary) if options.output == "json" else text(summary), end="")
    if options.output == "json":
        print()
    if keep:
        print(f"State and logs are kept in {directory}", file=sys.stderr)
    lost = summary["lost_pool"]
    cut = summary["streams_cut"] - (lost["streams_cut"] if lost else 0)
    broken = summary["failed"] or summary["leaked_nodes"] or (cut and scene.continues)
    return FAILED if broken else OK
