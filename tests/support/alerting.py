"""A real Prometheus and a real Alertmanager beside a stack, with the shipped rules and examples."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import socket
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from orchestrator import monitoring


class Webhook:
    """What Alertmanager tells a pager and a chat: (receiver, status, alert) in order of arrival."""

    def __init__(self) -> None:
        self.received: list[tuple[str, str, dict[str, Any]]] = []
        self._runner: web.AppRunner | None = None

    async def open(self) -> int:
        app = web.Application()
        app.router.add_post("/{receiver}", self._take)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return int(self._runner.addresses[0][1])

    async def close(self) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _take(self, request: web.Request) -> web.Response:
        for alert in (await request.json())["alerts"]:
            self.received.append((request.match_info["receiver"], alert["status"], alert))
        return web.Response()

    def heard(self, name: str, status: str) -> tuple[str, dict[str, Any]] | None:
        """The newest word of this kind about an alert, and who received it."""
        for receiver, said, alert in reversed(self.received):
            if (alert["labels"]["alertname"], said) == (name, status):
                return receiver, alert
        return None


class Monitoring:
    """Prometheus, Alertmanager and the webhook of one stack."""

    def __init__(self, port: int, alertmanager: int, webhook: Webhook) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.alertmanager = f"http://127.0.0.1:{alertmanager}"
        self.webhook = webhook

    async def ask(self, path: str, **query: str) -> Any:
        """The data of one call of Prometheus' API; None while it does not answer."""

        def get() -> Any:
            url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}"
            try:
                with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310
                    return json.load(answer)["data"]
            except urllib.error.HTTPError as error:
                if error.code == 503:  # it still starts
                    return None
                raise AssertionError(f"{query or path}: {error.read().decode()}") from None
            except OSError:
                return None

        return await asyncio.to_thread(get)

    async def silent(self, alert: str) -> bool:
        """Prometheus and Alertmanager hold no such alert, and its last firing was taken back."""
        states = [status for _, status, a in self.webhook.received if a["labels"]["alertname"] == alert]
        return (
            states[-1:] in ([], ["resolved"])
            and await self.numbers(f'ALERTS{{alertname="{alert}"}}') == []
            and await self.held(f'alertname="{alert}"') == []
        )

    async def held(self, *matchers: str) -> list[dict[str, Any]]:
        """The alerts that Alertmanager has now and that match, what it holds back included."""

        def get() -> list[dict[str, Any]]:
            query = urllib.parse.urlencode([("filter", m) for m in matchers])
            with urllib.request.urlopen(f"{self.alertmanager}/api/v2/alerts?{query}", timeout=30) as answer:  # noqa: S310
                found: list[dict[str, Any]] = json.load(answer)
                return found

        return await asyncio.to_thread(get)

    async def numbers(self, expression: str) -> list[float]:
        """What an expression gives now, without what is no number."""
        found = await self.ask("query", query=expression)
        values = [float(series["value"][1]) for series in found["result"]]
        return [value for value in values if not math.isnan(value)]


@contextlib.asynccontextmanager
async def running_monitoring(
    stack: Any, folder: Path, change: Callable[[str], str]
) -> AsyncIterator[Monitoring]:
    """Both programs with the shipped files, in which `change` may shorten times; they end with the body."""
    webhook = Webhook()
    hook = await webhook.open()
    prometheus, alertmanager = free_port(), free_port()
    addresses = {
        "127.0.0.1:9477": f"127.0.0.1:{stack.monitoring_port}",
        "127.0.0.1:9478": f"127.0.0.1:{stack.gateway_metrics_port}",
        "127.0.0.1:9093": f"127.0.0.1:{alertmanager}",
        "127.0.0.1:9500": f"127.0.0.1:{hook}",
    }
    for name in monitoring.FILES:
        text = monitoring.read(name)
        for shipped, here in addresses.items():
            text = text.replace(shipped, here)
        (folder / name).write_text(change(text), encoding="utf-8")
    commands = (
        [
            "prometheus-alertmanager",
            "--config.file=alertmanager.yaml",
            "--storage.path=alerts",
            f"--web.listen-address=127.0.0.1:{alertmanager}",
            "--cluster.listen-address=",  # else it opens a port for gossip to everybody
        ],
        [
            "prometheus",
            "--config.file=prometheus.yaml",
            "--storage.tsdb.path=series",
            f"--web.listen-address=127.0.0.1:{prometheus}",
        ],
    )
    running: list[asyncio.subprocess.Process] = []
    found = Monitoring(prometheus, alertmanager, webhook)
    try:
        for command in commands:
            with (folder / f"{command[0]}.log").open("wb") as log:
                running.append(
                    await asyncio.create_subprocess_exec(
                        *command, cwd=folder, stdout=log, stderr=log, env=stack.full_environment
                    )
                )

        async def scraped() -> bool:
            return bool(await found.ask("query", query="up")) and await found.numbers(
                'up{job=~"orchestrator|orchestrator-gateway"} == 1'
            ) == [1.0, 1.0]

        await stack.until("Prometheus scrapes daemon and gateway", scraped)
        yield found
    finally:
        for process in running:
            process.terminate()
        for process in running:
            async with asyncio.timeout(30):
                await process.wait()
        await webhook.close()
        _show_logs(folder)


def _show_logs(folder: Path) -> None:
    for log in folder.glob("*.log"):
        sys.stdout.write(f"--- {log.name}\n{log.read_text()[-2000:]}\n")


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
