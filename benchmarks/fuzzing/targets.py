"""The parsers that are fuzzed. A new one is one more `Target` in `all_targets`."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from random import Random

import numpy as np

from aegis_dask.ckks.bootstrapping.keys import BootstrappingKeys
from aegis_dask.ckks.bootstrapping.mapped import (
    open_expanded_bootstrapping,
    save_expanded_bootstrapping,
)
from aegis_dask.ckks.keys import EvaluationKey, EvaluationKeys, PublicKey
from aegis_dask.ckks.mapped import INDEX, open_expanded, save_expanded
from aegis_dask.ckks.objects import Ciphertext, Plaintext
from aegis_dask.ckks.parameters import PRESETS, Parameters, ParametersLiteral
from aegis_dask.ckks.serialization import load, load_secret_key, loads, save_secret_key
from aegis_dask.errors import AegisError
from aegis_dask.models.calibration import Calibration
from aegis_dask.models.checkpoint import load_bert, random_bert
from aegis_dask.models.graphs import load_graph
from aegis_dask.placement.devices import MACHINES, load_machine
from aegis_dask.placement.files import read_plan, write_plan
from aegis_dask.placement.plan import make_plan
from aegis_dask.program.encrypted import CipherArray
from aegis_dask.service.description import read_description
from aegis_dask.service.files import read_json
from aegis_dask.service.http.answers import JOB as STATUS_FIELDS
from aegis_dask.service.http.answers import read_answer, read_list
from aegis_dask.service.job import read_job
from aegis_dask.service.messages import DATA, MESSAGE, Message
from benchmarks.fuzzing import Target
from benchmarks.fuzzing.examples import BERT, GRAPHS, SMALL_SECURE, Examples, as_json, file_of
from benchmarks.fuzzing.examples import written as w
from benchmarks.fuzzing.mutate import seal, split

Parser = Callable[[bytes], object]


def all_targets(folder: Path) -> list[Target]:
    """Return the targets.

    Parameters
    ----------
    folder
        An empty folder, best in memory, for parsers of files.
    """
    e = Examples()
    return [*_wire(e), *_files(e, folder), *_json(e, folder), *_checkpoints(e, folder)]


def _wire(e: Examples) -> list[Target]:
    params, bootstrapping = e.params, e.bootstrapping
    ciphertexts = (w(e.fresh(0, 1)), w(e.fresh(1, 2)), w(e.ciphertext(0, 1, 3)))
    small, large = e.plaintext(0, 4), e.plaintext(2, params.slots)
    keys, public = e.evaluation_keys(params), e.public_key()
    key = e.evaluation_key(params, 0)
    secure = tuple(w(Parameters.from_literal(PRESETS[name])) for name in SMALL_SECURE)
    everything = (*ciphertexts, w(small), w(public), w(keys), w(key), w(params))
    return [
        Target(
            "ciphertext",
            ciphertexts,
            lambda data: loads(data, params, expect=Ciphertext),
            share=4,
        ),
        Target("plaintext", (w(small), w(large)), lambda d: loads(d, params, expect=Plaintext)),
        Target("public-key", (w(public),), lambda d: loads(d, params, expect=PublicKey)),
        Target("evaluation-key", (w(key),), lambda d: loads(d, params, expect=EvaluationKey)),
        Target("evaluation-keys", (w(keys),), lambda d: loads(d, params, expect=EvaluationKeys)),
        Target(
            "bootstrapping-keys",
            (w(e.bootstrapping_keys()),),
            lambda d: loads(d, bootstrapping, expect=BootstrappingKeys),
            share=0.2,
        ),
        Target("any-class", everything, lambda d: loads(bytearray(d), params), share=4),
        # Parameters of the data are rebuilt: secure ones of any ring, primes are searched for.
        Target("parameters", (*secure, w(params)), loads, share=0.5),
        Target("rebuilt-parameters", (w(e.plaintext(0, 1)),), loads, other_parameters, share=0.02),
    ]


def other_parameters(rng: Random, examples: Sequence[bytes]) -> bytes:
    """Return a small plaintext of other, secure parameters, with their true fingerprint."""
    _, text, _ = split(examples[0])
    header = json.loads(text)
    log_n, size = rng.randint(10, 17), rng.choice((30, 35, 40, 45, 50, 54, 60))
    bits = [size] * rng.choice((0, 1, 2, 5, 10, 30, 50))
    literal = ParametersLiteral(
        log_n,
        rng.choice((50, 60, 100)),
        (*bits, *rng.choice(((), (60,), (25, 25), (50,)))),
        rng.choice((1, 2, 4, 8, 16, 40)),
        rng.randint(1, 8),
        rng.choice((30, 40, 45)),
    )
    header["parameters"] = {**asdict(literal), "level_bits": list(literal.level_bits), "name": ""}
    header |= {"level": 0, "period": 1, "scale": [[2, 30, 1]]}
    limbs = 2
    with suppress(AegisError):
        params = Parameters(literal)
        header["fingerprint"] = params.fingerprint
        limbs = len(params.window(0))
    payload = bytes(limbs * 8)
    (entry,) = header["tensors"].values()
    entry |= {"shape": [limbs, 2], "offsets": [0, len(payload)]}
    entry["sha256"] = hashlib.sha256(payload).hexdigest()
    return seal(json.dumps(header).encode(), payload)


def _files(e: Examples, folder: Path) -> list[Target]:
    params = e.params
    path, directory, key = folder / "object", folder / "message", e.evaluation_key(params, 0)
    secret = file_of(lambda p: save_secret_key(e.secret_key(), p, unencrypted=True), folder)

    def parse_secret(data: bytes) -> object:
        path.write_bytes(data)
        path.chmod(0o600)
        return load_secret_key(path, params)

    def parse_mapped(data: bytes) -> object:
        path.unlink(missing_ok=True)  # an earlier map of it stays as it is
        path.write_bytes(data)
        return load(path, params, mmap=True)

    job = e.job
    own = Examples(2)
    vars(own)["params"] = job.params
    count = int(np.prod(job.layout.shape))
    batch = own.fresh(job.analysis.top_level, count)
    Message(job.fingerprint, 5, CipherArray(batch, job.layout.shape)).save(directory)
    message, ciphertexts = (directory / MESSAGE).read_bytes(), (directory / DATA).read_bytes()

    def parse_message(data: bytes) -> object:
        (directory / MESSAGE).write_bytes(data)
        return Message.load(directory, job, job.analysis.top_level)

    whole = folder / "whole"
    shutil.copytree(directory, whole)

    def parse_ciphertexts(data: bytes) -> object:
        (whole / DATA).write_bytes(data)
        return Message.load(whole, job, job.analysis.top_level)

    return [
        Target("secret-key-file", (secret,), parse_secret, share=0.5),
        Target("mapped-file", (w(key), w(e.fresh(0, 1))), parse_mapped, share=0.3),
        Target("message.json", (message,), parse_message, "json"),
        Target("message-ciphertexts", (ciphertexts,), parse_ciphertexts, share=0.2),
    ]


_JOB_STATUS = {
    **{"id": "0123456789abcdef", "state": "done", "position": None, "share": 1.0, "stage": "x"},
    **{"length": 5, "error": "", "created": 1.5, "started": 2, "finished": None, "changes": 0},
}


def _json(e: Examples, folder: Path) -> list[Target]:
    job = e.job
    description = as_json(job.to_dict())
    refreshing = json.loads(description)
    refreshing["bootstrapping"] = asdict(e.bootstrapping.literal)
    refreshing["parameters"] = asdict(e.bootstrapping.params.literal)
    path = folder / "file.json"
    model, graphs = random_bert(BERT, 1), [load_graph(name) for name in GRAPHS]
    jobs = tuple(as_json(e.job_of(name).to_dict()) for name in GRAPHS)

    def build(file: Path) -> object:
        found = read_json(file)
        graph = graphs[found.get("graph") == GRAPHS[1]]
        return read_job(found, model, graph, allow_insecure=True)

    def from_file(read: Callable[[Path], object]) -> Parser:
        def parse(data: bytes) -> object:
            path.write_bytes(data)
            return read(path)

        return parse

    expanded, raised = folder / "expanded", folder / "raised"
    save_expanded(e.evaluation_keys(e.params), expanded)
    save_expanded_bootstrapping(e.bootstrapping_keys(), raised)
    indices = [(d / INDEX).read_bytes() for d in (expanded, raised)]

    def parse_index(data: bytes) -> object:
        (expanded / INDEX).write_bytes(data)
        return open_expanded(expanded, e.params, verify=True)

    def parse_raised(data: bytes) -> object:
        (raised / INDEX).write_bytes(data)
        return open_expanded_bootstrapping(raised, e.bootstrapping, verify=True)

    def parse_answer(data: bytes) -> object:
        return read_list("a job", read_answer(data), STATUS_FIELDS)

    machines = tuple(as_json(m.to_dict()) for m in MACHINES.values())

    def plan_for(workers: int) -> bytes:
        plan = make_plan(job.program, workers, [0.1] * len(job.program.stages))
        return file_of(lambda p: write_plan(p, plan, job.program), folder)

    plans = tuple(map(plan_for, (1, 3)))
    return [
        Target(
            "job.json",
            (description, as_json(refreshing)),
            from_file(lambda p: read_description(read_json(p), allow_insecure=True)),
            "json",
        ),
        # Everything that is built of a description: circuits, polynomials, levels.
        Target(
            "job",
            jobs,
            from_file(build),
            "numbers",
            share=0.01,
            seconds=20,
            constant=256 << 20,
        ),
        Target(
            "calibration",
            (as_json(job.calibration.to_dict()),),
            from_file(Calibration.load),
            "json",
        ),
        Target("machine", machines, from_file(lambda p: load_machine(str(p))), "json"),
        Target("service-answer", (as_json([_JOB_STATUS]),), parse_answer, "json"),
        # Half a microsecond for every byte, and they may be four millions.
        Target("plan", plans, from_file(read_plan), "json", share=0.3, seconds=10),
        Target("key-index", (indices[0],), parse_index, "json", share=0.5),
        Target("bootstrapping-key-index", (indices[1],), parse_raised, "json", share=0.3),
    ]


def _checkpoints(e: Examples, folder: Path) -> list[Target]:
    from tests.models.folders import write_folder

    checkpoint = write_folder(folder / "checkpoint", random_bert(BERT, 1))
    config, weights = checkpoint / "config.json", checkpoint / "model.safetensors"
    original = config.read_bytes(), weights.read_bytes()

    def parse_config(data: bytes) -> object:
        config.write_bytes(data)
        weights.write_bytes(original[1])
        return load_bert(checkpoint)

    def parse_weights(data: bytes) -> object:
        config.write_bytes(original[0])
        weights.write_bytes(data)
        return load_bert(checkpoint)

    return [
        Target("config.json", (original[0],), parse_config, "json", share=0.3),
        Target("model.safetensors", (original[1],), parse_weights, "bytes", share=0.1),
    ]
