"""Graph programs: Python files that say what is run on a model's hidden states.

A graph file defines

- ``program(x, layers)``: from a `circuits.tokens.TokenMatrix` and the model's
  `circuits.encoder.EncoderLayer` objects, the result, a token matrix;
- ``reference(model, x)``: the same in float64 on ``[tokens, features]`` (optional: without it
  results are compared with the simulated program);
- ``layers``: how many layers it uses, None for all.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aegis_dask.errors import ProgramError
from aegis_dask.models.checkpoint import BertModel
from aegis_dask.models.programs import Body

Float = NDArray[np.float64]
FOLDERS = (
    Path(__file__).parents[1] / "graphs",  # an installed package
    Path(__file__).parents[2] / "graphs",  # a checkout
)


@dataclass(frozen=True)
class Graph:
    """A loaded graph file."""

    name: str
    program: Body
    reference: Callable[[BertModel, Float], Float] | None
    layers: int | None


def graph_names() -> list[str]:
    """Return the names of the graphs that come with the library."""
    return sorted({f.stem for folder in FOLDERS if folder.is_dir() for f in folder.glob("*.py")})


def load_graph(path: str | Path) -> Graph:
    """Load a graph by path, or by name from those that come with the library.

    Raises
    ------
    ProgramError
        If there is no such file, it cannot be imported, or it defines no ``program``.
    """
    given = Path(path)
    candidates = [given] if given.suffix == ".py" else []
    candidates += [folder / f"{given.name}.py" for folder in FOLDERS if given.parent == Path(".")]
    candidates += [folder / given.name for folder in FOLDERS if given.parent.name == "graphs"]
    found = next((c for c in candidates if c.is_file()), None)
    if found is None:
        raise ProgramError(
            f"there is no graph {str(path)!r}; give the path of a Python file, or one of "
            f"{', '.join(graph_names())}"
        )
    spec = importlib.util.spec_from_file_location(f"aegis_graph_{found.stem}", found)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as e:
        raise ProgramError(f"graph {found} cannot be loaded: {type(e).__name__}: {e}") from e
    program = getattr(module, "program", None)
    if not callable(program):
        raise ProgramError(f"graph {found} does not define program(x, layers)")
    layers = getattr(module, "layers", None)
    if layers is not None and (not isinstance(layers, int) or layers < 1):
        raise ProgramError(f"graph {found}: layers is {layers!r}, it must be None or at least 1")
    return Graph(found.stem, program, getattr(module, "reference", None), layers)
