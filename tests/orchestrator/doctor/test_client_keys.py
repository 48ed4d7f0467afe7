"""The doctor on the keys of the gateway's clients."""

from __future__ import annotations

import pytest

from orchestrator.doctor.client_keys import GatewayKeys, client_keys
from orchestrator.doctor.findings import State
from policies.keys import ClientKey
from policies.value import replace

DAY = 86400.0
NOW = 100 * DAY
OK, WARN, FAIL, SKIPPED = State.OK, State.WARN, State.FAIL, State.SKIPPED
KEY = ClientKey(name="team-a", sha256="00" * 32)
SOON = replace(KEY, name="soon", expires=NOW + 13 * DAY)
LATER = replace(KEY, name="later", expires=NOW + 15 * DAY)
OVER = replace(KEY, name="over", expires=NOW)
GONE = replace(KEY, name="gone", revoked=1.0)


def told(valid: int = 1, fault: str = "", read: bool = True) -> GatewayKeys:
    return GatewayKeys(valid=valid, read=read, fault=fault)


@pytest.mark.parametrize(
    ("filed", "said", "runs", "state", "words"),
    [
        ([KEY, LATER, GONE], told(2), True, OK, "2 keys in force"),
        ([KEY], None, False, OK, "1 key in force"),
        (None, told(3), True, OK, "3 keys in force"),
        ([KEY], None, True, FAIL, "asks nobody for a key"),
        (None, None, False, SKIPPED, "cannot read the file"),
        ([KEY], told(fault="is not TOML"), True, FAIL, "has no effect, revoked keys included"),
        (None, told(0, "is not there", read=False), True, FAIL, "every request is refused: the file is not"),
        ([], told(0), True, FAIL, "no key is in force"),
        ([OVER, GONE], None, False, FAIL, "no key is in force"),
        ([KEY, SOON], told(2), True, WARN, "it expires in 13d"),
    ],
)
def test_keys_are_judged_by_the_file_and_by_what_the_gateway_says(filed, said, runs, state, words):
    (found,) = client_keys(filed, said, runs=runs, now=NOW)
    assert (found.state, words in found.text) == (state, True), found
    assert found.subject == ("soon" if state is WARN else "")


@pytest.mark.parametrize("gateway", ["none", "takes it", "old"])
async def test_the_doctor_asks_the_gateway(tmp_path, the_finding, gateway):
    file = tmp_path / "pool.toml"
    file.write_text(
        '[daemon]\nlisten = "off"\n[pool.llama]\nreplicas = 4\n[gateway]\nkeys_file = "keys.toml"\n'
    )
    (tmp_path / "keys.toml").write_text(f'[key.a]\nsha256 = "{"0" * 64}"\n')

    routes = {
        "none": None,
        "takes it": {"keys": {"valid": 0, "read_at": 1.0, "fault": "half of it"}},
        "old": {"keys": None},
    }
    found = await the_finding(file, "daemon/client-keys", routes=routes[gateway])
    expected = {
        "none": (OK, "1 key in force"),
        "takes it": (FAIL, "half of it"),
        "old": (FAIL, "asks nobody"),
    }
    state, words = expected[gateway]
    assert (found.state, words in found.text) == (state, True), found
