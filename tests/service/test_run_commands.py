"""``aegis calibrate``, ``run`` and ``verify`` on a tiny model, and their refusals."""

from __future__ import annotations

import json
import shutil
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import dask.config
import numpy as np
import pytest
from distributed import LocalCluster

from aegis_dask import config
from aegis_dask.errors import ParameterError
from aegis_dask.models.calibration import Calibration
from aegis_dask.models.checkpoint import BertModel
from aegis_dask.models.reference import encode
from aegis_dask.models.text import Tokenizer, embed
from aegis_dask.placement.devices import MACHINES
from aegis_dask.runtime.cluster import LOCAL_CONFIG
from tests.models.folders import hugging_face_tensors, write_folder
from tests.service.conftest import TEXT, TOLERANCE, aegis, json_of, random_texts, refused


def reference(model: BertModel, text: str = TEXT) -> np.ndarray:
    x, valid = embed(model, Tokenizer.for_model(model).encode(text))
    return encode(model, x, valid)


# -- calibrate -------------------------------------------------------------------------------


def test_calibrate_writes_ranges_and_shows_the_polynomials(
    checkpoint: Path, tmp_path: Path
) -> None:
    texts, out = tmp_path / "texts.txt", tmp_path / "ranges.json"
    texts.write_text("\n\n".join(random_texts(20)), encoding="utf-8")
    options = ("--model", checkpoint, "--text-file", texts, "--out", out, "--max-tokens", "9")
    result = aegis("calibrate", *options)
    assert result.exit_code == 0, result.output
    shown = " ".join(result.stdout.split())
    for word in ("20 texts", "the longest of 9", "GELU", "exp", "1/x", "1/sqrt", str(out)):
        assert word in shown
    assert Calibration.load(out).longest == 9
    values = json_of("calibrate", *options)
    assert values["layers"][0]["polynomials"]["GELU"]["degree"] in (3, 7, 15, 31, 63, 127)
    assert values["layers"][0]["ranges"] == json.loads(out.read_text())["layers"][0]
    # One layer is deeper than any secure set of parameters without bootstrapping.
    assert "To run the layer on texts of 9 tokens encrypted: parameters n16-d40-b13" in shown
    assert "128 bits" in shown
    assert values["whole_model"]["bootstrapping"]["bootstraps"] >= 1
    assert values["whole_model"]["evaluation_key_bytes"] > 1e9


def test_calibrate_writes_ranges_that_no_parameters_suit(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise ParameterError("too deep")

    monkeypatch.setattr("aegis_dask.service.job.make_job", refuse)
    texts, out = tmp_path / "texts.txt", tmp_path / "ranges.json"
    texts.write_text("\n".join(random_texts(20)), encoding="utf-8")
    result = aegis("calibrate", "--model", checkpoint, "--text-file", texts, "--out", out)
    assert result.exit_code == 0, result.output
    shown = " ".join(result.stdout.split())
    assert "No parameters for the layer on texts of 31 tokens: too deep" in shown
    assert Calibration.load(out).texts == 20


def test_calibrate_refuses_what_it_cannot_measure_or_write(
    checkpoint: Path, tmp_path: Path
) -> None:
    few, empty = tmp_path / "few.txt", tmp_path / "empty.txt"
    few.write_text("the cat\nthe mat\n")
    empty.write_text("\n \n")
    options = ("calibrate", "--model", checkpoint, "--out", tmp_path / "x.json", "--text-file")
    assert "at least 8 texts, 2 were given" in refused(*options, few)
    assert "holds no text" in refused(*options, empty)
    assert "cannot be read: No such file" in refused(*options, tmp_path / "none.txt")
    nowhere = tmp_path / "no" / "x.json"
    message = refused("calibrate", "--model", checkpoint, "--out", nowhere)
    assert "give a file in a folder that exists" in message
    assert not (tmp_path / "x.json").exists()


# -- run and verify --------------------------------------------------------------------------


def test_run_gives_what_the_model_gives(
    checkpoint: Path, model: BertModel, scheduler: str, tmp_path: Path
) -> None:
    report, output = tmp_path / "report.html", tmp_path / "out.npy"
    record = tmp_path / "run.json"
    values = json_of(
        *("run", "bert_layer", "--model", checkpoint, "--text", TEXT, "--insecure"),
        *("--scheduler", scheduler, "--report", report, "--output", output, "--record", record),
    )
    assert values["precision"]["max_error"] < TOLERANCE
    assert values["precision"]["against"] == "float64"
    assert values["parameters"]["security_bits"] is None
    assert len(values["run"]["workers"]) == 2
    assert values["run"]["bytes_between_workers"] > 0
    np.testing.assert_allclose(np.load(output), reference(model), atol=TOLERANCE)
    assert "Precision" in report.read_text()
    for source in (record, scheduler):  # a report can be made later, too
        later = tmp_path / "later.html"
        told = json_of("report", source, "--out", later)
        assert told["state"] == "finished"
        assert "Memory per device" in later.read_text()
        later.unlink()
    known = refused("report", scheduler, "--run", "nothing", "--out", tmp_path / "x.html")
    assert "knows no run nothing" in known
    assert told["run"] in known


def test_verify_compares_three_ways_on_workers_of_its_own(checkpoint: Path) -> None:
    result = aegis(
        *("verify", "feed_forward", "--model", checkpoint, "--text", TEXT, "--insecure"),
        *("--tolerance", "1e-9"),
    )
    assert result.exit_code == 1, result.output
    shown = " ".join(result.stdout.split())
    for word in ("encrypted and simulated", "encrypted and float64", "ABOVE the tolerance"):
        assert word in shown
    assert "INSECURE" in result.stderr
    assert "Dashboard: http" in result.stderr


def test_runs_are_planned_for_a_machine(checkpoint: Path, scheduler: str, tmp_path: Path) -> None:
    options = ("run", "bert_layer", "--model", checkpoint, "--text", TEXT, "--insecure")
    options = (*options, "--scheduler", scheduler)
    slow = MACHINES["cpu"].to_dict()
    slow["inside"]["bytes_per_second"] = slow["between"]["bytes_per_second"] = 1e5
    path = tmp_path / "slow.json"
    path.write_text(json.dumps(slow))
    assert "there is no machine 'abacus'" in refused(*options, "--machine", "abacus")
    with dask.config.set({config.MACHINE: ""}):  # what the command sets is the process's
        plain = json_of(*options)
        searched = json_of(*options, "--machine", path)
    assert config.machine() == ""
    assert searched["precision"]["max_error"] < TOLERANCE
    moved = [v["run"]["bytes_between_workers"] for v in (plain, searched)]
    assert moved[1] < moved[0]


def test_verify_passes_within_the_tolerance(checkpoint: Path, scheduler: str) -> None:
    values = json_of(
        *("verify", "feed_forward", "--model", checkpoint, "--text", TEXT, "--insecure"),
        *("--scheduler", scheduler),
    )
    assert values["passed"] is True
    # Noise of the encryption alone: 40-bit scales leave 20 bits or more.
    assert values["comparisons"]["encrypted and simulated"]["worst_bits"] > 16
    assert values["comparisons"]["encrypted and float64"]["max_error"] < TOLERANCE


def test_a_simulated_run_needs_neither_keys_nor_parameters(
    checkpoint: Path, scheduler: str
) -> None:
    options = ("run", "bert_model", "--model", checkpoint, "--text", TEXT)
    values = json_of(*options, "--scheduler", scheduler, "--interpreter", "simulated")
    assert values["precision"]["max_error"] < TOLERANCE
    assert values["evaluation_keys"] == 0
    assert "parameters" not in values


def test_without_a_calibration_one_is_measured_and_that_is_said(
    checkpoint: Path, scheduler: str, tmp_path: Path
) -> None:
    bare = shutil.copytree(checkpoint, tmp_path / "bare")
    (bare / "calibration.json").unlink()
    options = ("run", "bert_layer", "--model", bare, "--scheduler", scheduler)
    # The words of the library's texts are unknown to the model: all of them are one token.
    result = aegis(*options, "--interpreter", "simulated", "--text", "encrypted words")
    assert result.exit_code == 0, result.output
    assert "measuring 1 layer on the texts of the library, cut to 32 tokens" in result.stderr


def test_a_graph_without_enough_secure_levels_says_so(checkpoint: Path, model: BertModel) -> None:
    options = ("--model", checkpoint, "--text", TEXT, "--scale-bits", "45")
    message = refused("run", "bert_layer", *options)
    assert "nor can those with bootstrapping run it" in message
    assert "(--insecure)" in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("the cat " * 40, "the text has 82 tokens ('the cat the cat"),
        ("   ", "the text is empty"),
    ],
)
def test_texts_that_the_model_cannot_take_are_refused(
    checkpoint: Path, text: str, message: str
) -> None:
    options = ("--model", checkpoint, "--insecure")
    assert message in refused("run", "bert_layer", *options, "--text", text)


def test_a_text_longer_than_the_room_for_it_is_refused(checkpoint: Path) -> None:
    message = refused(
        "run", "bert_layer", "--model", checkpoint, "--text", TEXT, "--length", "5", "--insecure"
    )
    assert "the text has 16 tokens, --length makes room for 5" in message


def test_a_text_outside_the_calibrated_ranges_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    data = json.loads((checkpoint / "calibration.json").read_text())
    data["layers"][0]["gelu_high"] = 0.01
    narrow = tmp_path / "narrow.json"
    narrow.write_text(json.dumps(data))
    message = refused(
        *("run", "bert_layer", "--model", checkpoint, "--text", TEXT, "--insecure"),
        *("--calibration", narrow),
    )
    assert "layer 0: an input of GELU is" in message
    assert "Calibrate with texts like this one" in message


def test_a_graph_that_leaves_the_ranges_of_the_layer_is_refused(
    checkpoint: Path, graph_file: Callable[[str], Path]
) -> None:
    path = graph_file(
        "from aegis_dask.circuits.encoder import feed_forward_block\n"
        "layers = 1\n"
        "def program(x, layers):\n"
        "    return feed_forward_block(x, layers[0])\n"
        "def prepare(model, x):\n"
        "    return 100 * x\n"
    )
    message = refused("run", path, "--model", checkpoint, "--text", TEXT, "--insecure")
    assert "graph own: an input of a polynomial is" in message
    assert "times the calibrated range" in message


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def program(x, layers:\n    pass\n", "own.py cannot be loaded: SyntaxError"),
        ("import os\n\nraise KeyError('k')\n", "cannot be loaded (line 3): KeyError: 'k'"),
        ("layers = 1\n", "does not define program(x, layers)"),
        ("def program(x, layers):\n    return layers[7]\n", "of graph own fails: IndexError"),
        ("layers = 0\ndef program(x, layers):\n    return x\n", "None or at least 1"),
        ("layers = 9\ndef program(x, layers):\n    return x\n", "9 layers are needed, tiny has 1"),
        ("reference = 3\ndef program(x, layers):\n    return x\n", "reference is 3"),
    ],
)
def test_graphs_that_are_broken_are_named(
    checkpoint: Path, graph_file: Callable[[str], Path], source: str, message: str
) -> None:
    options = ("--model", checkpoint, "--text", TEXT, "--insecure")
    assert message in refused("run", graph_file(source), *options)


def test_an_unknown_graph_is_refused_with_the_known_ones(checkpoint: Path) -> None:
    message = refused("run", "bert_lair", "--model", checkpoint, "--text", TEXT)
    assert "there is no graph 'bert_lair'" in message
    assert "bert_layer, bert_model, feed_forward, self_attention" in message


def test_a_checkpoint_of_another_shape_is_refused(
    checkpoint: Path, model: BertModel, tmp_path: Path
) -> None:
    tensors = hugging_face_tensors(model)
    name = "encoder.layer.0.output.dense.weight"
    folder = write_folder(
        tmp_path / "bad", model, tensors={**tensors, name: tensors[name].T.copy()}
    )
    message = refused("run", "bert_layer", "--model", folder, "--text", TEXT)
    assert f"the tensor {name} has the shape [64, 32], config.json asks for [32, 64]" in message
    assert "no folder" in refused("run", "bert_layer", "--model", tmp_path / "x", "--text", TEXT)


def test_corrupted_weights_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "damaged")
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-100, 2)
        byte = file.read(1)
        file.seek(-100, 2)
        file.write(bytes([byte[0] ^ 1]))
    options = ("run", "bert_layer", "--model", folder, "--text", TEXT, "--insecure")
    # The calibration knows the checksum of the weights that it was measured with.
    assert "the calibration is for tiny" in refused(*options)
    message = refused(*options, "--sha256", "00" * 32)
    assert "the weights are damaged or of another model" in message


def test_a_damaged_calibration_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text("{")
    options = ("run", "bert_layer", "--model", checkpoint, "--text", TEXT, "--calibration")
    assert "is not a calibration file" in refused(*options, bad)
    assert "is not a calibration file" in refused(*options, tmp_path / "none.json")


def test_an_unreachable_scheduler_is_refused_at_once(checkpoint: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    start = time.perf_counter()
    options = ("run", "bert_layer", "--model", checkpoint, "--text", TEXT, "--insecure")
    message = refused(*options, "--scheduler", address)
    assert f"no scheduler answers at {address}" in message
    assert time.perf_counter() - start < 10
    assert "is no address of a scheduler" in refused(*options, "--scheduler", "nowhere")


def test_a_run_waits_for_workers_as_long_as_it_is_told(checkpoint: Path) -> None:
    options = ("run", "bert_layer", "--model", checkpoint, "--text", TEXT)
    with (
        dask.config.set(LOCAL_CONFIG),
        LocalCluster(n_workers=0, host="127.0.0.1", dashboard_address=None) as cluster,
    ):
        there = (*options, "--scheduler", cluster.scheduler_address, "--interpreter", "simulated")
        assert "0 of 1 workers have joined within 0.5 s" in refused(*there, "--timeout", 0.5)
        timer = threading.Timer(1.5, cluster.scale, [1])
        timer.start()
        assert json_of(*there, "--timeout", 60)["precision"]["max_error"] < TOLERANCE
        timer.join()


def test_files_that_cannot_be_written_are_refused_before_anything_runs(
    checkpoint: Path, tmp_path: Path
) -> None:
    options = ("run", "bert_layer", "--model", checkpoint, "--text", TEXT, "--insecure")
    for option in ("--report", "--output", "--record"):
        assert "cannot be written" in refused(*options, option, tmp_path / "no" / "file")


def test_keys_that_exceed_the_memory_are_refused(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distributed.system.MEMORY_LIMIT", 1_000_000)
    options = ("run", "bert_layer", "--model", checkpoint, "--text", TEXT, "--insecure")
    assert "this machine has 1.00 MB of memory" in refused(*options)
