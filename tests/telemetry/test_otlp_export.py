"""The real exporter against a real HTTP server that reads what OTLP says."""

import asyncio

from aiohttp import web
from aiohttp.test_utils import TestServer
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from gateway.secret import Secret
from gateway.telemetry import OtlpSettings


class Collector:
    """An OTLP/HTTP collector: keeps what it was sent, answers with `status`."""

    def __init__(self) -> None:
        self.status = 200
        self.keys: list[str] = []
        self.requests: list[ExportTraceServiceRequest] = []

    async def traces(self, request: web.Request) -> web.Response:
        self.keys.append(request.headers.get("x-collector-key", ""))
        self.requests.append(ExportTraceServiceRequest.FromString(await request.read()))
        return web.Response(status=self.status, content_type="application/x-protobuf")


async def started(collector: Collector) -> TestServer:
    app = web.Application()
    app.router.add_post("/v1/traces", collector.traces)
    server = TestServer(app)
    await server.start_server()
    return server


async def test_a_collector_gets_the_call_and_its_attempts(start, record):
    collector = Collector()
    server = await started(collector)
    endpoint = str(server.make_url("/v1/traces"))
    telemetry = await start(otlp=OtlpSettings(endpoint, {"x-collector-key": Secret("k")}), resource={"deployment.id": "blue"})
    telemetry.publish(record)
    assert await telemetry.close()
    await server.close()
    assert collector.keys == ["k"]
    [resource_spans] = collector.requests[0].resource_spans
    resource = {pair.key: pair.value.string_value for pair in resource_spans.resource.attributes}
    assert (resource["service.name"], resource["deployment.id"]) == ("lockgate", "blue")
    spans = {span.name: span for span in resource_spans.scope_spans[0].spans}
    assert set(spans) == {"chat small", "chat small-1"}
    assert spans["chat small"].start_time_unix_nano == record.received_ns
    assert spans["chat small-1"].parent_span_id == spans["chat small"].span_id


async def test_a_collector_that_refuses_is_counted_and_hurts_nobody(start, lines, record):
    collector = Collector()
    collector.status = 400
    server = await started(collector)
    telemetry = await start(otlp=OtlpSettings(str(server.make_url("/v1/traces"))))
    telemetry.publish(record)
    assert await telemetry.close()
    await server.close()
    assert len(lines.json()) == 1
    assert b'lockgate_telemetry_dropped_total{view="spans"} 3.0' in telemetry.metrics()


async def test_a_collector_that_never_answers_does_not_hold_up_the_end(start, record):
    reached, release = asyncio.Event(), asyncio.Event()

    async def hang(_request: web.Request) -> web.Response:
        reached.set()
        await release.wait()
        return web.Response()

    app = web.Application()
    app.router.add_post("/v1/traces", hang)
    server = TestServer(app)
    await server.start_server()
    telemetry = await start(otlp=OtlpSettings(str(server.make_url("/v1/traces"))))
    telemetry.publish(record)
    closing = asyncio.create_task(telemetry.close(timeout_s=0.2))
    async with asyncio.timeout(30):
        await reached.wait()
        assert not await closing
    release.set()
    async with asyncio.timeout(30):
        assert await telemetry.close(timeout_s=30)
    await server.close()
