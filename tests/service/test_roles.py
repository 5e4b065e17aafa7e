"""``aegis keys``, ``encrypt``, ``evaluate``, ``decrypt``: what passes between client and server."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from aegis_dask.ckks.keys import EvaluationKeys
from aegis_dask.ckks.serialization import load, save
from aegis_dask.errors import AegisError, ClusterError, MissingKeyError
from aegis_dask.models.checkpoint import BertModel
from aegis_dask.models.graphs import load_graph
from aegis_dask.models.text import Tokenizer, embed
from aegis_dask.runtime.executor import Executor
from aegis_dask.service.client import Client
from aegis_dask.service.server import Server, read_bundle
from tests.service.conftest import TEXT, TOLERANCE, aegis, json_of, refused

ROOT = Path(__file__).parents[2]


def test_a_server_in_another_process_answers_a_request(
    checkpoint: Path, model: BertModel, keys: Path, request_folder: Path, tmp_path: Path
) -> None:
    """The server has the bundle and the request, workers of its own, and no access to the rest."""
    own = tmp_path / "server"
    own.mkdir()
    shutil.copytree(keys / "bundle", own / "bundle")
    shutil.copytree(request_folder, own / "request")
    arguments = ["evaluate", "--model", checkpoint, "--bundle", "bundle", "--request", "request"]
    server = subprocess.run(
        [sys.executable, "-m", "aegis_dask.cli", *arguments, "--out", "response", "--json"],
        cwd=own,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert server.returncode == 0, server.stderr
    answered = json.loads(server.stdout)
    assert len(answered["run"]["workers"]) == 2
    output = tmp_path / "out.npy"
    values = json_of(
        *("decrypt", "--model", checkpoint, "--client", keys / "client"),
        *("--response", own / "response", "--text", TEXT, "--output", output),
    )
    assert values["precision"]["max_error"] < TOLERANCE
    graph = load_graph("feed_forward")
    x, _ = embed(model, Tokenizer.for_model(model).encode(TEXT))
    assert graph.prepare is not None
    assert graph.reference is not None
    expected = graph.reference(model, graph.prepare(model, x))
    np.testing.assert_allclose(np.load(output), expected, atol=TOLERANCE)


def test_a_shared_result_has_noise(
    checkpoint: Path, keys: Path, request_folder: Path, tmp_path: Path
) -> None:
    """A request is in the form of a response, and decrypts to its input."""
    command = ("decrypt", "--model", checkpoint, "--client", keys / "client")
    command += ("--response", request_folder)
    plain, shared = tmp_path / "plain.npy", tmp_path / "shared.npy"
    json_of(*command, "--output", plain)
    options = ("--share", "20", "--share-error", "1e-9", "--share-results", "3")
    told = json_of(*command, "--output", shared, *options)["shared"]
    assert told["statistical_security_bits"] == 20
    assert told["results"] == 3
    added = np.load(shared) - np.load(plain)
    assert abs(added.std() / told["noise"] - 1) < 0.2
    result = aegis(*command, *options)
    assert "20 bits of statistical security" in " ".join(result.stdout.split())
    assert "--share-error go together" in refused(*command, "--share", "20")
    assert "after the binary point" in refused(*command, "--share", "30", "--share-error", "1e-3")


def test_only_the_client_s_folder_holds_a_secret_and_only_its_owner_reads_it(keys: Path) -> None:
    assert {f.name for f in (keys / "client").iterdir()} == {"secret.aegis", "job.json"}
    assert {f.name for f in (keys / "bundle").iterdir()} == {"keys.aegis", "job.json"}
    assert stat.S_IMODE((keys / "client" / "secret.aegis").stat().st_mode) == 0o600
    for folder in (keys, keys / "client", keys / "bundle"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_keys_says_what_to_send_to_whom(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "new"
    options = ("keys", "feed_forward", "--model", checkpoint, "--insecure", "--out", out)
    result = aegis(*options)
    assert result.exit_code == 0, result.output
    shown = " ".join(result.stdout.split())
    assert "the SECRET KEY. Keep it" in shown
    assert "Send it to the server once" in shown
    assert "INSECURE" in result.stderr
    assert f"{out} exists, and is never overwritten" in refused(*options)
    assert "positions for 40" in refused(*options[:-1], tmp_path / "more", "--length", "64")
    assert not (tmp_path / "more").exists()


def evaluating(checkpoint: Path, bundle: Path, request: Path, out: Path) -> list[str | Path]:
    return [
        *("evaluate", "--model", checkpoint, "--bundle", bundle),
        *("--request", request, "--out", out),
    ]


def test_existing_folders_are_never_overwritten(
    checkpoint: Path, keys: Path, request_folder: Path, tmp_path: Path
) -> None:
    client = ("--model", checkpoint, "--client", keys / "client")
    message = refused("encrypt", *client, "--text", TEXT, "--out", tmp_path)
    assert f"{tmp_path} exists" in message
    message = refused(*evaluating(checkpoint, keys / "bundle", request_folder, tmp_path))
    assert f"{tmp_path} exists" in message


def test_a_bundle_without_its_keys_is_refused(
    checkpoint: Path, keys: Path, request_folder: Path, tmp_path: Path
) -> None:
    bundle = shutil.copytree(keys / "bundle", tmp_path / "bundle")
    (bundle / "keys.aegis").unlink()
    out = tmp_path / "response"
    message = refused(*evaluating(checkpoint, bundle, request_folder, out))
    assert f"there is no file {bundle / 'keys.aegis'}" in message
    data = (keys / "bundle" / "keys.aegis").read_bytes()
    (bundle / "keys.aegis").write_bytes(data[: len(data) // 2])
    assert "error" not in refused(*evaluating(checkpoint, bundle, request_folder, out))[:5]
    assert not out.exists()


def test_a_missing_rotation_key_is_named_with_the_operator_that_needs_it(
    checkpoint: Path,
    model: BertModel,
    keys: Path,
    request_folder: Path,
    tmp_path: Path,
    scheduler: str,
) -> None:
    bundle = shutil.copytree(keys / "bundle", tmp_path / "bundle")
    job, complete = read_bundle(bundle, model, load_graph("feed_forward"))
    galois = dict(complete.galois)
    # Without the keys of all rotations none can be composed of the others.
    kept = {g: k for g, k in galois.items() if g == 2 * job.analysis.params.ring_degree - 1}
    save(EvaluationKeys(complete.params, complete.relinearisation, kept), bundle / "keys.aegis")
    out = tmp_path / "response"
    command = evaluating(checkpoint, bundle, request_folder, out)
    message = refused(*command, "--scheduler", scheduler)
    assert "of layer 'layer0', operator 'feed-forward/" in message
    assert "no evaluation key rotates by" in message
    assert not out.exists()


def test_that_error_has_its_cause(keys: Path, model: BertModel) -> None:
    graph = load_graph("feed_forward")
    client = Client.open(keys / "client", model, graph)
    x, _ = embed(model, Tokenizer.for_model(model).encode(TEXT))
    empty = EvaluationKeys(client.job.analysis.params)
    with Executor.local(workers=1, processes=False) as executor:
        server = Server(client.job, empty, executor)
        with pytest.raises(ClusterError, match="layer 'layer0'") as caught:
            server.evaluate(client.encrypt(client.job.input_of(x)), len(x))
    assert isinstance(caught.value.__cause__, MissingKeyError)


def test_a_request_of_other_keys_is_refused(
    checkpoint: Path, keys: Path, request_folder: Path, tmp_path: Path
) -> None:
    request = shutil.copytree(request_folder, tmp_path / "request")
    about = json.loads((request / "message.json").read_text())
    command = evaluating(checkpoint, keys / "bundle", request, tmp_path / "response")
    for change, message in (
        ({"fingerprint": "0" * 64}, "belongs to another job than these keys"),
        ({"length": 41}, "gives the length 41; it must be 1 to 32"),
        ({"length": True}, "gives the length True"),
        ({"shape": [1]}, "gives the shape [1]; it must be"),
    ):
        (request / "message.json").write_text(json.dumps({**about, **change}))
        assert message in refused(*command)
    (request / "message.json").write_text("[]")
    assert "not a JSON object" in refused(*command)
    (request / "message.json").write_text("{")
    assert "is not JSON" in refused(*command)


def test_damaged_ciphertexts_are_refused(
    checkpoint: Path, keys: Path, request_folder: Path, tmp_path: Path
) -> None:
    request = shutil.copytree(request_folder, tmp_path / "request")
    data = bytearray((request / "ciphertexts.aegis").read_bytes())
    data[len(data) // 2] ^= 1
    (request / "ciphertexts.aegis").write_bytes(data)
    command = evaluating(checkpoint, keys / "bundle", request, tmp_path / "response")
    assert "is damaged: its SHA-256 is" in refused(*command)


def test_ciphertexts_of_another_level_are_refused(
    checkpoint: Path, model: BertModel, keys: Path, request_folder: Path, tmp_path: Path
) -> None:
    client = Client.open(keys / "client", model, load_graph("feed_forward"))
    params, top = client.job.analysis.params, client.job.analysis.top_level
    x = client.encrypt(np.zeros((3, 32))).batch
    limbs = len(params.window(top - 1))
    low = x.with_data(
        np.ascontiguousarray(x.data[:, :, :limbs]) % 3, top - 1, params.scales[top - 1]
    )
    request = shutil.copytree(request_folder, tmp_path / "request")
    save(low, request / "ciphertexts.aegis")
    message = refused(*evaluating(checkpoint, keys / "bundle", request, tmp_path / "response"))
    assert f"holds ciphertexts at level {top - 1}" in message
    save(x[0], request / "ciphertexts.aegis")
    message = refused(*evaluating(checkpoint, keys / "bundle", request, tmp_path / "response"))
    assert "holds 1 ciphertexts of 2 components" in message


def test_a_job_that_names_a_file_is_not_executed(
    checkpoint: Path, keys: Path, request_folder: Path, tmp_path: Path
) -> None:
    """The bundle comes from elsewhere; a graph is code."""
    bundle = shutil.copytree(keys / "bundle", tmp_path / "bundle")
    planted = tmp_path / "planted.py"
    planted.write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\n")
    job = json.loads((bundle / "job.json").read_text())
    (bundle / "job.json").write_text(json.dumps({**job, "graph": str(planted)}))
    message = refused(*evaluating(checkpoint, bundle, request_folder, tmp_path / "response"))
    assert "does not come with the library" in message
    assert not (tmp_path / "executed").exists()


def test_a_secret_key_that_others_can_read_is_refused(
    checkpoint: Path, keys: Path, tmp_path: Path
) -> None:
    client = shutil.copytree(keys / "client", tmp_path / "client")
    options = ("encrypt", "--model", checkpoint, "--client", client, "--text", TEXT)
    (client / "secret.aegis").chmod(0o644)
    assert "mode 0644" in refused(*options, "--out", tmp_path / "request")
    (client / "secret.aegis").unlink()
    assert "there is no file" in refused(*options, "--out", tmp_path / "request")
    assert not (tmp_path / "request").exists()


def test_a_text_beyond_the_room_of_the_keys_is_refused(
    checkpoint: Path, keys: Path, tmp_path: Path
) -> None:
    options = ("encrypt", "--model", checkpoint, "--client", keys / "client", "--text", "cat " * 34)
    message = refused(*options, "--out", tmp_path / "request")
    assert "the text has 36 tokens, keys and parameters are for 32" in message


def test_decrypting_refuses_the_wrong_text(
    checkpoint: Path, keys: Path, request_folder: Path
) -> None:
    message = refused(
        *("decrypt", "--model", checkpoint, "--client", keys / "client"),
        *("--response", request_folder, "--text", "the cat"),
    )
    assert "the text has 4 tokens, the response is of one with 16" in message


def test_a_secret_key_cannot_be_sent_through_dask(
    keys: Path, model: BertModel, scheduler: str
) -> None:
    from distributed import Client as DaskClient
    from distributed.protocol import serialize

    client = Client.open(keys / "client", model, load_graph("feed_forward"))
    secret = client._secret_key
    with pytest.raises((AegisError, TypeError)) as caught:
        serialize(secret, on_error="raise", serializers=["dask", "pickle"])
    assert "secret key" in repr(caught.value) + repr(caught.value.__cause__)
    with DaskClient(scheduler, set_as_default=False) as dask:
        for attempt in (
            lambda: dask.submit(repr, secret).result(),
            lambda: dask.scatter(secret),
            lambda: dask.submit(lambda: secret).result(),
            lambda: dask.submit(repr, client).result(),
        ):
            with pytest.raises(Exception, match=r"[Ss]ecret key|[Ss]erializ") as caught:
                attempt()
    assert load(keys / "bundle" / "keys.aegis", secret.params, expect=EvaluationKeys)
