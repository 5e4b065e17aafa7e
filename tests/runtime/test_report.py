"""The report: complete, of one file, and nothing in it is taken for HTML."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from aegis_dask.dashboard.brief import Brief, StageBrief
from aegis_dask.dashboard.log import RunLog
from aegis_dask.dashboard.view import FAILED, RunView
from aegis_dask.placement.traffic import CLIENT, Transfers, format_bytes
from aegis_dask.runtime.report import write_report
from aegis_dask.runtime.result import Operator, Result, Scheduling, WorkerSummary

EVIL = '<script>alert("1")</script>'


def result(spans: int = 3) -> Result:
    return Result(
        outputs={"y": 1, EVIL: 2},
        seconds=2.0,
        operations={"rotate": Operator(3, 1.0), EVIL: Operator(1, 0.0)},
        stages={f"layer0/{EVIL}": Operator(3, 1.5)},
        transfers=Transfers(2, {(0, 1, EVIL): 1500, (CLIENT, 0, "x"): 7}, {(0, 1): 1600}),
        tasks=spans,
        scheduling=Scheduling(2, 2.0, 3.0, 0.5, 0.5, 0.1),
        workers=[WorkerSummary(f"tcp://{i}", EVIL, 2, 1.0, 1 << 30) for i in range(2)],
        timeline=[],
        dashboard=f"http://127.0.0.1/{EVIL}",
        about={"parameters": EVIL},
        view=view(spans),
    )


def view(spans: int) -> RunView:
    stages = (StageBrief(f"layer0/{EVIL}", 0, 0, spans, 0, 1.0, 3, 5, 2),)
    brief = Brief(
        run=EVIL,
        title=EVIL,
        parameters=EVIL,
        client=EVIL,
        addresses=("tcp://0", "tcp://1"),
        names=(EVIL, EVIL),
        layers=(EVIL,),
        operators=(EVIL,),
        stages=stages,
        worker_tasks=(spans, 0),
        pairs=((0, 1, 1000),),
    )
    log = RunLog(brief, 0.0)
    for i in range(spans):
        steps = [(0, 0.5 * i, 0.5 * i + 0.4)]
        log.task({"task": i, "device": 0, "steps": steps, "received": [(1, 500)]})
    log.note_trouble(1.0, EVIL, EVIL)
    log.end(2.0, FAILED, EVIL)
    return log.view(2.0)


class Checker(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_report_is_well_formed_and_escapes_everything(tmp_path: Path) -> None:
    path = write_report(
        result(), tmp_path / "r.html", title=EVIL, precision={EVIL: EVIL}, about={"cpu": EVIL}
    )
    text = path.read_text()
    checker = Checker()
    checker.feed(text)
    assert not checker.open
    assert "script" not in checker.tags
    assert checker.tags.count("rect") >= 3
    assert EVIL not in text
    assert not re.search(r'(src|href|url\()\s*=?\s*["\']?(http|//)', text)  # nothing is fetched
    for heading in ("Precision", "Timeline", "Bytes by pair of workers", "Where the time went"):
        assert f"<h2>{heading}</h2>" in text
    assert "1.50 kB" in text
    assert "12.5%" in text  # 0.5 s of 2 workers x 2 s


def test_an_empty_run_can_be_reported(tmp_path: Path) -> None:
    assert "No task has finished" in write_report(result(0), tmp_path / "a.html").read_text()


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.50 kB"), (5e12, "5000.00 GB")]
)
def test_sizes_are_readable(count: float, text: str) -> None:
    assert format_bytes(count) == text
