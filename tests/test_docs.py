"""The documentation: its links lead somewhere, its pages follow the code, its commands run."""

from __future__ import annotations

import ast
import doctest
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from cyclopts import CycloptsError, MissingArgumentError
from prometheus_client import generate_latest

from cloud.clock import SystemClock
from orchestrator.config.load import ConfigError, load_config
from orchestrator.config.tables.pool import PoolConfig
from orchestrator.gateway.accounts.gate import Gate
from orchestrator.gateway.accounts.key_metrics import KeyMetrics
from orchestrator.gateway.accounts.keyfile import ClientKeys
from orchestrator.gateway.accounts.limit_book import LimitBook
from orchestrator.gateway.accounts.refusals import Refusals
from orchestrator.gateway.adapters import Adapters
from orchestrator.gateway.config import PoolGate
from orchestrator.gateway.metrics import GatewayMetrics
from orchestrator.gateway.provider_metrics import ProviderMetrics
from orchestrator.gateway.spend_file import Totals
from orchestrator.gateway.targets import TargetTable
from orchestrator.metrics import metrics

sys.path.insert(0, str(Path(__file__).parent / "support"))

from doc_blocks import PAGES, ROOT, Block, blocks, commands, prose

LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """What can be linked to inside a page, as forges name it."""
    heads = re.findall(r"(?m)^#+ (.*)$", prose(page))
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target in LINK.findall(prose(page)):
        if "://" in target or target.startswith("mailto:"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


def test_every_page_is_linked_from_the_readme() -> None:
    linked = {
        (ROOT / target.partition("#")[0]).resolve() for target in LINK.findall(prose(ROOT / "README.md"))
    }
    for kind in ("tutorial", "how-to", "reference", "explanation"):
        for page in (ROOT / "docs" / kind).glob("*.md"):
            assert page in linked, f"README.md does not name {page.name}"


def test_every_decision_is_in_the_list() -> None:
    listed = (ROOT / "docs" / "decisions" / "README.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs" / "decisions").glob("[0-9]*.md"):
        assert f"({page.name})" in listed


def test_every_test_that_a_page_names_is_there() -> None:
    named = {
        (page, test)
        for page in PAGES
        for test in re.findall(r"`(tests/(?!support/)[a-z0-9_/]+\.py(?:::\w+)?)`", page.read_text("utf-8"))
    }
    assert len(named) > 30
    missing = []
    for page, test in named:
        file, _, function = test.partition("::")
        text = (ROOT / file).read_text(encoding="utf-8") if (ROOT / file).exists() else ""
        # What tests share is a module of classes and functions, and has no test itself.
        sought = function or ("" if file.startswith("tests/support/") else "test_")
        if not re.search(rf"(?m)^(?:class|(?:async )?def) {sought}", text):
            missing.append(f"{page.relative_to(ROOT)}: {test}")
    assert missing == []


def test_every_path_that_a_recipe_names_is_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:orchestrator|policies|cloud|tests|docs|systemd|tools)/[a-z0-9_./-]*)`", text)
    assert len(named) > 15
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_invariant_is_explained() -> None:
    code = (ROOT / "policies" / "invariants.py").read_text(encoding="utf-8")
    page = (ROOT / "docs" / "explanation" / "architecture.md").read_text(encoding="utf-8")
    names = set(re.findall(r'Violation\(\s*"([a-z-]+)"', code))
    assert len(names) > 8
    assert set(re.findall(r"(?m)^\| `([a-z-]+)` \|", page.partition("## Invariants")[2])) == names


FIRST_DAY = ROOT / "docs" / "how-to" / "first-day-on-aws.md"


@pytest.mark.parametrize("name", ["aws-8b-l4.toml", "aws-70b-awq.toml"])
def test_the_files_of_the_first_day_are_the_examples(name: str) -> None:
    text = (ROOT / "examples" / name).read_text(encoding="utf-8")
    assert text in [block.body for block in blocks(FIRST_DAY) if block.language == "toml"]


# -- metrics --------------------------------------------------------------------------------------


def shown_by_daemon() -> set[str]:
    return _families(generate_latest(metrics.REGISTRY).decode())


def shown_by_gateway() -> set[str]:
    import random

    table = TargetTable(now=lambda: 0.0, rng=random.Random(0), gate=PoolGate(targets_file=Path("t")))
    metrics = GatewayMetrics(lambda: 0.0, ("chat", "embed"), routed=True)
    metrics.lane("chat", table, lambda: 0, Adapters(("sql",), table, lambda: 0.0))
    metrics.certificate_taken(0.0)
    spent = Totals("2026-01-01")
    ProviderMetrics(metrics.registry, states=dict, caps={}, today=lambda: spent, trouble=lambda: "")
    clock = SystemClock()
    KeyMetrics(metrics.registry, ClientKeys(Path("k"), clock))
    refusals = Refusals(metrics.registry, clock)
    Gate(LimitBook(None, clock), refusals, registry=metrics.registry, clock=clock)
    return _families(metrics.exposition().decode())


def _families(exposition: str) -> set[str]:
    found = re.findall(r"(?m)^# TYPE (\S+) \w+$", exposition)
    return {name for name in found if not name.endswith("_created")}


def test_every_exit_code_of_status_is_named_wherever_they_are_listed() -> None:
    lists = {
        "README.md": ("The exit code of `status` says how the pool is", "Ask the daemon"),
        "docs/man/orchestrator.1": ("EXIT STATUS", ".SH"),
        "docs/reference/cli.md": ("Exit codes: 0 ok", "```"),
    }
    for name, (begin, end) in lists.items():
        listed = (ROOT / name).read_text().partition(begin)[2].partition(end)[0]
        codes = {int(code) for code in re.findall(r"\b(\d+) [a-z]", f"0 ok{listed}")}
        assert codes >= set(range(9)), f"{name}: {listed}"


def test_every_metric_is_in_the_reference() -> None:
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
    daemon, gateway = shown_by_daemon(), shown_by_gateway()
    assert len(daemon) > 30
    assert len(gateway) > 15
    assert {name for name in daemon | gateway if f"| `{name}` |" not in page} == set()
    rows = re.findall(r"(?m)^\| `(orchestrator_\w+)` \|", page)
    own = {name for name in daemon | gateway if not name.startswith("process_")}  # each process has those
    assert sorted(rows) == sorted(own), "a row that no metric has, or one given twice"


def test_every_metric_of_the_daemon_is_moved_somewhere() -> None:
    """A metric that nothing sets is a promise that nobody keeps."""
    tree = ast.parse((ROOT / "orchestrator" / "metrics" / "metrics.py").read_text(encoding="utf-8"))
    named = {
        target.id
        for statement in tree.body
        if isinstance(statement, ast.Assign)
        for target in statement.targets
        if isinstance(target, ast.Name) and not target.id.startswith("_")
    }
    used = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "orchestrator").rglob("*.py"))
    assert {name for name in named if f"metrics.{name}" not in used} == set()


# -- code blocks ----------------------------------------------------------------------------------

BLOCKS = [block for page in PAGES for block in blocks(page)]
SHELL = [block for block in BLOCKS if block.language == "sh"]
LANGUAGES = {"sh", "text", "toml", "json", "pycon"}


def of(language: str) -> list[Any]:
    """The blocks of one language, as parameters of a test."""
    return [pytest.param(block, id=block.place) for block in BLOCKS if block.language == language]


def calls(page: Path) -> list[tuple[str, list[str]]]:
    """Every call of `orchestrator` that a page shows: in blocks, in transcripts, in examples, in its text."""
    found = []
    for block in blocks(page):
        shell = block.body if block.language == "sh" else ""
        if block.language == "text":  # a transcript, or an example in the help of a command
            shell = "\n".join(
                re.findall(r"(?m)^(?:\$ |  (?=orchestrator ))(.*)$", block.body.replace("\\\n", " "))
            )
        found += [(block.place, words) for words in commands(shell)]
    for code in re.findall(r"`(orchestrator [^`]+)`", " ".join(prose(page).split())):
        found += [(str(page.relative_to(ROOT)), words) for words in commands(code)]
    return found


def test_every_block_says_what_it_is() -> None:
    """In one of the languages that are checked here; another needs a check first."""
    assert [block.place for block in BLOCKS if block.language not in LANGUAGES] == []


def test_a_reason_stands_above_a_block_of_commands() -> None:
    """A reason that is left over, or that stands above something else, keeps nothing from being run."""
    for page in PAGES:
        reasons = len(re.findall(r"(?m)^<!-- not run: ", prose(page)))
        held = [block for block in blocks(page) if block.not_run]
        assert len(held) == reasons, page
        assert all(block.language == "sh" for block in held), page


def test_every_call_of_the_orchestrator_is_one_that_it_understands() -> None:
    from orchestrator.__main__ import _with_watch_seconds
    from orchestrator.cli.app import FAMILIES, build_app

    app = build_app(complete=True)
    found = [call for page in PAGES if page.name != "CHANGELOG.md" for call in calls(page)]
    assert len(found) > 250
    wrong = []
    for place, words in found:
        if " ".join(words) in FAMILIES or {"--help", "--version"} & set(words):
            continue
        try:
            app.parse_args(_with_watch_seconds(words), print_error=False, exit_on_error=False)
        except MissingArgumentError as error:
            if place.rpartition(":")[2].isdigit():  # a sentence may leave out what it is not about
                wrong.append(f"{place}: orchestrator {shlex.join(words)}: {error}")
        except CycloptsError as error:
            if "does not exist" not in str(error):  # a file of the reader's
                wrong.append(f"{place}: orchestrator {shlex.join(words)}: {error}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("block", of("sh"))
def test_shell_is_shell(block: Block) -> None:
    done = subprocess.run(["bash", "-n"], input=block.body, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_make_is_asked_only_for_what_it_makes() -> None:
    asked = {line for block in SHELL for line in block.body.splitlines() if line.startswith("make ")}
    assert "make demo" in asked
    for line in asked:
        done = subprocess.run(
            ["bash", "-c", f"{line} -n"], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("block", of("toml"))
def test_configuration_is_valid(block: Block, tmp_path: Path) -> None:
    """A block may be a part of a file: its pool has ten replicas of some model then."""
    text = block.body
    pools = tomllib.loads(text).get("pool", {})
    for name in [name for name, pool in pools.items() if "replicas" not in pool] if pools else ["llama"]:
        text += f'\n[pool.{name}]\nreplicas = 10\nmodel = "some/model"\n'
    file = tmp_path / "pool.toml"
    file.write_text(text, encoding="utf-8")
    faults: list[str] = []
    try:
        load_config(file)
    except ConfigError as error:
        # which files a reader's host has is not the page's affair, nor which GPUs, where no cloud is named
        others = ("there is no file",) if "cloud" in text else ("there is no file", "of this machine take")
        faults = [str(one) for one in error.problems if not any(other in one.text for other in others)]
    assert faults == []


KEY_OF_A_POOL = re.compile(
    r"`((?:agents|cloud|drain|engine|health|limits|standby)(?:\.[a-z_]+)+)(?: = [^`]*)?`"
)


def test_every_key_of_a_pool_that_a_page_names_is_one() -> None:
    """Such as `health.boot_timeout`. Pages for developers name modules and files, such as `engine.py`."""
    unknown = set()
    for page in (page for page in PAGES if page.parent.name in ("how-to", "runbooks")):
        for name in KEY_OF_A_POOL.findall(prose(page)):
            section: Any = PoolConfig
            for word in name.split("."):
                field = getattr(section, "model_fields", {}).get(word)
                section = None if field is None else field.annotation
            if section is None:
                unknown.add(f"{page.name}: {name}")
    assert unknown == set()


@pytest.mark.parametrize("block", of("pycon"))
def test_python_says_what_the_page_says(block: Block) -> None:
    test = doctest.DocTestParser().get_doctest(block.body, {}, block.place, str(block.page), block.line)
    said: list[str] = []
    assert doctest.DocTestRunner().run(test, out=said.append).failed == 0, "".join(said)
    assert test.examples


@pytest.mark.parametrize("block", of("json"))
def test_json_is_json(block: Block) -> None:
    """One or more values after each other."""
    text, count = block.body.strip(), 0
    while text:
        _, end = json.JSONDecoder().raw_decode(text)
        text, count = text[end:].lstrip(), count + 1
    assert count


@pytest.mark.slow
def test_the_example_is_valid_as_it_stands(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", "validate", str(tmp_path / "examples" / "pool.toml")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")


# -- benches --------------------------------------------------------------------------------------

BENCHES = sorted((ROOT / "bench").glob("*.py"))


@pytest.mark.bench
@pytest.mark.parametrize("script", BENCHES, ids=lambda script: script.stem)
def test_every_bench_explains_itself_and_has_a_quick_run(script: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(script), *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=110,
            env=environment,
        )

    usage = run("--help")
    assert usage.returncode == 0
    assert "--quick" in usage.stdout
    quick = run("--quick")
    assert quick.returncode == 0, quick.stderr
    assert len(quick.stdout.splitlines()) >= 2
    assert list(tmp_path.iterdir()) == [], "a bench left something behind"
