"""Self-attention on packed tokens: double baby-step giant-step, streamed by giant group.

Diagonal k of the scores is ``S_k[t] = q[t] . k[t + k]``. With ``k = g n + b`` the queries take the
giant steps (rotated by -g n) and the keys the baby steps, so that no score is ever rotated (ARION,
ePrint 2025/2271): the diagonals come out turned by -g n, as the products with rotated values want
them. Keys carry two tokens, t and t + L/2, in real and imaginary part (THOR, ePrint 2024/1881),
values two features. The denominators are divided out at the end, on one ciphertext.

Short texts leave blocks unused; `circuits.lanes` says what becomes of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aegis_dask.circuits import linear
from aegis_dask.circuits.approximation import encrypted_exponential, encrypted_inverse
from aegis_dask.circuits.lanes import (
    Steps,
    first_lane,
    gathered,
    scatter,
    split_tokens,
    together,
)
from aegis_dask.circuits.linear import BlockMatrix, choose_babies
from aegis_dask.circuits.packing import (
    MIN_TOKENS,
    FeatureVector,
    Layout,
    Packing,
    SharedVector,
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
    """What is added to the complex score diagonals of one pass: a `PlainVectors`.

    Per class of query and head the calibrated offset, per key minus the logarithm of how often its
    token is repeated, and for causal attention a large negative number for later tokens. Queries
    are turned like the scores; keys b and b + L/2 of baby step b are in real and imaginary part.
    """

    per_class: dict[str, Float]  # class of the query -> [width], in units of the scaled scores
    unused: float  # for blocks outside the lanes
    unit: float  # scaled scores per score
    packing: Packing
    steps: Steps
    pass_: int
    causal: bool

    @property
    def count(self) -> int | None:
        """Baby steps, or None where all have the same vector."""
        return None if self._is_periodic else self.steps.babies

    @property
    def _is_periodic(self) -> bool:
        same = all(np.array_equal(v, self.per_class["other"]) for v in self.per_class.values())
        return self.packing.is_full and not self.causal and same

    def build(self, store: Store, start: int, stop: int) -> NDArray[np.complex128]:
        """Return ``[stop - start, slots]``, or one vector of period B."""
        p, lanes = self.packing, self.steps.lanes
        if self._is_periodic:
            each = self.per_class["other"] - self.unit * np.log(p.tokens // p.length)
            v = self._in_lanes(np.tile(each, (1, lanes, 1)))
            return np.asarray((0.5 + 0.5j) * v)
        t = np.arange(p.tokens)
        giants = (self.pass_ * lanes + np.arange(lanes)) * self.steps.babies
        query = p.source[(t[:, None] - giants) % p.tokens]  # [tokens, lanes]
        offsets = np.array([self.per_class[c] for c in token_classes(p.length)])[query]
        out = []
        for b in range(start, stop):
            halves = []
            for half in (0, p.tokens // 2):
                key = (t + b + half) % p.tokens
                v = -np.log(p.multiplicity[key])[:, None]
                if self.causal:
                    v = v - CAUSAL_MARGIN * (p.source[key][:, None] > query)
                halves.append(0.5 * self._in_lanes(offsets + self.unit * v[..., None]).reshape(-1))
            out.append(halves[0] + 1j * halves[1])
        return np.array(out)

    def _in_lanes(self, v: Float) -> Float:
        """Return ``[n, B]`` of values ``[n, lanes, width]``."""
        out = np.full((len(v), self.packing.blocks), self.unused)
        out[:, : v[0].size] = v.reshape(len(v), -1)
        return out


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
            f"{packing.tokens} positions, at most {MIN_TOKENS} times is supported: texts of at "
            f"least {-(-packing.tokens // MIN_TOKENS)} tokens; take a longer text, or keys and a "
            "packing for fewer positions"
        )
    steps = split_tokens(packing, layer.heads)
    exponential, inverse = fits.exponential, fits.inverse
    base = exponential.base
    # t = (score / 2^k - middle) / half, and the split into real and imaginary part doubles.
    unit = 1.0 / ((1 << exponential.squarings) * base.half)
    top, origin = np.log(inverse.t0 + 1), base.middle / base.half
    # Blocks without a head have scores 0: put them where the denominator is in the middle.
    unused = np.log(inverse.t0 / packing.length) * unit - origin
    per_class = {
        c: np.append((top - np.array(offset)) * unit - origin, np.full(steps.width, unused))
        for c, offset in ranges.offset.items()
    }
    turn, width, blocks = steps.turn(packing.blocks), steps.width, packing.blocks
    projections = _project(x, layer, ranges, steps, unit)
    results = []
    for group, part in enumerate(projections.groups):
        offsets = {c: v[group * width : (group + 1) * width] for c, v in per_class.items()}
        with c.scope(part.name):
            n, half = steps.babies, packing.tokens // 2 * blocks
            q, k, v, local = part.query, part.key, part.value, part.distance
            with c.stage("key-steps", over=k.shape[0]):
                keys = k.rotations([b * blocks for b in range(n)])
            with c.stage("value-steps", over=v.shape[0]):
                v = v.rotations([b * blocks + h for b in range(n) for h in (0, half)])
            numerators, denominators = [], []
            for i in range(steps.passes):
                with c.stage(f"group-{i}"):
                    step = i * steps.lanes * n * blocks
                    scores = q.rotate(-step).contract(keys, transposed=True).relinearise()
                    if local is not None:
                        turned = local.rotate(-step)
                        scores = scores - (turned + turned.times_i())
                    scores = scores.add_plain(
                        ScoreOffsets(offsets, unused, unit, packing, steps, i, layer.causal)
                    )
                    mirrored = scores.conjugate()
                    t = stack([scores + mirrored, (scores - mirrored).times_i(3)])
                    e = encrypted_exponential(t, exponential, inverse.t0 - 1).flatten()
                    numerators.append(e.contract(v).relinearise().rotate(step))
                    denominators.append(e.sum().rotate(step))
            with c.stage("denominator-sum"):
                denominator = total(denominators)
            with c.stage("denominator"):
                denominator = together(denominator, turn, steps.lanes)
                if steps.lanes > 1:
                    # Other blocks hold sums of some lanes, out of the range of the inverse.
                    mask = first_lane(steps, packing)
                    rest = SharedVector(inverse.t0 * (1 - mask.values))
                    denominator = denominator.multiply_plain(mask).add_plain(rest)
                reciprocal = encrypted_inverse(denominator, inverse)
            with c.stage("numerator", over=v.shape[0]):
                numerator = together(total(numerators), turn, steps.lanes)
            with c.stage("divide", over=v.shape[0]):
                results.append(numerator * reciprocal)
    if len(results) == 1:
        return results[0], projections.values, inverse.scale
    with c.stage("attention-heads"):
        return concatenate(results), projections.values, inverse.scale


@dataclass(frozen=True, eq=False)
class _Group:
    """Queries, keys and values of as many heads as there are blocks.

    Attributes
    ----------
    name
        Of the scope.
    query, key
        ``[features]``; keys of two tokens in real and imaginary part. With lanes, queries are
        turned by the giant step of each.
    value
        ``[pairs of features]``.
    distance
        What is subtracted from the scores, if anything (`_distance_scores`).
    """

    name: str
    query: EncryptedTensor
    key: EncryptedTensor
    value: EncryptedTensor
    distance: EncryptedTensor | None


@dataclass(frozen=True, eq=False)
class _Projections:
    """All groups, and the layout of their values one after the other."""

    groups: list[_Group]
    values: Layout


def _project(
    x: TokenMatrix, layer: SelfAttention, ranges: AttentionRanges, steps: Steps, unit: float
) -> _Projections:
    """Return queries, keys and values; query times key is a scaled score (`unit` per score)."""
    c, packing, d_h = x.capture, x.packing, layer.head_size
    targets = head_layout(layer.heads, d_h, packing.blocks)
    values = paired(targets)
    packed = steps.lanes > 1
    if packed:
        singles, pairs = gathered(targets, steps.width), gathered(values, steps.width)
        targets, values = singles.layout, pairs.layout
    babies = choose_babies(x.layout, [targets, targets, values])
    rotated = x.rotated(babies, "attention-rotate")
    half = packing.tokens // 2 * packing.blocks
    query_scale = 0.5 * unit / np.sqrt(d_h)
    groups = 1 if packed else targets.shape[0] // d_h
    mask, turn = first_lane(steps, packing), steps.turn(packing.blocks)
    out = []
    for group in range(groups):
        name = f"attention-{group}" if groups > 1 else "attention"
        target, value = (
            Layout(np.split(layout.features, groups)[group]) for layout in (targets, values)
        )
        with c.scope(name):
            with c.stage("query", over=target.shape[0]):
                w = BlockMatrix((layer.query.weight,), x.layout, target, babies, query_scale * 0.5)
                q = linear.real_part(linear.apply(rotated, w))
                q = q.add_plain(FeatureVector(layer.query.bias * query_scale, target))
            with c.stage("key", over=target.shape[0]):
                w = BlockMatrix((layer.key.weight,), x.layout, target, babies, 0.5)
                k = linear.real_part(linear.apply(rotated, w))
                centre = np.array(ranges.centre).reshape(-1)
                k = k.add_plain(FeatureVector(-centre, target))
                k = k + k.rotate(half).times_i()
            with c.stage("value", over=value.shape[0]):
                w = BlockMatrix((layer.value.weight,), x.layout, value, babies, 0.5)
                v = linear.packed_real_parts(linear.apply(rotated, w))
            distance = _distance_scores(x, layer, ranges, rotated, babies, target, q)
            if packed:
                if distance is not None:
                    with c.stage("distance-lanes"):
                        distance = together(distance, steps.width, singles.lanes)
                        distance = together(distance.multiply_plain(mask), -turn, steps.lanes)
                q = scatter(q, singles, "query-lanes")
                with c.stage("query-turned", over=singles.count):
                    q = together(q.multiply_plain(mask), -turn, steps.lanes)
                k = scatter(k, singles, "key-lanes")
                with c.stage("key-copies", over=singles.count):
                    k = together(k.multiply_plain(mask), -steps.width, steps.lanes)
                v = scatter(v, pairs, "value-lanes")
                with c.stage("value-copies", over=pairs.count):
                    v = together(v.multiply_plain(mask), -steps.width, steps.lanes)
        out.append(_Group(name, q, k, v, distance))
    return _Projections(out, pairs.scattered if packed else values)


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

    For heads that look at a fixed distance this is nearly the log-sum-exp of their scores. With
    features in lanes, so are the terms of the sum.
    """
    c, packing, d_h = x.capture, x.packing, layer.head_size
    heads = np.unique(target.features[target.features >= 0] // d_h)
    used = {r: f for r, f in ranges.distances.items() if any(f[h] != 0 for h in heads)}
    if not used:
        return None
    with c.stage("distance", over=target.shape[0]):
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
