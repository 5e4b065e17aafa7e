"""The page in a real browser: every panel is there, behind a run of 100,000 tasks too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from aegis_dask.dashboard.view import FAILED, FINISHED, RUNNING
from aegis_dask.runtime.executor import Executor
from tests.dashboard.browser import CHROMIUM, FIND, Page, browser
from tests.dashboard.synthetic import feed, make_run

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

DRAWN = f"{FIND}('#timeline rect').length"
EVIL = "<img src=x onerror=\"document.title='evil'\">"
HEADINGS = (
    *("Runs", "Timeline", "Layers", "Levels and refreshes", "Bytes per link"),
    *("Memory per device", "Slowest tasks", "Errors"),
)


@pytest.fixture(scope="module")
def executor() -> Iterator[Executor]:
    with Executor.local(workers=1, processes=False, dashboard=True) as found:
        yield found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("browser")) as found:
        yield found


def address(executor: Executor, run: str = "") -> str:
    base = executor.dashboard_link.removesuffix("/status")
    return f"{base}/aegis{f'?run={run}' if run else ''}"


def begin(executor: Executor, run: str, tasks: int, share: float, state: str, **how: str) -> None:
    brief = make_run(tasks, run=run, title=how.get("title", "")).to_dict()
    executor.client.run_on_scheduler(feed, brief, share, state, how.get("message", ""))


def test_a_scheduler_without_runs_has_a_page(executor: Executor, page: Page) -> None:
    page.open(address(executor), f"{FIND}('#runs').length")
    assert "No run yet" in page.text()


def test_every_panel_is_shown_behind_a_run_of_very_many_tasks(
    executor: Executor, page: Page
) -> None:
    begin(executor, "large", 100_000, 1.0, FINISHED, title="bert_model, 12 layers")
    page.open(address(executor, "large"), DRAWN)
    text = page.text()
    for heading in HEADINGS:
        assert heading in text
    for words in (
        *("bert_model, 12 layers", "finished", "99,996 of 99,996 tasks", "576 of 576 bootstraps"),
        *("bootstrapping", "feed-forward: up, GELU", "layer11", "device 3", "n16-d40"),
        *("960.00 MB", "1.90 GB", "of 16.00 GB", "None."),
    ):
        assert words in text, words
    assert 100 < page.count("#timeline rect") < 5000
    assert page.count("#levels path") == 36  # a head of an arrow for every refresh
    assert page.count("#layers tbody tr") == 12
    assert page.count("#slowest tbody tr") == 10
    assert page.complaints == []


def test_pictures_have_descriptions_and_tables_headings(executor: Executor, page: Page) -> None:
    begin(executor, "plain", 500, 1.0, FINISHED)
    page.open(address(executor, "plain"), DRAWN)
    assert page.count("svg") == page.count("svg[role=img][aria-label]") == 2
    assert page.count(".bar") == page.count(".bar[role=img][aria-label]")
    assert page.count("table") == page.count("table th[scope=col]:first-child")


def test_a_run_that_goes_on_is_brought_up_to_date(executor: Executor, page: Page) -> None:
    begin(executor, "live", 1000, 0.3, RUNNING)
    page.open(address(executor), DRAWN)
    text = page.text()
    assert "running" in text
    assert "to go" in text
    assert "299 of 996 tasks" in text
    begin(executor, "next", 1000, 0.5, RUNNING)
    page.wait(f"{FIND}('#run')[0].textContent.includes('run next')")
    assert "498 of 996 tasks" in page.text()


def test_what_comes_from_outside_is_text(executor: Executor, page: Page) -> None:
    begin(executor, "evil", 300, 0.5, FAILED, title=EVIL, message=EVIL)
    page.open(address(executor, "evil"), DRAWN)
    assert EVIL in page.text()
    assert page.value("document.title") == "Dask: Aegis"
    assert page.count("main img") == 0
    page.open(address(executor, "%3Cimg%20src=x%3E"), DRAWN)  # no such run: the latest
    assert page.count("main img") == 0


def test_the_menu_of_dasks_pages_leads_to_ours(executor: Executor, page: Page) -> None:
    status = executor.dashboard_link
    page.open(status, "document.querySelector('a[href=aegis]')")
    page.value("document.querySelector('a[href=aegis]').click()")
    page.wait(DRAWN)
    assert page.value("location.pathname") == "/aegis"


def test_a_report_looks_like_the_page(executor: Executor, page: Page, tmp_path: Path) -> None:
    from aegis_dask.dashboard.document import write_view
    from aegis_dask.dashboard.monitor import view_runs
    from aegis_dask.dashboard.view import parse_view

    begin(executor, "report", 2000, 1.0, FINISHED)
    (text,) = executor.client.run_on_scheduler(view_runs, "report")
    file = tmp_path / "run.html"
    write_view(parse_view(text), file)
    page.open(file.as_uri(), "document.querySelector('#timeline rect')")
    for heading in HEADINGS[1:]:
        assert heading in page.text()
