"""Self-attention on packed tokens: double baby-step giant-step, streamed by giant group.

Diagonal k of the scores is ``S_k[t] = q[t] . k[t + k]``. With ``k = g n + b`` the queries take the
giant steps (rotated by -g n) and the keys the baby steps, so that no score is ever rotated (ARION,
ePrint 2025/2271): the diagonals come out turned by -g n, as the products with rotated values want
them. Keys carry two tokens, t and t + L/2, in real and imaginary part (THOR, ePrint 2024/1881),
values two features. The denominators are divided out at the end, on one ciphertext.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt

import numpy as np
from numpy.typing import NDArray

from aegis_dask.circuits import linear
from aegis_dask.circuits.approximation import encrypted_exponential, encrypted_inverse
from aegis_dask.circuits.linear import BlockMatrix, choose_babies
from aegis_dask.circuits.packing import (
    MIN_TOKENS,
    FeatureVector,
    Layout,
    Packing,
    head_layout,
    paired,
)
from aegis_dask.circuits.ranges import CAUSAL_MARGIN, AttentionRanges, LayerFits, token_classes
from aegis_dask.circuits.tokens import Dense, TokenMatrix
from aegis_dask.errors import ProgramError
from aegis_dask.program.graph import EncryptedTensor, concatenate, stack, total
from aegis_dask.program.operations import Store

Float = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class SelfAttention:
    """The projections of one self-attention and its shape.

    Attributes
    ----------
    query, key, value
        Linear layers. The key's bias is not used: softmax does not see it. Nor is the value's:
        attention weights add up to 1, so it is a constant that belongs into the bias of the next
        projection.
    heads, head_size
        Shape.
    causal
        Tokens see earlier ones only.
    """

    query: Dense
    key: Dense
    value: Dense
    heads: int
    head_size: int
    causal: bool = False


@dataclass(frozen=True, eq=False)
class ScoreOffsets:
    """What is added to the complex score diagonals of one giant group: a `PlainVectors`.

    Per class of query and head the calibrated offset, per key minus the logarithm of how often its
    token is repeated, and for causal attention a large negative number for later tokens. Queries
    are turned like the scores; keys b and b + L/2 of baby step b are in real and imaginary part.
    """

    per_class: dict[str, Float]  # class of the query -> [blocks], in units of the scaled scores
    unit: float  # scaled scores per score
    packing: Packing
    giant: int
    babies: int
    causal: bool

    @property
    def count(self) -> int | None:
        """Baby steps, or None where all have the same vector."""
        return None if self._is_periodic else self.babies

    @property
    def _is_periodic(self) -> bool:
        same = all(np.array_equal(v, self.per_class["other"]) for v in self.per_class.values())
        return self.packing.is_full and not self.causal and same

    def build(self, store: Store, start: int, stop: int) -> NDArray[np.complex128]:
        """Return ``[stop - start, slots]``, or one vector of period B."""
        p = self.packing
        if self._is_periodic:
            v = self.per_class["other"] - self.unit * np.log(p.tokens // p.length)
            shared: NDArray[np.complex128] = ((0.5 + 0.5j) * v)[None]
            return shared
        t = np.arange(p.tokens)
        query = p.source[(t - self.giant * self.babies) % p.tokens]
        offsets = np.array([self.per_class[c] for c in token_classes(p.length)])[query]
        out = []
        for b in range(start, stop):
            halves = []
            for half in (0, p.tokens // 2):
                key = (t + b + half) % p.tokens
                v = -np.log(p.multiplicity[key])
                if self.causal:
                    v = v - CAUSAL_MARGIN * (p.source[key] > query)
                halves.append(0.5 * (offsets + self.unit * v[:, None]).reshape(-1))
            out.append(halves[0] + 1j * halves[1])
        return np.array(out)


def split_tokens(tokens: int, groups: int | None = None) -> tuple[int, int]:
    """Return (baby steps, giant groups) for half the shifts.

    Rotated keys and values of all baby steps are kept in memory, so at most 16 by default; `groups`
    is a power of two.
    """
    half = tokens // 2
    if groups is None:
        babies = min(16, 1 << (isqrt(half).bit_length() - 1))
        groups = half // babies
    return half // groups, groups


def self_attention(
    x: TokenMatrix, layer: SelfAttention, ranges: AttentionRanges, fits: LayerFits
) -> tuple[EncryptedTensor, Layout, float]:
    """Attend.

    Parameters
    ----------
    x
        Hidden states.
    layer, ranges, fits
        Projections, calibrated ranges and polynomials.

    Returns
    -------
    EncryptedTensor, Layout, float
        Ciphertexts ``[pairs]`` with features 2j and 2j + 1 of every head in real and imaginary
        part, their layout ``[pairs, 2]``, and the factor that they still lack.

    Raises
    ------
    ProgramError
        If the text is repeated more often than the exponential has room for.
    """
    c, packing = x.capture, x.packing
    if packing.multiplicity.max() > MIN_TOKENS:
        raise ProgramError(
            f"{packing.length} tokens are repeated {packing.multiplicity.max()} times in "
            f"{packing.tokens} positions, at most {MIN_TOKENS} times is supported; use "
            "Packing.for_length"
        )
    blocks, d_h = packing.blocks, layer.head_size
    targets = head_layout(layer.heads, d_h, blocks)
    values = paired(targets)
    babies = choose_babies(x.layout, [targets, targets, values])
    rotated = x.rotated(babies, "attention-rotate")
    exponential, inverse = fits.exponential, fits.inverse
    base = exponential.base
    # t = (score / 2^k - middle) / half, and the split into real and imaginary part doubles.
    unit = 1.0 / ((1 << exponential.squarings) * base.half)
    top, origin = np.log(inverse.t0 + 1), base.middle / base.half
    # Blocks without a head have scores 0: put them where the denominator is in the middle.
    unused = np.log(inverse.t0 / packing.length) * unit - origin
    per_class = {
        c: np.append((top - np.array(offset)) * unit - origin, np.full(blocks, unused))
        for c, offset in ranges.offset.items()
    }
    query_scale = 0.5 * unit / np.sqrt(d_h)
    groups = targets.shape[0] // d_h
    results = []
    for group in range(groups):
        members = slice(group * d_h, (group + 1) * d_h)
        offsets = {c: v[group * blocks : (group + 1) * blocks] for c, v in per_class.items()}
        suffix = f"-{group}" if groups > 1 else ""
        with c.scope("attention" + suffix):
            target = Layout(targets.features[members])
            pairs = paired(target)
            with c.stage("query", over=d_h):
                w = BlockMatrix((layer.query.weight,), x.layout, target, babies, query_scale * 0.5)
                q = linear.real_part(linear.apply(rotated, w))
                q = q.add_plain(FeatureVector(layer.query.bias * query_scale, target))
            n, giants = split_tokens(packing.tokens)
            half = packing.tokens // 2 * blocks
            with c.stage("key", over=d_h):
                w = BlockMatrix((layer.key.weight,), x.layout, target, babies, 0.5)
                k = linear.real_part(linear.apply(rotated, w))
                centre = np.array(ranges.centre).reshape(-1)
                k = k.add_plain(FeatureVector(-centre, target))
                both = k + k.rotate(half).times_i()
                keys = both.rotations([b * blocks for b in range(n)])
            with c.stage("value", over=d_h // 2):
                w = BlockMatrix((layer.value.weight,), x.layout, pairs, babies, 0.5)
                v = linear.packed_real_parts(linear.apply(rotated, w))
                steps = [b * blocks + h for b in range(n) for h in (0, half)]
                v = v.rotations(steps)
            local = _distance_scores(x, layer, ranges, rotated, babies, target, q)
            numerators, denominators = [], []
            for g in range(giants):
                with c.stage(f"group-{g}"):
                    step = g * n * blocks
                    scores = q.rotate(-step).contract(keys, transposed=True).relinearise()
                    if local is not None:
                        turned = local.rotate(-step)
                        scores = scores - (turned + turned.times_i())
                    scores = scores.add_plain(
                        ScoreOffsets(offsets, unit, packing, g, n, layer.causal)
                    )
                    mirrored = scores.conjugate()
                    t = stack([scores + mirrored, (scores - mirrored).times_i(3)])
                    e = encrypted_exponential(t, exponential).flatten()
                    numerators.append(e.contract(v).relinearise().rotate(step))
                    denominators.append(e.sum().rotate(step))
            with c.stage("denominator"):
                reciprocal = encrypted_inverse(total(denominators), inverse)
            with c.stage("numerator", over=d_h // 2):
                numerator = total(numerators)
            with c.stage("divide", over=d_h // 2):
                results.append(numerator * reciprocal)
    if len(results) == 1:
        return results[0], values, inverse.scale
    with c.stage("attention-heads"):
        return concatenate(results), values, inverse.scale


def _distance_scores(
    x: TokenMatrix,
    layer: SelfAttention,
    ranges: AttentionRanges,
    rotated: EncryptedTensor,
    babies: int,
    target: Layout,
    q: EncryptedTensor,
) -> EncryptedTensor | None:
    """Return ``sum_r factor[h, r] q[t] . k[t + r]`` scaled like scores, or None without any r.

    For heads that look at a fixed distance this is nearly the log-sum-exp of their scores.
    """
    c, packing, d_h = x.capture, x.packing, layer.head_size
    heads = target.features[0] // d_h
    used = {
        r: f
        for r, f in ranges.distances.items()
        if any(f[h] != 0 for h, j in zip(heads, target.features[0], strict=True) if j >= 0)
    }
    if not used:
        return None
    with c.stage("distance", over=d_h):
        terms = []
        for r, factors in used.items():
            scale = np.repeat(np.array(factors), d_h)
            w = BlockMatrix((layer.key.weight,), x.layout, target, babies, 0.5 * scale)
            k = linear.real_part(linear.apply(rotated, w))
            terms.append(k.rotate(r * packing.blocks))
        neighbours = stack([total(terms)])
    with c.stage("distance-scores"):
        # q carries half the unit, for scores whose real part is doubled later; so is this.
        return q.contract(neighbours, transposed=True).relinearise().sum()
