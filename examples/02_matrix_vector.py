"""Multiply an encrypted vector by a plain matrix."""

import argparse
from time import perf_counter

import numpy as np

import aegis_dask as aegis


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="n14-d40", help="parameter set (default: n14-d40)")
    parser.add_argument("--size", type=int, default=64, help="a power of two (default: 64)")
    arguments = parser.parse_args()
    params, size = aegis.Parameters.preset(arguments.preset), arguments.size

    # The owner of the matrix encodes it and says which rotations it needs.
    rng = np.random.default_rng()
    matrix = rng.uniform(-1, 1, (size, size)) / np.sqrt(size)
    transform = aegis.LinearTransform.from_matrix(params, matrix)
    print(transform)
    print(f"{len(transform.rotations)} rotation keys for {size} diagonals: {transform.rotations}")

    # The client makes just those keys.
    generator = aegis.KeyGenerator(params)
    secret_key = generator.secret_key()
    keys = generator.evaluation_keys(
        secret_key, relinearisation=False, rotations=transform.rotations
    )
    print(keys)

    # The vector is repeated until it fills the slots, and so is the result.
    repeats = params.slots // size
    vector = rng.uniform(-1, 1, size)
    ct = aegis.Encryptor(params, secret_key).encrypt(np.tile(vector, repeats))
    start = perf_counter()
    result = aegis.Evaluator(params, keys).linear_transform(ct, transform)
    print(f"matrix times vector: {perf_counter() - start:.3f} s (the first call loads kernels)")

    decrypted = aegis.Decryptor(params, secret_key).decrypt(result)
    print(f"level {ct.level} -> {result.level}")
    print(aegis.precision_stats(np.tile(matrix @ vector, repeats), decrypted))


if __name__ == "__main__":
    main()
