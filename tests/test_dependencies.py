"""What the library installs: declared, with a lower bound, and permissively licensed throughout."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "aegis_dask"

PERMISSIVE = {
    *("0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "ISC", "MIT", "MIT-0"),
    *("MIT-CMU", "PSF-2.0", "Python-2.0", "Unlicense", "Zlib"),
    "Apache-2.0 WITH LLVM-exception",
}
REVIEWED = {
    # MPL-2.0 binds changes to its own files, which we make none of; tokenizers' downloader has it.
    "tqdm": "MPL-2.0 AND MIT",
    # Metadata without a number of clauses; the licence files were read.
    "numba": "BSD-2-Clause",
    "partd": "BSD-3-Clause",
    "zict": "BSD-3-Clause",
    "contourpy": "BSD-3-Clause",
    "jinja2": "BSD-3-Clause",
    # Its wheels carry libgfortran and libquadmath too, which may be linked with anything.
    "scipy": "BSD-3-Clause",
}
"""Packages whose metadata do not say enough, or that were looked at on their own -> licence."""
CLASSIFIERS = {
    "Apache Software License": "Apache-2.0",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "MIT No Attribution License (MIT-0)": "MIT-0",
    "Python Software Foundation License": "PSF-2.0",
    "The Unlicense (Unlicense)": "Unlicense",
    "zlib/libpng License": "Zlib",
}
SYNONYMS = {"Apache 2.0": "Apache-2.0", "Apache License 2.0": "Apache-2.0", "MIT License": "MIT"}
OPTIONAL = {"cupy", "dask_cuda", "rmm", "ucxx", "distributed_ucxx"}
"""Imported where they are there: what the extras cuda12 and cuda13 install."""
INTERFACES = {"jinja2", "llvmlite", "tornado"}
"""Not declared: numba's interface is in llvmlite's terms, that of Dask's dashboard in those of the
others, and they fix the versions."""


def project() -> dict[str, object]:
    loaded: dict[str, object] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return loaded


def declared() -> list[Requirement]:
    dependencies = project()["dependencies"]
    assert isinstance(dependencies, list)
    return [Requirement(text) for text in dependencies]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@cache
def installed() -> dict[str, metadata.Distribution]:
    """Everything that the declared dependencies need here, themselves included, by name."""
    found: dict[str, metadata.Distribution] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [(r, extra) for r in declared() for extra in ("", *r.extras)]
    while waiting:
        requirement, extra = waiting.pop()
        key = normal(requirement.name), extra
        if key in seen:
            continue
        seen.add(key)
        distribution = found[key[0]] = metadata.distribution(requirement.name)
        for text in distribution.requires or []:
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                waiting += [(needed, e) for e in ("", *needed.extras)]
    return found


def licence_of(name: str, distribution: metadata.Distribution) -> str:
    """Return an SPDX expression, or what the metadata say instead."""
    about = distribution.metadata
    classifiers = [
        text.split("::")[-1].strip()
        for text in about.get_all("Classifier") or []
        if text.startswith("License ::")
    ]
    given = about.get("License-Expression") or REVIEWED.get(name)
    if given is None:
        known = [CLASSIFIERS[c] for c in classifiers if c in CLASSIFIERS]
        given = " AND ".join(known) if known else about.get("License", "unknown")
    return SYNONYMS.get(given, given)


def is_permissive(expression: str) -> bool:
    """Tell whether every licence is allowed of those that must be met together."""
    for part in re.split(r"\s+AND\s+", expression.strip("() ")):
        choices = re.split(r"\s+OR\s+", part.strip("() "))
        if not any(choice.strip("() ") in PERMISSIVE for choice in choices):
            return False
    return True


def imported() -> set[str]:
    """Top-level names of other packages that the library imports anywhere."""
    names: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - {"aegis_dask", "__future__"}


def test_everything_imported_is_declared() -> None:
    distributions = metadata.packages_distributions()
    names = {normal(r.name) for r in declared()} | INTERFACES
    for module in imported() - OPTIONAL:
        providers = {normal(d) for d in distributions.get(module, [])}
        assert providers & names, f"{module}, which the library imports, is not declared"


def test_every_dependency_has_a_lower_bound_and_no_other_source() -> None:
    optional = project()["optional-dependencies"]
    assert isinstance(optional, dict)
    extras = [Requirement(text) for texts in optional.values() for text in texts]
    for requirement in (*declared(), *extras):
        assert requirement.url is None, requirement
        operators = {s.operator for s in requirement.specifier}
        assert operators & {">=", "~=", "=="}, f"{requirement} has no lower bound"


@pytest.mark.parametrize("name", sorted(installed()))
def test_every_licence_is_permissive(name: str) -> None:
    expression = licence_of(name, installed()[name])
    reviewed = REVIEWED.get(name)
    assert is_permissive(expression) or expression == reviewed, (
        f"{name} is licensed under {expression!r}; look at it, and add it to PERMISSIVE or REVIEWED"
    )


def test_the_check_of_licences_refuses_others() -> None:
    for expression in ("GPL-3.0-only", "MIT AND GPL-3.0-only", "AGPL-3.0", "unknown", "", "BSD"):
        assert not is_permissive(expression)
    for expression in ("MIT", "Apache-2.0 OR GPL-2.0-only", "MIT AND (GPL-2.0-only OR 0BSD)"):
        assert is_permissive(expression)
    assert len(installed()) > 30
