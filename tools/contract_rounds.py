"""Run the contract suites of all adapters many times in random order, alone and beside busy loops.

    python tools/contract_rounds.py [--rounds N] [--busy LOOPS[,LOOPS]] [--seed N] [--suites NAME[,NAME]]
                                    [--jobs N] [-o json]

A round is one run of the suites in an order that its seed gives, spread over some processes. The rounds are
run once for each number of busy loops: loops that take the processor from whatever waits for something. What
fails so is a bug, of an adapter or of a test: a claim that holds only on an idle machine.

An adapter is green in a round in which at least one of its tests ran and none failed. One without its program
(`make balancers-env`) is not green.

    python tools/contract_rounds.py                                      20 rounds alone, 20 beside 4 loops
    python tools/contract_rounds.py --rounds 2 --suites balancers --busy 0
    python tools/contract_rounds.py --rounds 1 --busy 4 --seed 1007       the round of that seed once more

Exit code: 0 every adapter was green in every round; 1 one was not; 2 nothing was run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from cloud.clock import SystemClock  # noqa: E402

SUITES: Final = {
    "instances": "test_instances_contract.py",
    "offerings": "test_offerings_contract.py",
    "notices": "test_notices_contract.py",
    "balancers": "test_balancer_contract.py",
}
"""Each suite by the module that it is."""

ADAPTERS: Final = ("cloud_world", "notice_world", "site")
"""Fixtures whose parameter names the adapter that a test looks at."""

ALL: Final = "(all of them)"
"""The adapter of a test that looks at all of them at once."""

LONGEST: Final = 900.0
"""Seconds after which a round is given up."""

SHOWN: Final = 40
"""Lines of a failure that are shown, its last ones."""

LOOP: Final = """
import os
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(1_000_000):
        pass
"""

CLOCK = SystemClock()

Result = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One test in one round. `why`: the text of its failure, or why it was skipped."""

    suite: str
    adapter: str
    name: str
    result: Result
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One run. `busy`: loops beside it. `load`: of the machine in its last minute, whoever it was that ran.
    `problem`: why it has no result, else empty."""

    seed: int
    busy: int
    seconds: float
    load: float
    cases: tuple[Case, ...]
    problem: str = ""

    @property
    def counts(self) -> Counter[Result]:
        """How many tests came to what."""
        return Counter(case.result for case in self.cases)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What came of one suite for one adapter in all rounds."""

    suite: str
    adapter: str
    rounds: int
    green: int
    passed: int
    failed: int
    skipped: int


# -- the plugin of pytest that this module is too ------------------------------------------------------


def pytest_collection_modifyitems(items: Iterable[Any]) -> None:
    """Write down with each test which adapter it looks at."""
    for item in items:
        given = item.callspec.params if hasattr(item, "callspec") else {}
        item.user_properties += [("adapter", given[name]) for name in ADAPTERS if name in given]


# -- one round -----------------------------------------------------------------------------------------


def read_cases(report: Path) -> tuple[Case, ...]:
    """The tests in a report of pytest in the form of JUnit; one that failed twice counts once."""
    found: dict[tuple[str, str], Case] = {}
    suites = {Path(module).stem: suite for suite, module in SUITES.items()}
    for entry in ET.parse(report).getroot().iter("testcase"):  # noqa: S314 - we made it
        module, name = entry.get("classname", "").rpartition(".")[2], entry.get("name", "")
        if module not in suites:  # a module that cannot be read is no test
            continue
        adapter = next(
            (p.get("value", "") for p in entry.iter("property") if p.get("name") == "adapter"), ALL
        )
        bad = [*entry.iter("failure"), *entry.iter("error")]
        skipped = entry.find("skipped")
        result: Result = "failed" if bad else "passed" if skipped is None else "skipped"
        why = (bad[0].text or bad[0].get("message", "")) if bad else ""
        why = why if skipped is None or bad else skipped.get("message", "")
        case = Case(suite=suites[module], adapter=adapter, name=name, result=result, why=why)
        known = found.get((module, name))
        if known is None or known.result != "failed":
            found[module, name] = case
    return tuple(found.values())


@contextlib.contextmanager
def busy_loops(count: int) -> Iterator[None]:
    """So many processes that do nothing but take the processor."""
    loops = [subprocess.Popen([sys.executable, "-c", LOOP]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def play(suites: Sequence[str], *, seed: int, busy: int, jobs: int, folder: Path) -> Round:
    """Run the suites, which are in a folder, once."""
    with tempfile.TemporaryDirectory(prefix="round-") as made:
        report, log = Path(made) / "report.xml", Path(made) / "log"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "contract_rounds"]
        command += [f"--randomly-seed={seed}", f"--junitxml={report}", *(["-n", str(jobs)] if jobs else [])]
        path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        begun = CLOCK.steady()
        with busy_loops(busy), log.open("w") as written:
            try:
                done = subprocess.run(
                    [*command, *(str(folder / SUITES[suite]) for suite in suites)],
                    cwd=ROOT,
                    env={**os.environ, "PYTHONPATH": path},
                    stdout=written,
                    stderr=subprocess.STDOUT,
                    timeout=LONGEST,
                    check=False,
                )
                said = "" if done.returncode in (0, 1) else f"pytest ended with {done.returncode}"
            except subprocess.TimeoutExpired:
                said = f"no end after {LONGEST:.0f} s"
            load = os.getloadavg()[0]
        seconds = CLOCK.steady() - begun
        try:
            cases = read_cases(report)
        except (OSError, ET.ParseError):
            cases, said = (), said or "pytest left no report"
        problem = "\n".join([said, *last_lines(log.read_text(errors="replace"))]) if said else ""
    return Round(seed=seed, busy=busy, seconds=seconds, load=load, cases=cases, problem=problem)


def last_lines(text: str) -> list[str]:
    """The end of a long text."""
    return text.rstrip().splitlines()[-SHOWN:]


# -- what came of all ----------------------------------------------------------------------------------


def table(rounds: Sequence[Round]) -> list[Row]:
    """Every adapter in every suite that it is in."""
    rows = []
    every = {(case.suite, case.adapter) for each in rounds for case in each.cases}
    order = list(SUITES)
    for suite, adapter in sorted(every, key=lambda one: (order.index(one[0]), one[1])):
        counts: Counter[Result] = Counter()
        green = 0
        for each in rounds:
            here = Counter(c.result for c in each.cases if (c.suite, c.adapter) == (suite, adapter))
            green += not each.problem and here["passed"] > 0 and here["failed"] == 0
            counts += here
        rows.append(
            Row(
                suite=suite,
                adapter=adapter,
                rounds=len(rounds),
                green=green,
                passed=counts["passed"],
                failed=counts["failed"],
                skipped=counts["skipped"],
            )
        )
    return rows


def always_skipped(rounds: Sequence[Round]) -> dict[str, str]:
    """Tests that ran in no round, each with the reason."""
    ran = {case.name for each in rounds for case in each.cases if case.result != "skipped"}
    return {
        case.name: case.why
        for each in rounds
        for case in sorted(each.cases, key=lambda case: case.name)
        if case.name not in ran
    }


def is_green(rounds: Sequence[Round]) -> bool:
    """Every adapter was green in every round."""
    return all(not each.problem for each in rounds) and all(row.green == row.rounds for row in table(rounds))


def replay_line(each: Round, suites: Sequence[str], jobs: int) -> str:
    """What runs a round once more."""
    words = f"--rounds 1 --busy {each.busy} --seed {each.seed} --suites {','.join(suites)} --jobs {jobs}"
    return f"python tools/contract_rounds.py {words}"


def said_of(each: Round) -> str:
    """A round in a line."""
    counts, beside = each.counts, f"beside {each.busy} busy loops" if each.busy else "alone"
    numbers = f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped"
    return f"seed {each.seed} {beside}: {numbers} in {each.seconds:.0f} s, load {each.load:.1f}"


def trouble_of(each: Round, suites: Sequence[str], jobs: int) -> list[str]:
    """What went wrong in a round, and how to see it once more; empty where nothing did."""
    lines = [each.problem] if each.problem else []
    for case in each.cases:
        if case.result == "failed":
            lines += [f"FAILED {SUITES[case.suite]}::{case.name}", *last_lines(case.why)]
    return [*lines, "again: " + replay_line(each, suites, jobs)] if lines else []


def summary(rounds: Sequence[Round]) -> list[str]:
    """The table, what ran never, and the sentence at the end."""
    lines = [f"{'suite':<10} {'adapter':<15} {'green rounds':>12} {'passed':>7} {'failed':>7} {'skipped':>8}"]
    for row in table(rounds):
        green = f"{row.green} of {row.rounds}"
        numbers = f"{row.passed:>7} {row.failed:>7} {row.skipped:>8}"
        lines.append(f"{row.suite:<10} {row.adapter:<15} {green:>12} {numbers}")
    never = always_skipped(rounds)
    if never:
        lines += ["", "skipped in every round:", *(f"  {name}: {why}" for name, why in never.items())]
    for busy in dict.fromkeys(each.busy for each in rounds):
        here = [each for each in rounds if each.busy == busy]
        ran = sum((each.counts for each in here), Counter[Result]())
        times, loads = sorted(each.seconds for each in here), sorted(each.load for each in here)
        tests = f"{ran['failed']} failed of {ran['passed'] + ran['failed']} tests run"
        beside = f"beside {busy} busy loops" if busy else "alone"
        lines += [
            "",
            f"{len(here)} rounds {beside}: {tests}; a round took {times[0]:.0f} to {times[-1]:.0f} s, "
            f"the load was {loads[0]:.1f} to {loads[-1]:.1f} on {os.cpu_count()} processors",
        ]
    return lines


def as_data(rounds: Sequence[Round]) -> dict[str, Any]:
    """The same for programs."""
    return {
        "green": is_green(rounds),
        "rounds": [
            {
                "seed": each.seed,
                "busy": each.busy,
                "seconds": round(each.seconds, 1),
                "load": round(each.load, 1),
                "problem": each.problem,
                "failed": [asdict(case) for case in each.cases if case.result == "failed"],
                **{name: each.counts[name] for name in ("passed", "skipped")},
            }
            for each in rounds
        ],
        "adapters": [asdict(row) for row in table(rounds)],
        "skipped_in_every_round": always_skipped(rounds),
    }


# -- the command ---------------------------------------------------------------------------------------


def _names(text: str) -> list[str]:
    found = [name.strip() for name in text.split(",") if name.strip()]
    if not found or set(found) - SUITES.keys():
        raise argparse.ArgumentTypeError(f"{text!r}: suites are {', '.join(SUITES)}")
    return found


def _numbers(text: str) -> list[int]:
    try:
        found = [int(word) for word in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 0:
        raise argparse.ArgumentTypeError(f"{text!r}: numbers of loops, such as 0,4")
    return found


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """What was asked for."""
    usage, _, epilog = (__doc__ or "").partition("\n\n")
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=usage, epilog=epilog, formatter_class=form)
    add = parser.add_argument
    add("--rounds", type=int, default=20, help="for each number of loops (%(default)s)")
    add("--busy", type=_numbers, default=[0, 4], help="busy loops beside them, one number or more (0,4)")
    add("--seed", type=int, default=1000, help="of the first round; the next has the next (%(default)s)")
    add("--suites", type=_names, default=list(SUITES), help=f"some of {','.join(SUITES)} (all)")
    add("--jobs", type=int, default=3, help="processes that share a round, 0 for none beside (%(default)s)")
    add("-o", dest="output", choices=("text", "json"), default="text", help="(%(default)s)")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None, *, folder: Path = ROOT / "tests" / "cloud" / "contract") -> int:
    """Run it. Gives the exit code."""
    given = arguments(words)
    rounds: list[Round] = []
    for busy in given.busy:
        for number in range(given.rounds):
            each = play(given.suites, seed=given.seed + number, busy=busy, jobs=given.jobs, folder=folder)
            rounds.append(each)
            told = [f"round {number + 1} of {given.rounds}, {said_of(each)}"]
            print(*told, *trouble_of(each, given.suites, given.jobs), sep="\n", file=sys.stderr, flush=True)
    if given.output == "json":
        print(json.dumps(as_data(rounds), indent=2))
    else:
        print(*summary(rounds), sep="\n")
    if not any(each.cases for each in rounds):
        return 2
    return 0 if is_green(rounds) else 1


if __name__ == "__main__":
    sys.exit(main())
