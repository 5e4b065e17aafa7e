"""``aegis calibrate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aegis_dask.cli import options
from aegis_dask.errors import AegisError, SerializationError

if TYPE_CHECKING:
    from aegis_dask.circuits.ranges import LayerFits, LayerRanges
    from aegis_dask.models.calibration import Calibration
    from aegis_dask.models.checkpoint import BertModel
    from aegis_dask.terminal import Terminal

WHOLE_MODEL = "bert_model"
"""The graph that parameters are chosen for: all layers."""


def calibrate(
    model: options.Model = None,
    text_file: Annotated[
        Path | None,
        typer.Option(help="Texts to measure, one per line; those of the library if not given."),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=2, help="Cut texts to this length; all positions of the model if not given."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="File to write; calibration.json beside the model.")
    ] = None,
    sha256: options.Sha256 = None,
    as_json: options.Json = False,
) -> None:
    """Measure the ranges of a model's activations, fit polynomials, and choose parameters."""
    from aegis_dask.circuits.ranges import fit_layer
    from aegis_dask.models.calibration import calibrate as measure
    from aegis_dask.service import sources
    from aegis_dask.terminal import Terminal

    terminal = Terminal(as_json)
    loaded = sources.open_model(model, sha256)
    target = _target(loaded, out)
    texts = None if text_file is None else sources.read_texts(text_file)
    length = min(max_tokens or loaded.config.max_positions, loaded.config.max_positions)
    ids = sources.sample_ids(loaded, length, texts)
    with terminal.step(f"Measuring {len(ids)} texts of at most {length} tokens in float64"):
        measured = measure(loaded, ids)
        fits = [fit_layer(ranges, loaded.config.norm_eps) for ranges in measured.layers]
    try:
        measured.save(target)
    except OSError as e:
        raise SerializationError(
            f"{target} cannot be written ({e.strerror or e}); give another file with --out"
        ) from None
    terminal.say(
        f"{loaded.name}: {measured.texts} texts, {measured.tokens} tokens, the longest of "
        f"{measured.longest}. Ranges include their margins."
    )
    _show(terminal, measured.layers, fits)
    terminal.say(f"Written to {target}")
    chosen = _choose_parameters(loaded, measured, terminal)
    terminal.json(
        {
            "file": str(target),
            "model": loaded.name,
            "texts": measured.texts,
            "tokens": measured.tokens,
            "longest": measured.longest,
            "layers": [
                {"ranges": r.to_dict(), "polynomials": _polynomials(f)}
                for r, f in zip(measured.layers, fits, strict=True)
            ],
            "whole_model": chosen,
        }
    )


def _target(model: BertModel, out: Path | None) -> Path:
    """Return where to write, checked before minutes are spent on measuring."""
    import os

    from aegis_dask.service.sources import CALIBRATION_FILE

    if out is not None:
        if not out.absolute().parent.is_dir() or out.is_dir():
            raise SerializationError(
                f"{out} cannot be written; give a file in a folder that exists"
            )
        return out
    if model.path is None or not os.access(model.path, os.W_OK):
        raise SerializationError(
            f"the folder {model.path} of the model is not writable; give a file with --out"
        )
    return model.path / CALIBRATION_FILE


def _choose_parameters(
    model: BertModel, measured: Calibration, terminal: Terminal
) -> dict[str, Any]:
    """Show what all layers take, encrypted, on texts as long as those measured."""
    from aegis_dask.models.graphs import load_graph
    from aegis_dask.placement.traffic import format_bytes
    from aegis_dask.service.job import make_job
    from aegis_dask.service.summary import describe_job
    from aegis_dask.terminal import parameter_lines

    count = len(model.layers)
    layers = "the layer" if count == 1 else f"all {count} layers"
    what = f"{layers} on texts of {measured.longest} tokens"
    try:
        with terminal.step("Choosing parameters"):
            job = make_job(model, measured, load_graph(WHOLE_MODEL), measured.longest)
            keys = job.keys
    except AegisError as e:  # the calibration is of use all the same
        terminal.say(f"No parameters for {what}: {e}", "yellow")
        return {"no_parameters_because": str(e)}
    assert job.params is not None
    terminal.say(f"To run {what} encrypted:")
    size = f"{keys.count}, {format_bytes(keys.nbytes)}"
    terminal.pairs({**parameter_lines(job.parameters, job.placement), "evaluation keys": size})
    return {
        **describe_job(job, measured.longest),
        "evaluation_keys": keys.count,
        "evaluation_key_bytes": keys.nbytes,
    }


def _polynomials(fits: LayerFits) -> dict[str, dict[str, Any]]:
    """Return interval, degree, error and depth of each function."""
    from aegis_dask.ckks.polynomial import depth

    out: dict[str, dict[str, Any]] = {}
    exponential, inverse = fits.exponential, fits.inverse
    base, factor = exponential.base, 1 << exponential.squarings
    out["exp"] = {
        "interval": [base.low * factor, base.high * factor],
        "degree": base.degree,
        "squarings": exponential.squarings,
        "error": base.error,
        "depth": exponential.depth,
    }
    out["1/x"] = {
        "interval": [inverse.t0 - 1, inverse.t0 + 1],
        "degree": (1 << inverse.doublings) - 1,
        "error": inverse.error,
        "depth": inverse.depth,
    }
    for name, poly in (
        ("1/sqrt (LayerNorm 1)", fits.norm1),
        ("GELU", fits.gelu),
        ("1/sqrt (LayerNorm 2)", fits.norm2),
    ):
        out[name] = {
            "interval": [poly.low, poly.high],
            "degree": poly.degree,
            "error": poly.error,
            "depth": depth(poly.degree),
        }
    return out


def _show(terminal: Terminal, layers: tuple[LayerRanges, ...], fits: list[LayerFits]) -> None:
    from rich.text import Text

    from aegis_dask.terminal import table_of

    table = table_of("layer", "function", "from", "to", "degree", "error", "levels")
    for i, fit in enumerate(fits):
        for k, (name, p) in enumerate(_polynomials(fit).items()):
            low, high = p["interval"]
            degree = f"{p['degree']}" + (
                f", {p['squarings']} squarings" if "squarings" in p else ""
            )
            cells = (f"{low:.4g}", f"{high:.4g}", degree, f"{p['error']:.1e}", str(p["depth"]))
            table.add_row("" if k else str(i), Text(name), *cells)
    terminal.show(table)
