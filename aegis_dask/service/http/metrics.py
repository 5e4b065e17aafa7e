"""Metrics of a service for Prometheus: counts and sizes, no names."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from aegis_dask.service.http.runner import Runner
from aegis_dask.service.http.store import STATES


class _Collector:
    """Looks when it is asked."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        runner = self._runner
        jobs = GaugeMetricFamily(
            "aegis_service_jobs", "Jobs that the service knows, by state", labels=["state"]
        )
        count = runner.store.count()
        for state in STATES:
            jobs.add_metric([state], count.get(state, 0))
        yield jobs
        yield CounterMetricFamily(
            "aegis_service_busy_seconds", "Time that jobs have run", runner.busy_seconds
        )
        yield GaugeMetricFamily(
            "aegis_service_keys_bytes", "Evaluation keys on the cluster", runner.keys_bytes
        )
        yield GaugeMetricFamily(
            "aegis_service_disk_bytes", "Size of the service's directory", runner.store.size
        )


def registry_of(runner: Runner) -> CollectorRegistry:
    """Return a registry with the metrics of a service."""
    registry = CollectorRegistry()
    registry.register(_Collector(runner))
    return registry
