"""The doctor on the certificate that clients are shown."""

from __future__ import annotations

import ssl
from datetime import timedelta

import pytest

from cloud.serving.certificates import Certificate
from orchestrator.doctor.certificates import Shown, certificate
from orchestrator.doctor.findings import State
from tests.support.certificates import pair

DAY = 86400.0
NOW = 100 * DAY
OK, WARN, FAIL, SKIPPED = State.OK, State.WARN, State.FAIL, State.SKIPPED


def filed(expires: float, begins: float = 0.0, names: tuple[str, ...] = ("llm.example",)) -> Certificate:
    return Certificate(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), begins * DAY, expires * DAY, names)


def shown(expires: float, fault: str = "") -> Shown:
    return Shown(expires=expires * DAY, names=("llm.example",), fault=fault)


@pytest.mark.parametrize(
    ("lies", "told", "runs", "state", "words"),
    [
        (filed(120), shown(120), True, OK, "valid until 1970-05-01 00:00:00Z, for llm.example"),
        (filed(120), None, False, OK, "valid until"),
        (filed(113), shown(113), True, WARN, "expires in 13d"),
        (filed(99), shown(99), True, FAIL, "expired 1d ago"),
        (filed(99), None, False, FAIL, "expired 1d ago"),
        (filed(150, begins=104), None, False, WARN, "not valid for another 4d"),
        (filed(150, names=()), None, False, WARN, "without any name"),
        (filed(150), None, True, FAIL, "speaks plain HTTP"),
        (filed(150), shown(120), True, WARN, "the gateway shows one until 1970-05-01"),
        (filed(150), shown(120, "no whole certificate"), True, FAIL, "not shown: no whole certificate"),
        (None, shown(120), True, OK, "valid until"),
        (None, shown(105), True, WARN, "expires in 5d"),
        (None, None, False, SKIPPED, "the service manager hands it over"),
    ],
)
def test_judgement(lies, told, runs, state, words):
    (found,) = certificate(lies, told, runs=runs, now=NOW)
    assert (found.state, words in found.text) == (state, True), found
    assert bool(found.advice) is (state in (WARN, FAIL))


@pytest.mark.parametrize("gateway", ["none", "shows it", "old"])
async def test_the_file_and_the_gateway_are_looked_at(tmp_path, the_finding, gateway):
    pair(tmp_path, ends=timedelta(days=5, hours=1)).write()
    file = tmp_path / "pool.toml"
    file.write_text(
        '[daemon]\nlisten = "off"\n[pool.llama]\nreplicas = 4\n'
        '[gateway]\ntls_cert_file = "listener.crt"\ntls_key_file = "listener.key"\n'
    )

    routes = {
        "none": None,
        "shows it": {"tls": {"expires": 1.0, "names": ["a"], "fault": "half of it"}},
        "old": {"tls": None},
    }
    found = await the_finding(file, "daemon/certificate", routes=routes[gateway])
    expected = {
        "none": (WARN, "expires in 5d"),
        "shows it": (FAIL, "half of it"),
        "old": (FAIL, "plain HTTP"),
    }
    state, words = expected[gateway]
    assert (found.state, words in found.text) == (state, True), found
