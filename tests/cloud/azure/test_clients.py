"""Calls of Azure's SDK from an event loop: what a server may say that no honest one says."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from cloud.azure.clients import AzureAccount, AzureClients, Lane
from cloud.clock import SystemClock
from cloud.errors import CloudError


class Circle:
    """A list whose every page names another one."""

    def __init__(self, pages: int) -> None:
        self.left = pages

    def send_request(self, _request: Any) -> Any:
        self.left -= 1
        link = "https://management.azure.com/next" if self.left else ""
        page = {"value": [{}], "nextLink": link}
        return SimpleNamespace(raise_for_status=lambda: None, json=lambda: page)


@pytest.mark.parametrize(("pages", "ends"), [(1, True), (500, True), (501, False), (10**9, False)])
async def test_a_list_that_goes_round_in_circles_ends(
    pages: int, ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = AzureAccount("subscription")
    monkeypatch.setattr(account, "_clients", lambda: (None, Circle(pages)))
    clients = AzureClients(account, "eastus", clock=SystemClock())
    share = clients.share()

    async def listed() -> list[dict[str, Any]]:
        return await clients.call(Lane.LIST, "list", lambda asked: asked.get("/x", "1"), lost=CloudError)

    if ends:
        assert len(await listed()) == pages
    else:
        with pytest.raises(CloudError, match="/x: more than 500 pages"):
            await listed()
    await share.close()
