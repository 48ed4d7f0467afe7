"""What the watcher of launches in vain demands, and what it leaves to the daemon."""

from __future__ import annotations

import pytest

from cloud.sim.vain import InVain
from policies.actions import ActionKind
from policies.events import Event, IntentClosed, IntentOpened, NodeSeen, Outcome
from policies.model import Market, Placement, Pool


def place(zone: str) -> Placement:
    return Placement("sim", "r", zone, "gpu", Market.SPOT)


def opened(at: float, token: str, zone: str) -> Event:
    return IntentOpened(at=at, token=token, kind=ActionKind.LAUNCH, node="", placement=place(zone))


def closed(at: float, token: str, outcome: Outcome) -> Event:
    return IntentClosed(at=at, token=token, outcome=outcome, node="i-1")


@pytest.mark.parametrize(
    ("taken", "faults"),
    [
        (None, ["3"]),
        (("a", 1.0), []),  # another place takes what is asked for: the place alone is denied
        (("b", 1.0), ["3"]),  # the same place: it was allowed before, and is no more
        (("a", -9.0), ["3"]),  # before the denied one was asked for
    ],
)
def test_a_place_that_is_denied_beside_one_that_works_leaves_the_market_open(
    taken: tuple[str, float] | None, faults: list[str]
) -> None:
    found: list[str] = []
    watcher = InVain(
        Pool(name="p", replicas=3), checked=lambda _: None, report=lambda _name, about, _: found.append(about)
    )
    if taken is not None:
        zone, at = taken
        watcher.hear([opened(min(at, 0.0), "1", zone), closed(at, "1", Outcome.DONE)], written=True)
    watcher.hear([opened(0.5, "2", "b"), closed(2.0, "2", Outcome.DENIED)], written=True)
    watcher.hear([opened(4.0, "3", "c")], written=True)
    assert found == faults


@pytest.mark.parametrize(("seen", "faults"), [(False, ["3"]), (True, [])])
def test_a_launch_was_taken_whose_machine_a_list_shows(seen: bool, faults: list[str]) -> None:
    """Its answer was lost: the place that is denied afterwards is denied alone."""
    found: list[str] = []
    watcher = InVain(
        Pool(name="p", replicas=3), checked=lambda _: None, report=lambda _name, about, _: found.append(about)
    )
    watcher.hear([opened(0.5, "2", "b"), opened(0.6, "1", "a")], written=True)
    watcher.hear([closed(0.7, "1", Outcome.UNCERTAIN)], written=True)
    if seen:
        shown = NodeSeen(
            at=1.0,
            node="i-1",
            token="1",
            placement=place("a"),
            launched_at=0.6,
            price=None,
            address="",
            standby=None,
        )
        watcher.hear([shown], written=True)
    watcher.hear([closed(2.0, "2", Outcome.DENIED), opened(4.0, "3", "c")], written=True)
    assert found == faults


@pytest.mark.parametrize(("token", "faults"), [("1", []), ("3", ["3"])])
def test_what_an_old_journal_has_open_is_asked_again_and_is_no_new_launch(
    token: str, faults: list[str]
) -> None:
    found: list[str] = []
    watcher = InVain(
        Pool(name="p", replicas=3), checked=lambda _: None, report=lambda _name, about, _: found.append(about)
    )
    watcher.hear([opened(0.0, "1", "a"), opened(0.0, "2", "b")], written=True)
    watcher.forget()
    watcher.hear([opened(9.0, "2", "b"), closed(9.5, "2", Outcome.DENIED)], written=True)
    watcher.hear([opened(9.6, token, "a")], written=True)
    assert found == faults
