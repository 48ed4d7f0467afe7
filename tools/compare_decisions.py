"""Compare what this tree decides with what another commit decides, turn by turn.

    python tools/compare_decisions.py --against COMMIT [--hours H] [--seed N] [--jobs N] [-o table|json]

Plays scenarios, seeds that once found something and fresh seeds of the simulation with this tree. What each
turn was given (pool, world, memory) goes to a process with the other commit's `policies`, and both plans are
compared: actions, targets, and what is to be written. Words count apart. Differences come in classes, each
with one turn that is saved in a file.

    python tools/compare_decisions.py --against HEAD                        what is not committed yet, 100 h
    python tools/compare_decisions.py --against v1.0 --hours 1000 -o json   the evidence of a large change
    python tools/compare_decisions.py --against main --journal state        turns that a daemon recorded
    python tools/compare_decisions.py --against main --allow accepted.toml  all but what was accepted
    python tools/compare_decisions.py --against main --replay build/decisions/1.json

Exit code: 0 equal, or all differences accepted; 1 different; 2 it could not be compared.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import json
import math
import multiprocessing
import os
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import orjson
from commits import ROOT, NoCommit, archive, commit_of, this_tree
from decisions import player
from decisions.differences import compare
from decisions.judge import NoDecision, find_decide
from decisions.player import Judge, JudgeDied, Tally
from decisions.wire import plain, schema

from cloud.clock import SystemClock

PARTS = ("scenarios", "regressions", "fresh")

HOURS = 100.0

SAVED = ROOT / "build" / "decisions"

CLOCK = SystemClock()

AHEAD = 2
"""Runs handed to each process before the first of them is done."""


class Unusable(Exception):
    """A file that was named cannot be used. The message says why, and what it should be."""


# -- running ---------------------------------------------------------------------------------------


def run_all(
    tasks: Iterable[Any], processes: int, tree: Path, enough: Callable[[], bool] = lambda: False
) -> Iterator[Tally]:
    """What came of each task, as they end. A task is a job of the simulation or the path of a journal."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        processes, mp_context=context, initializer=player.begin, initargs=(str(tree),)
    ) as pool:
        waiting: set[Future[Tally]] = set()
        try:
            for task in tasks:
                if enough():
                    break
                waiting.add(pool.submit(player.read if isinstance(task, Path) else player.play, task))
                if len(waiting) >= AHEAD * processes:
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def jobs_of(base: int, hours: float, parts: Iterable[str]) -> tuple[list[Any], Iterator[Any]]:
    """Runs that do not depend on the base seed, and fresh ones without end."""
    from campaign import Campaign
    from jobs import CRASH_SEED, Job, regressions
    from scenarios import SCENARIOS

    known: list[Any] = []
    if "scenarios" in parts:
        known += [Job(kind="crash", name=name, seed=CRASH_SEED) for name in SCENARIOS]
    if "regressions" in parts:
        known += regressions()
    return known, Campaign(base=base, hours=hours).fresh() if "fresh" in parts else iter(())


class Kept:
    """One turn of each class in a file of its own, from when it is first met."""

    def __init__(self, folder: Path, against: str) -> None:
        self.files: dict[str, Path] = {}
        self._folder, self._against = folder, against
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("[0-9]*.json"):
            old.unlink()

    def take(self, tally: Tally) -> None:
        """Keep the turns of classes that are new, and say so."""
        for signature, count in tally.classes.items():
            if signature in self.files or count.example is None:
                continue
            file = self.files[signature] = self._folder / f"{len(self.files) + 1}.json"
            body = orjson.dumps({"against": self._against, **count.example}, option=orjson.OPT_INDENT_2)
            file.write_bytes(body + b"\n")
            print(f"new class, kept in {file}: {signature}", file=sys.stderr, flush=True)


class Progress:
    """A line on standard error now and then. `fresh`: hours of fresh seeds that are played."""

    def __init__(self, hours: float, minutes: float) -> None:
        self.fresh = 0.0
        self._hours, self._seconds = hours, 60.0 * minutes
        self._began, self._said = CLOCK.steady(), 0.0

    @property
    def over(self) -> bool:
        """The time is, for which runs may begin."""
        return CLOCK.steady() - self._began >= self._seconds

    @property
    def enough(self) -> bool:
        """No more fresh seeds are wanted."""
        return self.fresh >= self._hours or self.over

    def say(self, tally: Tally) -> None:
        """How far it is, if it was not said just now."""
        took = CLOCK.steady() - self._began
        if took - self._said < 20.0:
            return
        self._said = took
        text = f"{self.fresh:.0f} of {self._hours:g} h, {tally.turns} turns, {tally.different} differ"
        print(f"{text}, {took:.0f} s", file=sys.stderr, flush=True)


def compare_all(given: argparse.Namespace, base: int, tree: Path, kept: Kept) -> Tally:
    """Play everything and compare it."""
    whole, progress = Tally(), Progress(given.hours, given.minutes)
    known, endless = jobs_of(base, given.hours, given.parts)
    for tally in run_all([*given.journal, *known[: given.most]], given.jobs, tree, lambda: progress.over):
        whole.add(tally)
        kept.take(tally)
        progress.say(whole)
    for tally in run_all(endless, given.jobs, tree, lambda: progress.enough):
        whole.add(tally)
        kept.take(tally)
        progress.fresh += tally.hours
        progress.say(whole)
    if progress.over:
        print(
            f"the {given.minutes:g} minutes were over: {progress.fresh:.0f} h of fresh seeds", file=sys.stderr
        )
    return whole


# -- what came of it -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Accepted:
    """A class of differences that is as it should be: a pattern of its text, and why."""

    pattern: str
    why: str


def read_accepted(file: Path) -> list[Accepted]:
    """The table of accepted classes. Raises Unusable."""
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8")).get("class", [])
        found = [Accepted(pattern=str(t["is"]), why=str(t["why"])) for t in tables]
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError, AttributeError) as error:
        raise Unusable(f"--allow {file}: {error!r}; it wants [[class]] tables with `is` and `why`") from error
    if empty := [each.pattern for each in found if not each.why.strip()]:
        raise Unusable(f"--allow {file}: {empty[0]!r} does not say why")
    return found


def accepted_by(signature: str, accepted: Iterable[Accepted]) -> Accepted | None:
    """What accepts a class: the pattern of its whole text, or one for each of its parts."""
    known = [*accepted]
    whole = next((each for each in known if fnmatch.fnmatchcase(signature, each.pattern)), None)
    if whole is not None:
        return whole
    parts = [accepted_by(part, known) for part in signature.split(" + ")] if " + " in signature else [None]
    return parts[0] if all(parts) else None


def report(
    tally: Tally, accepted: list[Accepted], files: Mapping[str, Path], head: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that the end says, as JSON."""
    classes = []
    for signature, count in sorted(tally.classes.items(), key=lambda item: -item[1].turns):
        by = accepted_by(signature, accepted)
        example = count.example or {}
        classes.append(
            {
                "class": signature,
                "turns": count.turns,
                "runs": count.runs,
                "nodes": count.nodes,
                "accepted": by.why if by is not None else None,
                "example": {n: example.get(n) for n in ("run", "turn", "at", "lines")}
                | {"file": str(files.get(signature, ""))},
            }
        )
    known = ("runs", "turns", "different", "words", "broken", "lacks", "adds")
    return {
        **head,
        **{name: getattr(tally, name) for name in known},
        "hours": round(tally.hours, 2),
        "share": tally.different / tally.turns if tally.turns else 0.0,
        "classes": classes,
    }


def text(said: Mapping[str, Any]) -> str:
    """The same for people."""
    lines = [
        f"{said['this']} here, {said['against'][:12]} there, base seed {said['seed']}",
        f"{said['turns']} turns of {said['runs']} runs, {said['hours']:g} simulated h, {said['wall']:.0f} s",
        f"{said['different']} turns differ ({said['share']:.3%}), {said['words']} more in their words only",
    ]
    if said["lacks"]:
        lines.append(f"fields that there do not exist, and were left out: {', '.join(said['lacks'])}")
    if said["adds"]:
        lines.append(f"fields that only there exist, and had their defaults: {', '.join(said['adds'])}")
    lines += [f"broke an invariant here: {line}" for line in said["broken"]]
    for number, each in enumerate(said["classes"], 1):
        example = each["example"]
        lines += ["", f"{number}. {each['class']}"]
        lines.append(f"   {each['turns']} turns, {each['runs']} runs, {each['nodes']} nodes")
        if each["accepted"] is not None:
            lines.append(f"   accepted: {each['accepted']}")
        lines.append(f"   turn {example['turn']} at {example['at']:.1f} of: {example['run']}")
        lines += [f"     {line}" for line in example["lines"] or ()]
        lines.append(f"   kept in {example['file']}")
    return "\n".join(lines)


def replay(file: Path, tree: Path) -> int:
    """Decide a kept turn again, as both versions do, and say how the plans differ."""
    try:
        kept = orjson.loads(file.read_bytes())
        message, parts = kept["given"], {p: plain(w, {}) for p, w in kept["given"]["parts"].items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Unusable(f"--replay {file}: {error!r}; it wants a file that a comparison kept") from error
    plans = []
    for home in (ROOT, tree):
        judge = Judge(home)
        try:
            judge.greet(sorted(schema(find_decide(ROOT))))
            plans.append(orjson.loads(judge.decide([orjson.dumps(message)])[0]))
        finally:
            judge.close()
    found = compare(*plans, parts)
    print(f"turn {kept['turn']} at {kept['at']:.1f} of: {kept['run']}")
    if found is None:
        print("Both decide the same.")
        return 0
    print("\n".join([found.signature, *(f"  {line}" for line in found.lines)]))
    for name, plan in zip(("here", "there"), plans, strict=True):
        print(f"{name}: {json.dumps(plan, indent=2)}")
    return 1


def parser() -> argparse.ArgumentParser:
    """The command line."""
    raw = argparse.RawDescriptionHelpFormatter
    known = argparse.ArgumentParser(description=__doc__, formatter_class=raw, allow_abbrev=False)
    known.add_argument("--against", required=True, metavar="COMMIT", help="the other version")
    known.add_argument("--hours", type=float, help=f"simulated hours of fresh seeds (default {HOURS:g})")
    known.add_argument("--minutes", type=float, default=math.inf, help="after which no run begins any more")
    known.add_argument("--seed", type=int, help="the base seed (default: the time of day)")
    known.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes that play")
    known.add_argument("--parts", default=",".join(PARTS), help=f"which of {', '.join(PARTS)}")
    known.add_argument(
        "--most", type=int, help="how many scenarios and regressions, from the first (default: all)"
    )
    known.add_argument(
        "--journal", type=Path, action="append", default=[], metavar="PATH",
        help="turns that this journal, or the one in this state directory, has recorded, instead of runs",
    )  # fmt: skip
    known.add_argument(
        "--allow", type=Path, metavar="FILE", help="a table of accepted classes, each with why"
    )
    known.add_argument("--save", type=Path, default=SAVED, metavar="FOLDER", help="where example turns go")
    known.add_argument(
        "--replay", type=Path, metavar="FILE", help="decide an example turn again, and no other"
    )
    known.add_argument("-o", "--output", choices=("table", "json"), default="table")
    return known


def checked(known: argparse.ArgumentParser) -> argparse.Namespace:
    """What the command line says. Exits with 2 where that makes no sense."""
    given = known.parse_args()
    given.parts = tuple(part for part in given.parts.split(",") if part)
    if unknown := set(given.parts) - set(PARTS):
        known.error(f"--parts: {', '.join(sorted(unknown))} is none of {', '.join(PARTS)}")
    if given.hours is None:
        given.hours = HOURS
        given.parts = () if given.journal else given.parts
    if given.jobs < 1 or given.hours < 0 or given.minutes < 0:
        known.error("--jobs must be at least 1, --hours and --minutes not negative")
    if not given.parts and not given.journal and not given.replay:
        known.error("nothing to compare: --parts is empty and no --journal is given")
    return given


def compared(given: argparse.Namespace, tree: Path, against: str) -> int:
    """Compare, say what came of it, and give the exit code."""
    began = CLOCK.steady()
    accepted = read_accepted(given.allow) if given.allow is not None else []
    base = given.seed if given.seed is not None else int(CLOCK.now())
    kept = Kept(given.save, against)
    tally = compare_all(given, base, tree, kept)
    wall = round(CLOCK.steady() - began, 1)
    head = {
        "this": this_tree("policies", "orchestrator", "cloud"),
        "against": against,
        "seed": base,
        "wall": wall,
    }
    said = report(tally, accepted, kept.files, head)
    print(json.dumps(said, indent=2) if given.output == "json" else text(said))
    return 1 if any(each["accepted"] is None for each in said["classes"]) else 0


def main() -> int:
    """Do what the command line says."""
    given = checked(parser())
    player.use_this_tree()
    try:
        against = commit_of(given.against)
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="decisions-")))
            archive(against, "policies").extractall(folder, filter="data")
            act = partial(replay, given.replay) if given.replay else partial(compared, given, against=against)
            return act(tree=folder)
    except (NoCommit, Unusable, JudgeDied, NoDecision) as error:
        print(f"compare_decisions: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
