"""Random numbers that differ on every run, rings and schemes that are made once per session."""

from __future__ import annotations

import logging
import os
import secrets
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import dask.config
import numpy as np
import pytest

from aegis_dask.ring.backend import Ring
from aegis_dask.ring.chain import build_chain
from aegis_dask.ring.registry import get_ring
from tests.emulation.device import EMULATION, register
from tests.schemes import Scheme, SchemeCache

SEED = int(os.environ.get("AEGIS_TEST_SEED") or secrets.randbits(32))
"""Entropy of this run. Keys and errors come from the operating system and are not reproduced."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--backend",
        choices=["cpu", "cuda", EMULATION],
        default="cpu",
        help="where kernels of this process run; tests of ckks, program and circuits can take any",
    )


def pytest_configure(config: pytest.Config) -> None:
    # Tests are about the CPU, with a GPU emulated where it matters; in processes they start too.
    name = config.getoption("--backend")
    os.environ["DASK_AEGIS__BACKEND"] = "cuda" if name == "cuda" else "cpu"
    dask.config.set({"aegis.backend": name})
    if name == EMULATION:
        register()
    config.addinivalue_line("filterwarnings", "ignore::aegis_dask.errors.InsecureParametersWarning")


def pytest_report_header() -> str:
    return f"random numbers: AEGIS_TEST_SEED={SEED}"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()
    if report.failed and "rng" in getattr(item, "fixturenames", ()):
        report.sections.append(("Random numbers", f"AEGIS_TEST_SEED={SEED} repeats this test"))


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """A generator seeded by the run and the test, so that a test is repeated on its own."""
    return np.random.default_rng([SEED, zlib.crc32(request.node.nodeid.encode())])


@pytest.fixture
def arrays_of_numpy(request: pytest.FixtureRequest) -> None:
    """Skip a test of how arrays lie in the host's memory, or of which kernels the CPU calls."""
    if request.config.getoption("--backend") != "cpu":
        pytest.skip("about the CPU")


class Log(logging.Handler):
    """What is logged, which ``caplog`` of pytest may miss: clusters silence its handler."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text += record.getMessage() + "\n"


@contextmanager
def logged(*names: str, level: int = logging.WARNING) -> Iterator[Log]:
    """Give what loggers, and those below them, log inside the block."""
    handler, loggers = Log(level), [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(level)
    yield handler
    for logger, old in zip(loggers, before, strict=True):
        logger.removeHandler(handler)
        logger.setLevel(old)


@pytest.fixture
def log() -> Iterator[Log]:
    """What the library logs, warnings and worse."""
    with logged("aegis_dask") as found:
        yield found


@pytest.fixture(scope="session")
def thirty_limb_ring() -> Callable[[int], Ring]:
    """Degree -> a ring of 31 primes: terminals 0-3, mains 4-26, special primes 27-30."""

    def ring(degree: int) -> Ring:
        return get_ring(build_chain(degree, 50, [40] * 16, 4))

    return ring


@pytest.fixture(scope="session")
def ring(thirty_limb_ring: Callable[[int], Ring]) -> Ring:
    """The smallest ring, N = 2^10."""
    return thirty_limb_ring(1 << 10)


@pytest.fixture(scope="session")
def schemes() -> Callable[[str], Scheme]:
    """Name -> parameters and keys; small sets are kept, of the large ones the last."""
    return SchemeCache()
