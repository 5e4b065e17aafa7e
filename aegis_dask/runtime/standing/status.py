"""What a standing cluster is doing."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from aegis_dask._version import __version__
from aegis_dask.errors import ClusterError
from aegis_dask.runtime import cluster as clusters
from aegis_dask.runtime.plugin import running_tasks
from aegis_dask.runtime.standing.record import SCHEDULER, client_of, load_here, running_of


def status(name: str) -> dict[str, Any]:
    """Return what there is: processes, workers, runs; as for JSON.

    Raises
    ------
    ClusterError
        If there is none of that name, or another machine has started it.
    """
    state = load_here(name)
    running: dict[str, bool] = {}
    unreachable: list[str] = []
    for host in {p.host for p in state.processes}:
        try:
            running |= running_of(state, host)
        except ClusterError as e:
            unreachable.append(str(e))
    processes = [{**asdict(p), "running": running.get(p.name)} for p in state.processes]
    out: dict[str, Any] = {
        "name": name,
        "address": state.address,
        "tls": state.tls,
        "scheduler": next((p for p in processes if p["name"] == SCHEDULER), None),
        "answers": False,
        "errors": unreachable,
        "dashboard": "",
        "versions": {},
        "runs": [],
        "workers": [],
    }
    found: dict[str, dict[str, Any]] = {}
    tasks: dict[str, dict[str, int]] = {}
    try:
        with client_of(state) as client:
            identity = client.sync(client.scheduler.identity, n_workers=-1)
            found = {str(w["name"]): {"address": a, **w} for a, w in identity["workers"].items()}
            tasks = client.run(running_tasks, on_error="ignore")
            versions = client.get_versions(packages=list(clusters.PACKAGES))["scheduler"]
            port = identity["services"].get("dashboard")
            out["dashboard"] = f"http://127.0.0.1:{port}/status" if port else ""
            python = ".".join(dict(versions["host"])["python"].split(".")[:3])
            packages = {p: versions["packages"][p] for p in clusters.PACKAGES}
            out["versions"] = {"python": python, **packages, "aegis_dask": __version__}
            out["answers"] = True
    except ClusterError as e:
        out["errors"].append(str(e))
    out["runs"] = sorted({run for of_worker in tasks.values() for run in of_worker})
    known = {p["name"]: p for p in processes if p["name"] != SCHEDULER}
    for worker in sorted({*known, *found}, key=lambda n: (not n.isdigit(), n.zfill(9))):
        process, info = known.get(worker, {}), found.get(worker, {})
        metrics = info.get("metrics", {})
        out["workers"].append(
            {
                "name": worker,
                "host": process.get("host", info.get("host", "")),
                "address": info.get("address", ""),
                "state": "ended" if process.get("running") is False else info.get("status", "away"),
                "memory": metrics.get("memory", 0),
                "memory_limit": info.get("memory_limit", 0),
                "cpu": metrics.get("cpu", 0.0),
                "threads": info.get("nthreads", 0),
                "tasks": sum(tasks.get(info.get("address", ""), {}).values()),
                "pid": process.get("pid"),
                "log": process.get("log", ""),
            }
        )
    return out
