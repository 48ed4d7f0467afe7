"""The start of an engine over SSH, for clouds that take no user-data: a script that runs as root. Pure.

With systemd the engine is a service, which starts again with the machine. In a container without systemd, as
RunPod and Vast have them, a loop keeps it. Run twice, the script changes nothing that holds.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from cloud.ports import EngineCommand

_HOME = "/opt/orchestrator"

_SCRIPT = """set -eu
umask 022
mkdir -p {home}
cat >{home}/engine.sh.new <<'ORCHESTRATOR_END'
{engine}
ORCHESTRATOR_END
if cmp -s {home}/engine.sh.new {home}/engine.sh; then same=yes; else same=; fi
mv {home}/engine.sh.new {home}/engine.sh
if [ -d /run/systemd/system ]; then
    cat >/etc/systemd/system/orchestrator-engine.service <<'ORCHESTRATOR_END'
[Unit]
Description=Inference engine of pool {pool}
Wants=network-online.target
After=network-online.target docker.service
StartLimitIntervalSec=0

[Service]
ExecStart=/bin/sh {home}/engine.sh
KillMode=mixed
KillSignal={signal}
TimeoutStopSec={grace}
Restart=always
RestartSec=2
LimitNOFILE=65536
LimitMEMLOCK=infinity
StateDirectory=orchestrator-engine
Environment=HOME=/var/lib/orchestrator-engine

[Install]
WantedBy=multi-user.target
ORCHESTRATOR_END
    systemctl daemon-reload
    systemctl enable --quiet --now orchestrator-engine.service
    [ "$same" ] || systemctl restart --no-block orchestrator-engine.service
elif ! {{ [ "$same" ] && [ -e {home}/pid ] && kill -0 "$(cat {home}/pid)" 2>/dev/null; }}; then
    [ ! -e {home}/pid ] || kill -- "-$(cat {home}/pid)" 2>/dev/null || true
    setsid sh -c 'echo $$ >{home}/pid; while :; do sh {home}/engine.sh; sleep 2; done' \\
        >{home}/engine.log 2>&1 </dev/null &
fi
"""


def start_script(pool: str, command: EngineCommand, port: int, kind: str = "") -> str:
    """The script. `kind`: the machine's instance type, for a command of its own.

    The engine listens on every address of the machine; who reaches it is the network's affair.
    """
    command = command.at(kind)
    filled = {"{host}": "0.0.0.0", "{port}": str(port)}  # noqa: S104 - the network decides who reaches it
    argv = [_filled(word, filled) for word in command.argv]
    if command.container is None:
        variables = [f"{name}={value}" for name, value in sorted(command.env.items())]
        line = shlex.join(["exec", "env", *variables, *argv])
    else:
        line = _container(command, argv)
    return _SCRIPT.format(
        home=_HOME, engine=line, pool=pool, signal=command.stop_signal, grace=int(command.stop_grace) + 1
    )


def _container(command: EngineCommand, argv: list[str]) -> str:
    """A line that becomes `docker run` or `podman run`, whichever the machine has."""
    container = command.container
    if container is None:
        raise ValueError("the engine runs in no container")
    words = ["run", "--rm", "--name", "orchestrator-engine", "--network", "host", "--ipc", "host"]
    for name, value in sorted(command.env.items()):
        words += ["--env", f"{name}={value}"]
    for volume in container.volumes:
        words += ["--volume", volume]
    words += container.args
    entry = {"argv": [], "program": ["--entrypoint", argv[0]], "own": []}[container.entry]
    rest = argv if container.entry == "argv" else argv[1:]
    words += [*entry, container.image, *rest]
    program = container.runtime or "$(command -v docker || command -v podman)"
    gpus = "$(command -v nvidia-smi >/dev/null && echo --gpus all)"
    return (
        f"{program} rm --force orchestrator-engine >/dev/null 2>&1 || true\n"
        f"exec {program} {shlex.join(words[:3])} {gpus} {shlex.join(words[3:])}"
    )


def _filled(word: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        word = word.replace(name, value)
    return word
