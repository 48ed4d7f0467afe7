"""Changes of the file of keys: nothing is lost, whoever else changes it, whatever people wrote into it."""

from __future__ import annotations

import fcntl
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from orchestrator.gateway.accounts import key_edit
from orchestrator.gateway.accounts.key_edit import add, generate, made, read_file, revoke
from orchestrator.gateway.accounts.key_format import PREFIX, KeyFileError, digest
from policies.keys import ClientKey, KeyLimits, KeyState
from policies.spend import usd

NOW = 1_790_000_000.9
BY_HAND = (
    """# our clients
[key.team-a]  # since March
sha256 = "%s"
models = [
  "chat",  # theirs
]

[key."quoted"]
sha256 = "%s"
note-free = false
""".replace("note-free = false\n", "")
    % (digest("a"), digest("q"))
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.toml"
    path.write_text(BY_HAND)
    path.chmod(0o640)
    return path


def nobody_waits() -> None:
    raise AssertionError("nobody holds the lock")


def key(name: str = "new", **more: object) -> ClientKey:
    given = {"limits": KeyLimits(), "expires": None} | more
    return made(name, generate(), now=NOW, **given)  # type: ignore[arg-type]


def leftovers(file: Path) -> set[str]:
    return {path.name for path in file.parent.iterdir()} - {file.name}


def test_keys_are_long_random_and_known_to_scanners() -> None:
    several = {generate() for _ in range(100)}
    assert len(several) == 100
    assert all(each.startswith(PREFIX) and len(each) >= len(PREFIX) + 43 for each in several)
    assert all(each.isascii() and each.isprintable() for each in several)


def test_what_is_kept_of_a_key_does_not_tell_it() -> None:
    secret = generate()
    kept = made("a", secret, now=NOW, limits=KeyLimits(), expires=NOW + 1)
    assert (kept.sha256, kept.hint, kept.created) == (digest(secret), secret[-4:], 1_790_000_000.0)
    assert secret[:-4] not in repr(kept)


def test_a_first_key_makes_the_file_for_its_owner_alone(tmp_path: Path) -> None:
    file, old = tmp_path / "keys.toml", os.umask(0)
    try:
        add(file, key(), nobody_waits)
    finally:
        os.umask(old)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert set(read_file(file)) == {"new"}
    assert leftovers(file) == set()


def test_a_shared_directory_gives_the_file_to_its_group(tmp_path: Path) -> None:
    """As that of the service, where the daemon's user owns files and the gateway's group reads them."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o2750)
    add(shared / "keys.toml", key(), nobody_waits)
    found = (shared / "keys.toml").stat()
    assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o640, shared.stat().st_gid)


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to other users")
def test_what_root_makes_is_its_directory_s(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    os.chown(shared, 12345, 23456)
    shared.chmod(0o2750)
    add(shared / "keys.toml", key(), nobody_waits)
    found = (shared / "keys.toml").stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (12345, 23456, 0o640)
    os.chown(shared / "keys.toml", 34567, 23456)
    revoke(shared / "keys.toml", "new", NOW, nobody_waits)
    found = (shared / "keys.toml").stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (34567, 23456, 0o640)


def test_an_owner_that_cannot_be_kept_is_an_error_and_nothing_changes(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fstat

    def of_another(number: int) -> os.stat_result:
        return os.stat_result([*real(number)[:4], 54321, *real(number)[5:]])

    def not_allowed(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(key_edit.os, "fstat", of_another)
    monkeypatch.setattr(key_edit.os, "fchown", not_allowed)
    with pytest.raises(PermissionError):
        add(file, key(), nobody_waits)
    assert file.read_text() == BY_HAND
    assert leftovers(file) == set()


def test_a_key_is_added_behind_what_people_wrote(file: Path) -> None:
    before = file.stat()
    limits = KeyLimits(requests_per_minute=600, usd_per_day=usd("25"))
    one = key(models=("chat", "small-*"), limits=limits, expires=NOW + 86_400)
    add(file, one, nobody_waits)
    assert file.read_text().startswith(BY_HAND)
    assert read_file(file)["new"] == one
    assert set(read_file(file)) == {"team-a", "quoted", "new"}
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert file.stat().st_ino != before.st_ino  # readers see the old file or the new one
    assert leftovers(file) == set()


@pytest.mark.parametrize("end", ["", "\n", "\n\n", "\r\n", "  # end"])
def test_whatever_the_file_ends_with(file: Path, end: str) -> None:
    file.write_bytes((BY_HAND.rstrip() + end).encode())
    add(file, key(), nobody_waits)
    assert set(read_file(file)) == {"team-a", "quoted", "new"}


@pytest.mark.parametrize("name", ["team-a", "quoted"])
def test_a_revoked_key_is_marked_and_everything_else_stays(file: Path, name: str) -> None:
    was = revoke(file, name, NOW, nobody_waits)
    assert was.state(NOW) is KeyState.VALID
    keys = read_file(file)
    assert keys[name].revoked == 1_790_000_000.0
    assert [each for each, key in keys.items() if key.revoked is None] == [
        each for each in ("team-a", "quoted") if each != name
    ]
    lines = file.read_text().splitlines()
    assert [line for line in lines if not line.startswith("revoked = ")] == BY_HAND.splitlines()
    again = file.read_bytes()
    assert revoke(file, name, NOW + 9, nobody_waits).state(NOW) is KeyState.REVOKED
    assert file.read_bytes() == again  # when it was revoked stays


def test_lines_that_end_as_on_windows_stay_so(file: Path) -> None:
    file.write_bytes(BY_HAND.replace("\n", "\r\n").encode())
    revoke(file, "team-a", NOW, nobody_waits)
    assert read_file(file)["team-a"].revoked == 1_790_000_000.0
    assert file.read_bytes().count(b"\r\n") == file.read_bytes().count(b"\n") == BY_HAND.count("\n") + 1


@pytest.mark.parametrize(
    "text",
    [
        f'key.team-a = {{ sha256 = "{digest("a")}" }}\n',
        f'[key]\nteam-a = {{ sha256 = "{digest("a")}" }}\n',
        f'[key.team-a]\nsha256 = "{digest("a")}"\nrevoked = false\n',
        f'[key.b]\nsha256 = "{digest("b")}"\nmodels = ["""\n[key.team-a]\n"""]\n'
        f'["key"."team-a"]\nsha256 = "{digest("a")}"\n',
    ],
)
def test_a_form_that_cannot_be_changed_is_left_alone(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(KeyFileError, match="change it by hand"):
        revoke(file, "team-a", NOW, nobody_waits)
    assert file.read_text() == text
    assert leftovers(file) == set()


@pytest.mark.parametrize("text", ["[key.a\n", '[key.a]\nsha256 = "x"\n', "x = 1\n", "\xff"])
def test_a_bad_file_is_left_alone(file: Path, text: str) -> None:
    file.write_text(text, encoding="latin-1")
    for change in (lambda: add(file, key(), nobody_waits), lambda: revoke(file, "a", NOW, nobody_waits)):
        with pytest.raises(KeyFileError):
            change()
    assert file.read_text(encoding="latin-1") == text


def test_names_that_are_there_or_not(file: Path) -> None:
    with pytest.raises(FileExistsError):
        add(file, key("team-a"), nobody_waits)
    with pytest.raises(KeyError):
        revoke(file, "team-b", NOW, nobody_waits)
    with pytest.raises(FileNotFoundError):
        revoke(file.with_name("none"), "team-a", NOW, nobody_waits)
    with pytest.raises(FileNotFoundError):
        add(file.parent / "none" / "keys.toml", key(), nobody_waits)
    assert file.read_text() == BY_HAND
    assert leftovers(file) == set()


def test_a_link_stays_a_link(file: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    real = file.rename(tmp_path / "real" / "keys.toml")
    file.symlink_to(real)
    add(file, key(), nobody_waits)
    assert file.is_symlink()
    assert set(read_file(real)) == {"team-a", "quoted", "new"}


def test_a_full_disk_leaves_the_old_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(key_edit.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        add(file, key(), nobody_waits)
    assert file.read_text() == BY_HAND
    assert leftovers(file) == set()


def test_what_a_killed_command_left_is_cleared(tmp_path: Path) -> None:
    file, other = tmp_path / "keys.toml", tmp_path / ".other.toml.00.partial"
    for left in (tmp_path / ".keys.toml.00.partial", other):
        left.write_text("half of")
    add(file, key(), nobody_waits)
    assert set(tmp_path.iterdir()) == {file, other}


def test_who_waits_for_another_says_so_and_loses_nothing(file: Path) -> None:
    waits = threading.Event()
    holder = os.open(file.parent, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    thread = threading.Thread(target=add, args=(file, key("waited"), waits.set))
    thread.start()
    assert waits.wait(20)
    assert file.read_text() == BY_HAND
    file.write_text(BY_HAND + f'[key.meanwhile]\nsha256 = "{digest("m")}"\n')
    os.close(holder)
    thread.join(20)
    assert set(read_file(file)) == {"team-a", "quoted", "meanwhile", "waited"}


PROCESS = """
import sys
from pathlib import Path
from orchestrator.gateway.accounts.key_edit import add, generate, made, revoke
from policies.keys import KeyLimits
file, own = Path(sys.argv[1]), sys.argv[2]
for number in range(8):
    name = f"{own}-{number}"
    add(file, made(name, generate(), now=1.0, limits=KeyLimits(), expires=None), lambda: None)
    if number % 2:
        revoke(file, name, 2.0, lambda: None)
"""


def test_several_processes_at_once_lose_nothing(file: Path) -> None:
    running = [subprocess.Popen([sys.executable, "-c", PROCESS, str(file), f"p{n}"]) for n in range(4)]
    seen = [set(read_file(file))]
    while any(child.poll() is None for child in running):
        now = set(read_file(file))
        assert now >= seen[-1]  # at every instant the file is whole
        seen.append(now)
    assert [child.returncode for child in running] == [0] * 4
    keys = read_file(file)
    assert set(keys) == {"team-a", "quoted"} | {f"p{n}-{k}" for n in range(4) for k in range(8)}
    assert {name for name, key in keys.items() if key.revoked is not None} == {
        f"p{n}-{k}" for n in range(4) for k in (1, 3, 5, 7)
    }
    assert leftovers(file) == set()
