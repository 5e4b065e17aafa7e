"""``aegis plan --devices``: a job on several devices, simulated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aegis_dask.models.checkpoint import load_bert, named_config, shape_only
from aegis_dask.models.graphs import load_graph
from aegis_dask.models.text import Tokenizer
from aegis_dask.placement.devices import MACHINES
from aegis_dask.placement.files import read_plan
from aegis_dask.service.job import make_job
from aegis_dask.service.keys import keys_by_worker
from aegis_dask.service.scaling import scale
from aegis_dask.service.sources import assumed_calibration, first_layers
from tests.service.conftest import TEXT, TOLERANCE, aegis, json_of, refused


def test_the_plan_is_simulated_on_more_and_more_devices(checkpoint: Path) -> None:
    options = ("plan", "bert_layer", "--model", checkpoint, "--length", 12, "--insecure")
    found = json_of(*options, "--devices", 3, "--machine", "h200-nvlink")
    rows = found["scaling"]
    assert [r["devices"] for r in rows] == [1, 2, 3]
    assert rows[0]["bytes_between_devices"] == 0
    assert rows[0]["speedup"] == 1
    for r in rows:
        assert r["fits"]
        assert sum(r["bytes_by_operator"].values()) == r["bytes_between_devices"]
        assert 0 < r["efficiency"] <= 1.05
        assert r["device_bytes"] >= found["evaluation_key_bytes"]
        assert r["needed_bytes"] <= r["device_bytes"]
        assert len(r["key_bytes"]) == r["devices"]
        assert max(r["key_bytes"]) <= found["evaluation_key_bytes"]
    assert rows[0]["key_bytes"] == [found["evaluation_key_bytes"]]
    assert found["machine"]["device"]["name"] == "H200 (estimated)"
    assert json_of(*options)["scaling"] == []


def test_a_device_needs_the_keys_of_its_own_rotations() -> None:
    """Giant steps are dealt out, so that no device needs all of them."""
    graph = load_graph("bert_layer")
    model = shape_only(named_config("bert-base", 512))
    job = make_job(first_layers(model, 1), assumed_calibration(model), graph, 512)
    (one, four) = scale(job, MACHINES["h200-pcie"], [4])
    everything = job.keys.required.rotations
    assert one.key_bytes_by_device == (job.keys.nbytes,)
    held = [set(k.required.rotations) for k in keys_by_worker(job.analysis, four.plan)]
    assert set().union(*held) == set(everything)
    assert all(h < set(everything) for h in held)
    assert max(four.key_bytes_by_device) < 0.9 * job.keys.nbytes


def test_the_table_names_the_machine_and_the_operators(checkpoint: Path) -> None:
    options = ("plan", "bert_layer", "--model", checkpoint, "--length", 12, "--insecure")
    shown = aegis(*options, "--devices", 2, "--machine", "a100-40-pcie").output
    assert "A100 40 GB (estimated), 4 to a node, PCIe 4.0 x16 within it" in " ".join(shown.split())
    assert "sent between 2 devices" in shown


def test_a_layer_that_does_not_fit_is_said(checkpoint: Path, tmp_path: Path) -> None:
    data = MACHINES["cpu"].to_dict()
    data["device"]["memory_bytes"] = 1000
    path = tmp_path / "small.json"
    path.write_text(json.dumps(data))
    options = ("plan", "feed_forward", "--model", checkpoint, "--length", 12, "--insecure")
    shown = " ".join(aegis(*options, "--devices", 1, "--machine", path).output.split())
    assert "On 1 device it does not fit: a CPU thread has 1.00 kB" in shown
    assert "Keys and weights alone are too much" in shown
    data["device"]["memory_bytes"] = 5_000_000
    path.write_text(json.dumps(data))
    found = json_of(*options, "--devices", 2, "--machine", path)["scaling"]
    assert "when layer0/" in found[0]["shortage"]


def test_strategies_are_compared(checkpoint: Path) -> None:
    options = ("plan", "bert_layer", "--model", checkpoint, "--length", 12, "--insecure")
    options = (*options, "--devices", 2, "--machine", "h200-pcie")
    found = json_of(*options, "--compare", "--explain", "norm1")
    (comparison,) = found["comparisons"]
    rows = {s["strategy"]: s for s in comparison["strategies"]}
    broadcast, inputs = (rows[f"limb-parallel: {k}"] for k in ("broadcast", "input broadcast"))
    assert inputs["total_bytes"] < broadcast["total_bytes"]
    fastest, fewest = rows["search: least time"], rows["search: fewest bytes"]
    plans = [s for name, s in rows.items() if "limb" not in name]
    assert fastest["seconds"] <= min(s["seconds"] for s in plans)
    assert fewest["total_bytes"] <= min(s["total_bytes"] for s in rows.values())
    assert all(set(s["bytes"]) == {"attention", "feed-forward"} for s in rows.values())
    assert any(line.startswith("layer0/norm1/scale: ") for line in found["reasons"])
    shown = " ".join(aegis(*options, "--compare").output.split())
    assert "less for feed-forward than the strongest of the others" in shown


def test_what_every_switch_is_worth(checkpoint: Path) -> None:
    options = ("plan", "bert_layer", "--model", checkpoint, "--length", 12, "--insecure")
    options = (*options, "--devices", 2, "--machine", "h200-ethernet", "--ablation")
    found = json_of(*options)
    rows = {r["name"]: r for r in found["ablation"]}
    first = rows["all of it"]
    assert first["seconds"] == found["scaling"][-1]["seconds"]
    assert rows["terms of sums sent, not sums"]["sent"] >= first["sent"]
    assert rows["tasks not fused"]["tasks"] > first["tasks"]
    early = rows["products relinearised before they are added"]
    assert early["seconds"] > first["seconds"]
    assert early["sent"] == first["sent"]
    assert rows["values not lowered where they are made"]["sent"] >= first["sent"]
    shown = " ".join(aegis(*options).output.split())
    assert "with one thing turned off or on" in shown


def test_the_timeline_is_drawn(checkpoint: Path, tmp_path: Path) -> None:
    options = ("plan", "bert_layer", "--model", checkpoint, "--length", 12, "--insecure")
    page = tmp_path / "timeline.html"
    found = json_of(*options, "--devices", 3, "--compare", "--timeline", page)
    assert found["timeline"] == str(page)
    text = page.read_text()
    for word in (
        "device 2",
        "attention: query, key, value",
        "limb-parallel: broadcast",
        "efficient",
    ):
        assert word in text
    assert "give --devices 4" in refused(*options, "--timeline", page)
    message = refused(*options, "--devices", 2, "--timeline", tmp_path / "timeline.png")
    assert "does not end in .html" in message


def test_what_cannot_be_compared_or_explained_is_refused(checkpoint: Path) -> None:
    options = ("plan", "bert_layer", "--model", checkpoint, "--length", 12, "--insecure")
    assert "give --devices 4" in refused(*options, "--compare")
    message = refused(*options, "--devices", 2, "--explain", "softmax")
    assert "no stage has 'softmax' in its name" in message
    assert "layer0/attention/group" in message


def test_an_unknown_machine_is_refused(checkpoint: Path) -> None:
    message = refused(
        "plan", "feed_forward", "--model", checkpoint, "--devices", 2, "--machine", "abacus"
    )
    assert "there is no machine 'abacus'" in message


@pytest.mark.parametrize("tokens", [128, 2048])
def test_a_large_shape_is_planned_in_seconds(tokens: int) -> None:
    found = json_of(
        *("plan", "bert_layer", "--shape", "bert-base", "--length", tokens, "--devices", 4)
    )
    rows = {r["devices"]: r for r in found["scaling"]}
    assert rows[4]["speedup"] > 1.5


def test_dependencies_are_written(checkpoint: Path, tmp_path: Path) -> None:
    options = ("plan", "feed_forward", "--model", checkpoint, "--length", 12, "--insecure")
    path = tmp_path / "d.json"
    shown = aegis(*options, "--dependencies", path).output
    assert "sets of values that can be divided alike" in " ".join(shown.split())
    assert json.loads(path.read_text())["clusters"]
    assert "must end in .graphml or .json" in refused(*options, "--dependencies", tmp_path / "d.x")


def test_a_plan_is_written_and_runs(checkpoint: Path, scheduler: str, tmp_path: Path) -> None:
    path, other = tmp_path / "plan.json", tmp_path / "other.json"
    count = len(Tokenizer.for_model(load_bert(checkpoint)).encode(TEXT))
    common = ("feed_forward", "--model", checkpoint, "--insecure")
    planning = ("plan", *common, "--devices", 2, "--compare", "--length", count)
    found = json_of(*planning, "--out", path)
    assert found["out"] == str(path)
    saved = read_plan(path)
    assert saved.about["comparisons"] == found["comparisons"]
    running = ("run", *common, "--text", TEXT, "--scheduler", scheduler)
    values = json_of(*running, "--plan", path)
    assert values["precision"]["max_error"] < TOLERANCE
    assert values["run"]["bytes_between_workers"] == found["scaling"][1]["bytes_between_devices"]
    assert "plan for 2 workers, --workers asks for 3" in refused(
        *running, "--plan", path, "--workers", 3
    )
    assert "leave one out" in refused(*running, "--plan", path, "--machine", "cpu")
    assert "No such file" in refused(*running, "--plan", other)
    json_of("plan", "bert_layer", *common[1:], "--length", count, "--devices", 2, "--out", other)
    message = refused_late(*running, "--plan", other)
    assert "the plan is for another program" in message


def refused_late(*arguments: str | Path) -> str:
    """Return the message of a command that fails after it has said what it does."""
    result = aegis(*arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.stderr
    return " ".join(result.stderr[result.stderr.index("error: ") + 7 :].split())


def test_plans_that_cannot_be_written_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    options = ("plan", "feed_forward", "--model", checkpoint, "--insecure", "--out")
    assert "give --devices 4" in refused(*options, tmp_path / "plan.json")
    assert "does not end in .json" in refused(*options, tmp_path / "plan.txt", "--devices", 2)
    nowhere = tmp_path / "no" / "plan.json"
    assert "in a folder that exists" in refused(*options, nowhere, "--devices", 2)
