"""Access tokens of Google, by google-auth in a thread of its own.

Credentials are found as Google's own tools find them (application default credentials: the file that
GOOGLE_APPLICATION_CREDENTIALS names, `gcloud auth application-default login`, workload identity, the service
account of the machine), or are those of a key file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Protocol

from cloud.errors import Denied
from cloud.threads import WorkerThreads

SCOPE: Final = "https://www.googleapis.com/auth/cloud-platform"


class Tokens(Protocol):
    """Who says as whom calls are made."""

    async def header(self) -> str:
        """The value of Authorization; empty for none. Raises Denied."""
        ...

    def close(self) -> None:
        """Release what is held. Idempotent."""
        ...


class NoTokens:
    """For a stand-in that asks for none."""

    async def header(self) -> str:
        """None."""
        return ""

    def close(self) -> None:
        """Nothing is held."""


class GoogleTokens:
    """Tokens of the daemon's credentials, each used until it is about to run out."""

    def __init__(self, key_file: Path | None = None) -> None:
        self._key_file = key_file
        self._threads = WorkerThreads("gcp-auth", 1)
        self._credentials: Any = None
        self._request: Any = None

    async def header(self) -> str:
        """The value of Authorization. Raises Denied where there are no credentials, or they are refused."""
        if self._credentials is not None and self._credentials.valid:
            return f"Bearer {self._credentials.token}"
        return await self._threads.run(self._fresh)

    def close(self) -> None:
        """End the thread."""
        self._threads.close()

    def _fresh(self) -> str:
        try:
            import google.auth
            import google.auth.transport.requests
            from google.auth.exceptions import GoogleAuthError
            from google.oauth2 import service_account
        except ImportError:
            raise Denied("google-auth is not installed: pip install 'spot-orchestrator[gcp]'") from None
        try:
            if self._credentials is None:
                self._request = google.auth.transport.requests.Request()
                if self._key_file is not None:
                    self._credentials = service_account.Credentials.from_service_account_file(
                        str(self._key_file), scopes=[SCOPE]
                    )
                else:
                    self._credentials, _ = google.auth.default(scopes=[SCOPE])
            if not self._credentials.valid:
                self._credentials.refresh(self._request)
        except (GoogleAuthError, OSError, ValueError) as error:
            raise Denied(f"no access token of Google: {error}") from error
        return f"Bearer {self._credentials.token}"
