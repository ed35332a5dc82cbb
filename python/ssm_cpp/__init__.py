"""Mamba-family language models: run, train and evaluate them, in the habits of Transformers and mamba_ssm."""

import importlib

from ._core import Error, num_threads, set_num_threads
from ._core import version as __version__

# Imported when they are asked for, so that `import ssm_cpp` stays quick and needs NumPy alone.
_WHERE = {
    "config": [
        "AutoConfig",
        "FalconMambaConfig",
        "GPTNeoXConfig",
        "Mamba2Config",
        "MambaConfig",
        "MambaHybridConfig",
    ],
    "tokenizer": ["AutoTokenizer", "BatchEncoding", "Tokenizer"],
    "cache": ["MambaCache"],
    "modeling": [
        "AutoModel",
        "AutoModelForCausalLM",
        "FalconMambaForCausalLM",
        "FalconMambaModel",
        "GPTNeoXForCausalLM",
        "GPTNeoXModel",
        "Mamba2ForCausalLM",
        "Mamba2Model",
        "MambaForCausalLM",
        "MambaHybridForCausalLM",
        "MambaHybridModel",
        "MambaModel",
    ],
    "evaluation": ["EvalPrediction"],
    "mamba_ssm": ["Mamba2LMHeadModel", "MambaLMHeadModel"],
    "outputs": ["CausalLMOutput", "GenerateOutput", "ModelOutput"],
    "generation": ["GenerationConfig", "TextIteratorStreamer", "TextStreamer"],
    "pipelines": ["TextGenerationPipeline", "pipeline"],
    "modules": ["Mamba", "Mamba2"],
    "quantization": ["Int4WeightOnlyConfig", "Int8WeightOnlyConfig", "TorchAoConfig"],
    "train_config": ["LoraConfig", "SFTConfig", "TrainingArguments"],
    "trainer": ["SFTTrainer", "TrainerCallback", "TrainerControl", "TrainerState"],
}
_HOME = {name: module for module, names in _WHERE.items() for name in names}
_MODULES = ["ops"]

__all__ = ["Error", "__version__", "num_threads", "set_num_threads", *_HOME, *_MODULES]


def __getattr__(name: str):
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *__all__})
