"""What a server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """The numbers of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = self._counter("requests", "answered requests", "endpoint", "status")
        self.seconds = self._histogram("request_seconds", "from a request's head to its answer's end", "endpoint")
        self.running = self._gauge("requests_running", "requests that are worked on")
        self.body_bytes = self._gauge("body_bytes", "bytes of bodies that are received or worked on")
        self.chats = self._gauge("chats_running", "chats that wait for, or receive, their answer")
        self.first_token = self._histogram("first_token_seconds", "from a chat's head to its first words")
        self.prompt_tokens = self._counter("prompt_tokens", "tokens read, those of shapes included")
        self.completion_tokens = self._counter("completion_tokens", "tokens written")
        self.reading = self._gauge("meshes_reading", "meshes that are read, or wait for it")
        self.lost = self._gauge("mesh_processes_lost", "files whose process was killed, or died")

    def page(self) -> bytes:
        """Return all numbers in Prometheus' text form."""
        return generate_latest(self.registry)

    def _counter(self, name: str, about: str, *labels: str) -> Counter:
        return Counter(f"vae_qwen3vl_{name}", about, labels, registry=self.registry)

    def _gauge(self, name: str, about: str) -> Gauge:
        return Gauge(f"vae_qwen3vl_{name}", about, registry=self.registry)

    def _histogram(self, name: str, about: str, *labels: str) -> Histogram:
        return Histogram(f"vae_qwen3vl_{name}", about, labels, buckets=_SECONDS, registry=self.registry)


def page_of_all(pages: Mapping[str, bytes]) -> bytes:
    """Return the numbers of several servers in one page, each with a label `replica`.

    Args:
        pages: what each of them counted, by its name.
    """
    registry = CollectorRegistry()
    registry.register(_Parts(pages))
    return generate_latest(registry)


class _Parts(Collector):
    """The numbers of pages."""

    def __init__(self, pages: Mapping[str, bytes]) -> None:
        self._pages = pages

    def collect(self) -> Iterator[Metric]:
        whole: dict[str, Metric] = {}
        for replica, page in self._pages.items():
            for part in text_string_to_metric_families(page.decode()):
                metric = whole.setdefault(part.name, Metric(part.name, part.documentation, part.type))
                for name, labels, value, *_ in part.samples:
                    metric.add_sample(name, {"replica": replica, **labels}, value)
        yield from whole.values()
