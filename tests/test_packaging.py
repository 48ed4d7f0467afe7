"""What is shipped, and that its plain package names are its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import distributions, packages_distributions
from pathlib import Path

import pytest

from orchestrator.packaging import DISTRIBUTION, NAMES, check_names, name_owners

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def build(kind: str, into: Path) -> Path:
    """A wheel or an sdist, built as `pip install .` would, with nothing fetched."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(into)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=100,
    )
    (made,) = into.iterdir()
    return made


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    with zipfile.ZipFile(build("wheel", tmp_path_factory.mktemp("wheel"))) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_the_three_packages_and_nothing_else(wheel: set[str]) -> None:
    tops = {name.partition("/")[0] for name in wheel}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(NAMES)
    assert not [name for name in wheel if {"__pycache__", "tests"} & set(Path(name).parts)]
    modules = ("test_*.py", "*_test.py", "conftest.py")  # what pytest collects
    assert not [name for name in wheel if any(map(Path(name).match, modules))]


def test_the_wheel_holds_every_file_of_the_packages(wheel: set[str]) -> None:
    sources = {
        str(file.relative_to(ROOT))
        for name in NAMES
        for file in (ROOT / name).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert sources - wheel == set()
    assert {f"{name}/py.typed" for name in NAMES} <= wheel
    assert {"orchestrator/schemas/config.schema.json", "orchestrator/schemas/status.schema.json"} <= wheel


def test_the_wheel_brings_the_command(wheel: set[str]) -> None:
    assert PROJECT["project"]["scripts"] == {"orchestrator": "orchestrator.__main__:main"}
    assert any(name.endswith(".dist-info/entry_points.txt") for name in wheel)
    assert any(name.endswith("/LICENSE") for name in wheel)


def test_the_sdist_holds_what_the_make_targets_need(tmp_path: Path) -> None:
    with tarfile.open(build("sdist", tmp_path)) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {
        "Makefile",
        "README.md",
        "CONTRIBUTING.md",
        "requirements.lock",
        "pyproject.toml",
        "docs/generate.py",
        "examples/pool.toml",
        "bench/notice_to_detached.py",
        "tools/llamacpp/install.sh",
        "tools/vllm/install.sh",
        "tests/test_packaging.py",
    }
    assert needed - names == set()


# -- the names ------------------------------------------------------------------------------------


def test_each_package_name_belongs_to_this_distribution_only() -> None:
    assert check_names() == []
    assert name_owners(distributions()) == {name: [DISTRIBUTION] for name in NAMES}
    by_record = packages_distributions()
    # an editable install records no package, an ordinary one exactly ours
    assert all(by_record.get(name, [DISTRIBUTION]) == [DISTRIBUTION] for name in NAMES)


def install(directory: Path, title: str, *, record: str = "", top_level: str = "", origin: str = "") -> None:
    """A distribution as an installer leaves it."""
    info = directory / f"{title}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {title}\nVersion: 1.0\n")
    (info / "RECORD").write_text(record)
    if top_level:
        (info / "top_level.txt").write_text(top_level)
    if origin:
        (info / "direct_url.json").write_text(origin)


def test_a_distribution_that_installs_one_of_the_names_is_named(tmp_path: Path) -> None:
    install(tmp_path, "cloud-things", record="cloud/__init__.py,,\ncloud_things-1.0.dist-info/RECORD,,\n")
    (fault,) = check_names([str(tmp_path), str(ROOT)])
    assert fault.startswith("the package name cloud also belongs to cloud-things")
    assert "make setup" in fault


def test_a_distribution_that_declares_one_of_the_names_is_named(tmp_path: Path) -> None:
    install(tmp_path, "old-style", top_level="policies\nother\n")
    (fault,) = check_names([str(tmp_path), str(ROOT)])
    assert "policies also belongs to old-style" in fault


def test_an_editable_project_with_one_of_the_names_is_named(tmp_path: Path) -> None:
    source = tmp_path / "a project" / "src" / "orchestrator"
    source.mkdir(parents=True)
    (source / "__init__.py").touch()
    origin = {"dir_info": {"editable": True}, "url": (tmp_path / "a project").as_uri()}
    install(tmp_path / "site", "other-orchestrator", origin=json.dumps(origin))
    (fault,) = check_names([str(tmp_path / "site"), str(ROOT)])
    assert "orchestrator also belongs to other-orchestrator" in fault


def test_a_directory_that_hides_a_package_is_named(tmp_path: Path) -> None:
    (tmp_path / "cloud").mkdir()
    (tmp_path / "cloud" / "__init__.py").touch()
    (fault,) = check_names([str(tmp_path), str(ROOT)])
    assert fault.startswith(f"the package cloud is loaded from {tmp_path.resolve() / 'cloud'}, not from ")


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    for name in ("orchestrator", "cloud"):
        (tmp_path / name).symlink_to(ROOT / name)
    (fault,) = check_names([str(tmp_path)])
    assert "the package policies is missing" in fault


def test_unrelated_distributions_and_one_path_given_twice_are_no_fault(tmp_path: Path) -> None:
    install(tmp_path, "fine", record="finely/cloud/__init__.py,,\n", origin="not json")
    install(tmp_path, DISTRIBUTION, record="".join(f"{name}/__init__.py,,\n" for name in NAMES))
    assert check_names([str(tmp_path), str(tmp_path), str(ROOT)]) == []


def test_two_installations_of_this_distribution_are_a_fault(tmp_path: Path) -> None:
    record = "".join(f"{name}/__init__.py,,\n" for name in NAMES)
    for directory in (tmp_path / "one", tmp_path / "two"):
        install(directory, DISTRIBUTION, record=record)
    faults = check_names([str(tmp_path / "one"), str(tmp_path / "two"), str(ROOT)])
    assert faults
    assert all("is installed 2 times" in fault for fault in faults)


@pytest.mark.slow
def test_run_refuses_a_hidden_package_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "__init__.py").touch()
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.path.insert(0, {str(tmp_path)!r})\n"
        "from orchestrator.__main__ import main\n"
        "sys.exit(main(['run', '--config', 'pool.toml']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("orchestrator: the daemon cannot run: the package policies is loaded from ")


# -- dependencies ---------------------------------------------------------------------------------


def canonical(name: str) -> str:
    """A distribution's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def locked() -> dict[str, str]:
    """The entries of the lock file: name to the entry's whole text."""
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    entries = re.split(r"(?m)^(?=[A-Za-z0-9])", text)
    return {
        canonical(re.split(r"[=\[ ;]", entry, maxsplit=1)[0]): entry for entry in entries if entry.strip()
    }


def asked() -> list[str]:
    """Every requirement of the project, of the extras that the tests use, and of its development group."""
    project = PROJECT["project"]
    extras = project["optional-dependencies"]
    wanted: list[str] = [
        *project["dependencies"],
        *extras["simulate"],
        *extras["plot"],
        *PROJECT["dependency-groups"]["dev"],
    ]
    return wanted


def test_the_lock_pins_and_hashes_every_entry() -> None:
    entries = locked()
    assert len(entries) > 20
    for name, entry in entries.items():
        assert re.match(r"^[A-Za-z0-9._-]+==\S+", entry), f"{name} is not pinned"
        assert "--hash=sha256:" in entry, f"{name} has no hash"


def test_the_lock_holds_every_dependency_and_no_address() -> None:
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert "://" not in text
    assert "index-url" not in text
    names = {canonical(re.split(r"[<>=\[ ;]", item, maxsplit=1)[0]) for item in asked()}
    assert names - set(locked()) == set()


def test_the_lock_holds_nothing_that_nobody_needs() -> None:
    wanted = {canonical(re.split(r"[<>=\[ ;]", item, maxsplit=1)[0]) for item in asked()}
    for name, entry in locked().items():
        assert name in wanted or re.search(r"# via\s+(?:#\s+)?\S+", entry), f"{name}: who needs it?"


def test_the_locked_versions_satisfy_the_project() -> None:
    for item in asked():
        name, _, rest = item.partition(">=")
        least = rest.partition(",")[0]
        pinned = re.search(r"==([0-9.]+)", locked()[canonical(name)])
        assert pinned is not None
        assert _numbers(pinned.group(1)) >= _numbers(least), item


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


def test_every_dependency_says_why() -> None:
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    for item in asked():
        (line,) = [line for line in lines if line.strip().startswith(f'"{item}"')]
        assert re.search(r",\s+# \S+ \S+", line), f"{item} has no why-comment"


def test_the_bill_of_materials_lists_what_is_installed_with_its_hashes(tmp_path: Path) -> None:
    lock = tmp_path / "runtime.lock"
    tools = ROOT / "tools" / "package"
    lock.write_text(
        subprocess.run(
            [sys.executable, str(tools / "runtime_lock.py")], capture_output=True, text=True, check=True
        ).stdout
    )
    made = [
        subprocess.run(
            [sys.executable, str(tools / "sbom.py"), str(lock)], capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    ]
    assert made[0] == made[1]
    bill = json.loads(made[0])
    pinned = dict(re.findall(r"(?m)^([a-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;\\]+)", lock.read_text()))
    assert {c["name"]: c["version"] for c in bill["components"]} == pinned
    assert len(pinned) > 20
    assert all(c["hashes"] and c["purl"].startswith("pkg:pypi/") for c in bill["components"])
    (root,) = [d for d in bill["dependencies"] if d["ref"] == "spot-orchestrator"]
    assert len(root["dependsOn"]) == len(pinned)
