"""Small checkpoint folders, written as Hugging Face writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import tokenizers
from tokenizers.models import WordLevel
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

from aegis_dask.models.checkpoint import LINEARS, NORMS, BertConfig, BertModel

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat", "sat", "on", "a", "mat", "."]
TINY = BertConfig(2, 8, 2, 16, max_positions=12, vocabulary=len(WORDS))


def config_json(config: BertConfig) -> dict[str, Any]:
    return {
        "model_type": "bert",
        "hidden_act": "gelu",
        "num_hidden_layers": config.layers,
        "hidden_size": config.hidden,
        "num_attention_heads": config.heads,
        "intermediate_size": config.intermediate,
        "max_position_embeddings": config.max_positions,
        "vocab_size": config.vocabulary,
        "layer_norm_eps": config.norm_eps,
        "pad_token_id": config.pad_token_id,
        "type_vocab_size": config.type_vocabulary,
    }


def hugging_face_tensors(model: BertModel) -> dict[str, np.ndarray]:
    tables = model.embeddings
    tensors = {
        "embeddings.word_embeddings.weight": tables.word,
        "embeddings.position_embeddings.weight": tables.position,
        "embeddings.token_type_embeddings.weight": tables.token_type,
        "embeddings.LayerNorm.weight": tables.norm.weight,
        "embeddings.LayerNorm.bias": tables.norm.bias,
        # Not read, but they are in real files.
        "embeddings.position_ids": np.arange(model.config.max_positions)[None],
        "pooler.dense.bias": np.zeros(model.config.hidden, np.float32),
    }
    names = LINEARS | NORMS
    for name, values in model.tensors().items():
        _, i, part, kind = name.split(".")
        tensors[f"encoder.layer.{i}.{names[part]}.{kind}"] = values
    return tensors


def write_tokenizer(folder: Path) -> None:
    """A tokenizer that cuts at 5 tokens and pads to 7, as published ones do at 128."""
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    tokenizer = tokenizers.Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.add_special_tokens(WORDS[:4])
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=7)
    tokenizer.save(str(folder / "tokenizer.json"))


def write_folder(
    folder: Path,
    model: BertModel,
    config: Mapping[str, Any] | None = None,
    tensors: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """Write a model; `config` and `tensors` replace what its files would hold."""
    folder.mkdir(exist_ok=True)
    given = config_json(model.config) if config is None else config
    (folder / "config.json").write_text(json.dumps(given), encoding="utf-8")
    arrays = hugging_face_tensors(model) if tensors is None else tensors
    safetensors.numpy.save_file(dict(arrays), folder / "model.safetensors")
    write_tokenizer(folder)
    return folder
