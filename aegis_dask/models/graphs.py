"""Graph programs: Python files that say what is run on a model's hidden states.

A graph file defines

- ``program(x, layers)``: from a `circuits.tokens.TokenMatrix` and the model's
  `circuits.encoder.EncoderLayer` objects, the result, a token matrix;
- ``reference(model, x)``: the same in float64 on ``[tokens, features]`` (optional: without it
  results are compared with the simulated program);
- ``prepare(model, x)``: from a text's embeddings ``[tokens, features]`` what is encrypted, computed
  by the client in float64 (optional: without it the embeddings themselves);
- ``layers``: how many layers it uses, None for all.
"""

from __future__ import annotations

import importlib.util
import traceback
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
    """A loaded graph file; its attributes are what the file defines (see the module)."""

    name: str
    program: Body
    reference: Callable[[BertModel, Float], Float] | None
    layers: int | None
    prepare: Callable[[BertModel, Float], Float] | None = None


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
        raise ProgramError(
            f"graph {found} cannot be loaded{_line_of(e, found)}: {type(e).__name__}: {e}"
        ) from e
    if not callable(getattr(module, "program", None)):
        raise ProgramError(f"graph {found} does not define program(x, layers)")
    optional = {what: getattr(module, what, None) for what in ("reference", "prepare")}
    for what, function in optional.items():
        if function is not None and not callable(function):
            raise ProgramError(
                f"graph {found}: {what} is {function!r}, it must be a function of (model, x)"
            )
    layers = getattr(module, "layers", None)
    if layers is not None and (type(layers) is not int or layers < 1):
        raise ProgramError(f"graph {found}: layers is {layers!r}, it must be None or at least 1")
    return Graph(found.stem, module.program, optional["reference"], layers, optional["prepare"])


def _line_of(error: Exception, path: Path) -> str:
    """Return where in a file an exception arose, as text for a message."""
    if isinstance(error, SyntaxError):
        return ""  # its own message says
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    return f" (line {lines[-1]})" if lines else ""
