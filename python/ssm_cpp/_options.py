"""Arguments of Transformers that this library has no use for: none is taken and left unheard."""


def check(where: str, options: dict, harmless=(), defaults=None):
    """`harmless` ones concern how others compute and may say anything; those of `defaults` may say only that, or
    None; any other is an error."""
    defaults = defaults or {}
    unknown = sorted(k for k in options if k not in harmless and k not in defaults)
    if unknown:
        raise TypeError(f"{where}: unknown argument {', '.join(unknown)}")
    for name, value in options.items():
        if name in defaults and value is not None and value != defaults[name]:
            raise ValueError(f"{where}: {name}={value!r} is not supported")


# How Transformers loads, or which of its implementations runs.
LOADING = {
    "attn_implementation",
    "low_cpu_mem_usage",
    "trust_remote_code",
    "use_fast",
    "from_slow",
    "legacy",
    "use_kernels",
    "offload_folder",
    "max_memory",
}
LOADING_DEFAULTS = {
    "cache_dir": None,  # HF_HUB_CACHE says it
    "force_download": False,
    "load_in_4bit": False,
    "load_in_8bit": False,
    "output_loading_info": False,
    "gguf_file": None,
    "use_safetensors": True,
    "variant": None,
    "state_dict": None,
    "device_mesh": None,
    "tp_plan": None,
}
# Of forward: caches know their positions; there is no attention to give out.
FORWARD = {"cache_position", "position_ids"}
FORWARD_DEFAULTS = {"output_attentions": False}
