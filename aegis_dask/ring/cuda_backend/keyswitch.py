"""Key switching on a GPU: base conversions, products with keys, divisions."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from aegis_dask.ring import operands
from aegis_dask.ring.backend import Array, HoistedKey, switch_one_by_one
from aegis_dask.ring.conversion import BaseConversion, DigitRaise, ModDown
from aegis_dask.ring.cuda_backend.arguments import KEY
from aegis_dask.ring.cuda_backend.core import Core, Rows, Structure, with_companions
from aegis_dask.ring.cuda_backend.residency import KeptArray
from aegis_dask.ring.cuda_backend.sources import (
    CONVERT_COLUMNS,
    KEYS,
    THREADS,
    VECTOR,
)

_NO_KEY = (0, 0, 0, 1)


def _transposed(matrix: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Return the matrix of a conversion with targets last, filled up to a multiple of VECTOR."""
    return np.pad(matrix.T, ((0, 0), (0, -len(matrix) % VECTOR)))


class _Conversions(NamedTuple):
    """Base conversions that one launch does.

    Attributes
    ----------
    array
        Structures `Conversion` of the sources, on the device.
    digits
        How many there are.
    keep
        Arrays that they point to.
    """

    array: Any
    digits: int
    keep: list[Any]


class _Key(NamedTuple):
    """An evaluation key on the device.

    Attributes
    ----------
    value
        Structure `Key` of the sources.
    arrays
        Its halves, and which of their rows are used: `value` points to them.
    """

    value: Structure
    arrays: tuple[Array, Array, Any]

    def turned_later(self) -> _Key:
        """Return the key without its automorphism."""
        return self._replace(value=(*self.value[:3], 1))


class _Raising(NamedTuple):
    """Constants of `DigitRaise` on the device.

    Attributes
    ----------
    factors
        Of the inverse transform of what is raised.
    window
        Its rows.
    digits
        Rows of raised digits that are to be transformed.
    conversions
        Of the digits.
    digit_of, primes
        Of the raised limbs.
    """

    factors: Any
    window: Rows
    digits: Rows
    conversions: _Conversions
    digit_of: Any
    primes: Any


class _Dividing(NamedTuple):
    """Constants of `ModDown` on the device.

    Attributes
    ----------
    sources, kept
        Rows that leave: in what is divided, and by themselves.
    targets
        Rows of the result.
    target_rows, source_factors, source_addend, target_factors, addend_factors
        As in `ModDown`.
    """

    sources: Rows
    kept: Rows
    targets: Rows
    target_rows: Any
    source_factors: Any
    source_addend: Any
    target_factors: Any
    addend_factors: Any


class KeySwitching(Core):
    """What `backend.Ring` says of key switching."""

    def _conversions(
        self, all_of_them: Sequence[tuple[BaseConversion, NDArray[Any], NDArray[Any]]]
    ) -> _Conversions:
        """Return conversions, each with the rows that it writes and reads."""
        address, upload = self.device.address, self.device.upload
        packed, keep = b"", []
        for c, dst_rows, src_rows in all_of_them:
            arrays = [
                *map(self._integers, (dst_rows, src_rows, c.targets)),
                upload(_transposed(c.matrix)),
                upload(np.append(c.quotient, np.uint32(0))),  # there may be none
            ]
            sizes = len(c.sources), len(c.targets), len(c.quotient) > 0, 0
            packed += struct.pack("<5Q4i", *map(address, arrays), *sizes)
            keep += arrays
        return _Conversions(upload(np.frombuffer(packed, np.int64)), len(all_of_them), keep)

    def _convert(
        self,
        dst: Array,
        dst_stride: int,
        src: Array,
        src_stride: int,
        conversions: _Conversions,
        polys: int,
    ) -> None:
        """Convert; strides are the rows of a polynomial."""
        grid = (polys * (self.degree // CONVERT_COLUMNS), conversions.digits)
        arguments = (dst, dst_stride, src, src_stride, conversions.array, self._table)
        self._launch("convert", grid, *arguments)

    def convert(self, x: Array, conversion: BaseConversion) -> Array:
        """See `Ring.convert`."""
        c, (sources, targets) = conversion, (len(conversion.sources), len(conversion.targets))
        out = self.empty((*x.shape[:-2], targets, self.degree))
        held = self._launcher.kept(
            c, "alone", lambda: self._conversions([(c, np.arange(targets), np.arange(sources))])
        )
        x = self.device.contiguous(x)
        self._convert(out, targets, x, sources, held, prod(x.shape[:-2]))
        return out

    def _raising(self, c: DigitRaise) -> _Raising:
        """Return what does not change between calls."""
        count, limbs, window = len(c.conversions), len(c.limbs), len(c.sources)
        others = c.digit_of != np.arange(count)[:, None]
        rows = np.flatnonzero(others)
        primes = self._integers(np.broadcast_to(c.limbs, others.shape).reshape(-1)[rows])
        return _Raising(
            self.device.upload(with_companions(c.factors)),
            self._rows(self._integers(c.sources), window),
            self._rows(primes, len(rows), self._integers(rows), count * limbs),
            self._conversions(
                [
                    (
                        conversion,
                        d * limbs + np.flatnonzero(others[d]),
                        np.searchsorted(c.sources, conversion.sources),
                    )
                    for d, conversion in enumerate(c.conversions)
                ]
            ),
            self._integers(c.digit_of),
            self._integers(c.limbs),
        )

    def raise_digits(self, x: Array, constants: DigitRaise) -> Array:
        """See `Ring.raise_digits`."""
        c, batch = constants, x.shape[0]
        held = self._launcher.kept(c, "raise", lambda: self._raising(c))
        (x, step), y = self._batched(x), self.empty(x.shape)
        own = held.window._replace(value=(*held.window.value[:2], step))
        self._intt(y, x, batch, own, held.window, held.factors)
        out = self.empty((batch, len(c.conversions), len(c.limbs), self.degree))
        rows = len(c.conversions) * len(c.limbs)
        self._convert(out, rows, y, held.window.limbs, held.conversions, batch)
        return out

    def inner_product(
        self,
        x: Array,
        digits: Array,
        constants: DigitRaise,
        key_b: Array,
        key_a: Array,
        transform: bool,
        key_rows: NDArray[np.int64] | None = None,
    ) -> Array:
        """See `Ring.inner_product`."""
        out = self.empty((digits.shape[0], 2, *digits.shape[2:]))
        keys = self._prepared(x, constants, [HoistedKey(key_b, key_a, 1, key_rows)])
        self._products(x, digits, constants, keys, transform, None, out[None])
        return out

    def turned_products(
        self,
        x: Array,
        digits: Array,
        constants: DigitRaise,
        keys: Sequence[HoistedKey],
        transform: bool,
        addend: Array,
        out: Array | None = None,
    ) -> Array:
        """See `Ring.turned_products`."""
        operands.check_turned(digits, len(keys), addend, out)
        batch, _, limbs, _ = digits.shape
        out = self.empty((len(keys), batch, 2, limbs, self.degree)) if out is None else out
        addend, prepared = self.device.contiguous(addend), self._prepared(x, constants, keys)
        self._products(x, digits, constants, prepared, transform, addend, self._flat_out(out))
        return out

    def _products(
        self,
        x: Array,
        digits: Array,
        c: DigitRaise,
        keys: Sequence[_Key],
        transform: bool,
        addend: Array | None,
        out: Array,
        some: Any = None,
    ) -> None:
        """Multiply with keys, as many at a time as a launch takes; all limbs, or some."""
        batch, count, limbs, _ = digits.shape
        held = self._launcher.kept(c, "raise", lambda: self._raising(c))
        if transform:
            operands.check_contiguous(digits)
            self._ntt(digits, digits, batch, held.digits)
        (x, step), digits = self._batched(x), self.device.contiguous(digits)
        added = (addend, 0 if addend is None else addend.shape[1])
        grid = (batch, self.degree // (THREADS * VECTOR), out.shape[-2])
        sizes = (held.digit_of, count, limbs, held.primes)
        for first in range(0, len(keys), KEYS):
            now = keys[first : first + KEYS]
            fields = sum((key.value for key in now), ()) + _NO_KEY * (KEYS - len(now))
            self._launch(
                "inner_products", grid, out[first : first + len(now)], digits, x, step,
                fields, len(now), *sizes, *added, some, self._table,
            )  # fmt: skip

    def _prepared(self, x: Array, c: DigitRaise, keys: Sequence[HoistedKey]) -> list[_Key]:
        """Return checked keys on the device."""
        return [self._prepared_key(x, c, key) for key in keys]

    def _prepared_key(self, x: Array, c: DigitRaise, key: HoistedKey) -> _Key:
        index = self._key_index(x, c, key.b, key.a, key.rows)
        b, a = self._key_half(key.b), self._key_half(key.a)
        address = self.device.address
        inverse = pow(self._galois(key.galois_element), -1, 2 * self.degree)
        return _Key((address(b), address(a), address(index), inverse), (b, a, index))

    def _key_index(
        self,
        x: Array,
        c: DigitRaise,
        key_b: Array,
        key_a: Array,
        key_rows: NDArray[np.int64] | None,
    ) -> Any:
        """Return the rows of a key on the device, checked once for operands of these shapes."""
        content = None if key_rows is None else key_rows.tobytes()
        name = (content, key_b.shape, key_a.shape, x.shape[1:])

        def make() -> Any:
            return self._integers(operands.key_index(self.chain, x, key_b, key_a, c, key_rows))

        return self._launcher.kept(c, name, make)

    def _key_half(self, x: Any) -> Array:
        if isinstance(x, KeptArray):
            return self.device.keys.on_device(x)
        return self.device.contiguous(x)

    def _dividing(self, c: ModDown, limbs: int) -> _Dividing:
        """Return what does not change between calls."""
        upload = self.device.upload
        primes, count = self._integers(c.conversion.sources), len(c.source_rows)
        targets = len(c.target_rows)
        return _Dividing(
            self._rows(primes, count, self._integers(c.source_rows), limbs),
            self._rows(primes, count),
            self._rows(self._integers(c.conversion.targets), targets),
            self._integers(c.target_rows),
            *(
                upload(with_companions(pair))
                for pair in (
                    c.source_factors, c.source_addend, c.target_factors, c.addend_factors
                )
            ),
        )  # fmt: skip

    def mod_down(
        self,
        x: Array,
        constants: ModDown,
        addend: Array | None = None,
        galois_element: int = 1,
    ) -> Array:
        """See `Ring.mod_down`."""
        operands.check_addend(x, addend)
        c, (batch, components, limbs, _) = constants, x.shape
        held = self._launcher.kept(c, ("divide", limbs), lambda: self._dividing(c, limbs))
        polys = batch * components
        x = self.device.contiguous(x)
        addend, added = self._addend(addend)
        remainder = self._remainder(x, c, held, added)
        out = self.empty((batch, components, held.targets.limbs, self.degree))
        self._launch(
            "ntt_tails_divide",
            self._tail_grid(polys, held.targets.limbs),
            out,
            remainder,
            x,
            limbs,
            components,
            held.target_rows,
            held.target_factors,
            added,
            held.addend_factors,
            pow(self._galois(galois_element), -1, 2 * self.degree),
            held.targets.value,
            self._forward,
            self._table,
        )
        return out

    def _remainder(self, x: Array, c: ModDown, held: _Dividing, added: Structure) -> Array:
        """Return the limbs that leave, converted, up to the tails of the transform."""
        *lead, components, _, _ = x.shape
        polys = prod(lead) * components
        y = self.empty((polys, held.kept.limbs, self.degree))
        self._intt(
            y, x, polys, held.sources, held.kept, held.source_factors, added, components,
            held.source_addend,
        )  # fmt: skip
        remainder = self.convert(y, c.conversion)
        common = (held.targets.value, self._forward, self._table)
        grid = self._row_grid(polys, held.targets.limbs)
        self._launch("ntt_rows", grid, remainder, remainder, *common)
        return remainder

    def switch_hoisted(
        self,
        x: Array,
        digits: Array,
        raise_constants: DigitRaise,
        keys: Sequence[HoistedKey],
        down: ModDown,
        addend: Array,
    ) -> list[Array]:
        """See `Ring.switch_hoisted`."""
        operands.check_addend(x[:, None], addend)
        c, (batch, count, limbs, _) = raise_constants, digits.shape
        if int(min(down.conversion.sources)) < len(self.chain.primes):  # limbs of x leave too
            ring: Any = self
            return switch_one_by_one(ring, x, digits, c, keys, down, addend)
        held = self._launcher.kept(down, "hoisted", lambda: self._dividing_hoisted(down))
        # Products of limbs that leave are made alone; those of the others by the division.
        sums = self.empty((len(keys), batch, 2, held.kept.limbs, self.degree))
        prepared = self._prepared(x, c, keys)
        plain = [key.turned_later() for key in prepared]
        leaving = self._integers(down.source_rows)
        self._products(x, digits, c, plain, True, None, sums, leaving)
        raising = self._launcher.kept(c, "raise", lambda: self._raising(c))
        x, step = self._batched(x)
        packed = b"".join(struct.pack(f"<{KEY}", *key.value) for key in prepared)
        structures = self._launcher.content(np.frombuffer(packed, np.int64))
        kept, added = self._addend(addend)
        remainder = self._remainder(sums, down, held, added)
        common = (held.targets.value, self._forward, self._table)
        out = self.empty((len(keys), batch, 2, held.targets.limbs, self.degree))
        self._launch(
            "ntt_tails_divide_products",
            self._tail_grid(len(keys) * batch, held.targets.limbs),
            out,
            remainder,
            digits,
            x,
            step,
            structures,
            raising.digit_of,
            count,
            limbs,
            held.target_rows,
            held.target_factors,
            added,
            held.addend_factors,
            batch,
            *common,
        )
        del kept  # its memory is in use up to here
        return [out[i] for i in range(len(keys))]

    def _dividing_hoisted(self, c: ModDown) -> _Dividing:
        """Return `_dividing` for what has no limbs but those that leave."""
        held = self._dividing(c, len(c.source_rows))
        primes = self._integers(c.conversion.sources)
        return held._replace(sources=self._rows(primes, held.kept.limbs))

    def switch_key(
        self,
        x: Array,
        raise_constants: DigitRaise,
        key_b: Array,
        key_a: Array,
        down: ModDown,
        addend: Array | None = None,
        galois_element: int = 1,
        key_rows: NDArray[np.int64] | None = None,
    ) -> Array:
        """See `Ring.switch_key`."""
        operands.check_addend(x[:, None], addend)
        c = raise_constants
        key = self._prepared_key(x, c, HoistedKey(key_b, key_a, 1, key_rows))
        held = self._launcher.kept(c, "raise", lambda: self._raising(c))
        digits = self.raise_digits(x, c)
        (batch, count, limbs, _), common = digits.shape, (self._forward, self._table)
        grid = self._row_grid(batch, held.digits.limbs)
        self._launch("ntt_rows", grid, digits, digits, held.digits.value, *common)
        sums = self.empty((batch, 2, limbs, self.degree))
        x, step = self._batched(x)
        self._launch(
            "ntt_tails_inner",
            self._tail_grid(batch, limbs),
            sums,
            digits,
            x,
            step,
            key.value[:3],
            held.digit_of,
            count,
            limbs,
            held.primes,
            *common,
        )
        return self.mod_down(sums, down, addend, galois_element)
