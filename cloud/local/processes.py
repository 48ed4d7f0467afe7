"""Finding and ending every process of a node, also those that left its process group.

Standard library only: the same file runs as a script, the guard, which ends all nodes of a cloud that was
killed (see `main`). A process belongs to a node when it is in the process group that the cloud started, or
when it carries the cloud's mark in its environment. Two signs, since engines rename themselves (which may
overwrite the environment) and their helpers may open sessions of their own, but hardly ever both.
"""

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator

MARK = "ORCHESTRATOR_LOCAL_CLOUD"  # in a node's environment: "<cloud id>/<node id>"
_PR_SET_PDEATHSIG = 1
_ROUNDS = 200
_UNMARKED = 0.05  # s for which a process that is being started may show no environment: an exec hides it


def start_time(pid: int) -> int | None:
    """When the kernel says the process began (clock ticks since boot), None when it is gone or a zombie."""
    fields = _stat(pid)
    return None if fields is None or fields[0] in "ZX" else int(fields[19])


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from `state` on (proc(5) field 3)."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return None


def _living() -> Iterator[tuple[int, int, int]]:
    """Id, process group and start time of every process that is no zombie: those hold only a number."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            fields = _stat(int(name))
            if fields is not None and fields[0] not in "ZX":
                yield int(name), int(fields[2]), int(fields[19])


def members(group: int) -> dict[int, int]:
    """The living members of a process group, with their start times."""
    return {pid: began for pid, its_group, began in _living() if its_group == group}


def belonging(marks: Collection[str], groups: Collection[int] = ()) -> set[int]:
    """Living processes that carry one of the `marks` (or a mark below it), or are in one of the `groups`."""
    wanted, own = frozenset(groups), os.getpid()
    exact = {f"{MARK}={mark}".encode() for mark in marks}
    below = tuple(mark + b"/" for mark in exact)
    found = set()
    for pid, group, _ in _living():
        if pid != own and (group in wanted or _marked(pid, exact, below)):
            found.add(pid)
    return found


def _marked(pid: int, exact: set[bytes], below: tuple[bytes, ...]) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            variables = file.read().split(b"\0")
    except OSError:
        return False
    return any(variable in exact or variable.startswith(below) for variable in variables)


def signal_group(group: int, number: int) -> bool:
    """Signal a process group. False when it no longer exists or is not ours."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def signal_all(pids: Collection[int], number: int) -> None:
    """Signal processes; those that have gone, or are not ours, are left alone."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def kill_belonging(marks: Collection[str], groups: Collection[int] = ()) -> int:
    """Kill until nothing is left. Returns how many processes were found.

    Scans again after each kill, since a process may have forked between the look and the signal.
    """
    killed: set[int] = set()
    for _ in range(_ROUNDS):
        found = belonging(marks, groups)
        if not found:
            break
        signal_all(found, signal.SIGKILL)
        killed |= found
    return len(killed)


def kill_for_good(marks: Collection[str], groups: Collection[int] = ()) -> None:
    """The same where nothing is started any more, with a second look for what was just being started."""
    kill_belonging(marks, groups)
    time.sleep(_UNMARKED)  # noqa: TID251 - real processes, and the last thing that is done
    kill_belonging(marks)


def dying_with_parent() -> Callable[[], None]:
    """A `preexec_fn`: the kernel kills the child when the thread that started it ends.

    Prepared before the fork, since between fork and exec nothing may be imported or locked.
    """
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def prepare() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # the parent died before the kernel knew
            os._exit(1)

    return prepare


def main(arguments: list[str]) -> int:
    """The guard: wait until the cloud closes its end of standard input, then kill what it left.

    The cloud writes a line "+GROUP" for every process group that it starts, "-GROUP" when the group has
    ended, and "end" before it ends in order; end of file without "end" means that it was killed.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a terminal's Ctrl-C is for the cloud; the guard leaves last
    groups: set[int] = set()
    for line in sys.stdin:
        word = line.strip()
        if word == "end":
            return 0
        if word.startswith("+"):
            groups.add(int(word[1:]))
        elif word.startswith("-"):
            groups.discard(int(word[1:]))
    kill_for_good(arguments, groups)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
