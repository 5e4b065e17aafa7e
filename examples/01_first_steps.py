"""Encrypt two vectors, add, multiply and rotate them, and decrypt the results."""

import argparse

import numpy as np

import aegis_dask as aegis


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="n14-d40", help="parameter set (default: n14-d40)")
    params = aegis.Parameters.preset(parser.parse_args().preset)
    print(params)

    # Keys. The secret key decrypts; the evaluation keys let others compute and reveal nothing.
    generator = aegis.KeyGenerator(params)
    secret_key = generator.secret_key()
    public_key = generator.public_key(secret_key)
    evaluation_keys = generator.evaluation_keys(secret_key, rotations=[3])
    print(evaluation_keys)

    # A ciphertext holds params.slots numbers; all operations act on every slot at once.
    rng = np.random.default_rng()
    x = rng.uniform(-1, 1, params.slots)
    y = rng.uniform(-1, 1, params.slots)
    encryptor = aegis.Encryptor(params, public_key)
    ct_x, ct_y = encryptor.encrypt(x), encryptor.encrypt(y)
    print(ct_x)

    # The evaluator needs no secret. A product takes one level; levels are aligned by themselves.
    evaluator = aegis.Evaluator(params, evaluation_keys)
    decryptor = aegis.Decryptor(params, secret_key)
    for name, result, expected in (
        ("x + y", evaluator.add(ct_x, ct_y), x + y),
        ("2.5 x - 1", evaluator.sub(evaluator.multiply(ct_x, 2.5), 1), 2.5 * x - 1),
        ("x y", evaluator.multiply(ct_x, ct_y), x * y),
        ("x^2 y + x", evaluator.add(cubic(evaluator, ct_x, ct_y), ct_x), x**2 * y + x),
        ("x rotated by 3", evaluator.rotate(ct_x, 3), np.roll(x, -3)),
    ):
        stats = aegis.precision_stats(expected, decryptor.decrypt(result))
        print(f"{name:15} level {result.level}: {stats}")


def cubic(evaluator: aegis.Evaluator, x: aegis.Ciphertext, y: aegis.Ciphertext) -> aegis.Ciphertext:
    """Return x^2 y, two levels below x."""
    return evaluator.multiply(evaluator.square(x), y)


if __name__ == "__main__":
    main()
