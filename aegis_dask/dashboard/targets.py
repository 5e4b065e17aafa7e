"""Where Prometheus finds the workers: a list at ``/aegis-targets`` of the scheduler.

Workers come and go, and mostly serve HTTP at a port that the system has chosen.
"""

from __future__ import annotations

import json
from typing import Any

from distributed.comm.addressing import get_address_host
from tornado.web import RequestHandler

from aegis_dask.dashboard.page import stock_pages

TARGETS = "/aegis-targets"


class Targets(RequestHandler):
    """Answers as Prometheus's discovery by HTTP expects."""

    def initialize(self, scheduler: Any) -> None:
        """Take note of who knows the workers."""
        self.scheduler = scheduler

    def get(self) -> None:
        """Write the list."""
        targets = [
            f"{_host(address)}:{state.services['dashboard']}"
            for address, state in self.scheduler.workers.items()
            if "dashboard" in state.services
        ]
        self.set_header("Content-Type", "application/json")
        self.write(json.dumps([{"targets": targets}]))


def _host(address: str) -> str:
    host = str(get_address_host(address))
    return f"[{host}]" if ":" in host else host


def open_targets(scheduler: Any) -> None:
    """Serve the list at a scheduler that runs."""
    stock = stock_pages(scheduler)  # which know under what prefix all is
    path = TARGETS if stock is None else f"{stock.prefix.rstrip('/')}{TARGETS}"
    scheduler.http_application.add_handlers(r".*", [(path, Targets, {"scheduler": scheduler})])
