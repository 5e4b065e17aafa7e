"""EvalMod: the reduction modulo q_0, on every slot (see `sine`)."""

from __future__ import annotations

from aegis_dask.ckks.bootstrapping.parameters import BootstrappingParameters
from aegis_dask.ckks.evaluator import Evaluator
from aegis_dask.ckks.objects import Ciphertext
from aegis_dask.ckks.polynomial import evaluate_chebyshev
from aegis_dask.ckks.scale import Scale
from aegis_dask.errors import ScaleError


def evaluate_mod(
    ev: Evaluator, params: BootstrappingParameters, x: Ciphertext, raised_scale: Scale
) -> Ciphertext:
    """Return ``m`` at the output level and its canonical scale.

    Parameters
    ----------
    ev
        With a relinearisation key for the level of x.
    params
        The parameters.
    x
        ``(m Delta / q_0 + I) / half_width`` in the slots, at the level and scale of EvalMod's
        input; m is real.
    raised_scale
        Delta, the scale of the raised message.
    """
    sine, scales = params.sine, params.sine_scales(raised_scale)
    if x.level != params.sine_level or x.scale != scales[-1]:
        raise ScaleError(
            f"{x!r} is no input of EvalMod: level {params.sine_level} and scale "
            f"2^{scales[-1].log2:.2f} are needed"
        )
    x = ev.add(x, -0.25 / sine.half_width)
    square = ev.multiply(x, x)
    y = ev.add(ev.add(square, square), -1.0)  # T_2
    y = evaluate_chebyshev(ev, y, sine.coefficients, scales=scales)
    for constant in sine.constants:
        y = ev.multiply(y, y)
        y = ev.add(ev.add(y, y), -constant)
    return y.with_data(y.data, scale=ev.params.scales[y.level])
