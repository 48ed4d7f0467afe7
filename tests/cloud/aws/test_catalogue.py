"""The table of GPU instance types."""

import datetime
import re

import pytest

from cloud.aws.catalogue import catalogue


def test_the_table_has_a_day_and_sound_rows():
    table = catalogue()
    assert datetime.date.fromisoformat(table.as_of) >= datetime.date(2026, 1, 1)
    assert len(table.types) > 40
    for name, kind in table.types.items():
        assert re.fullmatch(r"[a-z0-9-]+\.[a-z0-9]+", name)
        assert kind.name == name
        assert kind.gpus.count in (1, 2, 4, 8)
        assert 15 < kind.gpus.memory < 300
        assert 300 <= kind.bandwidth <= 8000
        assert kind.vcpus >= 4
        assert kind.architecture in ("x86_64", "arm64")


@pytest.mark.parametrize(
    ("name", "kind", "count", "memory"),
    [
        ("g5.12xlarge", "A10G", 4, 22.4),
        ("g6e.12xlarge", "L40S", 4, 44.7),
        ("p5.4xlarge", "H100", 1, 80.0),
        ("p5.48xlarge", "H100", 8, 80.0),
        ("p5en.48xlarge", "H200", 8, 141.0),
    ],
)
def test_known_types(name, kind, count, memory):
    gpus = catalogue().types[name].gpus
    assert (gpus.kind, gpus.count) == (kind, count)
    assert gpus.memory == pytest.approx(memory, rel=0.01)
