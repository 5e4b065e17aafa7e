"""Exceptions and warnings of aegis_dask.

Each message says what was given, what was expected, and what to do.
"""


class AegisError(Exception):
    """Base of every exception that aegis_dask raises on purpose."""


class ParameterError(AegisError, ValueError):
    """A parameter is out of range, or parameters contradict each other."""


class InsecureParametersError(ParameterError):
    """The modulus of a key exceeds what the ring degree allows at the security level asked for."""


class IncompatibleError(AegisError):
    """Operands, or an operand and a key, belong to different parameter sets."""


class LevelError(AegisError):
    """An operation needs more levels than its operand has left, or levels cannot be aligned."""


class ScaleError(AegisError):
    """Scales differ and no rescaling can align them, or a scale does not fit its modulus."""


class MissingKeyError(AegisError, KeyError):
    """An operation needs an evaluation key that the key set does not hold."""

    def __str__(self) -> str:
        return Exception.__str__(self)  # KeyError would show the repr of the message


class EncodingError(AegisError, ValueError):
    """Values cannot be encoded: too many for the slots, too large for the modulus, not finite."""


class SerializationError(AegisError):
    """Bytes are not an object of this library, or are of a version that it does not read."""


class IntegrityError(SerializationError):
    """Loaded data are damaged: a checksum differs or a value is outside its range."""


class ModelError(AegisError):
    """A checkpoint is missing, damaged, or of an architecture that is not supported."""


class TextError(AegisError, ValueError):
    """A text cannot be given to a model: empty, too long, or not a text."""


class BackendError(AegisError):
    """A compute backend is unavailable, or lacks what the operation asks of it."""


class DeviceMemoryError(BackendError):
    """A GPU has too little memory left."""


class DeviceFailedError(BackendError):
    """A kernel has failed on a GPU, which the process cannot use any more."""


class InsecureParametersWarning(UserWarning):
    """A parameter set meant for tests, without security, is in use."""


class ProgramError(AegisError):
    """A program is malformed: shapes do not match, a stage cannot be cut, inputs are missing."""


class RangeError(AegisError, ValueError):
    """Values lie outside the range that was calibrated: the result would be meaningless."""


class ClusterError(AegisError):
    """The cluster cannot run a program: unreachable, workers missing, a task or a worker failed."""


class SecurityError(ClusterError):
    """A connection would not be safe: certificates missing, expired or foreign, no encryption."""


class ServiceError(AegisError):
    """A service refuses, cannot be reached, or has no such thing; or a quota is used up."""


def harmless_text(error: BaseException) -> str:
    """Return what an error says, in words only where they are ours: others may quote values."""
    cause: BaseException | None = error
    while isinstance(cause, AegisError):
        cause = cause.__cause__
    if isinstance(error, AegisError) and cause is None:
        return f"{type(error).__name__}: {error}"
    names = type(error).__name__
    return names if cause is error else f"{names}, caused by {type(cause).__name__}"
