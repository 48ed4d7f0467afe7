"""Whether what pools charge keys can be counted, and whether the dollars of a key count everything."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from orchestrator.config.checks.listeners import takes_requests
from orchestrator.config.errors import Found
from orchestrator.config.tables.file import ConfigFile, Role
from orchestrator.gateway.accounts.key_format import KeyFileError, content, read_keys


def charge_errors(parsed: ConfigFile) -> Iterator[Found]:
    """Prices that would be passed over."""
    for name, pool in parsed.pool.items():
        if pool.charge.input is None and pool.charge.model_fields_set:
            yield (
                ("pool", name, "charge", "input"),
                "is missing: without it none of the prices beside it holds",
            )


def charge_warnings(parsed: ConfigFile, role: Role) -> Iterator[Found]:
    """Charges that nobody is charged, and answers that a key's dollars of a day do not count."""
    keys_file = parsed.gateway.keys_file
    if keys_file is None:
        for name, pool in parsed.pool.items():
            if pool.charge.input is not None:
                yield (
                    ("pool", name, "charge"),
                    "charges nobody: there is no gateway.keys_file, so nobody has a key; leave it out, or "
                    "make keys with `orchestrator keys new`",
                )
        return
    free = [name for name, pool in parsed.pool.items() if takes_requests(pool) and pool.charge.input is None]
    if not free or role not in ("gateway", "any") or not (capped := _capped(keys_file)):
        return
    more = f" and {len(capped) - 1} more" if len(capped) > 1 else ""
    for name in free:
        yield (
            ("pool", name, "charge"),
            f"key {capped[0]}{more} may spend so many dollars a day, and what {name} answers uses up none of "
            f"them; write [pool.{name}.charge] with input and output in US dollars per million tokens, or 0 "
            "where that is meant",
        )


def _capped(file: Path) -> list[str]:
    """Names of the keys with dollars a day; none of a file that cannot be taken, which is said elsewhere."""
    try:
        keys = read_keys(content(file)).values()
    except (KeyFileError, OSError):
        return []
    return [key.name for key in keys if key.revoked is None and key.limits.usd_per_day is not None]
