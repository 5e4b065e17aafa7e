from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from math import prod

import numpy as np
import pytest

from aegis_dask.ckks import sampling
from aegis_dask.ckks.encryptor import Decryptor, Encryptor
from aegis_dask.ckks.galois import rotation_element
from aegis_dask.ckks.keys import EvaluationKey, EvaluationKeys, KeyGenerator, PublicKey
from aegis_dask.ckks.parameters import Parameters
from aegis_dask.errors import AegisError, IncompatibleError, MissingKeyError
from tests import reference
from tests.arrays import host, same
from tests.schemes import ROTATIONS, Scheme

TINY = "insecure-n10-d40"
Schemes = Callable[[str], Scheme]


@pytest.fixture
def scheme(schemes: Schemes) -> Scheme:
    return schemes(TINY)


def integers(params: Parameters, data: np.ndarray, limbs: list[int]) -> np.ndarray:
    """Centred integers of residues in the evaluation domain."""
    everything = params.chain.primes + params.chain.special_primes
    primes = [everything[i] for i in limbs]
    return reference.centered(reference.crt(params.ring.intt(data, limbs), primes), prod(primes))


def from_montgomery(params: Parameters, data: np.ndarray) -> np.ndarray:
    everything = params.chain.primes + params.chain.special_primes
    inverse = np.array([[pow(1 << 32, -1, p)] for p in everything], np.uint32)
    return params.ring.multiply_runs(data, inverse, list(range(len(everything))))


def errors_of(
    key: EvaluationKey, scheme: Scheme, source: np.ndarray, target: np.ndarray
) -> np.ndarray:
    """Return ``e = b + a s - P g_d s'`` of every digit, ``[digit, N]``."""
    params, ring = scheme.params, scheme.params.ring
    primes, P = params.chain.primes, params.chain.special_modulus
    limbs = list(range(len(primes) + len(params.chain.special_primes)))
    errors = []
    for d in range(params.digits):
        b, a = (from_montgomery(params, ring.from_host(host(x[d]))) for x in (key.b, key.a))
        rest = ring.add(b, ring.multiply(a, target, limbs), limbs)
        own = range(params.digit_bounds[d], params.digit_bounds[d + 1])
        gadget = [[P % primes[i] if i in own else 0] for i in range(len(primes))]
        gadget += [[0]] * (len(limbs) - len(primes))
        message = ring.multiply_runs(source, np.array(gadget, np.uint32), limbs)
        errors.append(integers(params, ring.sub(rest, message, limbs), limbs))
    return np.array(errors)


def check_errors(errors: np.ndarray) -> None:
    """Check 1024 errors per row: bounded, of the right deviation, and independent of each other.

    Within six deviations of those of a sample. An error used twice would give the secret away.
    """
    e = errors.astype(np.float64)
    count = e.shape[-1]
    assert np.max(np.abs(e)) <= sampling.ERROR_BITS
    assert e.std(axis=-1) == pytest.approx(sampling.ERROR_STD, rel=6 / (2 * count) ** 0.5)
    correlation = np.corrcoef(e) if len(e) > 1 else np.eye(1)
    assert np.max(np.abs(correlation - np.eye(len(e)))) < 6 / count**0.5


# -- what keys hold -----------------------------------------------------------------------------


def test_the_secret_is_ternary_and_the_same_modulo_every_prime(scheme: Scheme) -> None:
    s = scheme.secret_key._coefficients
    assert set(np.unique(s)) == {-1, 0, 1}
    limbs = list(range(len(scheme.secret_key._residues)))
    assert same(integers(scheme.params, scheme.secret_key._residues, limbs), s)


def test_a_public_key_is_an_encryption_of_zero(scheme: Scheme) -> None:
    params, ring = scheme.params, scheme.params.ring
    s = scheme.secret_key._residues
    limbs = list(range(len(s)))
    rest = ring.add(scheme.public_key.b, ring.multiply(scheme.public_key.a, s, limbs), limbs)
    check_errors(integers(params, rest, limbs)[None])


def test_evaluation_keys_hide_their_secrets_under_independent_errors(scheme: Scheme) -> None:
    ring, s = scheme.params.ring, scheme.secret_key._residues
    square = ring.multiply(s, s, list(range(len(s))))
    assert scheme.keys.relinearisation is not None
    errors = [errors_of(scheme.keys.relinearisation, scheme, square, s)]
    for element, key in scheme.keys.galois.items():
        # It switches to the preimage of s; the automorphism of the result is under s.
        preimage = ring.automorphism(s, pow(element, -1, 2048))
        errors.append(errors_of(key, scheme, s, preimage))
    assert len(errors) == len(ROTATIONS) + 2
    check_errors(np.concatenate(errors))


def test_uniform_halves_come_from_the_seed_with_a_domain_of_their_own(scheme: Scheme) -> None:
    params, key = scheme.params, scheme.keys.relinearisation
    assert key is not None
    primes = params.chain.primes + params.chain.special_primes
    for digit, limb in ((0, 0), (params.digits - 1, len(primes) - 1)):
        expected = reference.uniform(
            key.seed, sampling.DOMAIN_EVALUATION_KEY, digit, primes[limb], 1024
        )
        assert same(key.a[digit, limb], expected)
    public = scheme.public_key
    expected = reference.uniform(public.seed, sampling.DOMAIN_PUBLIC_KEY, 0, primes[2], 1024)
    assert same(public.a[2], expected)


def test_two_keys_of_the_same_secret_share_nothing(scheme: Scheme) -> None:
    generator = KeyGenerator(scheme.params)
    first, second = (generator.public_key(scheme.secret_key) for _ in range(2))
    assert first.seed != second.seed
    assert np.mean(host(first.b) == host(second.b)) < 0.01
    keys = generator.evaluation_keys(scheme.secret_key, rotations=[1, 2])
    everything = [keys.relinearisation, *keys.galois.values(), scheme.keys.relinearisation]
    assert len({k.seed for k in everything if k is not None}) == 4


def test_two_secrets_differ_and_do_not_decrypt_for_each_other(
    scheme: Scheme, rng: np.random.Generator
) -> None:
    other = KeyGenerator(scheme.params).secret_key()
    assert np.mean(other._coefficients == scheme.secret_key._coefficients) < 0.5
    z = scheme.slots(rng)
    wrong = Decryptor(scheme.params, other).decrypt(scheme.encryptor.encrypt(z))
    assert np.median(np.abs(wrong - z)) > 2.0**40  # uniform modulo Q, at the scale of the level


# -- the secret stays ---------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_secret_key_is_never_pickled(scheme: Scheme, protocol: int) -> None:
    params = scheme.params
    holders = [
        scheme.secret_key,
        Encryptor(params, scheme.secret_key),
        Decryptor(params, scheme.secret_key),
        {"key": scheme.secret_key},
    ]
    for holder in holders:
        with pytest.raises(AegisError, match="never pickled or sent to another process"):
            pickle.dumps(holder, protocol)


def test_a_secret_key_is_not_copied_either(scheme: Scheme) -> None:
    for duplicate in (copy.copy, copy.deepcopy):
        with pytest.raises(AegisError, match="save_secret_key"):
            duplicate(scheme.secret_key)


def test_representations_show_no_key_material(scheme: Scheme) -> None:
    assert repr(scheme.secret_key) == f"SecretKey({TINY}, hidden)"
    assert repr(scheme.public_key) == f"PublicKey({TINY})"
    assert repr(scheme.keys.relinearisation).startswith(f"EvaluationKey({TINY}, ")
    assert "relinearisation=True, 6 Galois keys" in repr(scheme.keys)


# -- which keys are made ------------------------------------------------------------------------


def test_only_the_keys_asked_for_are_made(scheme: Scheme) -> None:
    generator, secret = KeyGenerator(scheme.params), scheme.secret_key
    nothing = generator.evaluation_keys(secret, relinearisation=False)
    assert nothing.relinearisation is None
    assert nothing.galois == {}
    assert nothing.nbytes == 0
    some = generator.evaluation_keys(secret, rotations=[3, -1, 515, 0, 512], conjugation=True)
    assert some.steps == {3, 511}
    assert 2047 in some.galois
    assert some.nbytes == 4 * scheme.params.evaluation_key_bytes
    powers = generator.evaluation_keys(secret, rotations="powers-of-two")
    assert powers.steps == {1 << k for k in range(9)}


def test_an_unknown_set_of_rotations_is_refused(scheme: Scheme) -> None:
    with pytest.raises(ValueError, match="'all'; give steps or the string 'powers-of-two'"):
        KeyGenerator(scheme.params).evaluation_keys(scheme.secret_key, rotations="all")


def test_sizes_are_those_of_the_arrays(scheme: Scheme) -> None:
    key = scheme.keys.relinearisation
    assert key is not None
    assert key.nbytes == key.a.nbytes + key.b.nbytes == scheme.params.evaluation_key_bytes


def test_missing_keys_are_named(scheme: Scheme) -> None:
    keys = EvaluationKeys(scheme.params)
    with pytest.raises(MissingKeyError, match="needs a relinearisation key"):
        keys.for_multiplication()
    with pytest.raises(MissingKeyError, match=r"rotates by 7 steps; make it.*rotations=\[7\]"):
        keys.for_element(rotation_element(7, 1024))
    with pytest.raises(MissingKeyError, match=r"complex conjugation.*conjugation=True"):
        keys.for_element(2047)
    with pytest.raises(MissingKeyError, match=r"rotates by 509 steps.*\(none\).*rotations=\[-3\]"):
        keys.path(-3)
    with pytest.raises(KeyError):  # what callers of a mapping expect
        keys.path(1)


def test_a_path_takes_the_fewest_key_switches(scheme: Scheme) -> None:
    assert scheme.keys.path(8) == (8,)
    assert scheme.keys.path(7) == (4, 3)
    assert len(scheme.keys.path(13)) == 3
    assert scheme.keys.path(0) == ()
    with pytest.raises(MissingKeyError, match=r"would take 65 rotations; .*rotations=\[-1\]"):
        scheme.keys.path(-1)  # more than powers of two would ever take


def test_keys_of_other_parameters_are_refused(scheme: Scheme, schemes: Schemes) -> None:
    other = schemes("insecure-n10-d54")
    generator = KeyGenerator(scheme.params)
    for make in (generator.public_key, generator.evaluation_keys):
        with pytest.raises(IncompatibleError, match="the key generator belongs to"):
            make(other.secret_key)
    for key in (other.public_key, other.secret_key):
        with pytest.raises(IncompatibleError, match=r"the encryptor belongs to .* the key to"):
            Encryptor(scheme.params, key)
    with pytest.raises(IncompatibleError, match="the secret key to"):
        Decryptor(scheme.params, other.secret_key)


def test_public_keys_survive_pickling(scheme: Scheme, rng: np.random.Generator) -> None:
    restored: PublicKey = pickle.loads(pickle.dumps(scheme.public_key))
    z = scheme.slots(rng)
    ct = Encryptor(restored.params, restored).encrypt(z)
    level = scheme.params.max_level
    scheme.assert_close(z, ct, scheme.noise.fresh_public(level))
