"""Approximate the sigmoid of encrypted numbers by Chebyshev polynomials of growing degree."""

import argparse

import numpy as np

import aegis_dask as aegis

INTERVAL = (-6.0, 6.0)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="n14-d40", help="parameter set (default: n14-d40)")
    params = aegis.Parameters.preset(parser.parse_args().preset)
    print(params)

    generator = aegis.KeyGenerator(params)
    secret_key = generator.secret_key()
    evaluator = aegis.Evaluator(params, generator.evaluation_keys(secret_key))
    decryptor = aegis.Decryptor(params, secret_key)

    # Values outside the interval would give meaningless results: the polynomial grows fast there.
    x = np.random.default_rng().uniform(*INTERVAL, params.slots)
    ct = aegis.Encryptor(params, generator.public_key(secret_key)).encrypt(x)

    # Degree d takes ceil(log2(d + 1)) levels, and mapping the interval to [-1, 1] one more.
    print("degree  levels  bits against the polynomial  bits against the sigmoid")
    for degree in (3, 7, 15, 31):
        coefficients = aegis.chebyshev_coefficients(sigmoid, degree, INTERVAL)
        levels = degree.bit_length() + 1
        if levels > ct.level:
            print(f"{degree:6}  {levels:6}  more levels than the {ct.level} of {params.name}")
            continue
        result = evaluator.chebyshev(ct, coefficients, INTERVAL)
        decrypted = decryptor.decrypt(result)
        polynomial = np.polynomial.Chebyshev(coefficients, domain=INTERVAL)
        encrypted = aegis.precision_stats(polynomial(x), decrypted)
        overall = aegis.precision_stats(sigmoid(x), decrypted)
        print(
            f"{degree:6}  {ct.level - result.level:6}  {encrypted.worst:27.1f}  "
            f"{overall.worst:24.1f}"
        )


if __name__ == "__main__":
    main()
