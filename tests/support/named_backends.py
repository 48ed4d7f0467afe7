"""Servers behind a balancer that name themselves."""

from __future__ import annotations

from aiohttp import web

from policies.model import TargetPhase, TargetSpec


class NamedBackend:
    """Answers every path with its name; /health with `health`."""

    def __init__(self, name: str) -> None:
        self.name, self.health, self.served = name, 200, 0

    async def start(self) -> None:
        """Listen on a free port."""
        app = web.Application()
        app.router.add_get("/health", self._health)
        app.router.add_get("/healthz", self._health)
        for path in ("/v1/models", "/server_info", "/get_server_info", "/model_info", "/get_model_info"):
            app.router.add_get(path, self._model)
        app.router.add_route("*", "/{path:.*}", self._name)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.address = f"127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        """Close every connection."""
        await self._runner.cleanup()

    def spec(self, phase: TargetPhase = TargetPhase.ACTIVE, weight: int = 100) -> TargetSpec:
        """Its target."""
        return TargetSpec(id=self.name, address=self.address, phase=phase, weight=weight)

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(status=self.health)

    async def _name(self, _: web.Request) -> web.Response:
        self.served += 1
        return web.json_response({"name": self.name})

    async def _model(self, _: web.Request) -> web.Response:
        """What routers ask an engine that is new to them."""
        listed = [{"id": "m", "object": "model", "owned_by": "vllm"}]
        return web.json_response(
            {"object": "list", "data": listed, "model_path": "m", "served_model_name": "m"}
        )
