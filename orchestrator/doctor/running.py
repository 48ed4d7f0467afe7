"""The running daemon and gateway, judged: do they answer, are they of this version, do they agree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.doctor.findings import Finding, Findings, fail, ok, skipped, warn
from orchestrator.doctor.machine import Listener
from orchestrator.units import HostPort
from orchestrator.words import plural

_OURS = ("orchestrator", "systemd", "/sbin/init")  # systemd holds the gateway's sockets for it


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """An address that the configuration names. `key` is where; `process` opens it."""

    key: str
    at: HostPort
    process: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonFacts:
    """What a daemon says of itself. `loaded_at`: when it read its configuration; `rejected`: why it refused
    the newest one, empty when it did not. `silent`: seconds for which its database has not answered."""

    version: str
    pid: int
    states: Mapping[str, str]
    leading: bool
    journal_ok: bool
    loaded_at: float
    rejected: Sequence[str]
    silent: float | None = None


def daemon(
    answer: DaemonFacts | None, error: str, *, holder: int | None, installed: str, changed_at: float
) -> Findings:
    """Whether the daemon answers, is of this version, and has the configuration of the file. `holder` is the
    pid that holds the lease, 0 for nobody; `changed_at` is when the file was changed, 0 for none."""
    if answer is None:
        if holder:
            text = f"pid {holder} holds the lease, and does not answer: {error}"
            advice = "look at its log; run this as its user if the socket refuses you"
            return [fail(text, advice)]
        return [warn("no daemon runs", "start one: orchestrator run --config FILE")]
    return [
        ok(f"pid {answer.pid} answers; {_states(answer.states)}"),
        *_doubts(answer, installed, changed_at),
    ]


def _states(states: Mapping[str, str]) -> str:
    """How the pools are, in words; `states` by name."""
    if len(states) == 1:
        return f"the pool is {next(iter(states.values()))}"
    return ", ".join(f"{name} is {state}" for name, state in states.items()) or "it runs no pool"


def _doubts(answer: DaemonFacts, installed: str, changed_at: float) -> Iterator[Finding]:
    if answer.silent is not None:
        text = f"its database has not answered for {answer.silent:.0f} s, so it only takes noticed nodes out"
        yield fail(text, "look at the database, and at the way to it")
    elif not answer.leading:
        yield fail("it does not hold the lease, so it only watches", "look at its log for who holds it")
    if not answer.journal_ok and answer.silent is None:
        advice = "look at the checks of the state: space, owner, file system"
        yield fail("it cannot write its journal, so it ends no node and launches none", advice)
    if answer.version != installed:
        text = f"it runs version {answer.version}, and {installed} is installed"
        yield warn(text, "restart it: that touches no node")
    if answer.rejected:
        text = f"it refused the newest configuration: {'; '.join(answer.rejected)}"
        yield fail(text, "fix the file, then orchestrator reload")
    elif changed_at > answer.loaded_at:
        yield warn("the file was changed after it was read", "orchestrator reload --dry-run, then reload")


def gateway(
    held: Mapping[str, str] | None,
    wanted: Mapping[str, str] | None,
    error: str,
    *,
    file_fault: str = "",
    limits_alone: str = "",
    usage_fault: str = "",
) -> Findings:
    """Whether the gateway answers, has the daemon's targets and files to work with. `held` and `wanted` map
    a node to "active" or "draining"; `wanted` is None when no daemon could be asked. `file_fault` says why
    the gateway does not take its targets file, `limits_alone` why each of its processes keeps the limits of
    keys by what it lets in itself, `usage_fault` why what was used is not in the usage file."""
    found = list(_targets(held, wanted, error))
    if held is not None and limits_alone:
        text = f"each of its processes keeps the limits of keys by itself: {limits_alone}"
        advice = "make room on the disk, or the file writable for the gateway; they are shared again at once"
        found.append(warn(text, advice))
    if held is not None and usage_fault:
        text = f"what is used is counted in its memory alone: {usage_fault}"
        advice = "make room on the disk, or the file (gateway.usage_file) writable for the gateway"
        found.append(warn(text, advice))
    if held is not None and file_fault:
        advice = "a running daemon writes it again; look at its log for why it does not"
        found.append(warn(f"it refuses its targets file: {file_fault}", advice))
    return found


def _targets(held: Mapping[str, str] | None, wanted: Mapping[str, str] | None, error: str) -> Findings:
    """Whether it answers and has the daemon's targets."""
    if held is None:
        if wanted is None:
            return [warn(f"no gateway runs: {error}", "start one: orchestrator gateway --config FILE")]
        text = f"the daemon runs and its gateway does not answer: {error}"
        return [fail(text, "start one: orchestrator gateway --config FILE")]
    if wanted is None:
        text = f"it answers with {len(held)} targets; there is no daemon to compare with"
        return [ok(text)]
    lacks = sorted(n for n, phase in wanted.items() if phase == "active" and held.get(n) != "active")
    extra = sorted(n for n, phase in held.items() if phase == "active" and wanted.get(n) != "active")
    if lacks or extra:
        parts = [f"lacks {', '.join(lacks)}"] if lacks else []
        parts += [f"sends to {', '.join(extra)} as well"] if extra else []
        text = f"its targets are not the daemon's: it {' and '.join(parts)}"
        return [fail(text, "look at the daemon's log for target sets that were refused")]
    return [ok(f"it has the daemon's targets, {len(held)} of them")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Continues:
    """What the gateway says of one target: the `way` in which others finish its answers, and `why` so."""

    node: str
    way: str
    why: str


def continuation(mode: str, asked: Sequence[Continues] | None) -> Findings:
    """Whether answers that a node began are finished by others when it is lost. `mode` is the pool's
    `gateway.continuation`; `asked` is what the gateway found of its targets, None when there is no gateway
    that says it."""
    if mode == "off":
        return [ok("gateway.continuation is off: a stream whose node is lost ends with an error")]
    if asked is None:
        return [skipped("no gateway answers that says whose answers others can finish")]
    if not asked:
        return [skipped("no target has been asked yet")]
    findings = [_cannot(one) for one in asked if one.way != "derender"]
    whole = len(asked) - len(findings)
    if whole:
        findings.append(ok(f"answers of {plural(whole, 'node')} are finished by others when one is lost"))
    return findings


def _cannot(one: Continues) -> Finding:
    lost = "its answers end" if one.way == "none" else "its tool calls and reasoning end"
    advice = (
        "start `vllm serve` with --enable-scale-out (vLLM 0.32 or newer): in the launch template where that "
        "is your own, else orchestrator aws bootstrap and replace the node"
    )
    return warn(f"when it is lost, {lost} with an error: {one.why or 'the engine cannot'}", advice, one.node)


def ports(wanted: Sequence[Address], found: Sequence[Listener], running: Mapping[str, bool]) -> Findings:
    """Whether the addresses are free, or held by processes of ours. `running`: which processes answer."""
    findings = []
    for address in wanted:
        holder = _holder(address.at, found)
        if holder is not None:
            findings.append(_held(address, holder))
        elif running.get(address.process):
            text = f"{address.at} is free, though the {address.process} runs: it has another configuration"
            advice = f"orchestrator reload, or restart the {address.process}"
            findings.append(warn(text, advice, address.key))
        else:
            findings.append(ok(f"{address.at} is free", address.key))
    return findings


def exposure(
    monitoring: Mapping[str, HostPort | None],
    gateway: HostPort | None,
    *,
    own_keys: bool,
    engine_key: bool,
    adds_key: bool,
) -> Findings:
    """Listeners that other machines reach and that ask for nothing. `monitoring`: those that show something,
    by key; `own_keys`: the gateway asks its clients for keys; `engine_key`: engines want a key; `adds_key`:
    the gateway adds that itself, so clients need none."""
    findings = []
    for key, listen in monitoring.items():
        if listen is not None and not listen.loopback:
            findings.append(
                warn(
                    f"{listen} shows metrics and status to everyone who can reach it",
                    "keep it on the loopback or a private network",
                    key,
                )
            )
    open_to_all = not own_keys and (adds_key or not engine_key)
    if gateway is not None and not gateway.loopback and open_to_all:
        why = "the gateway adds the engines' key itself" if adds_key else "engines ask for no key"
        advice = "ask clients for keys (gateway.keys_file, orchestrator keys new), or close the network"
        findings.append(
            warn(f"everyone who can reach {gateway} can use the model: {why}", advice, "gateway.listen")
        )
    return findings or [ok("what asks for no key can be reached from this machine only")]


def _holder(at: HostPort, found: Sequence[Listener]) -> Listener | None:
    everywhere = ("0.0.0.0", "::")  # noqa: S104 - compared, not bound
    for listener in found:
        hosts = ("127.0.0.1", "::1") if at.host == "localhost" else (at.host,)
        same = listener.host in (*hosts, *everywhere) or at.host in everywhere
        if listener.port == at.port and same:
            return listener
    return None


def _held(address: Address, holder: Listener) -> Finding:
    if not holder.pid:
        text = f"{address.at} is held by a process of another user"
        return skipped(text, "run this as root to see which", address.key)
    if any(word in holder.command for word in _OURS):
        return ok(f"{address.at} is held by pid {holder.pid}, one of ours", address.key)
    text = f"{address.at} is held by pid {holder.pid}: {holder.command[:80]}"
    return fail(text, f"end that process, or set {address.key} to another port", address.key)
