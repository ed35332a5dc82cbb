"""Between the caller's arrays and ours: what comes in as torch goes out as torch, what lies on a card as what it was
there, anything else as NumPy. Nothing is copied between a card and the host unasked."""

import functools
import sys

import numpy as np

from . import _core


def is_torch(x) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def any_torch(*arrays) -> bool:
    return any(is_torch(x) for x in arrays)


def on_card(x) -> bool:
    """Whether its memory is not the host's."""
    if x is None or type(x) is np.ndarray or type(x) is list:
        return False
    device = getattr(x, "__dlpack_device__", None)
    return device is not None and int(device()[0]) != 1


def to_numpy(x, dtype=None) -> np.ndarray:
    """A view where it can be one."""
    if type(x) is np.ndarray:
        return x if dtype is None else np.asarray(x, dtype)
    if is_torch(x):
        x = x.detach().cpu()
        torch = sys.modules["torch"]
        if x.dtype == torch.bfloat16:
            x = x.float()
        x = x.numpy()
    elif isinstance(x, _core.DlpackArray):
        x = x.numpy()
    elif on_card(x) and hasattr(x, "get"):  # CuPy's, which does not go to the host by itself
        x = x.get()
    return np.asarray(x, dtype=dtype)


def to_torch(x):
    """Without a copy. NumPy arrays and DLPack objects (bf16, a card's memory) alike."""
    import torch

    return torch.from_numpy(x) if isinstance(x, np.ndarray) else torch.from_dlpack(x)


def like(x, source):
    """`x` as the source is: torch, a card's array, NumPy."""
    if x is None:
        return None
    if on_card(source):
        return library_of(source).taken(x)
    if is_torch(source):
        return to_torch(to_numpy(x) if on_card(x) else x)
    return to_numpy(x)


class NumpyLibrary:
    """What the ops need of arrays, by the functions of NumPy, CuPy and jax.numpy."""

    def __init__(self, module):
        self.module, self.float32 = module, module.float32
        self.is_host = module is np

    def taken(self, x):
        """An array of ours as one of this library."""
        if self.is_host:
            return to_numpy(x)
        if isinstance(x, np.ndarray):
            return self.module.asarray(x)
        _core.synchronize()  # what it read of an operand may be used anew once the call is over
        return self.module.from_dlpack(x)

    def cast(self, x, dtype):
        return self.module.asarray(x, dtype)

    def compact(self, x):
        """Row-major in memory."""
        return self.module.ascontiguousarray(x) if hasattr(self.module, "ascontiguousarray") else x

    def zeros(self, shape, dtype=np.float32):
        return self.module.zeros(shape, dtype)

    def put(self, x, rows, values):
        """`x`, which may be overwritten, with these rows."""
        if hasattr(x, "at"):  # JAX's do not change
            return x.at[np.asarray(rows)].set(values)
        x[rows] = values
        return x

    def take(self, x, rows):
        return x[np.asarray(rows)]

    def concatenate(self, parts, axis):
        return self.module.concatenate(parts, axis=axis)

    def stack(self, parts, axis):
        return self.module.stack(parts, axis=axis)

    def swapaxes(self, x, a, b):
        return self.module.swapaxes(x, a, b)

    def sigmoid(self, x):
        return 1 / (1 + self.module.exp(-x))


class TorchLibrary(NumpyLibrary):
    """The same of tensors, wherever they are."""

    def __init__(self, device):
        import torch

        self.module, self.float32, self.device = torch, torch.float32, device
        self.is_host = device.type == "cpu"

    def taken(self, x):
        return to_torch(x).to(self.device)  # from a card its stream then waits for ours

    def cast(self, x, dtype):
        x = self.module.as_tensor(x)  # not moved: who mixes devices is told so
        return x.detach().to(dtype=dtype)

    def compact(self, x):
        return x.contiguous()

    def zeros(self, shape, dtype=None):
        return self.module.zeros(shape, dtype=dtype or self.float32, device=self.device)

    def put(self, x, rows, values):
        x[self.module.as_tensor(rows, device=self.device)] = values
        return x

    def take(self, x, rows):
        return x[self.module.as_tensor(rows, device=self.device)]

    def concatenate(self, parts, axis):
        return self.module.cat(list(parts), dim=axis)

    def stack(self, parts, axis):
        return self.module.stack(list(parts), dim=axis)

    def sigmoid(self, x):
        return self.module.sigmoid(x)


NUMPY = NumpyLibrary(np)


@functools.cache
def _torch_library(device):
    return TorchLibrary(device)


@functools.cache
def _numpy_library(name):
    return NumpyLibrary(sys.modules[name])


def library_of(x):
    """Of an op's first operand. What is on the host and is no tensor of torch is taken as NumPy's."""
    if is_torch(x):
        return _torch_library(x.device)
    if not on_card(x):
        return NUMPY
    root = type(x).__module__.split(".")[0]
    name = {"cupy": "cupy", "jax": "jax.numpy", "jaxlib": "jax.numpy"}.get(root)
    if name in sys.modules:
        return _numpy_library(name)
    raise _core.Error(f"an array of {type(x).__module__} on a card: expected one of torch, CuPy or JAX")


def check_together(what: str, operands: dict) -> None:
    """That all operands (by name) are on the host or all on one card, and that this build computes there."""
    cards = {name: on_card(x) for name, x in operands.items() if x is not None and hasattr(x, "shape")}
    if not any(cards.values()):
        return
    if why := _core.why_unavailable("cuda"):
        name = next(n for n, card in cards.items() if card)
        raise _core.Error(f"{what}: {name} is on a card, but {why}")
    first = next(iter(cards))
    for name, card in cards.items():
        if card != cards[first]:
            places = {True: "a card", False: "the host"}
            raise _core.Error(f"{what}: {first} is on {places[cards[first]]}, {name} on {places[card]}")


def card_follows_torch() -> None:
    """What the card does for us from now on comes after what torch has given it so far."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        _core.wait_for_stream(torch.cuda.current_stream(0).cuda_stream or 1)


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
