"""Constants of level changes, and the plans of key switching, per parameter set."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from aegis_dask.ckks.parameters import Parameters
from aegis_dask.ckks.scale import Scale
from aegis_dask.errors import ScaleError
from aegis_dask.ring.chain import Window
from aegis_dask.ring.conversion import DigitRaise, ModDown, digit_raise, mod_down

MIN_SCALE_BITS = 10
MIN_ADJUST_BITS = 20


class LevelPlanner:
    """Plans of one parameter set; equal parameters share them."""

    def __init__(self, params: Parameters) -> None:
        self.params = params

    def digit_raise(self, level: int) -> DigitRaise:
        """Return the constants of ModUp at a level."""
        return _digit_raise(self.params, level)

    def key_rows(self, key_level: int, level: int) -> NDArray[np.int64]:
        """Return the rows ``[digit, limb]`` of a key for `key_level` that `level` uses."""
        return _key_rows(self.params, key_level, level)

    def mod_down(self, level: int, to_level: int) -> ModDown:
        """Return the constants of the division by P, merged with a rescale when levels differ."""
        return _mod_down(self.params, level, to_level)

    def rescale(self, level: int, scale: Scale) -> tuple[ModDown, Scale]:
        """Return the constants of a rescale from `level` and the resulting scale."""
        plan, quotient = _rescale(self.params, level)
        after = scale / quotient
        if after.log2 < MIN_SCALE_BITS:
            raise ScaleError(
                f"a rescale from level {level} would leave a scale of 2^{after.log2:.1f} (from "
                f"2^{scale.log2:.1f}); rescale only after a product"
            )
        return plan, after

    def adjust(
        self, level: int, scale: Scale, to_level: int, to_scale: Scale
    ) -> tuple[Window, ModDown]:
        """Return the limbs to keep and the constants that change level and scale exactly."""
        return _adjust(self.params, level, scale, to_level, to_scale)


@lru_cache(maxsize=512)
def _digit_raise(params: Parameters, level: int) -> DigitRaise:
    return digit_raise(params.chain, params.window(level), params.digit_bounds)


@lru_cache(maxsize=2048)
def _key_rows(params: Parameters, key_level: int, level: int) -> NDArray[np.int64]:
    plan, held = _digit_raise(params, level), params.key_limbs(key_level)
    first = plan.first_digit - params.key_digits(key_level).start
    digits = np.arange(first, first + len(plan.conversions), dtype=np.int64)
    return digits[:, None] * len(held) + np.searchsorted(held, plan.limbs)


@lru_cache(maxsize=512)
def _mod_down(params: Parameters, level: int, to_level: int) -> ModDown:
    return mod_down(params.chain, params.window(level), params.window(to_level), True)


@lru_cache(maxsize=512)
def _rescale(params: Parameters, level: int) -> tuple[ModDown, Scale]:
    old, new = params.window(level), params.window(level - 1)
    quotient = params.window_scale(old) / params.window_scale(new)
    return mod_down(params.chain, old, new, False), quotient


@lru_cache(maxsize=2048)
def _adjust(
    params: Parameters, level: int, scale: Scale, to_level: int, to_scale: Scale
) -> tuple[Window, ModDown]:
    old, new = params.window(level), params.window(to_level)
    target_bits = params.log2_moduli[to_level]
    # Keep the window (within the old one) that is cheapest to divide down from: its modulus must
    # leave room for a constant as precise as the scale.
    wanted = max(params.literal.scale_bits - 5, MIN_ADJUST_BITS)
    best: tuple[int, Window, float] | None = None
    middle = params.chain.windows[0].stop  # every window contains the end of the terminals
    for start in range(old.start, min(old.stop, middle + 1)):
        for stop in range(max(start + 1, middle), old.stop + 1):
            window = Window(start, stop)
            ratio = to_scale * params.window_scale(window) / (scale * params.window_scale(new))
            dropped = sum(1 for i in window.limbs() if i not in new)
            entering = sum(1 for i in new.limbs() if i not in window)
            if dropped == 0 or ratio.log2 < wanted:
                continue
            cost = dropped + entering
            if best is None or (cost, ratio.log2) < (best[0], best[2]):
                best = (cost, window, ratio.log2)
    if best is None:
        # The whole window is the most precise choice there is.
        window = old
        ratio = to_scale * params.window_scale(window) / (scale * params.window_scale(new))
        if ratio.log2 < MIN_ADJUST_BITS:
            raise ScaleError(
                f"scale 2^{scale.log2:.2f} at level {level} cannot become 2^{to_scale.log2:.2f} at "
                f"level {to_level} ({target_bits:.0f} bits): the constant would have only "
                f"{ratio.log2:.1f} bits; rescale first"
            )
        best = (0, window, ratio.log2)
    window = best[1]
    ratio = to_scale * params.window_scale(window) / (scale * params.window_scale(new))
    factor = round(ratio.to_fraction())
    return window, mod_down(params.chain, window, new, False, factor)
