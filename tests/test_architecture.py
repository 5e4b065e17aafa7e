"""Imports go downward only, and importing the package is cheap."""

import ast
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "aegis_dask"

# From the bottom up, the whole plan; a part may import the parts of lower rows and itself.
LAYERS = (
    ("_version",),
    ("errors",),
    ("config",),
    ("ring",),
    ("ckks",),
    ("program",),
    ("circuits",),
    ("placement",),
    ("dashboard",),
    ("runtime",),
    ("models",),
    ("service",),
    ("__init__",),  # the public API: what users import, so nothing below may
    ("terminal",),
    ("demo", "bench"),
    ("cli",),
)
RANK = {part: rank for rank, row in enumerate(LAYERS) for part in row}

# Third-party package or module -> the lowest part that may import it.
LOWEST_USER = {
    "dask.config": "config",
    "dask.utils": "config",  # sizes and names of contents: no scheduling
    "dask.tokenize": "program",
    "dask": "dashboard",
    "distributed": "dashboard",
    "bokeh": "dashboard",
    "prometheus_client": "dashboard",
    "rich": "runtime",
    "typer": "demo",
}


def imported_modules(path: Path, module: str) -> Iterator[tuple[int, str]]:
    """Yield (line, absolute dotted name) of all imports in a file, lazy ones included."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) + 1 - node.level]
            source = ".".join([*(base if node.level else []), *filter(None, [node.module])])
            for alias in node.names:
                yield node.lineno, f"{source}.{alias.name}"


def violations(package: Path) -> list[str]:
    """List what breaks LAYERS and LOWEST_USER under the folder `package`."""
    found = []
    for path in sorted(package.rglob("*.py")):
        module = ".".join([package.name, *path.relative_to(package).with_suffix("").parts])
        module = module.removesuffix(".__init__")
        part = [*module.split("."), "__init__"][1]
        where = path.relative_to(package)
        if part not in RANK:
            found.append(f"{where}: {part} has no row in LAYERS")
            continue
        if part == "__init__":
            continue  # may re-export anything
        for line, name in imported_modules(path, module):
            top, _, rest = name.partition(".")
            within = name.rpartition(".")[0]  # the module of an imported name
            if top == package.name:
                target = rest.split(".")[0]
                target = target if target in RANK else "__init__"
                allowed = target == part or RANK[target] < RANK[part]
            else:
                allowed = (
                    RANK[
                        LOWEST_USER.get(
                            name, LOWEST_USER.get(within, LOWEST_USER.get(top, "errors"))
                        )
                    ]
                    <= RANK[part]
                )
            if not allowed:
                found.append(f"{where}:{line}: {part} must not import {name}")
    return found


def test_every_import_goes_downward() -> None:
    assert violations(ROOT / PACKAGE) == []


@pytest.mark.parametrize(
    ("file", "statement"),
    [
        ("ring/primes.py", "from aegis_dask.ckks import Parameters"),
        ("ring/primes.py", "import aegis_dask.ckks.keys"),
        ("ring/primes.py", "from aegis_dask import ckks"),
        ("ring/primes.py", "import aegis_dask"),
        ("ring/deep/__init__.py", "from ...ckks import keys"),
        ("ckks/keys.py", "from ..circuits import linear"),
        ("ckks/keys.py", "def lazily():\n    from aegis_dask.cli import app"),
        ("models/bert.py", "from aegis_dask.service import client"),
        ("program/ops.py", "import dask.task_spec"),
        ("errors.py", "from rich.console import Console"),
        ("utils.py", ""),
    ],
)
def test_a_planted_violation_is_found(tmp_path: Path, file: str, statement: str) -> None:
    path = tmp_path / PACKAGE / file
    path.parent.mkdir(parents=True)
    path.write_text(statement)
    assert len(violations(tmp_path / PACKAGE)) == 1


@pytest.mark.parametrize(
    ("file", "statement"),
    [
        ("__init__.py", "from .ckks import Parameters"),
        ("ckks/__init__.py", "from .keys import KeyGenerator"),
        ("ckks/keys.py", "import numpy\nfrom aegis_dask.ring.primes import ntt_primes"),
        ("runtime/lowering.py", "import distributed\nfrom ..placement import strategies"),
        ("demo.py", "import aegis_dask as aegis\nfrom rich.table import Table"),
    ],
)
def test_a_downward_import_is_accepted(tmp_path: Path, file: str, statement: str) -> None:
    path = tmp_path / PACKAGE / file
    path.parent.mkdir(parents=True)
    path.write_text(statement)
    assert violations(tmp_path / PACKAGE) == []


def test_import_linter_keeps_the_contracts_of_pyproject() -> None:
    linter = Path(sysconfig.get_path("scripts"), "lint-imports")
    result = subprocess.run(
        [linter, "--no-logo", "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_importing_the_package_is_fast_and_loads_no_numba() -> None:
    program = (
        "import sys, time; start = time.perf_counter(); import aegis_dask; "
        "print(time.perf_counter() - start, 'numba' in sys.modules)"
    )
    seconds = []
    for _ in range(5):  # the minimum is what the import costs; the rest is other processes
        output = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        elapsed, loads_numba = output.split()
        assert loads_numba == "False"
        seconds.append(float(elapsed))
    assert min(seconds) < 0.5
