"""NVIDIA's DCGM exporter: what its expositions say of GPUs, and an exporter that is late, wrong or endless.

The expositions are made from the exporter's documentation, see tests/support/gpus/README.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from cloud.clock import SystemClock
from cloud.dcgm import MOST_BYTES, MOST_GPUS, DcgmExporter, NotReadable, parse
from policies.gpu_errors import Remedy
from policies.gpu_readings import asks, throttled

RECORDED = Path(__file__).parents[1] / "support" / "gpus"


def recorded(name: str) -> str:
    return (RECORDED / f"{name}.prom").read_text()


def test_a_healthy_gpu_is_read_in_our_units() -> None:
    looked = parse("n", recorded("dcgm_healthy"), 7.0)
    (gpu,) = looked.gpus
    assert (looked.node, looked.at, looked.source, looked.xids) == ("n", 7.0, "dcgm", ())
    assert (gpu.index, gpu.name) == (0, "NVIDIA H100 80GB HBM3")
    assert gpu.uuid == "GPU-5f2c9a10-77aa-4c1e-9f7d-0d3b6c1e8a01"
    assert (gpu.utilisation_percent, gpu.temperature_c, gpu.power_w) == (97.0, 61.0, 512.34)
    assert (gpu.memory_used_mib, gpu.memory_total_mib) == (75415.0, 81559.0)
    assert (gpu.sm_clock_mhz, gpu.throttle_reasons) == (1935.0, 4.0)
    assert (gpu.ecc_uncorrected, gpu.remap_failed) == (0.0, 0.0)
    assert gpu.retired_pages is None, "DCGM says with a large number that it does not know"
    assert gpu.remap_pending is None, "the exporter does not collect it"
    assert asks(looked).remedy is Remedy.NOTHING


def test_the_last_xid_is_its_value() -> None:
    looked = parse("n", recorded("dcgm_xid48"), 0.0)
    (xid,) = looked.xids
    assert (xid.code, xid.pci, xid.text) == (48, "00000000:1B:00.0", "Double Bit ECC Error")
    assert asks(looked).remedy is Remedy.RESET


@pytest.mark.parametrize("name", ["dcgm_throttled", "dcgm49_throttled"])
def test_old_and_new_names_and_units_say_the_same(name: str) -> None:
    (gpu,) = parse("n", recorded(name), 0.0).gpus
    assert throttled(gpu.throttle_reasons).startswith("thermal slowdown by hardware")
    assert (gpu.sm_clock_mhz, gpu.temperature_c, gpu.power_w) == (pytest.approx(825.0), 91.0, 318.02)
    assert (gpu.utilisation_percent, gpu.memory_total_mib) == (pytest.approx(98.0), 81559.0)
    assert gpu.memory_used_mib == pytest.approx(75415.0, abs=1.0)


def test_counted_errors_are_named_by_their_label() -> None:
    looked = parse("n", recorded("dcgm49_throttled"), 0.0)
    assert [(x.code, x.pci) for x in looked.xids] == [(31, "GPU 0")]
    none = 'DCGM_EXP_XID_ERRORS_COUNT{gpu="0",xid="48"} 0\nDCGM_FI_DEV_GPU_TEMP{gpu="0"} 50\n'
    assert parse("n", none, 0.0).xids == ()


@pytest.mark.parametrize(
    "value", ["9223372036854775794", "140737488355328", "2147483632", "NaN", "+Inf", "-1", "odd", ""]
)
def test_a_value_that_is_none_is_left_out(value: str) -> None:
    text = f'DCGM_FI_DEV_GPU_TEMP{{gpu="0"}} 50\nDCGM_FI_DEV_ECC_DBE_VOL_TOTAL{{gpu="0"}} {value}\n'
    (gpu,) = parse("n", text, 0.0).gpus
    assert (gpu.temperature_c, gpu.ecc_uncorrected) == (50.0, None)


def test_parts_of_a_gpu_count_for_the_whole() -> None:
    text = "".join(f'DCGM_FI_DEV_ECC_DBE_VOL_TOTAL{{gpu="0",GPU_I_ID="{n}"}} {n}\n' for n in (1, 3, 2))
    (gpu,) = parse("n", text, 0.0).gpus
    assert gpu.ecc_uncorrected == 3.0


def test_odd_lines_are_passed_over_and_what_is_read_is_bounded() -> None:
    lines = [
        "# a comment",
        "DCGM_FI_DEV_GPU_TEMP",
        "DCGM_FI_DEV_GPU_TEMP 40",
        'DCGM_FI_DEV_GPU_TEMP{gpu="1"} hot',
        'DCGM_FI_DEV_GPU_TEMP{gpu="x"} 1',
        'DCGM_FI_DEV_GPU_TEMP{gpu="0",Hostname="a } b\\"c"} 50 1767225600000',
        'vllm:num_requests_running{gpu="0"} 3',
        'DCGM_FI_DEV_GPU_TEMP{gpu="1"} ' + "9" * 20_000,
        *(f'DCGM_FI_DEV_GPU_TEMP{{gpu="{n}"}} 40' for n in range(100)),
        'DCGM_FI_DEV_POWER_USAGE{gpu="0"} 512',
    ]
    looked = parse("n", "\n".join(lines), 0.0)
    assert len(looked.gpus) == MOST_GPUS
    assert (looked.gpus[0].temperature_c, looked.gpus[0].power_w) == (50.0, 512.0)


@pytest.mark.timeout(60)
def test_lines_that_are_made_to_take_long_do_not() -> None:
    """An engine's machine may be anybody's: a label without an end costs as much as any other line."""
    for filled in ("a" * 3_900, 'a="' * 1_200, "} " * 1_900, "} 1" * 1_200):
        line = f"DCGM_FI_DEV_GPU_TEMP{{{filled}}} 1 x"
        assert parse("n", "\n".join([line] * (MOST_BYTES // len(line))), 0.0).gpus == ()


@given(st.text(alphabet='DCGM_FI_EV_XID_ERRORS{}="\\\n 0123456789.gpu,'))
def test_any_exposition_can_be_read(text: str) -> None:
    parse("n", text, 0.0)


# -- asking -------------------------------------------------------------------------------------------------

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Serve = Callable[[Handler], Awaitable[int]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    runners: list[web.AppRunner] = []

    async def start(handler: Handler) -> int:
        app = web.Application()
        app.router.add_get("/metrics", handler)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        runners.append(runner)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return int(runner.addresses[0][1])

    yield start
    for runner in runners:
        await runner.cleanup()


async def failure(port: int, timeout: float = 60.0) -> str:
    exporter = DcgmExporter(SystemClock(), port=port, timeout=timeout)
    try:
        with pytest.raises(NotReadable) as raised:
            await exporter.read("n", "127.0.0.1:8000")
    finally:
        await exporter.close()
    return str(raised.value)


async def test_an_exporter_is_asked_where_the_engine_is(serve: Serve) -> None:
    async def answer(_request: web.Request) -> web.Response:
        return web.Response(text=recorded("dcgm_healthy"))

    exporter = DcgmExporter(SystemClock(), port=await serve(answer))
    try:
        looked = await exporter.read("n", "127.0.0.1:8000")
    finally:
        await exporter.close()
        await exporter.close()
    assert (looked.node, len(looked.gpus)) == ("n", 1)


async def test_nobody_there_is_said(unused_tcp_port: int) -> None:
    assert "127.0.0.1" in await failure(unused_tcp_port)


async def test_an_answer_that_never_ends_is_cut_off(serve: Serve) -> None:
    async def hang(_request: web.Request) -> web.Response:
        await asyncio.Event().wait()
        raise AssertionError

    async def drip(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        while True:
            await answer.write(b"# \n")
            await SystemClock().sleep(0.01)

    async def flood(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        while True:
            await answer.write(b"#" * 65536)

    assert "no answer within 0.3 s" in await failure(await serve(hang), 0.3)
    assert "no answer within 0.3 s" in await failure(await serve(drip), 0.3)
    assert f"more than {MOST_BYTES} bytes" in await failure(await serve(flood))


async def test_an_answer_that_is_none_is_said(serve: Serve) -> None:
    async def broken(_request: web.Request) -> web.Response:
        return web.Response(status=500)

    async def elsewhere(_request: web.Request) -> web.Response:
        raise web.HTTPFound("http://127.0.0.1:9/metrics")

    async def other(_request: web.Request) -> web.Response:
        return web.Response(body=b"node_load1 0.3\n\xff")

    assert "status 500" in await failure(await serve(broken))
    assert "status 302" in await failure(await serve(elsewhere)), "it is not followed"
    assert "no GPU is in it" in await failure(await serve(other))
