"""The picture: a file of the asked kind, the same every time, and a clear word when matplotlib is missing."""

import sys

import pytest

from cloud.local.synthetic import SyntheticParameters, synthesise
from orchestrator import pictures
from orchestrator.backtest import picture, study
from orchestrator.backtest.scenario import cut
from orchestrator.config.load import build_config

SIGNATURES = {".png": b"\x89PNG\r\n", ".svg": b"<?xml", ".pdf": b"%PDF-"}


@pytest.fixture(scope="module")
def scenario():
    return cut(synthesise(SyntheticParameters(days=1.0), 2), replicas=6)


@pytest.fixture(scope="module")
def results(scenario):
    config = build_config({"pool": {"p": {"replicas": 6}}})
    rows = study.rows_of(
        config,
        starts={},
        names=["pool", "SpotHedge", "all"],
        baselines=True,
        solver=False,
        whole_daemon=False,
    )
    timings = study.timings_of(config, starts={})
    return study.run_all(
        [study.Job(row=row, scenario=scenario, timings=timings, seed=1) for row in rows], workers=1
    )


@pytest.fixture
def _matplotlib():
    pytest.importorskip("matplotlib", reason="needs the extra `plot`")


@pytest.mark.usefixtures("_matplotlib")
@pytest.mark.parametrize("ending", pictures.ENDINGS)
@pytest.mark.parametrize("begin", [None, "2023-02-15T22:08:16", "2025-10-04T00:10:00+00:00"])
def test_a_picture_is_drawn(ending, begin, scenario, results, tmp_path):
    file = tmp_path / f"out{ending}"
    picture.draw(file, scenario, results, begin)
    assert file.read_bytes().startswith(SIGNATURES[ending])


@pytest.mark.usefixtures("_matplotlib")
def test_the_same_run_gives_the_same_picture_small_enough_for_a_page(scenario, results, tmp_path):
    file, pictures, held = tmp_path / "a.png", [], []
    for _ in range(6):
        picture.draw(file, scenario, results, None)
        pictures.append(file.read_bytes())
        held.append([object() for _ in range(20_000)])  # the next one's objects lie elsewhere in memory
    assert len(set(pictures)) == 1
    assert len(pictures[0]) < 150_000
    width, height = (int.from_bytes(pictures[0][at : at + 4], "big") for at in (16, 20))
    assert 800 <= width <= 1400
    assert 500 <= height <= 1400


@pytest.mark.usefixtures("_matplotlib")
@pytest.mark.parametrize("first", ["SpotHedge N=1", "all on-demand"])
def test_without_the_pool_the_first_row_is_drawn(first, scenario, results, tmp_path):
    chosen = [r for r in results if r.row.name == first]
    picture.draw(tmp_path / "out.svg", scenario, chosen, None)
    text = (tmp_path / "out.svg").read_text(encoding="utf-8")
    assert f"({first})" in text


def test_without_matplotlib_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(pictures, "find_spec", lambda name: None)
    with pytest.raises(pictures.PlotMissing, match=r"pip install 'spot-orchestrator\[plot\]'"):
        pictures.need_matplotlib()


def test_importing_the_picture_imports_no_matplotlib():
    import subprocess

    code = "import sys, orchestrator.backtest.picture; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
