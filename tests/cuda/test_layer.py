"""An encoder layer on the emulated GPU: the residues of the CPU."""

from __future__ import annotations

import numpy as np

from aegis_dask.ckks.evaluator import Evaluator
from aegis_dask.models.calibration import calibrate
from aegis_dask.models.checkpoint import BertConfig, random_bert
from aegis_dask.models.graphs import load_graph
from aegis_dask.models.programs import INPUT, OUTPUT
from aegis_dask.program.encrypted import Encrypted
from aegis_dask.program.interpreter import run
from aegis_dask.service.client import Client
from aegis_dask.service.job import make_job
from tests.cuda.moving import assert_same, emulation, moved
from tests.emulation.device import needs_compiler

pytestmark = needs_compiler

CONFIG = BertConfig(1, 32, 4, 64, max_positions=40, vocabulary=11)


def test_an_encoder_layer(rng: np.random.Generator) -> None:
    model = random_bert(CONFIG, 5)
    texts = [rng.integers(0, 11, rng.integers(3, 30)) for _ in range(50)]
    job = make_job(
        model, calibrate(model, texts), load_graph("bert_layer"), 12, tokens=32, allow_insecure=True
    )
    client = Client.create(job)
    keys = client.evaluation_keys()
    x = client.encrypt(rng.uniform(-0.5, 0.5, (12, CONFIG.hidden)))
    assert job.params is not None
    store = model.tensors()
    evaluator = Evaluator(job.params, keys)
    expected = run(job.program, Encrypted(evaluator), {INPUT: x}, store)[OUTPUT].batch.data
    with emulation():
        evaluator = Evaluator(job.params, moved(keys))
        found = run(job.program, Encrypted(evaluator), {INPUT: moved(x)}, store)[OUTPUT]
        assert_same(found, expected)
