"""The picture of a cost report: drawn for anything, the same every time, small enough for a page."""

from __future__ import annotations

from pathlib import Path

import pytest
from cost_books import API, DAY0, PRICE, baseline, books, machine, pool, provider_day, used

from orchestrator import pictures
from orchestrator.costs.picture import BY, draw
from orchestrator.costs.view import view_of
from policies.cost_rows import Books
from policies.value import replace

pytestmark = pytest.mark.usefixtures("_matplotlib")


@pytest.fixture
def _matplotlib() -> None:
    pytest.importorskip("matplotlib", reason="needs the extra `plot`")


def days(count: int) -> Books:
    hours = [DAY0 + n for n in range(24 * count)]
    return books(
        until=DAY0 + 24 * count,
        machines=[machine(hour, 1.5) for hour in hours],
        baseline=[baseline(hour, 3.0) for hour in hours],
        usage=[used(hour, fresh=400_000, output=100_000) for hour in hours if hour % 50],
        providers=[provider_day(f"2024-10-{4 + n:02}", usd=5.0 + n) for n in range(count)],
        pools=(pool(people=0.4), pool(name="embed", compare="")),
        prices={API: PRICE},
    )


@pytest.mark.parametrize("ending", pictures.ENDINGS)
@pytest.mark.parametrize("count", [1, 25])
def test_a_picture_is_drawn(count: int, ending: str, tmp_path: Path) -> None:
    file = tmp_path / f"a{ending}"
    draw(file, view_of(days(count), BY))
    assert file.read_bytes()[:4] in (b"\x89PNG", b"%PDF", b"<?xm")


def test_it_says_what_it_shows(tmp_path: Path) -> None:
    file = tmp_path / "a.svg"
    draw(file, view_of(days(3), BY))
    text = file.read_text()  # every text stands in a comment beside its glyphs
    for said in (
        "$126.00 from 2024-10-04 to 2024-10-07, 50% saved against on-demand", "USD a day", "chat",
        "provider/claude", "chat: its API", "wanted units on-demand", "Utilisation", "10-06",
    ):  # fmt: skip
        assert f"<!-- {said} -->" in text
    assert "chat: cheaper than its API above" in text


def test_a_pool_that_cost_nothing_hides_none_after_it(tmp_path: Path) -> None:
    found = days(3)
    draw(tmp_path / "a.svg", view_of(replace(found, pools=found.pools[::-1]), BY))
    text = (tmp_path / "a.svg").read_text()
    assert "chat: cheaper than its API above" in text
    assert "embed" not in text


@pytest.mark.parametrize("found", [books(), replace(days(2), prices={})], ids=["nothing", "no price"])
def test_what_is_not_known_leaves_a_gap_and_no_error(found: Books, tmp_path: Path) -> None:
    draw(tmp_path / "a.png", view_of(found, BY))
    assert (tmp_path / "a.png").stat().st_size > 5000


def test_unknown_sums_are_said_to_be_unknown(tmp_path: Path) -> None:
    found = books(machines=[machine(unpriced=9.0)], baseline=[baseline(unpriced=1.0)], usage=[used()])
    draw(tmp_path / "a.svg", view_of(found, BY))
    assert (
        "<!-- $3.00 and an unknown sum from 2024-10-04 to 2024-10-05 -->" in (tmp_path / "a.svg").read_text()
    )


def test_the_same_report_gives_the_same_picture_small_enough_for_a_page(tmp_path: Path) -> None:
    held = []
    for _ in range(2):
        draw(tmp_path / "a.png", view_of(days(25), BY))
        held.append((tmp_path / "a.png").read_bytes())
    assert held[0] == held[1]
    assert len(held[0]) < 150_000
