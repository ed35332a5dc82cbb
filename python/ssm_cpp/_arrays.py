"""Between the caller's arrays and ours: what comes in as torch goes out as torch, anything else as NumPy."""

import sys

import numpy as np


def is_torch(x) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def any_torch(*arrays) -> bool:
    return any(is_torch(x) for x in arrays)


def to_numpy(x, dtype=None) -> np.ndarray:
    """A view where it can be one."""
    if is_torch(x):
        x = x.detach().cpu()
        torch = sys.modules["torch"]
        if x.dtype == torch.bfloat16:
            x = x.float()
        x = x.numpy()
    return np.asarray(x, dtype=dtype)


def to_torch(x):
    """Without a copy. NumPy arrays and DLPack objects (bf16, a card's memory) alike."""
    torch = sys.modules["torch"]
    return torch.from_numpy(x) if isinstance(x, np.ndarray) else torch.from_dlpack(x)


def like(x, *sources):
    """`x` as torch where one of the sources is."""
    return to_torch(x) if x is not None and any_torch(*sources) else x


def dtype_name(dtype) -> str:
    """torch.float16, "float16", np.float16 or "f16" -> "f16"; None -> "auto"."""
    if dtype is None:
        return "auto"
    name = dtype if isinstance(dtype, str) else getattr(dtype, "__name__", str(dtype))
    name = name.removeprefix("torch.")
    known = {"float32": "f32", "float": "f32", "float16": "f16", "half": "f16", "bfloat16": "bf16"}
    name = known.get(name, name)
    if name not in ("auto", "f32", "f16", "bf16"):
        raise ValueError(f"dtype {dtype}: expected auto, float32, float16 or bfloat16")
    return name


def device_name(device) -> str:
    """ "cuda:0", 0, torch.device, {"": 0} or "auto" -> "cuda", "cpu" or "auto"."""
    if isinstance(device, dict):
        device = next(iter(device.values()), "cpu")
    if device is None or device == -1:
        return "cpu"
    name = "cuda" if isinstance(device, int) else str(device).split(":")[0]
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device {device}: expected auto, cpu or cuda")
    return name
