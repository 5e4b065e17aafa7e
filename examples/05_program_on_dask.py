"""A program on encrypted tensors: captured once, counted, simulated, run by two Dask workers."""

import argparse

import numpy as np

import aegis_dask as aegis
from aegis_dask.program.encrypted import CipherArray
from aegis_dask.program.graph import Capture, capture
from aegis_dask.program.interpreter import run
from aegis_dask.program.simulated import Simulated
from aegis_dask.program.symbolic import analyse
from aegis_dask.runtime.executor import Executor

COUNT = 6


def smooth(c: Capture) -> None:
    """Declare a program: ``y = (x + its neighbour to the left) / 2``, then ``y^2 - 1``."""
    x = c.input("x", (COUNT,))
    with c.stage("smooth", over=COUNT):  # one task, or one for each range of the six
        y = (x + x.rotate(1)) * 0.5
        z = y.square() - 1
    c.output("z", z)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="n14-d40", help="parameter set (default: n14-d40)")
    params = aegis.Parameters.preset(parser.parse_args().preset)

    program = capture(params.slots, smooth)
    analysis = analyse(program, params)
    print(program)
    print("Counts:", dict(analysis.total.counts), "keys:", analysis.keys)

    # Client: keys for what the program uses, at the levels at which it does, and the input.
    generator = aegis.KeyGenerator(params)
    secret_key = generator.secret_key()
    keys = generator.evaluation_keys(
        secret_key, rotations=analysis.keys.rotations, level=analysis.top_level
    )
    values = np.random.default_rng().uniform(-1, 1, (COUNT, params.slots))
    batch = aegis.Encryptor(params, secret_key).encrypt(values, level=analysis.top_level)
    x = CipherArray(batch, (COUNT,))

    # Cluster: two workers of this machine. They get evaluation keys and ciphertexts.
    with Executor.local(workers=2) as executor:
        executor.prepare(params, keys)
        result = executor.run(program, {"x": x})
    print(result)
    print(result.transfers.table())

    expected = run(program, Simulated(), {"x": values.astype(complex)}, {})["z"]
    got = aegis.Decryptor(params, secret_key).decrypt(result.outputs["z"].batch)
    print("Precision:", aegis.precision_stats(expected, got))


if __name__ == "__main__":
    main()
