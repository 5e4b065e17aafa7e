"""The benchmark of bootstrapping: what it makes of its records, how it takes turns, its claims."""

import io
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from benchmarks import bootstrapping, precision
from benchmarks._bootstrap_results import LATTIGO, Run, Subject
from benchmarks._measure import DISTURBED
from benchmarks.bootstrapping import MAIN, PEERS, measure_run, openfhe, ours
from benchmarks.claims import Finding, Options
from benchmarks.claims import bootstrap as group
from benchmarks.claims.__main__ import check
from benchmarks.peers import OURS, _turns
from benchmarks.peers._harness import EXIT_MISSING

MACHINE = {"cpu": "a processor", "cores": 2, "date": "today", "commit": "0000000"}
OUR = Subject(MAIN, "complex")
THEIR = Subject("OpenFHE 3-3", "real")

pytestmark = pytest.mark.filterwarnings("ignore::aegis_dask.errors.InsecureParametersWarning")


def turn(
    subject: Subject, seconds: float, levels: int = 10, threads: int = 1, **other: Any
) -> dict[str, Any]:
    lib = OURS if subject.config == MAIN else "openfhe"
    common = {"kind": "time", "config": subject.config, "lib": lib, "slots": subject.slots}
    errors = {"max_error": 2.0**-20, "mean_error": 2.0**-22}
    figures = {"foreign_load": 0.0, "levels_left": levels, "peak_rss_bytes": 5, **errors}
    return {**common, "threads": threads, "seconds": seconds, **figures, **other}


def ready(config: str, **params: Any) -> dict[str, Any]:
    lib = OURS if config == MAIN else "openfhe"
    given = {"ring_dim": 1 << 16, **params}
    return {"kind": "ready", "config": config, "lib": lib, "threads": 1, "params": given}


def run_of(*records: Mapping[str, Any]) -> Run:
    return Run("command", MACHINE, [ready(MAIN, key_bytes=3_700_000_000), *records])


# -- figures ------------------------------------------------------------------------------------


def test_times_are_minima_of_undisturbed_turns() -> None:
    load = DISTURBED + 0.1
    run = run_of(turn(OUR, 2.0), turn(OUR, 3.0), turn(OUR, 1.0, foreign_load=load))
    assert run.seconds(OUR, 1) == 2.0
    assert run.seconds(OUR, 1, max) == 3.0
    assert run.repeats(OUR, 1) == 2
    assert not run.disturbed(OUR, 1)
    assert run.seconds(OUR, 2) is None


def test_a_peer_that_was_always_disturbed_has_no_ratio() -> None:
    disturbed = turn(THEIR, 9.0, foreign_load=DISTURBED + 0.1)
    run = run_of(ready(THEIR.config), turn(OUR, 2.0), disturbed)
    assert run.seconds(THEIR, 1) == 9.0
    assert run.speedup(THEIR, 1) is None
    assert run.speedup_per_level(THEIR, 1) is None
    assert "9.00*" in run.report()


def test_ours_being_disturbed_only_makes_the_ratio_smaller() -> None:
    run = run_of(turn(OUR, 4.0, foreign_load=1.0), turn(THEIR, 8.0))
    assert run.speedup(THEIR, 1) == 2.0


def test_a_peer_is_compared_with_our_turns_beside_it_only() -> None:
    beside, other = {"beside": THEIR.config}, {"beside": "OpenFHE 4-4"}
    turns = [turn(OUR, s) | b for s, b in ((3.0, beside), (2.0, beside), (1.0, other))]
    run = run_of(*turns, turn(THEIR, 8.0))
    assert run.seconds(OUR, 1) == 1.0
    assert run.beside(THEIR, 1) == 2.0
    assert run.speedup(THEIR, 1) == 4.0


def test_a_level_costs_the_time_over_the_levels_left() -> None:
    run = run_of(turn(OUR, 2.0, levels=10), turn(THEIR, 12.0, levels=6))
    assert run.speedup(THEIR, 1) == 6.0
    assert run.seconds_per_level(OUR, 1) == 0.2
    assert run.speedup_per_level(THEIR, 1) == pytest.approx(10.0)


def test_what_is_quoted_is_compared_with_its_own_number_of_threads_only() -> None:
    run = run_of(turn(OUR, 2.0, levels=10), turn(OUR, 1.0, levels=10, threads=2))
    expected = (LATTIGO.seconds / LATTIGO.levels_left) / 0.2
    assert run.speedup_per_level(LATTIGO, 1) == pytest.approx(expected)
    assert run.speedup_per_level(LATTIGO, 2) is None


def test_ours_is_compared_on_complex_slots_and_comes_first() -> None:
    run = run_of(turn(THEIR, 9.0), turn(OUR._replace(slots="real"), 1.5), turn(OUR, 2.0))
    assert run.ours == OUR
    assert run.speedup(THEIR, 1) == 4.5
    assert [s.config for s in run.subjects()] == [MAIN, MAIN, THEIR.config]
    assert run.peers == [THEIR]


def test_errors_are_those_of_the_worst_turn() -> None:
    run = run_of(turn(OUR, 2.0), turn(OUR, 2.0, threads=2, max_error=2.0**-18))
    assert run.max_error(OUR) == 2.0**-18
    assert run.mean_error(OUR) == 2.0**-22


def test_the_report_has_every_figure_and_every_problem() -> None:
    died = {"kind": "error", "config": "OpenFHE 4-4", "lib": "openfhe", "threads": 1}
    records = [ready(THEIR.config), turn(OUR, 2.0), turn(THEIR, 12.0, 6), {**died, "error": "boom"}]
    report = run_of(*records).report()
    for text in ("6.00x", "10.00x", "3.70", "20.0", "22.0", "2^16", "boom", LATTIGO.source):
        assert text in report, text


def test_a_small_ring_is_not_compared_with_what_is_quoted() -> None:
    run = Run("command", MACHINE, [ready(MAIN, ring_dim=1 << 12), turn(OUR, 0.1)])
    assert "Lattigo" not in run.report()


# -- a peer's side ------------------------------------------------------------------------------


def subject(error: float = 0.0) -> _turns.Subject:
    refresh = _turns.Refresh(
        run=lambda: 7,
        decrypt=lambda level: np.full(4, error),
        expected=np.zeros(4),
        levels_left=lambda level: level - 3,
    )
    return _turns.Subject({"real": refresh}, {"ring_dim": 8})


def served(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    build: Callable[[Mapping[str, Any]], _turns.Subject],
    told: str,
) -> tuple[int, list[dict[str, Any]]]:
    monkeypatch.setattr(sys, "stdin", io.StringIO(told))
    status = _turns.serve("openfhe", build, ["--config={}"])
    return status, [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_peer_answers_every_line_and_ends_with_its_memory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, said = served(monkeypatch, capsys, lambda _: subject(2.0**-10), "real\nreal\n")
    assert status == 0
    assert [r["kind"] for r in said] == ["ready", "time", "time", "size"]
    assert said[0]["params"] == {"ring_dim": 8}
    assert said[1]["levels_left"] == 4
    assert (said[1]["max_error"], said[1]["mean_error"]) == (2.0**-10, 2.0**-10)


@pytest.mark.parametrize("error", [0.5, float("nan")])
def test_a_wrong_result_is_no_time(
    error: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, said = served(monkeypatch, capsys, lambda _: subject(error), "real\n")
    assert [r["kind"] for r in said] == ["ready", "error", "size"]
    assert "wrong result" in said[1]["error"]


def test_slots_that_a_peer_does_not_refresh_are_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, said = served(monkeypatch, capsys, lambda _: subject(), "complex\nreal\n")
    assert [r["kind"] for r in said] == ["ready", "error", "time", "size"]


def test_a_library_that_is_missing_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def build(_: Mapping[str, Any]) -> _turns.Subject:
        raise ImportError("no such library")

    status, said = served(monkeypatch, capsys, build, "real\n")
    assert status == EXIT_MISSING
    assert said == [{"kind": "missing", "lib": "openfhe", "reason": "no such library"}]


# -- both sides ---------------------------------------------------------------------------------


def test_ours_is_measured_without_openfhe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AEGIS_BENCH_PYTHON_OPENFHE", "/no/such/python")
    small = ours("insecure-n10-d40-b4")
    run = measure_run(small, openfhe(12)[:1], threads=[1], repeats=2)
    assert "OpenFHE 3-3: skipped, cannot start" in capsys.readouterr().out
    assert run.problems() == []
    assert run.peers == []
    assert run.ours == Subject(small.name, "complex")
    assert len(run._turns(run.ours, 1)) == 2
    assert run.levels_left(run.ours) == 4
    assert (run.max_error(run.ours) or 1) < 2.0**-21
    assert (run.key_bytes(small.name) or 0) > 0


def test_our_turns_are_marked_with_the_peer_beside_them() -> None:
    # A second process of ours stands in for the peer: the protocol is the same.
    small = ours("insecure-n10-d40-b4")
    other = replace(small, name="other", slots=("real",))
    run = measure_run(small, [other], threads=[1], repeats=1)
    assert run.problems() == []
    assert [r["beside"] for r in run._turns(run.ours, 1)] == ["other"]
    assert run._turns(Subject("other", "real"), 1)


def test_configurations_are_the_ones_of_the_note_and_secure_on_the_large_ring_only() -> None:
    large = {c.name: c.arguments for c in openfhe(16)}
    assert all(arguments["secure"] for arguments in large.values())
    assert not any(c.arguments["secure"] for c in openfhe(12))
    assert (large["OpenFHE 3-3"]["depth"], large["OpenFHE 4-4"]["depth"]) == (22, 19)
    assert (large["OpenFHE 3-3"]["scale_bits"], large["OpenFHE 4-4"]["scale_bits"]) == (52, 55)


@pytest.mark.parametrize(
    "arguments", [["--peers", "5-5"], ["--repeats", "0"], ["--threads", "one"]]
)
def test_bad_arguments_are_refused_before_anything_runs(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrapping, "measure_run", None)
    with pytest.raises(SystemExit) as stop:
        bootstrapping.main(arguments)
    assert stop.value.code == 2


def test_a_run_is_printed_and_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    asked: list[Any] = []

    def fake(*arguments: Any) -> Run:
        asked.append(arguments)
        return run_of(ready(THEIR.config), turn(OUR, 2.0), turn(THEIR, 12.0))

    monkeypatch.setattr(bootstrapping, "measure_run", fake)
    path = tmp_path / "run.json"
    assert bootstrapping.main(["--peers", "4-4", "--all", "--json", str(path)]) == 0
    ((main, peers, others, *_),) = asked
    assert (main.name, [p.name for p in peers]) == (MAIN, ["OpenFHE 4-4"])
    assert [c.name for c in others] == list(bootstrapping.OTHERS)
    assert "6.00x" in capsys.readouterr().out
    assert len(json.loads(path.read_text())["records"]) == 4


# -- precision ----------------------------------------------------------------------------------


def test_messages_are_random_with_extremes_in_every_ciphertext(rng: np.random.Generator) -> None:
    sent = precision.messages(rng, 3, 64, 2.0)
    assert sent.shape == (3, 64)
    for row in sent:
        assert set(precision.extremes(2.0)) <= set(row.tolist())
    assert max(np.abs(sent.real).max(), np.abs(sent.imag).max()) == 2.0
    assert len(np.unique(sent)) > 150


def test_enough_slots_are_refreshed_and_the_largest_error_is_kept() -> None:
    sizes: list[int] = []

    def errors(sent: Any) -> tuple[Any, float]:
        sizes.append(sent.size)
        return np.full(sent.shape, 2.0**-20 if len(sizes) > 1 else 2.0**-18), 1.0

    found = precision.accumulate("p", 1.0, 1 << 14, 3 << 15, errors)
    assert sizes == [1 << 15] * 3
    assert (found.slots, found.ciphertexts, found.seconds) == (3 << 15, 6, 3.0)
    assert found.worst == 18.0
    assert found.mean_error == pytest.approx((2.0**-18 + 2 * 2.0**-20) / 3)


def test_garbage_is_not_hidden_by_nan() -> None:
    found = precision.accumulate("p", 1.0, 64, 64, lambda sent: (np.full(sent.shape, np.nan), 0.0))
    assert found.max_error == np.inf


def test_a_small_preset_is_measured_for_both_magnitudes() -> None:
    found = precision.measure_preset("insecure-n10-d40-b4", slots=1024)
    assert [(p.magnitude, p.slots, p.ciphertexts) for p in found] == [(1, 1024, 2), (2, 1024, 2)]
    assert found[0].worst > 20
    assert found[1].worst > 18
    assert all(p.mean > p.worst for p in found)
    assert "insecure-n10-d40-b4" in precision.ours_table(found)


def test_every_published_figure_has_its_source() -> None:
    for p in precision.PUBLISHED:
        assert p.source
        assert p.worst or p.mean
    assert {p.library for p in precision.PUBLISHED} == {"Lattigo", "OpenFHE"}


# -- claims -------------------------------------------------------------------------------------

EVERYTHING = (
    [turn(OUR, 2.0, 13, threads=t, max_error=1e-6, mean_error=1e-7) for t in (1, 2)]
    + [
        turn(Subject(f"OpenFHE {name}", "real"), s, levels, t, max_error=1e-5, mean_error=1e-6)
        for name, s, levels in (("3-3", 12.0, 6), ("3-3 slots first", 9.0, 6), ("4-4", 7.0, 1))
        for t in (1, 2)
    ]
    + [turn(OUR._replace(slots="real"), 1.5, 13, threads=t) for t in (1, 2)]
)


@pytest.fixture(autouse=True)
def stored(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """Runs that claims would keep among the results of the repository."""
    runs: list[Run] = []
    monkeypatch.setattr(group, "store", runs.append)
    return runs


def findings(monkeypatch: pytest.MonkeyPatch, run: Run) -> dict[str, tuple[Finding, bool]]:
    """Findings of the claims that a run decides, and whether they hold."""
    monkeypatch.setattr(group, "measure_run", lambda *_, **__: run)
    measured = group._measured(group._Figures(Options()))
    found = {claim: check(claim) for claim in measured}
    return {claim.name: (f, claim.holds(f)) for claim, f in found.items()}


def test_claims_have_names_of_their_own_and_targets_that_can_be_checked() -> None:
    every = group.claims(Options())
    assert len({claim.name for claim in every}) == len(every)
    for claim in every:
        assert not claim.holds(Finding(None)), claim.name


def test_nothing_quick_takes_a_run_beside_openfhe(monkeypatch: pytest.MonkeyPatch) -> None:
    every = {claim.name: claim for claim in group.claims(Options(quick=True))}
    for claim in group._measured(group._Figures(Options())):
        assert every[claim.name].slow
    assert not every["precision-mean"].slow


def test_claims_read_the_run(monkeypatch: pytest.MonkeyPatch, stored: list[Run]) -> None:
    found = findings(monkeypatch, run_of(*EVERYTHING))
    assert [run.records for run in stored] == [run_of(*EVERYTHING).records]  # a whole run is kept
    values = {name: finding.value for name, (finding, _) in found.items()}
    assert values["speedup-3-3-1t"] == 6.0
    assert values["speedup-3-3-slots-first-2t"] == 4.5
    assert values["speedup-4-4-1t"] == 3.5
    assert values["per-level-openfhe-1t"] == 9.75  # slots first: 9 s for 6 levels, 2 s for 13
    assert values["more-levels-than-openfhe"] == 7
    assert values["error-below-openfhe"] == 10
    assert values["key-memory"] == 3.7
    missed = {name for name, (_, holds) in found.items() if not holds}
    assert missed == {"speedup-3-3-slots-first-1t", "speedup-3-3-slots-first-2t"}
    assert "6.00x" in found["speedup-3-3-slots-first-1t"][0].note  # on real slots


def test_without_openfhe_comparisons_are_missed_and_ours_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = findings(monkeypatch, run_of(turn(OUR, 2.0, 13)))
    holding = {name for name, (_, holds) in found.items() if holds}
    assert holding == {"per-level-lattigo-1t", "key-memory"}


def test_a_disturbed_peer_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = [{**r, "foreign_load": 1.0} if r["lib"] != OURS else r for r in EVERYTHING]
    found = findings(monkeypatch, run_of(*busy))
    for name, (finding, holds) in found.items():
        if name.startswith(("speedup", "per-level-openfhe")):
            assert not holds
            assert "disturbed" in finding.note


@pytest.mark.parametrize(
    ("only", "peers", "threads"),
    [
        (("key-memory",), [], [2]),
        (("speedup-4-4-1t",), ["OpenFHE 4-4"], [1]),
        (("per-level-openfhe-2t",), [f"OpenFHE {name}" for name in PEERS], [2]),
        (("per-level-lattigo-1t",), [], [1]),
        (("error-below-openfhe",), [f"OpenFHE {name}" for name in PEERS], [2]),
    ],
)
def test_only_what_the_chosen_claims_need_is_measured(
    only: tuple[str, ...],
    peers: list[str],
    threads: list[int],
    monkeypatch: pytest.MonkeyPatch,
    stored: list[Run],
) -> None:
    asked: list[Any] = []

    def fake(_: Any, chosen: Any, *, threads: Any, **__: Any) -> Run:
        asked.append(([c.name for c in chosen], list(threads)))
        return run_of(turn(OUR, 2.0))

    monkeypatch.setattr(group, "measure_run", fake)
    figures = group._Figures(Options(only))
    figures.run()
    figures.run()
    assert asked == [(peers, threads)]
    assert not stored  # a part of a run is not kept
