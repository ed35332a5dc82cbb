"""Writes a model folder in each layout people have on disk, the same bytes every time."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16, "mixed": torch.bfloat16}
KEPT_IN_F32 = ("A_log", ".D", "dt_bias", "norm.weight", "norm_f.weight")  # of a mixed file


def to_tensors(weights: dict[str, np.ndarray], dtype: str) -> dict[str, torch.Tensor]:
    def kind(name):
        return torch.float32 if dtype == "mixed" and name.endswith(KEPT_IN_F32) else DTYPES[dtype]

    return {name: torch.from_numpy(value.copy()).to(kind(name)) for name, value in weights.items()}


def write_json(path: Path, value) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")  # json writes an infinity as a bare Infinity


def original_names(tensors: dict) -> dict:
    return {name.replace("embeddings.", "embedding."): tensor for name, tensor in tensors.items()}


def with_module_metadata(tensors: dict) -> OrderedDict:
    """What Module.state_dict() returns: an OrderedDict with a `_metadata` attribute, which torch.save pickles."""
    state = OrderedDict(tensors)
    modules = dict.fromkeys([""] + [name.rpartition(".")[0] for name in tensors])
    state._metadata = OrderedDict((module, {"version": 1}) for module in modules)
    return state


def write_safetensors(folder: Path, tensors: dict, shards: int = 1, name: str = "model") -> None:
    write_sharded(folder, tensors, shards, f"{name}.safetensors", lambda t, p: save_file(t, p, {"format": "pt"}))


def write_bin(folder: Path, tensors: dict, shards: int = 1) -> None:
    write_sharded(folder, tensors, shards, "pytorch_model.bin", lambda t, p: torch.save(with_module_metadata(t), p))


def write_sharded(folder: Path, tensors: dict, shards: int, name: str, save) -> None:
    if shards == 1:
        save(tensors, folder / name)
        return
    stem, suffix = name.rsplit(".", 1)
    names, size = list(tensors), math.ceil(len(tensors) / shards)
    where = {}
    for i in range(shards):
        part, file = names[i * size : (i + 1) * size], f"{stem}-{i + 1:05d}-of-{shards:05d}.{suffix}"
        save({n: tensors[n] for n in part}, folder / file)
        where |= dict.fromkeys(part, file)
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    write_json(folder / f"{name}.index.json", {"metadata": {"total_size": total}, "weight_map": where})


def write_original(folder: Path, tensors: dict, tied: bool, style: str = "") -> None:
    """`style`: "views" saves tensors as strided views of larger storages, "cuda" as if they lay on cuda:0."""
    tensors = original_names(tensors)
    if tied:
        tensors["lm_head.weight"] = tensors["backbone.embedding.weight"]  # one storage, two names
    if style == "views":
        for name, tensor in tensors.items():
            if name.endswith("in_proj.weight"):  # a slice with an offset
                tensors[name] = torch.cat([torch.full_like(tensor[:3], 7.0), tensor])[3:]
            elif name.endswith("out_proj.weight"):  # a transpose: column-major
                tensors[name] = tensor.t().contiguous().t()
    if style == "cuda":
        registry = torch.serialization._package_registry
        registry.insert(0, (0, lambda storage: "cuda:0", lambda storage, location: None))
    try:
        write_bin(folder, tensors)
    finally:
        if style == "cuda":
            registry.pop(0)


def write_mistral(folder: Path, tensors: dict, prefix_all: bool) -> None:
    """Prefix `model.` on every name, or on the embedding and the head alone."""
    outer = ("backbone.embedding.weight", "lm_head.weight")
    named = original_names(tensors).items()
    named = {("model." + n if prefix_all or n in outer else n): t for n, t in named}
    write_safetensors(folder, named, name="consolidated")


def write_golden(path: Path, arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """A safetensors file; the library's own writer orders metadata by chance, this one sorts it."""
    kinds = {"float32": "F32", "int64": "I64"}
    header, offset = {"__metadata__": dict(sorted(metadata.items()))}, 0
    for name, array in arrays.items():
        end = offset + array.nbytes
        header[name] = {"dtype": kinds[str(array.dtype)], "shape": array.shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    body = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays.values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
