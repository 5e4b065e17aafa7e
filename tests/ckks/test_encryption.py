from __future__ import annotations

import pickle
from collections.abc import Callable
from itertools import product
from math import prod

import numpy as np
import pytest

from aegis_dask.ckks import sampling
from aegis_dask.ckks.encryptor import Encryptor
from aegis_dask.ckks.scale import Scale
from aegis_dask.errors import EncodingError, IncompatibleError, LevelError
from tests import reference
from tests.arrays import host, same
from tests.schemes import Scheme, every_level

TINY = "insecure-n10-d40"
Schemes = Callable[[str], Scheme]


@pytest.fixture
def scheme(schemes: Schemes) -> Scheme:
    return schemes(TINY)


@pytest.fixture(params=["public", "secret"])
def encryptor(request: pytest.FixtureRequest, scheme: Scheme) -> Encryptor:
    return scheme.encryptor if request.param == "public" else scheme.secret_encryptor


@pytest.mark.parametrize(("name", "level"), every_level())
def test_decryption_returns_the_message_at_every_level(
    schemes: Schemes, rng: np.random.Generator, name: str, level: int
) -> None:
    s = schemes(name)
    z = s.slots(rng)
    for encryptor, noise in (
        (s.encryptor, s.noise.fresh_public(level)),
        (s.secret_encryptor, s.noise.fresh_secret(level)),
    ):
        ct = encryptor.encrypt(z, level)
        assert (ct.level, ct.components, ct.batch) == (level, 2, 1)
        assert ct.is_canonical
        s.assert_close(z, ct, noise)


def test_the_top_level_is_the_default(encryptor: Encryptor, scheme: Scheme) -> None:
    assert encryptor.encrypt([1.0]).level == scheme.params.max_level


def test_a_batch_is_encrypted_vector_by_vector(
    encryptor: Encryptor, scheme: Scheme, rng: np.random.Generator
) -> None:
    z = scheme.slots(rng, 5)
    ct = encryptor.encrypt(z)
    assert ct.batch == len(ct) == 5
    noise = scheme.noise.fresh_public(scheme.params.max_level)
    scheme.assert_close(z, ct, noise)
    for i in range(5):
        scheme.assert_close(z[i], ct[i], noise)
    assert len({host(ct.data[i, 1]).tobytes() for i in range(5)}) == 5


def test_short_vectors_are_padded_with_zeros(
    encryptor: Encryptor, scheme: Scheme, rng: np.random.Generator
) -> None:
    z = rng.uniform(-1, 1, (2, 3))
    expected = np.pad(z, ((0, 0), (0, scheme.params.slots - 3)))
    noise = scheme.noise.fresh_public(scheme.params.max_level)
    scheme.assert_close(expected, encryptor.encrypt(z), noise)


@pytest.mark.parametrize("bits", [25, 45, 60, 80])
def test_another_scale_is_taken_as_given(
    encryptor: Encryptor, scheme: Scheme, rng: np.random.Generator, bits: int
) -> None:
    # From 2^52 on the error is not added to the message in float64.
    z, scale = scheme.slots(rng), Scale.from_int(1 << bits)
    ct = encryptor.encrypt(z, level=4, scale=1 << bits)
    assert ct.scale == scale
    scheme.assert_close(z, ct, scheme.noise.fresh_public(4, scale=scale))


def test_errors_of_large_messages_have_their_full_size(
    scheme: Scheme, rng: np.random.Generator
) -> None:
    # The noise is what security rests on: it must not vanish next to large coefficients.
    for bits in (40, 51, 52, 60, 80):
        scale = Scale.from_int(1 << bits)
        z = scheme.slots(rng)
        pt = scheme.encoder.encode(z, level=4, scale=scale)
        ct = scheme.secret_encryptor.encrypt(z, level=4, scale=scale)
        limbs = scheme.params.limbs(4)
        difference = scheme.params.ring.sub(
            scheme.decryptor.decrypt_residues(ct)[0], pt.data, limbs
        )
        primes = [scheme.params.chain.primes[i] for i in limbs]
        e = reference.centered(
            reference.crt(scheme.params.ring.intt(difference, limbs), primes),
            scheme.params.chain.modulus(4),
        )
        assert np.max(np.abs(e)) <= sampling.ERROR_BITS + 1
        deviation = float(np.std(e.astype(np.float64)))
        assert deviation == pytest.approx(sampling.ERROR_STD, rel=6 / 2048**0.5)


def test_public_key_encryption_masks_with_fresh_errors_before_it_divides_by_p(
    scheme: Scheme, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The division hides these errors from every decryption, so the kernel's input is looked at.
    params, ring, level = scheme.params, scheme.params.ring, 3
    masks: list[np.ndarray] = []
    inputs: list[np.ndarray] = []
    ternary, mod_down = sampling.ternary, type(ring).mod_down

    def recorded_mask(shape: tuple[int, ...]) -> np.ndarray:
        masks.append(ternary(shape))
        return masks[-1]

    def recorded_input(self: object, x: np.ndarray, *args: object, **options: object) -> object:
        inputs.append(x.copy())
        return mod_down(self, x, *args, **options)

    monkeypatch.setattr(sampling, "ternary", recorded_mask)
    monkeypatch.setattr(type(ring), "mod_down", recorded_input)
    scheme.encryptor.encrypt(scheme.slots(rng, 2), level)
    (u,), (x,) = masks, inputs
    limbs, key = params.extended_limbs(level), scheme.public_key
    everything = params.chain.primes + params.chain.special_primes
    primes = [everything[i] for i in limbs]
    errors = []
    for b, (c, half) in product(range(2), enumerate((key.b, key.a))):
        u_b = ring.ntt(ring.from_signed(u.reshape(2, -1)[b], limbs), limbs)
        e = ring.sub(x[b, c], ring.multiply(u_b, ring.from_host(host(half)[limbs]), limbs), limbs)
        residue = reference.crt(ring.intt(e, limbs), primes)
        errors.append(reference.centered(residue, prod(primes)))
    e = np.array(errors).astype(np.float64)
    assert np.max(np.abs(e)) <= sampling.ERROR_BITS
    assert e.std(axis=1) == pytest.approx(sampling.ERROR_STD, rel=6 / 2048**0.5)
    samples = np.concatenate([e, u.reshape(2, -1)])
    assert np.max(np.abs(np.corrcoef(samples) - np.eye(6))) < 6 / 1024**0.5


@pytest.mark.parametrize("periodic", [False, True])
def test_plaintexts_are_encrypted_as_they_are(
    encryptor: Encryptor, scheme: Scheme, rng: np.random.Generator, periodic: bool
) -> None:
    z = rng.uniform(-1, 1, 16 if periodic else scheme.params.slots)
    pt = scheme.encoder.encode(z, level=3, scale=1 << 45, periodic=periodic)
    ct = encryptor.encrypt(pt)
    assert (ct.level, ct.scale, ct.batch) == (3, pt.scale, 1)
    expected = np.tile(z, scheme.params.slots // len(z))
    scheme.assert_close(expected, ct, scheme.noise.fresh_public(3, scale=pt.scale))


def test_two_encryptions_of_one_message_share_nothing(
    encryptor: Encryptor, scheme: Scheme, rng: np.random.Generator
) -> None:
    z = scheme.slots(rng)
    first, second = encryptor.encrypt(z), encryptor.encrypt(z)
    # Uniform residues modulo 2^25 and more agree by chance.
    assert np.mean(host(first.data) == host(second.data)) < 2.0**-10
    assert first.seed is None or first.seed != second.seed


def test_ciphertexts_look_uniform_whatever_the_message(
    encryptor: Encryptor, scheme: Scheme
) -> None:
    # Sixteen buckets per component and limb: 15 degrees of freedom, eight deviations of sqrt(30).
    ct = encryptor.encrypt(np.full(scheme.params.slots, 1000.0))
    for component in range(2):
        for row, i in zip(host(ct.data[0, component]), scheme.params.limbs(ct.level), strict=True):
            buckets = row.astype(np.int64) * 16 // scheme.params.chain.primes[i]
            counts = np.bincount(buckets, minlength=16)
            chi2 = float(((counts - 64) ** 2 / 64).sum())
            assert chi2 < 15 + 8 * 30**0.5


def test_component_1_of_a_secret_key_ciphertext_is_rebuilt_from_its_seed(
    scheme: Scheme, rng: np.random.Generator
) -> None:
    for level in (0, 3, 6):
        ct = scheme.secret_encryptor.encrypt(scheme.slots(rng, 3), level)
        assert ct.seed is not None
        seeds = [ct.seed[i : i + 32] for i in range(0, 96, 32)]
        assert len(set(seeds)) == 3
        for b, seed in enumerate(seeds):
            a = scheme.params.ring.uniform(
                seed, sampling.DOMAIN_CIPHERTEXT, [0], scheme.params.limbs(level)
            )
            assert same(a[0], ct.data[b, 1])
    assert scheme.encryptor.encrypt([1.0]).seed is None


def test_a_seed_does_not_survive_a_change(scheme: Scheme, rng: np.random.Generator) -> None:
    ct = scheme.secret_encryptor.encrypt(scheme.slots(rng, 2))
    assert scheme.evaluator.negate(ct).seed is None
    assert ct[0].seed is None


def test_residues_are_canonical(encryptor: Encryptor, scheme: Scheme) -> None:
    ct = encryptor.encrypt([1.0, -1.0])
    primes = [scheme.params.chain.primes[i] for i in scheme.params.limbs(ct.level)]
    assert np.all(host(ct.data) < np.array(primes)[:, None])


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e200])
def test_values_that_do_not_encode_are_refused(encryptor: Encryptor, value: float) -> None:
    with pytest.raises(EncodingError):
        encryptor.encrypt([[1.0, 2.0], [3.0, value]])


def test_too_many_values_are_refused(encryptor: Encryptor) -> None:
    with pytest.raises(EncodingError, match="513 values was given"):
        encryptor.encrypt(np.ones((2, 513)))


@pytest.mark.parametrize("level", [-1, 7])
def test_levels_out_of_range_are_refused(encryptor: Encryptor, level: int) -> None:
    with pytest.raises(LevelError, match=f"level {level} was given"):
        encryptor.encrypt([1.0], level)


def test_objects_of_other_parameters_are_refused(
    encryptor: Encryptor, scheme: Scheme, schemes: Schemes
) -> None:
    other = schemes("insecure-n10-d54")
    with pytest.raises(IncompatibleError, match="the plaintext to"):
        encryptor.encrypt(other.encoder.encode([1.0]))
    with pytest.raises(IncompatibleError, match="the ciphertext to"):
        scheme.decryptor.decrypt(other.encryptor.encrypt([1.0]))


# -- the ciphertext as an object ----------------------------------------------------------------


def test_selecting_from_a_batch(scheme: Scheme, rng: np.random.Generator) -> None:
    ct = scheme.encryptor.encrypt(scheme.slots(rng, 4))
    for index in (0, 3, -1, -4, np.int64(2)):
        assert same(ct[index].data, host(ct.data)[[index]])
    assert same(ct[1:3].data, ct.data[1:3])
    assert [same(x.data[0], ct.data[i]) for i, x in enumerate(ct)] == [True] * 4
    for index in (4, -5):
        with pytest.raises(IndexError, match=f"index {index} of a batch of 4 ciphertexts"):
            ct[index]


def test_sizes_and_representation(scheme: Scheme, rng: np.random.Generator) -> None:
    ct = scheme.encryptor.encrypt(scheme.slots(rng, 2))
    assert ct.nbytes == ct.data.nbytes
    assert ct.__sizeof__() >= ct.nbytes
    assert repr(ct) == f"Ciphertext(2 x {TINY}, level 6 of 6, scale 2^50.00, 2 components)"
    assert repr(scheme.encoder.encode([1.0])) == f"Plaintext({TINY}, level 6, scale 2^50.00)"


def test_ciphertexts_survive_pickling(scheme: Scheme, rng: np.random.Generator) -> None:
    z = scheme.slots(rng)
    for encryptor in (scheme.encryptor, scheme.secret_encryptor):
        ct = encryptor.encrypt(z)
        restored = pickle.loads(pickle.dumps(ct))
        assert same(restored.data, ct.data)
        assert (restored.params, restored.level) == (ct.params, ct.level)
        assert (restored.scale, restored.seed) == (ct.scale, ct.seed)
