"""An endpoint that Envoy has not checked yet is new, which is not the same as sick."""

import asyncio

from policies.model import TargetSpec, TargetState
from tests.support.balancer_programs import Envoy


async def test_an_endpoint_is_new_until_its_first_check_is_answered_or_given_up(stand):
    at = await stand(Envoy, "a")
    (a,) = at.servers
    await at.balancer.apply([a.spec()], 1)
    await at.until(a=TargetState.HEALTHY)
    silent = await asyncio.start_server(lambda reader, _: reader.read(), "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    async with silent:
        await at.balancer.apply([a.spec(), TargetSpec(id="b", address=f"127.0.0.1:{port}")], 2)
        assert await at.states() == {"a": TargetState.HEALTHY, "b": TargetState.INITIAL}
        assert {await at.ask() for _ in range(10)} == {"a"}
        await at.until(a=TargetState.HEALTHY, b=TargetState.UNHEALTHY)
