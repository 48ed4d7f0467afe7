"""The mode table, played on requests that have no streams."""

from __future__ import annotations

import pytest

from tests.orchestrator.gateway.faults.play import play
from tests.orchestrator.gateway.faults.table import cases, name_of


@pytest.mark.parametrize(
    ("mode", "carrier", "faulty"),
    cases("embeddings", "rerank", "speech", "transcription", "files"),
    ids=name_of,
)
async def test_mode(mode, carrier, faulty, tmp_path):
    played = await play(mode, carrier, faulty, tmp_path)
    assert not played.losses(mode, faulty)
    assert played.met or not mode.reaches, "no request met the fault"
    assert played.sent <= mode.sent
