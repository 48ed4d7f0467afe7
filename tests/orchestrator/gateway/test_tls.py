"""HTTPS to clients: certificates that change, handshakes that go wrong, clients of many kinds."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import socket
import ssl
import struct
import threading
from datetime import timedelta

import aiohttp
import httpx2
import openai
import pytest
from cryptography.x509 import ExtendedKeyUsageOID

from cloud.clock import SystemClock
from orchestrator.gateway import certificate, secured
from orchestrator.gateway.app import Gateway
from orchestrator.gateway.certificate import unfit
from orchestrator.gateway.config import GatewayError, one_pool
from tests.support.certificates import pair

WIRES = ("https",)
DAY = 86400.0
GET = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificate, "_EVERY", 0.02)
    monkeypatch.setattr(secured, "_LAST_MOMENT", 0.05)


def sample(running, name: str) -> float:
    """A metric of the gateway's, 0 where it is not there."""
    text = running.gateway.metrics.exposition().decode()
    return float(text.partition(f"\norchestrator_gateway_{name} ")[2].partition("\n")[0] or 0)


def handshakes(running, result: str) -> float:
    return sample(running, f'tls_handshakes_total{{result="{result}"}}')


async def shown(running) -> bytes:
    """The certificate that a new client is shown."""
    anyone = ssl.create_default_context()
    anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
    _, writer = await asyncio.open_connection("127.0.0.1", running.gateway.port, ssl=anyone)
    der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return der


def der(made) -> bytes:
    return ssl.PEM_cert_to_DER_cert(made.shown.decode())


async def fault(running) -> str:
    return (await running.state())["tls"]["fault"]


# -- certificates that change -----------------------------------------------------------------------


async def test_a_new_pair_is_shown_to_new_clients_and_old_ones_notice_nothing(
    upstreams, gateways, behave, ask, eventually, wire
):
    node = await upstreams("node")

    async def in_two_parts(talk):
        await talk.start_stream()
        await talk.text("before ")
        await node.go_on.wait()
        await talk.text("after")
        await talk.finish_stream()

    node.behaviour = in_two_parts
    running = await gateways(node)
    first = asyncio.Event()
    streaming = asyncio.create_task(ask(running, stream=True, on_first=first))
    await first.wait()
    assert sample(running, "tls_certificates_taken_total") == 1
    second = pair(wire.certificate.parent, ends=timedelta(days=60)).write()

    async def changed() -> bool:
        return await shown(running) == der(second)

    await eventually(changed)
    node.go_on.set()
    assert (await streaming).said == "before after"
    assert sample(running, "tls_certificates_taken_total") == 2
    assert sample(running, "tls_certificate_refused") == 0
    told = (await running.state())["tls"]
    assert told["expires"] == sample(running, "tls_certificate_expires_seconds")
    assert told["names"] == ["127.0.0.1", "localhost"]


BAD = {
    "half of it": "no whole certificate",
    "another key": "not that of the certificate",
    "gone": "no such file",
    "expired": "the certificate expired on 20",
    "not yet": "not valid before 20",
    "another purpose": "no client takes the certificate",
}


@pytest.mark.parametrize("how", BAD)
async def test_a_bad_pair_is_not_shown_and_said_until_a_good_one_comes(
    upstreams, gateways, ask, eventually, wire, how
):
    running = await gateways(await upstreams("node"))
    there = wire.certificate.parent
    if how == "half of it":
        wire.certificate.write_bytes(pair(there).shown[:300])
    elif how == "another key":
        wire.key.write_bytes(pair(there).secret)
    elif how == "gone":
        wire.key.unlink()
    else:
        begins = timedelta(days=-2 if how != "not yet" else 2)
        ends = timedelta(days=-1 if how == "expired" else 90)
        usual, other = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH
        purpose = other if how == "another purpose" else usual
        pair(there, begins=begins, ends=ends, purpose=purpose).write()
    await eventually(lambda: fault(running))
    assert BAD[how] in await fault(running)
    assert sample(running, "tls_certificate_refused") == 1
    assert (await ask(running)).status == 200
    assert await shown(running) == der(wire)
    good = pair(there, ends=timedelta(days=45)).write()

    async def taken() -> bool:
        return await fault(running) == "" and await shown(running) == der(good)

    await eventually(taken)
    assert sample(running, "tls_certificate_refused") == 0


async def test_the_old_pair_back_in_its_place_is_no_fault(gateways, eventually, wire):
    running = await gateways()
    before = os.stat(wire.key)
    aside = wire.key.rename(wire.key.with_name("aside"))
    await eventually(lambda: fault(running))
    aside.rename(wire.key)
    assert os.stat(wire.key).st_ino == before.st_ino

    async def well() -> bool:
        return await fault(running) == ""

    await eventually(well)
    assert sample(running, "tls_certificate_refused") == 0


async def test_files_that_do_not_answer_are_said_and_hold_up_nobody(
    upstreams, gateways, ask, eventually, wire, monkeypatch
):
    monkeypatch.setattr(certificate, "_PATIENCE", 0.05)
    running = await gateways(await upstreams("node"))
    stamp, answers = certificate._stamp, threading.Event()

    def hangs(files):
        answers.wait(20.0)
        return stamp(files)

    monkeypatch.setattr(certificate, "_stamp", hangs)
    await eventually(lambda: fault(running))
    assert "not read within" in await fault(running)
    assert (await ask(running)).status == 200
    answers.set()

    async def well() -> bool:
        return await fault(running) == ""

    await eventually(well)


@pytest.mark.parametrize(
    ("found", "now", "words"),
    [
        ((0, 90), 50, ""),
        ((0, 40), 50, "expired"),
        ((60, 90), 50, "not valid before"),
        ((0, 80), 75, ""),  # the one that is shown has expired
        ((0, 72), 75, ""),  # both have: the younger one
        ((0, 60), 75, "expired"),
        ((80, 90), 75, ""),  # better soon than never
    ],
)
def test_which_pair_is_fit_beside_one_that_is_valid_from_0_to_70(found, now, words):
    made = [
        certificate.Certificate(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), *times, ())
        for times in (found, (0, 70))
    ]
    said = unfit(made[0], made[1], now)
    assert words in said
    assert bool(words) is bool(said)


async def test_a_gateway_does_not_start_with_what_is_no_pair(short_dir, wire):
    wire.key.write_bytes(pair(wire.key.parent).secret)
    settings = {"targets_file": short_dir / "t", "socket": short_dir / "s", "port": 0}
    config = one_pool(**settings, tls_cert_file=wire.certificate, tls_key_file=wire.key)
    with pytest.raises(GatewayError, match=r"tls_key_file.*the private key is not that"):
        await Gateway(config, SystemClock()).start()
    with pytest.raises(GatewayError, match="write both or neither"):
        one_pool(**settings, tls_cert_file=wire.certificate)


async def test_one_that_has_expired_is_better_than_none(upstreams, gateways, wire, capsys):
    pair(wire.key.parent, ends=timedelta(hours=-1)).write()
    running = await gateways(await upstreams("node"))
    assert await shown(running)
    assert "tls_certificate.rejected" in capsys.readouterr().out


# -- handshakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("begun", [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01"])
async def test_a_handshake_that_does_not_end_has_its_time(gateways, eventually, begun):
    running = await gateways(head_timeout=0.2)
    reader, writer = await asyncio.open_connection("127.0.0.1", running.gateway.port)
    writer.write(begun)
    with contextlib.suppress(ConnectionResetError):
        assert await reader.read() == b""
    writer.close()
    await eventually(lambda: handshakes(running, "timeout") == 1)
    assert not running.gateway._server._silent


async def test_plain_http_is_told_so(gateways, eventually, capsys):
    running = await gateways()
    for _ in range(30):
        reader, writer = await asyncio.open_connection("127.0.0.1", running.gateway.port)
        writer.write(GET)
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 ")
        assert "https://" in json.loads(body)["error"]["message"]
        writer.close()
    await eventually(lambda: handshakes(running, "plain_http") == 30)
    assert capsys.readouterr().out.count("request.malformed") <= 2


async def test_a_large_request_in_plain_http_is_told_so_too(gateways):
    running = await gateways()
    reader, writer = await asyncio.open_connection("127.0.0.1", running.gateway.port)
    writer.write(b"POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Length: 300000\r\n\r\n" + b"x" * 300_000)
    assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
    writer.close()


async def test_what_is_neither_ends_and_is_counted(gateways, eventually):
    running = await gateways()
    reader, writer = await asyncio.open_connection("127.0.0.1", running.gateway.port)
    writer.write(b"\x00" * 200)
    with contextlib.suppress(ConnectionResetError):
        await reader.read()
    writer.close()
    await eventually(lambda: handshakes(running, "protocol") == 1)


async def test_a_client_that_does_not_trust_the_certificate_is_counted(gateways, eventually, capsys):
    running = await gateways()

    def ask() -> None:
        with socket.create_connection(("127.0.0.1", running.gateway.port)) as plain:
            ssl.create_default_context().wrap_socket(plain, server_hostname="127.0.0.1")

    with pytest.raises(ssl.SSLCertVerificationError):
        await asyncio.to_thread(ask)
    await eventually(lambda: handshakes(running, "refused") == 1)
    assert "it refuses the certificate: unknown ca" in capsys.readouterr().out


async def test_who_looks_whether_the_port_is_open_is_no_trouble(gateways, eventually, capsys):
    """As load balancers do, every few seconds."""
    running = await gateways()
    for reset in (False, True):
        probe = socket.create_connection(("127.0.0.1", running.gateway.port))
        if reset:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        probe.close()
    await eventually(lambda: handshakes(running, "hung_up") == 2)
    assert "malformed" not in capsys.readouterr().out


@pytest.mark.parametrize(("version", "spoken"), [("TLSv1_1", False), ("TLSv1_2", True), ("TLSv1_3", True)])
async def test_tls_of_today_is_spoken_and_http_1_1_in_it(upstreams, gateways, wire, version, spoken):
    running = await gateways(await upstreams("node"))
    client = wire.trust()
    with pytest.warns(DeprecationWarning, match="TLSv1_1") if not spoken else contextlib.nullcontext():
        client.minimum_version = client.maximum_version = ssl.TLSVersion[version]
    client.set_ciphers("DEFAULT@SECLEVEL=0")
    client.set_alpn_protocols(["h2", "http/1.1"])
    if not spoken:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection("127.0.0.1", running.gateway.port, ssl=client)
        return
    reader, writer = await asyncio.open_connection("127.0.0.1", running.gateway.port, ssl=client)
    assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
    writer.write(GET)
    assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    writer.close()


async def test_handshakes_that_are_under_way_when_it_stops_are_finished(upstreams, gateways, wire):
    """A client that has been accepted gets its answer."""
    running = await gateways(await upstreams("node"))
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = wire.trust().wrap_bio(to_client, to_server, server_hostname="127.0.0.1")
    reader, writer = await asyncio.open_connection("127.0.0.1", running.gateway.port)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    writer.write(to_server.read())
    to_client.write(await reader.read(65536))
    stopping = asyncio.create_task(running.gateway.stop(linger=0.0, drain_timeout=20.0))
    running.stopped = True
    await asyncio.sleep(0.1)
    assert not stopping.done()
    client.do_handshake()
    client.write(GET)
    writer.write(to_server.read())
    answer = b""
    while b"\r\n\r\n" not in answer:
        data = await reader.read(65536)
        assert data, "the connection ended without an answer"
        to_client.write(data)
        with contextlib.suppress(ssl.SSLWantReadError):
            answer += client.read(65536)
    assert b"connection: close" in answer.lower()
    assert await stopping
    writer.close()


async def test_a_handshake_that_does_not_end_does_not_keep_it_from_stopping(gateways):
    running = await gateways(head_timeout=0.3)
    _, writer = await asyncio.open_connection("127.0.0.1", running.gateway.port)
    writer.write(b"\x16\x03\x01")
    await asyncio.sleep(0.05)
    running.stopped = True
    async with asyncio.timeout(10.0):
        assert await running.gateway.stop(linger=0.0, drain_timeout=60.0)
    writer.close()


async def test_who_hangs_up_in_the_middle_of_a_record_is_gone(upstreams, gateways, wire, eventually, capsys):
    """The connection is reset while a part of a body has come and a record is half read."""
    node = await upstreams("node")
    running = await gateways(node)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = wire.trust().wrap_bio(to_client, to_server, server_hostname="127.0.0.1")
    reader, writer = await asyncio.open_connection("127.0.0.1", running.gateway.port)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    writer.write(to_server.read())
    to_client.write(await reader.read(65536))
    client.do_handshake()
    client.write(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 60000\r\n\r\n")
    writer.write(to_server.read())
    await eventually(lambda: running.gateway.metrics.active == 1)
    client.write(b"x" * 10_000)
    writer.write(to_server.read()[:5000])
    await writer.drain()
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    await eventually(lambda: running.gateway.metrics.active == 0)
    await eventually(lambda: not running.gateway._server._silent and not running.gateway._server._asking)
    assert "Traceback" not in capsys.readouterr().out
    assert node.seen == []


# -- clients ----------------------------------------------------------------------------------------


async def test_an_sdk_a_command_and_an_old_client(upstreams, gateways, behave, wire):
    node = await upstreams("node", behave.tokens(50))
    running = await gateways(node)
    async with httpx2.AsyncClient(verify=wire.trust(), trust_env=False) as http:
        sdk = openai.AsyncOpenAI(api_key="k", base_url=f"{running.url}/v1", http_client=http)
        said = [
            part
            async for part in await sdk.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "hi"}], stream=True
            )
        ]
        assert len(said) > 50
    reader, writer = await asyncio.open_connection("127.0.0.1", running.gateway.port, ssl=wire.trust())
    writer.write(b"GET /healthz HTTP/1.0\r\n\r\n")
    answer = await reader.read()
    assert answer.startswith(b"HTTP/1.0 200")
    assert answer.endswith(b"ok\n")
    writer.close()
    if shutil.which("curl"):
        words = ("curl", "-sS", "--cacert", str(wire.certificate), f"{running.url}/readyz")
        curl = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
        assert (await curl.communicate())[0] == b"ok\n"


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_large_body_comes_through_whole_both_ways(upstreams, gateways, client, chunked):
    body = os.urandom(6_000_000)

    async def echo(talk):
        await talk.reply("200 OK", talk.request.body, kind="application/octet-stream")

    running = await gateways(await upstreams("node", echo))

    async def parts():
        for start in range(0, len(body), 100_000):
            yield body[start : start + 100_000]

    data = parts() if chunked else body
    async with client.post(running.url + "/v1/audio/speech", data=data) as answer:
        got = await answer.read()
    assert answer.status == 200
    assert hashlib.sha256(got).digest() == hashlib.sha256(body).digest()


async def test_a_client_that_reads_slowly_after_the_end_of_its_answer_gets_all(
    upstreams, gateways, wire, monkeypatch
):
    """The answer is the last one on its connection, and larger than what the system holds for it."""
    monkeypatch.setattr(secured, "_FAREWELL", 0.1)
    body = os.urandom(20_000_000)

    async def much(talk):
        await talk.reply("200 OK", body, kind="application/octet-stream")

    running = await gateways(await upstreams("node", much))
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", running.gateway.port, ssl=wire.trust(), limit=4096
    )
    writer.write(b"POST /v1/audio/speech HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n")
    writer.write(b"Content-Length: 2\r\n\r\n{}")
    await asyncio.sleep(1.0)
    await reader.readuntil(b"\r\n\r\n")
    got, count = hashlib.sha256(), 0
    while part := await reader.read(200_000):
        got.update(part)
        count += len(part)
        if count > len(body) - 1_000_000:
            await asyncio.sleep(0.2)  # longer than the gateway waits for a farewell
    assert got.digest() == hashlib.sha256(body).digest()
    writer.close()


async def test_a_gateway_without_certificate_says_so(gateways, eventually):
    running = await gateways(tls_cert_file=None, tls_key_file=None)
    assert (await running.state())["tls"] is None
    assert "tls_certificate_expires" not in running.gateway.metrics.exposition().decode()
    async with aiohttp.ClientSession() as session, session.get(running.url + "/healthz") as answer:
        assert answer.status == 200
