"""The simulated HTTP tools answer with what they received, and misbehave as the rest of the simulator does."""

import aiohttp
import pytest

from gateway.simulator import Fault, FaultRule, Match, Scenario, Simulator


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
async def test_a_tool_echoes_the_request_as_it_came(method):
    async with Simulator() as sim, aiohttp.ClientSession() as session:
        body = None if method in ("GET", "DELETE") else {"amount": 5}
        url = f"{sim.root}/tools/pay/DE%2F1%20x?q=a%26b&q=c&empty="
        async with session.request(method, url, json=body, headers={"Authorization": "Bearer secret", "X-Team": "blue"}) as answer:
            echo = await answer.json()
        assert (answer.status, echo["method"], echo["query"], echo["body"]) == (200, method, [["q", "a&b"], ["q", "c"], ["empty", ""]], body)
        assert echo["path"] == "/tools/pay/DE%2F1%20x"
        assert echo["headers"]["x-team"] == "blue"
        assert "secret" not in str(echo)
        (entry,) = sim.requests
        assert (entry.method, entry.status, entry.end) == (method, 200, "completed")


async def test_faults_of_the_header_and_the_scenario_are_those_of_every_endpoint():
    scenario = Scenario((FaultRule(Fault(status=503, retry_after_s=2.0, times=1), Match(path="/tools/*")),))
    async with Simulator(scenario) as sim, aiohttp.ClientSession() as session:
        async with session.post(f"{sim.root}/tools/x", json={}) as answer:
            assert (answer.status, answer.headers["retry-after"], (await answer.json())["status"]) == (503, "2", 503)
        async with session.post(f"{sim.root}/tools/x", json={}, headers={"x-sim-fault": "huge=5000"}) as answer:
            assert len(await answer.read()) > 5000
        async with session.post(f"{sim.root}/tools/x", json={}, headers={"x-sim-fault": "garbage=html"}) as answer:
            assert answer.content_type == "text/html"
        async with session.post(f"{sim.root}/tools/x", data=b"{") as answer:
            assert (answer.status, (await answer.json())["title"]) == (400, "simulated")
        async with session.post(f"{sim.root}/tools/x", json={}, headers={"x-sim-fault": "stauts=500"}) as answer:
            assert (answer.status, (await answer.json())["title"]) == (400, "invalid_fault")
