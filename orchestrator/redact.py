"""Takes secrets out of what people show to others: a configuration, a support bundle.

The configuration names secrets as files and never holds one, so what is hidden here is what slips in by other
doors: variables and flags of the engine, passwords in addresses, keys in a log. It errs on the side of
hiding. A bare `token` is the idempotency token of a launch here, no secret, and stays.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

HIDDEN: Final = "(hidden)"

_SHORTEST = 6
"""Characters of a known secret below which it is not searched for: it would hide half of the text."""

_NAME: Final = (
    r"[A-Za-z0-9_.-]*(?:secret|passw(?:or)?d|credentials?|authorization|(?:api|access|private|signing)[_-]?key"
    r"|[A-Za-z0-9][_-]token)(?:[_-](?:access[_-]?key|key|id|value))?"
)
_SECRET_NAME: Final = re.compile(_NAME, re.IGNORECASE)
_NAMED: Final = re.compile(
    rf"""(?P<head>(?<![A-Za-z0-9_.-])["']?{_NAME}["']?\s*[=:]\s*)(?P<value>"[^"]*"|'[^']*'|[^\s,;}}\]]+)""",
    re.IGNORECASE,
)
_FLAG: Final = re.compile(rf"(?P<head>(?<![A-Za-z0-9_-])--{_NAME}[\s=]+)(?P<value>[^\s\"',]+)", re.IGNORECASE)
_BEARER: Final = re.compile(r"(?P<head>\bBearer\s+)[A-Za-z0-9._~+/=-]+", re.IGNORECASE)
_PASSWORD: Final = re.compile(r"(?P<head>\b[a-z][a-z0-9+.-]{0,40}://[^\s/:@]*:)[^\s/@]+(?=@)", re.IGNORECASE)
_AWS_KEY: Final = re.compile(r"(?P<head>)\b(?:AKIA|ASIA)[A-Z0-9]{16}\b")
_CLIENT_KEY: Final = re.compile(r"(?P<head>)(?<![A-Za-z0-9_-])sk-[A-Za-z0-9_-]{16,}")
"""Of our own gateway, and of most providers."""
_KEPT: Final = ("", "off", HIDDEN)


class Redactor:
    """Hides what looks like a secret, and every one of the `secrets` wherever it stands."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        known = sorted({s for s in secrets if len(s) >= _SHORTEST}, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, known))) if known else None

    def text(self, text: str) -> str:
        """The text with every secret replaced by HIDDEN."""
        if self._known is not None:
            text = self._known.sub(HIDDEN, text)
        for pattern in (_PASSWORD, _BEARER, _AWS_KEY, _CLIENT_KEY):
            text = pattern.sub(rf"\g<head>{HIDDEN}", text)
        for pattern in (_NAMED, _FLAG):
            text = pattern.sub(_hide_value, text)
        return text

    def value(self, value: Any, name: str = "") -> Any:
        """The same for a value of JSON or TOML that stands under `name`; keys that name a file keep it."""
        if isinstance(value, Mapping):
            return {key: self.value(item, str(key)) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return self._list([self.value(item, name) for item in value])
        if not isinstance(value, str):
            return value
        if _SECRET_NAME.fullmatch(name) and value not in _KEPT:
            return HIDDEN
        return self.text(value)

    def _list(self, items: list[Any]) -> list[Any]:
        """A list of flags may have a secret as the item after its name."""
        after = [None, *items]
        return [
            HIDDEN if isinstance(item, str) and isinstance(flag, str) and _is_secret_flag(flag) else item
            for flag, item in zip(after, items, strict=False)
        ]


def _is_secret_flag(flag: str) -> bool:
    return flag.startswith("--") and _SECRET_NAME.fullmatch(flag[2:]) is not None


def _hide_value(match: re.Match[str]) -> str:
    value = match["value"]
    quote = value[0] if value[:1] in ("'", '"') else ""
    return match[0] if value.strip("'\"") in _KEPT else f"{match['head']}{quote}{HIDDEN}{quote}"
