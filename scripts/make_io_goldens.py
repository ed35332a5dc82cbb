#!/usr/bin/env python3
"""Writes tests/goldens/io: small files of torch.save, safetensors and Transformers that io_test reads.

Needs torch, safetensors and transformers. Values follow simple formulas that the tests repeat.
"""

import collections
import json
import pathlib
import shutil
import zipfile

import safetensors.torch
import torch
import transformers

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "goldens" / "io"


def ramp(*shape, dtype=torch.float32, start=0):
    count = torch.Size(shape).numel()
    return torch.arange(start, start + count, dtype=torch.float32).reshape(shape).to(dtype)


def module_state():
    """An OrderedDict with _metadata, whose two names share one storage."""
    module = torch.nn.Module()
    module.embedding = torch.nn.Embedding(4, 3)
    module.head = torch.nn.Linear(3, 4, bias=False)
    module.embedding.weight = torch.nn.Parameter(ramp(4, 3))
    module.head.weight = module.embedding.weight
    state = module.state_dict()
    assert hasattr(state, "_metadata")
    return state


def mixed_state():
    base = ramp(4, 6)
    return {
        "f32": ramp(2, 3),
        "bf16": ramp(5, dtype=torch.bfloat16),
        "f16": ramp(5, dtype=torch.float16),
        "f64": ramp(3, dtype=torch.float64),
        "i64": ramp(3, dtype=torch.int64),
        "i32": ramp(3, dtype=torch.int32),
        "u8": ramp(3, dtype=torch.uint8),
        "i8": ramp(3, dtype=torch.int8),
        "parameter": torch.nn.Parameter(ramp(2, 2)),
        "transposed": base.t(),
        "window": base[1:3, 2:5],
        "row": base[2],
        "every_other": base[:, ::2],
        "scalar": torch.tensor(7.0),
        "nothing": torch.zeros(0, 3),
    }


def original_folder():
    """A two-layer original Mamba-1 model as mamba_ssm saves it."""
    folder = OUT / "original"
    folder.mkdir()
    d, e, n, r, k, v = 8, 16, 4, 1, 4, 16
    state = collections.OrderedDict()
    state["backbone.embedding.weight"] = ramp(v, d)
    for i in range(1):
        layer = f"backbone.layers.{i}."
        for name, shape in {
            "norm.weight": (d,),
            "mixer.in_proj.weight": (2 * e, d),
            "mixer.conv1d.weight": (e, 1, k),
            "mixer.conv1d.bias": (e,),
            "mixer.x_proj.weight": (r + 2 * n, e),
            "mixer.dt_proj.weight": (e, r),
            "mixer.dt_proj.bias": (e,),
            "mixer.A_log": (e, n),
            "mixer.D": (e,),
            "mixer.out_proj.weight": (d, e),
        }.items():
            state[layer + name] = ramp(*shape, dtype=torch.float16)
    state["backbone.norm_f.weight"] = ramp(d)
    state["lm_head.weight"] = state["backbone.embedding.weight"]
    torch.save(state, folder / "pytorch_model.bin")
    config = {
        "d_model": d,
        "n_layer": 1,
        "vocab_size": 13,
        "ssm_cfg": {"d_state": n},
        "rms_norm": True,
        "residual_in_fp32": True,
        "fused_add_norm": True,
        "pad_vocab_size_multiple": 8,
    }
    (folder / "config.json").write_text(json.dumps(config))


def transformers_folders():
    torch.manual_seed(0)
    mamba2 = transformers.Mamba2Config(
        hidden_size=8,
        num_heads=2,
        head_dim=8,
        n_groups=1,
        state_size=4,
        num_hidden_layers=1,
        vocab_size=16,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    model = transformers.Mamba2ForCausalLM(mamba2).half()
    model.save_pretrained(OUT / "sharded", max_shard_size=600)
    falcon = transformers.FalconMambaConfig(hidden_size=8, state_size=4, num_hidden_layers=1, vocab_size=16)
    transformers.FalconMambaForCausalLM(falcon).half().save_pretrained(OUT / "falcon")
    for folder in ("sharded", "falcon"):
        (OUT / folder / "generation_config.json").unlink(missing_ok=True)


class Evil:
    def __reduce__(self):
        import os

        return (os.system, ("exit 1",))


def evil_zip():
    """A state dict in which an entry that no model needs runs a command."""
    state = {"weight": ramp(2), "notes": Evil()}
    torch.save(state, OUT / "evil.bin")


def compressed_zip():
    with (
        zipfile.ZipFile(OUT / "state_dict.bin") as source,
        zipfile.ZipFile(OUT / "compressed.bin", "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for entry in source.infolist():
            target.writestr(zipfile.ZipInfo(entry.filename), source.read(entry), zipfile.ZIP_DEFLATED)


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    torch.save(module_state(), OUT / "state_dict.bin")
    torch.save(mixed_state(), OUT / "mixed.bin")
    torch.save(mixed_state(), OUT / "legacy.bin", _use_new_zipfile_serialization=False)
    torch.save(
        {"model": module_state(), "step": 3, "loss": 0.5, "done": False, "none": None, "lists": [1, [2]]},
        OUT / "checkpoint.bin",
    )
    torch.save(module_state(), OUT / "protocol4.bin", pickle_protocol=4)
    tag = torch.serialization.location_tag
    torch.serialization.location_tag = lambda storage: "cuda:0"
    torch.save(module_state(), OUT / "cuda.bin")
    torch.serialization.location_tag = tag
    evil_zip()
    compressed_zip()
    tensors = {name: t.detach().contiguous() for name, t in mixed_state().items()}
    tensors["bool"] = torch.tensor([True, False])
    safetensors.torch.save_file(tensors, OUT / "mixed.safetensors", metadata={"format": "pt"})
    original_folder()
    transformers_folders()


if __name__ == "__main__":
    main()
