"""The kinds of provider, by the names that the configuration has for them."""

from __future__ import annotations

from cloud.providers.anthropic import Anthropic
from cloud.providers.openai import OpenAi
from cloud.providers.wire import Wire

KINDS = ("openai", "anthropic")


def wire_of(kind: str, url: str, *, api_version: str = "2023-06-01", sampling: bool = False) -> Wire:
    """The form of a provider of one of the KINDS at this URL. The other arguments are Anthropic's."""
    if kind == "openai":
        return OpenAi(url)
    if kind == "anthropic":
        return Anthropic(url, api_version=api_version, sampling=sampling)
    raise ValueError(f"a provider is of kind {' or '.join(KINDS)}, not {kind!r}")
