"""The JSON of `orchestrator keys`. The rules of `orchestrator.views.api` hold here too."""

from __future__ import annotations

from typing import Annotated, Literal, TypedDict


class KeyLimitsView(TypedDict):
    """What a key may use; null is no limit."""

    requests_per_minute: int | None
    tokens_per_minute: int | None
    in_flight: int | None
    usd_per_day: Annotated[float | None, "a day in UTC"]


class KeyUseView(TypedDict):
    """What a key used since the day began (UTC)."""

    requests: int
    tokens_in: int
    tokens_out: int


class KeyNowView(TypedDict):
    """What a key with limits uses now: of the minute that ends, in flight, and of its dollars of the day."""

    requests: int
    tokens: int
    in_flight: int
    usd_today: Annotated[float, "what is held for requests in flight included"]


class KeyView(TypedDict):
    """A key of a client, of which the key itself is known nowhere."""

    name: str
    state: Literal["valid", "expired", "revoked"]
    hint: Annotated[str, "its last characters"]
    models: Annotated[list[str], 'patterns of names that it may ask for; ["*"] for all']
    limits: KeyLimitsView
    created: Annotated[float | None, "seconds since 1970; null where the file does not say"]
    expires: Annotated[float | None, "likewise; null for never"]
    revoked: Annotated[float | None, "likewise; 0 where the file does not say when"]


class ListedKeyView(KeyView):
    """A key in a list."""

    today: Annotated[KeyUseView | None, "null where no gateway counts, as the usage file cannot be read"]
    now: Annotated[KeyNowView | None, "what its limits are held against; null where that cannot be read"]


class KeysView(TypedDict):
    """`keys list -o json`."""

    schema: Literal["keys/1"]
    file: str
    keys: list[ListedKeyView]


class NewKeyView(TypedDict):
    """`keys new -o json`."""

    schema: Literal["new-key/1"]
    file: str
    key: Annotated[str, "the key itself, which is shown this once"]
    made: KeyView


class RevokedKeyView(TypedDict):
    """`keys revoke -o json`."""

    schema: Literal["revoked-key/1"]
    file: str
    name: str
    was: Annotated[Literal["valid", "expired", "revoked"], "its state before"]
