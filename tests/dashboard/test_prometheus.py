"""Every query of the Grafana dashboard, asked of a real Prometheus that watches a real run."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from aegis_dask.runtime.executor import Executor
from tests.runtime.programs import model, someone

PROMETHEUS = shutil.which("prometheus")
DASHBOARDS = Path(__file__).parents[2] / "dashboards"
SCHEDULER = "127.0.0.1:8787"
RATE = "$__rate_interval"


def queries() -> list[str]:
    panels = json.loads((DASHBOARDS / "grafana.json").read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel.get("targets", ())]


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    dashboard = json.loads((DASHBOARDS / "grafana.json").read_text())
    panels = dashboard["panels"]
    assert len({p["id"] for p in panels}) == len(panels)
    assert all(p["gridPos"]["x"] + p["gridPos"]["w"] <= 24 for p in panels)
    assert all(p["title"] and p["description"] for p in panels if p["type"] != "row")
    assert len(queries()) == len(set(queries())) > 15


@contextmanager
def prometheus(folder: Path, scheduler: str) -> Iterator[Callable[[str], list[Any]]]:
    """Start a Prometheus with our configuration, in a hurry; yields what answers queries."""
    assert PROMETHEUS is not None
    text = (DASHBOARDS / "prometheus.yml").read_text()
    assert text.count(SCHEDULER) >= 3
    text = text.replace(SCHEDULER, scheduler).replace("15s", "1s").replace("5s", "1s")
    file = folder / "prometheus.yml"
    file.write_text(text)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    options = {
        "config.file": file,
        "storage.tsdb.path": folder / "data",
        "web.listen-address": address,
        "log.level": "error",
    }
    process = subprocess.Popen(
        [PROMETHEUS, *(f"--{name}={value}" for name, value in options.items())],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def ask(query: str) -> list[Any]:
        asked = urllib.parse.urlencode({"query": query.replace(RATE, "10s")})
        try:
            with urllib.request.urlopen(f"http://{address}/api/v1/query?{asked}") as answer:
                found = json.load(answer)
        except urllib.error.HTTPError as e:
            raise AssertionError(f"{query}: {e.read().decode()}") from e
        except OSError:  # it has not started yet
            return []
        return list(found["data"]["result"])

    try:
        yield ask
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.slow
@pytest.mark.skipif(PROMETHEUS is None, reason="the Debian package prometheus is not installed")
def test_every_query_has_an_answer_while_a_program_runs(tmp_path: Path) -> None:
    program, store = model()
    client = someone()
    missing = queries()
    with Executor.local(workers=2, threads_per_worker=1, dashboard=True) as executor:
        executor.prepare(client.params, client.keys, store)
        scheduler = executor.dashboard_link.split("/")[2]
        with prometheus(tmp_path, scheduler) as ask:
            deadline = time.monotonic() + 120
            while missing and time.monotonic() < deadline:
                executor.run(program, client.inputs)
                missing = [query for query in missing if not ask(query)]
            up = ask("up == 1")
    assert not missing
    jobs = [found["metric"]["job"] for found in up]
    assert sorted(jobs) == ["dask-scheduler", "dask-workers", "dask-workers"]
