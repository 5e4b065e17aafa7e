"""A program deeper than its parameters: where it is refreshed, and what comes out."""

import argparse

import numpy as np

import aegis_dask as aegis
from aegis_dask.ckks.bootstrapping.bootstrapper import Bootstrapper
from aegis_dask.ckks.bootstrapping.keys import bootstrapping_keys
from aegis_dask.ckks.bootstrapping.parameters import BootstrappingParameters
from aegis_dask.ckks.evaluator import Evaluator
from aegis_dask.program.encrypted import CipherArray, Encrypted
from aegis_dask.program.graph import Capture, capture
from aegis_dask.program.interpreter import run
from aegis_dask.program.refresh import Budget, insert, minimum_cut
from aegis_dask.program.simulated import Simulated

DEPTH = 12


def shrink(c: Capture) -> None:
    """Declare a program: ``x <- (x + x^2) / 2``, twelve levels and twelve more."""
    x = c.input("x", (2,))
    for _ in range(DEPTH):
        # Stated, since nothing on the server can see it: only values of known size are refreshed.
        x = ((x + x.square()) * 0.5).within(1)
    c.output("y", x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="n16-d40-b13", help="default: n16-d40-b13")
    params = BootstrappingParameters.preset(parser.parse_args().preset)
    scheme = params.params

    program = capture(scheme.slots, shrink)
    budget = Budget(params.output_level, params.input_level, params.literal.max_magnitude)
    placement = minimum_cut(program, budget)
    print(f"{program} with {params}")
    print(placement.explain())

    # Client: keys, those of bootstrapping among them, and the input.
    secret_key = aegis.KeyGenerator(scheme).secret_key()
    keys = bootstrapping_keys(params, secret_key, Bootstrapper(params).required_keys)
    values = np.random.default_rng().uniform(-1, 1, (2, scheme.slots))
    batch = aegis.Encryptor(scheme, secret_key).encrypt(values, level=params.output_level)

    # Server: it never sees the secret key.
    server = Encrypted(Evaluator(scheme, keys.evaluation), Bootstrapper(params, keys))
    result = run(insert(placement), server, {"x": CipherArray(batch, (2,))}, {})["y"]

    expected = run(program, Simulated(), {"x": values.astype(complex)}, {})["y"]
    got = aegis.Decryptor(scheme, secret_key).decrypt(result.batch)
    print("Precision:", aegis.precision_stats(expected, got))


if __name__ == "__main__":
    main()
