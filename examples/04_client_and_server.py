"""A client and a server that share files only; the secret key stays with the client."""

import argparse
import tempfile
from pathlib import Path

import numpy as np

import aegis_dask as aegis
from aegis_dask.ckks.serialization import load, load_secret_key, save, save_secret_key

WEIGHTS = (0.5, -0.25, 0.125)
"""The server's model: a weighted sum of three neighbours, then a square."""


def client_prepares(params: aegis.Parameters, private: Path, shared: Path) -> np.ndarray:
    """Make keys, keep the secret one, and send the others with encrypted data."""
    generator = aegis.KeyGenerator(params)
    secret_key = generator.secret_key()
    save_secret_key(secret_key, private / "secret.key", unencrypted=True)  # mode 0600
    save(generator.evaluation_keys(secret_key, rotations=[1, 2]), shared / "evaluation.keys")

    values = np.random.default_rng().uniform(-1, 1, params.slots)
    save(aegis.Encryptor(params, secret_key).encrypt(values), shared / "input.ct")
    return values


def server_computes(shared: Path, allow_insecure: bool) -> None:
    """Read keys and input, compute, write the result. Nothing here can decrypt."""
    keys = load(
        shared / "evaluation.keys", expect=aegis.EvaluationKeys, allow_insecure=allow_insecure
    )
    x = load(shared / "input.ct", keys.params, expect=aegis.Ciphertext)
    evaluator = aegis.Evaluator(keys.params, keys)
    rotated = evaluator.rotate_many(x, range(len(WEIGHTS)))
    total = evaluator.sum(
        [evaluator.multiply(rotated[step], weight) for step, weight in enumerate(WEIGHTS)]
    )
    save(evaluator.square(total), shared / "output.ct")


def client_reads(params: aegis.Parameters, private: Path, shared: Path) -> np.ndarray:
    """Decrypt the result."""
    secret_key = load_secret_key(private / "secret.key", params)
    result = load(shared / "output.ct", params, expect=aegis.Ciphertext)
    return aegis.Decryptor(params, secret_key).decrypt(result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="n14-d40", help="parameter set (default: n14-d40)")
    params = aegis.Parameters.preset(parser.parse_args().preset)

    with tempfile.TemporaryDirectory() as folder:
        private, shared = Path(folder, "client"), Path(folder, "shared")
        private.mkdir()
        shared.mkdir()
        values = client_prepares(params, private, shared)
        server_computes(shared, allow_insecure=not params.is_secure)
        result = client_reads(params, private, shared)
        for path in sorted(shared.iterdir()):
            print(f"{path.name:16} {path.stat().st_size / 1e6:6.2f} MB")

    expected = sum(w * np.roll(values, -step) for step, w in enumerate(WEIGHTS)) ** 2
    print(aegis.precision_stats(expected, result))


if __name__ == "__main__":
    main()
