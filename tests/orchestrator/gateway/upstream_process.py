"""An engine as a process of its own, to be killed: prints its port, answers plain requests and streams."""

from __future__ import annotations

import asyncio
import sys

from aiohttp import web

GAP = float(sys.argv[1])  # s between tokens


async def health(_: web.Request) -> web.Response:
    return web.Response()


async def chat(request: web.Request) -> web.StreamResponse:
    fields = await request.json()
    if not fields.get("stream"):
        await asyncio.sleep(GAP * 5)
        return web.json_response(
            {"choices": [{"index": 0, "message": {"content": "x"}, "finish_reason": "stop"}]}
        )
    out = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await out.prepare(request)
    for _ in range(20):
        await out.write(b'data: {"choices":[{"index":0,"delta":{"content":"x"},"finish_reason":null}]}\n\n')
        await asyncio.sleep(GAP)
    await out.write(b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n')
    return out


async def main() -> None:
    app = web.Application()
    app.router.add_get("/health", health)
    app.router.add_post("/v1/chat/completions", chat)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)  # ends with the test


if __name__ == "__main__":
    asyncio.run(main())
