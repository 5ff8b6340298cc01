"""`/metrics` in Prometheus's text format."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Any

from litestar import Response, get
from litestar.types import ASGIApp, Message, Receive, Scope, Send
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from appliance.api import device_metrics, stopping
from appliance.engine.protocol import Finished
from appliance.hardware.lease import Ledger
from appliance.hardware.sensors import Sensors
from appliance.records import JobStatus
from appliance.serving.router import Router

SECONDS_BUCKETS = (0.005, 0.02, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """Counters of this daemon's life, and gauges read when asked."""

    def __init__(
        self,
        *,
        jobs_by_status: Callable[[], dict[str, int]],
        router: Router,
        ledger: Ledger,
    ) -> None:
        self.registry = CollectorRegistry()
        self._jobs_by_status = jobs_by_status
        self._router = router
        self._ledger = ledger
        self._started_at = time.time()
        self._requests = Counter(
            "appliance_http_requests",
            "HTTP requests by method and status",
            ["method", "status"],
            registry=self.registry,
        )
        self._tokens = Counter(
            "appliance_tokens", "Tokens of finished answers", ["kind"], registry=self.registry
        )
        self._prompt = Histogram(
            "appliance_prompt_seconds",
            "Time from the start of the work on a request to its first token",
            buckets=SECONDS_BUCKETS,
            registry=self.registry,
        )
        self._generation = Histogram(
            "appliance_generation_seconds",
            "Time from an answer's first token to its last",
            buckets=SECONDS_BUCKETS,
            registry=self.registry,
        )
        self.registry.register(self)

    def count_request(self, method: str, status: int) -> None:
        """Count an HTTP answer."""
        self._requests.labels(method, str(status)).inc()

    def count_answer(self, finished: Finished) -> None:
        """Count a finished answer's tokens and time."""
        self._tokens.labels("prompt").inc(finished.prompt_tokens)
        self._tokens.labels("cached").inc(finished.cached_tokens)
        self._tokens.labels("completion").inc(finished.completion_tokens)
        self._prompt.observe(finished.prompt_seconds)
        self._generation.observe(finished.generation_seconds)

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """What is read only when asked (prometheus_client's collector protocol)."""
        jobs = GaugeMetricFamily("appliance_jobs", "Fine-tuning jobs by status", labels=["status"])
        counts = self._jobs_by_status()
        for status in JobStatus:
            jobs.add_metric([status.value], counts.get(status.value, 0))
        yield jobs
        requests = GaugeMetricFamily(
            "appliance_model_requests", "Requests in loaded models", labels=["model"]
        )
        for name, users in self._router.loaded().items():
            requests.add_metric([name], users)
        yield requests
        yield from self._engines()
        yield GaugeMetricFamily(
            "appliance_memory_capacity_bytes",
            "The device's memory that can be granted",
            value=self._ledger.capacity_bytes,
        )
        held = GaugeMetricFamily(
            "appliance_memory_held_bytes",
            "The device's memory that has been granted",
            labels=["holder", "purpose"],
        )
        for each in self._ledger.holdings():
            held.add_metric([each.holder, each.purpose], each.bytes)
        yield held
        yield GaugeMetricFamily(
            "appliance_start_time_seconds", "When the daemon started", value=self._started_at
        )

    def _engines(self) -> Iterable[GaugeMetricFamily]:
        loads = self._router.loads()
        for field, told in (
            ("running", "Answers that an engine writes now"),
            ("waiting", "Answers that wait for a slot of an engine"),
            (
                "cells",
                "Tokens that an engine's context holds, for running answers and later prompts",
            ),
            ("adapters", "LoRA adapters that an engine has in memory"),
        ):
            gauge = GaugeMetricFamily(f"appliance_engine_{field}", told, labels=["model"])
            for name, load in loads.items():
                gauge.add_metric([name], getattr(load, field))
            yield gauge


class CountRequests:
    """ASGI middleware that counts answers."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and note the status of its answer."""

        async def send_counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.count_request(str(scope.get("method")), message["status"])
            await send(message)

        await self._app(scope, receive, send_counted)


@get("/metrics", operation_id="getMetrics", tags=["health"], opt={stopping.TO_THE_END: True})
async def get_metrics(metrics: Metrics, sensors: Sensors) -> Response[Any]:
    """All metrics."""
    text = await asyncio.to_thread(generate_latest, metrics.registry)
    devices = device_metrics.text(await sensors.now())
    return Response(text + devices, media_type=CONTENT_TYPE_LATEST)
