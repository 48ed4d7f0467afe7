"""`orchestrator routes`: from the daemon, without it from the gateway, without both from the file."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloud.clock import SystemClock
from orchestrator.config.load import load_config
from orchestrator.gateway.app import Gateway
from orchestrator.gateway.spend_file import Claim, Settled, SpendFile, Ticket
from orchestrator.wiring.gateway import gateway_config
from policies.spend import Usage, usd
from tests.orchestrator.cli.test_cli import check_schema
from tests.support.routed import TOML, routed
from tests.support.sample_answers import Run


@pytest.fixture
def file(short_dir: Path) -> Path:
    """A configuration whose sockets have short paths."""
    made = short_dir / "pool.toml"
    made.write_text(TOML + '[gateway]\nlisten = "127.0.0.1:0"\nmetrics_listen = "off"\n', encoding="utf-8")
    (short_dir / "state").mkdir()
    return made


@pytest.fixture
def gateway(file: Path) -> Iterator[Gateway]:
    """A real gateway of that file, in a thread with a loop of its own."""
    ready, ends = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()
    made: list[Gateway] = []

    async def serve() -> None:
        gateway = Gateway(gateway_config(load_config(file, "gateway")), SystemClock())
        await gateway.start()
        made.append(gateway)
        ready.set()
        await ends.wait()
        await gateway.stop(linger=0.0, drain_timeout=0.0)

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    assert ready.wait(20.0)
    yield made[0]
    loop.call_soon_threadsafe(ends.set)
    thread.join(20.0)
    loop.close()


def booked(file: Path, dollars: str) -> None:
    """What a gateway that ran before has booked."""
    now, path = SystemClock().now(), load_config(file, "client").gateway.spend_file
    assert path is not None
    spend = SpendFile(path)
    claim = Claim(provider="claude", route="assistant", model="big", amount=usd("9"), until=now + 60.0)
    (ticket,) = spend.apply([claim], now)
    assert isinstance(ticket, Ticket)
    spend.apply([Settled(ticket=ticket, amount=usd(dollars), usage=Usage(1, 0, 0, 1))], now)
    spend.close()


def test_the_daemon_says_it(api: Any, run: Run, small: dict[str, Any]) -> None:
    api.status = routed(small)
    code, out, err = run("routes", "--socket", str(api.socket))
    assert (code, err) == (0, "")
    assert out.splitlines()[1].startswith("assistant, gpt-4o  provider claude (big)")
    code, out, _ = run("routes", "-o", "json", "--socket", str(api.socket))
    check_schema("routes", out)
    assert json.loads(out)["source"] == "daemon"


def test_a_daemon_that_looks_at_no_names_says_so(api: Any, run: Run, small: dict[str, Any]) -> None:
    api.status = small
    code, out, _ = run("routes", "--socket", str(api.socket))
    assert (code, out) == (0, "No routes: names of models are not looked at, all requests go to the pool.\n")


def test_without_a_daemon_the_gateway_is_asked(file: Path, gateway: Gateway, run: Run) -> None:
    booked(file, "1.20")
    code, out, err = run("routes", "-o", "json", "--config", str(file))
    assert (code, err) == (0, "")
    check_schema("routes", out)
    view = json.loads(out)
    assert (view["source"], view["gateway"]["error"]) == ("gateway", "")
    assistant, private, own = view["routes"]
    assert assistant["goes_to"] == "provider claude (big)"  # the pool has no target
    assert assistant["stands_in"] == "claude"
    assert assistant["left_out"][0].startswith("pool chat ")
    assert (assistant["spent_today_usd"], assistant["cap_usd"]) == (1.2, 20.0)
    assert (private["goes_to"], private["servable"], private["data"]) == ("pool chat", False, "stays")
    assert own["models"] == ["llama"]
    (claude,) = view["providers"]
    assert (claude["state"], claude["in_flight"], claude["spent_today_usd"]) == ("is well", 0, 1.2)


def test_without_both_the_file_says_what_would_be_and_what_was_spent(file: Path, run: Run) -> None:
    booked(file, "1.20")
    code, out, err = run("routes", "-o", "json", "--config", str(file))
    assert (code, err) == (0, "")
    check_schema("routes", out)
    view = json.loads(out)
    assert view["source"] == "file"
    assert "cannot be reached" in view["gateway"]["error"]
    assert [(r["name"], r["goes_to"]) for r in view["routes"]] == [
        ("assistant", None),
        ("private", None),
        ("llama", None),
    ]
    assert view["providers"][0]["spent_today_usd"] == 1.2
    code, out, _ = run("routes", "--config", str(file))
    assert code == 0
    assert "! where requests go now is not known" in out
    assert "$1.20 of $50.00" in out


def test_without_a_file_there_is_nobody_else_to_ask(short_dir: Path, run: Run) -> None:
    code, out, err = run("routes", "--socket", str(short_dir / "none.sock"))
    assert (code, out) == (3, "")
    assert "with --config the gateway is asked, or the file is read" in err
