"""A sample of the mode table, played by clients that speak HTTPS: what they get does not depend on it."""

from __future__ import annotations

import pytest

from tests.orchestrator.gateway.faults.play import play
from tests.orchestrator.gateway.faults.table import cases, name_of
from tests.support.certificates import pair

SAMPLE = cases("chat", "completions", "messages", "responses", "embeddings", "speech", "files")[::11]


@pytest.mark.parametrize(("mode", "carrier", "faulty"), SAMPLE, ids=name_of)
async def test_mode(mode, carrier, faulty, tmp_path):
    played = await play(mode, carrier, faulty, tmp_path, pair(tmp_path).write())
    assert not played.losses(mode, faulty)
    assert played.met or not mode.reaches, "no request met the fault"
    assert played.sent <= mode.sent


def test_the_sample_has_streams_and_plain_answers_of_every_dialect():
    assert {(carrier.dialect, carrier.stream) for _, carrier, _ in SAMPLE} >= {
        (dialect, stream)
        for dialect in ("chat", "completions", "messages", "responses")
        for stream in (False, True)
    }
