"""Model configs with the fields and defaults of Transformers' classes."""

import json
import math
import pathlib

from . import _core, _options, hub

_COMMON = {
    "hidden_act": "silu",
    "initializer_range": 0.1,
    "residual_in_fp32": True,
    "time_step_rank": "auto",
    "time_step_min": 0.001,
    "time_step_max": 0.1,
    "time_step_floor": 1e-4,
    "rescale_prenorm_residual": False,
    "use_cache": True,
    "expand": 2,
    "conv_kernel": 4,
    "use_bias": False,
    "use_conv_bias": True,
    "layer_norm_epsilon": 1e-5,
    "bos_token_id": 0,
    "output_hidden_states": False,
    "return_dict": True,
}


# What a model is, and how it is used.
SHAPE_FIELDS = {
    "vocab_size",
    "hidden_size",
    "state_size",
    "num_hidden_layers",
    "conv_kernel",
    "time_step_rank",
    "num_heads",
    "head_dim",
    "n_groups",
    "layer_norm_epsilon",
    "use_bias",
    "use_conv_bias",
    "tie_word_embeddings",
    "num_attention_heads",
    "layer_norm_eps",
    "rotary_pct",
    "rotary_emb_base",
    "use_parallel_residual",
    "attention_bias",
    "ssm_layer",
    "attn_layer_idx",
    "attn_cfg",
    "d_intermediate",
}
USAGE_FIELDS = {"output_hidden_states", "return_dict", "use_cache", "pad_token_id", "eos_token_id", "bos_token_id"}


class PretrainedConfig:
    """Fields are attributes; what a class does not know is kept too."""

    model_type = ""
    _defaults: dict = {}

    def __init__(self, **fields):
        for name, value in {**self._defaults, **fields}.items():
            if name != "model_type":
                setattr(self, name, value)
        if getattr(self, "time_step_rank", None) == "auto":
            self.time_step_rank = math.ceil(self.hidden_size / 16)
        self._check()

    def _check(self):
        pass

    def to_dict(self) -> dict:
        return {"model_type": self.model_type, **vars(self)}

    def to_json_string(self) -> str:
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def save_pretrained(self, folder):
        path = pathlib.Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        (path / "config.json").write_text(self.to_json_string())

    @classmethod
    def from_dict(cls, fields: dict):
        fields = dict(fields)
        limit = fields.get("time_step_limit")
        if limit is not None:  # infinity has no JSON number: null, or the name that Python writes
            fields["time_step_limit"] = tuple(math.inf if x is None else float(x) for x in limit)
        kind = cls if cls.model_type else config_class(fields.get("model_type"))
        return kind(**fields)

    @classmethod
    def from_pretrained(cls, name, revision=None, local_files_only=False, token=None, subfolder=None, **fields):
        options = {k: fields.pop(k) for k in list(fields) if k in {*_options.LOADING, *_options.LOADING_DEFAULTS}}
        _options.check("from_pretrained", options, _options.LOADING, _options.LOADING_DEFAULTS)
        where = {"local_files_only": local_files_only, "token": token, "subfolder": subfolder}
        path = pathlib.Path(hub.resolve(name, revision, weights=False, **where)) / "config.json"
        if not path.is_file():
            raise _core.Error(f"{path}: no such file")
        return cls.from_dict({**json.loads(path.read_text()), **fields})

    def __eq__(self, other):
        return type(self) is type(other) and vars(self) == vars(other)

    def __repr__(self):
        return f"{type(self).__name__} {self.to_json_string()}"


class _WithoutAttention(PretrainedConfig):
    @property
    def num_attention_heads(self):
        return 0


class MambaConfig(_WithoutAttention):
    model_type = "mamba"
    _defaults = {
        **_COMMON,
        "vocab_size": 50280,
        "hidden_size": 768,
        "state_size": 16,
        "num_hidden_layers": 32,
        "pad_token_id": 0,
        "eos_token_id": 0,
        "time_step_scale": 1.0,
        "time_step_init_scheme": "random",
        "use_mambapy": False,
        "use_associative_scan": True,
        "tie_word_embeddings": True,
    }

    def __init__(self, **fields):
        super().__init__(**fields)
        if "intermediate_size" not in fields:
            self.intermediate_size = int(self.expand * self.hidden_size)


class FalconMambaConfig(MambaConfig):
    model_type = "falcon_mamba"
    _defaults = {**MambaConfig._defaults, "mixer_rms_eps": 1e-6}


class Mamba2Config(_WithoutAttention):
    model_type = "mamba2"
    _defaults = {
        **_COMMON,
        "num_heads": 128,
        "head_dim": 64,
        "vocab_size": 32768,
        "hidden_size": 4096,
        "state_size": 128,
        "num_hidden_layers": 64,
        "pad_token_id": 1,
        "eos_token_id": 2,
        "n_groups": 8,
        "time_step_limit": (0.0, math.inf),
        "chunk_size": 256,
        "tie_word_embeddings": False,
    }

    def _check(self):
        inner, heads = self.hidden_size * self.expand, self.num_heads * self.head_dim
        if inner != heads:
            raise ValueError(f"hidden_size * expand is {inner}, num_heads * head_dim {heads}: they must be equal")

    @property
    def intermediate_size(self):
        return int(self.expand * self.hidden_size)

    @intermediate_size.setter
    def intermediate_size(self, value):  # Transformers ignores the field too
        pass


class GPTNeoXConfig(PretrainedConfig):
    model_type = "gpt_neox"
    _defaults = {
        "vocab_size": 50432,
        "hidden_size": 6144,
        "num_hidden_layers": 44,
        "num_attention_heads": 64,
        "intermediate_size": 24576,
        "hidden_act": "gelu",
        "rotary_pct": 0.25,
        "rotary_emb_base": 10000,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "classifier_dropout": 0.1,
        "max_position_embeddings": 2048,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-5,
        "use_cache": True,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": None,
        "tie_word_embeddings": False,
        "use_parallel_residual": True,
        "attention_bias": True,
        "output_hidden_states": False,
        "return_dict": True,
    }

    def _check(self):
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not divisible by {self.num_attention_heads} heads")


class MambaHybridConfig(PretrainedConfig):
    """mamba_ssm's models with attention in some layers, or an MLP in each: `ssm_layer` is Mamba1 or Mamba2."""

    model_type = "mamba_hybrid"
    _defaults = {
        **_COMMON,
        "ssm_layer": "Mamba2",
        "vocab_size": 50288,
        "hidden_size": 2560,
        "state_size": 128,
        "num_hidden_layers": 64,
        "num_heads": 80,
        "head_dim": 64,
        "n_groups": 1,
        "time_step_limit": (0.0, math.inf),
        "chunk_size": 256,
        "attn_layer_idx": [],
        "attn_cfg": {},
        "d_intermediate": 0,
        "pad_token_id": 0,
        "eos_token_id": 0,
        "tie_word_embeddings": True,
    }


class AutoConfig(PretrainedConfig):
    """from_pretrained gives the class that the file names."""

    def __init__(self):
        raise TypeError("AutoConfig has from_pretrained and from_dict only")


def config_class(model_type):
    for kind in (MambaConfig, Mamba2Config, FalconMambaConfig, GPTNeoXConfig, MambaHybridConfig):
        if kind.model_type == model_type:
            return kind
    raise _core.Error(f"model_type {model_type!r}: supported are mamba, mamba2, falcon_mamba, gpt_neox")
