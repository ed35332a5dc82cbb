"""What matrices are packed as while they are read, by torchao's names: quantization_config takes these, theirs, or the
name of any type that `ssm quantize` knows."""

import dataclasses


@dataclasses.dataclass
class Int4WeightOnlyConfig:
    group_size: int = 128


@dataclasses.dataclass
class Int8WeightOnlyConfig:
    group_size: int | None = None


@dataclasses.dataclass
class TorchAoConfig:
    quant_type: object = None


def type_and_group(config) -> tuple:
    """("int4", 128) of such a config, a TorchAoConfig around it, or a name."""
    if config is None or isinstance(config, str):
        return config or "", 64
    config = getattr(config, "quant_type", config)
    kind = type(config).__name__
    for bits in ("int4", "int8"):
        if kind.lower() == f"{bits}weightonlyconfig":
            return bits, int(getattr(config, "group_size", None) or 64)
    raise ValueError(f"quantization_config {kind}: expected a type's name or an Int4WeightOnlyConfig")
