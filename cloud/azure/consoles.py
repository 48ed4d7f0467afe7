"""What machines write on their consoles, as Azure's boot diagnostics keep it until a machine is deleted."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from cloud.azure.clients import COMPUTE_VERSION, AzureAccount, AzureClients, Lane
from cloud.azure.errors import code_of
from cloud.errors import CloudError, Denied, Misconfigured, NotFound
from cloud.ports import console_end

_KEPT: Final = 64
"""Machines whose console is remembered as it was read last: their logs go with them."""
_READ: Final = 64 * 1024
"""Bytes that are kept of a log while it is read: escapes and blank lines go afterwards."""
_NO_LOG: Final = ("BlobNotFound", "BootDiagnosticsNotEnabled", "OperationNotAllowed", "Conflict")
"""Codes by which Azure says that a machine has written nothing yet, or keeps no log."""


class Consoles:
    """Reads consoles, and remembers what it read."""

    def __init__(self) -> None:
        self._texts: OrderedDict[str, str] = OrderedDict()

    def kept(self, node: str) -> str | None:
        """What was read of a machine last; None for one that was never asked for."""
        return self._texts.get(node)

    async def read(self, node: str, clients: AzureClients, resource_group: str) -> str:
        """The end of a console, empty where nothing was written. Raises NotFound for a machine that is gone,
        and CloudError."""

        def address(account: AzureAccount) -> str:
            found = account.compute().virtual_machines.retrieve_boot_diagnostics_data(
                resource_group, node, api_version=COMPUTE_VERSION
            )
            return str(found.as_dict().get("serialConsoleLogBlobUri") or "")

        text = ""
        try:
            where = await clients.call(
                Lane.CONSOLE, "virtual_machines.boot_diagnostics", address, lost=CloudError
            )
            text = await self._log(clients, where)
        except (Denied, Misconfigured) as error:
            if code_of(error) not in _NO_LOG:
                raise
        self._texts[node] = text
        self._texts.move_to_end(node)
        if len(self._texts) > _KEPT:
            self._texts.popitem(last=False)
        return text

    async def _log(self, clients: AzureClients, where: str) -> str:
        """What lies at the address of a log; nothing where there is none yet."""
        if not where:
            return ""
        try:
            written = await clients.call(
                Lane.CONSOLE, "console.read", lambda account: account.download(where, _READ), lost=CloudError
            )
        except NotFound:
            return ""
        return console_end(written.decode("utf-8", "replace"))
