import inspect
import pickle

import pytest

from aegis_dask import errors
from aegis_dask.errors import ClusterError, LevelError, harmless_text

EXCEPTIONS = [
    value
    for value in vars(errors).values()
    if inspect.isclass(value) and issubclass(value, Exception) and not issubclass(value, Warning)
]


@pytest.mark.parametrize("exception", EXCEPTIONS)
def test_every_exception_is_an_aegis_error_and_shows_its_message(
    exception: type[Exception],
) -> None:
    assert issubclass(exception, errors.AegisError)
    assert str(exception("no key for rotation 3")) == "no key for rotation 3"


@pytest.mark.parametrize("exception", EXCEPTIONS)
def test_every_exception_survives_the_way_back_from_a_worker(exception: type[Exception]) -> None:
    restored = pickle.loads(pickle.dumps(exception("level 0")))
    assert type(restored) is exception
    assert str(restored) == "level 0"


def test_callers_may_catch_the_standard_exceptions() -> None:
    assert issubclass(errors.InsecureParametersError, ValueError)
    assert issubclass(errors.EncodingError, ValueError)
    assert issubclass(errors.MissingKeyError, KeyError)


def test_only_errors_of_ours_are_quoted() -> None:
    ours = ClusterError("a worker is gone")
    assert harmless_text(ours) == "ClusterError: a worker is gone"
    ours.__cause__ = LevelError("no level is left")
    assert harmless_text(ours) == "ClusterError: a worker is gone"
    ours.__cause__ = ValueError("0.123 is a secret")
    assert harmless_text(ours) == "ClusterError, caused by ValueError"
    assert harmless_text(ValueError("0.123")) == "ValueError"
    assert harmless_text(KeyboardInterrupt()) == "KeyboardInterrupt"
