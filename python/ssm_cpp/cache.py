"""MambaCache: the state of a batch, with get, update, reset and clone."""

import numpy as np

from . import _core
from ._arrays import device_name, dtype_name, to_numpy, to_torch
from .config import PretrainedConfig


class MambaCache:
    """The state of `max_batch_size` sequences of a model. Its arrays are the model's memory itself: what is
    written into them, the next forward call reads.

    conv_states[layer]  [B, C, K - 1]  the last inputs of the convolution, newest last (Transformers keeps K)
    ssm_states[layer]   [B, E, N], of Mamba-2 [B, H, P, N]

    None where a layer keeps no such state. What attention keeps, keys and values that grow with the text, is copied,
    selected and reset with the rest.

    Made of a model, or of a config: then the first model that it is given to makes its arrays.
    """

    def __init__(self, model, max_batch_size: int = 1, dtype=None, device=None, batch_size=None, _state=None):
        if dtype_name(dtype) not in ("auto", "f32"):
            raise ValueError(f"MambaCache: dtype {dtype}: states are kept in f32")
        self._device = device
        self._rows, self._state = batch_size or max_batch_size, _state
        self._model = None
        self.seqlen_offset = 0  # tokens of the longest sequence so far
        if not isinstance(model, PretrainedConfig):
            self.bind(model)

    def bind(self, model):
        if self._model is None:
            self._model = getattr(model, "_core", model)
            place = self._model.device.split(":")[0]
            if self._device is not None and device_name(self._device) not in (place, "auto"):
                raise ValueError(f"MambaCache: device {self._device}, but the model is on {place}")
            self._state = self._state or _core.State(self._model, self._rows)

    @property
    def max_batch_size(self) -> int:
        return self._rows

    batch_size = max_batch_size

    def __len__(self) -> int:
        return self._state.layers

    @property
    def conv_states(self) -> list:
        return [self.get(i)[0] for i in range(len(self))]

    @property
    def ssm_states(self) -> list:
        return [self.get(i)[1] for i in range(len(self))]

    def get(self, layer_idx: int):
        """(conv state, SSM state) of a layer, in place."""
        if self._state is None:
            raise ValueError("this cache was made of a config: the first model that it is given to makes its arrays")
        return tuple(_last_two_swapped(x) for x in (self._state.conv(layer_idx), self._state.ssm(layer_idx)))

    def update_conv_state(self, layer_idx: int, new_conv_state, cache_position=None):
        """Takes over the newest K - 1 columns of [B, C, any]; fewer are shifted in."""
        conv = self.get(layer_idx)[0]
        new = to_numpy(new_conv_state, np.float32)
        if new.ndim == 2:
            new = new[..., None]
        width = conv.shape[-1]
        joined = np.concatenate([to_numpy(conv), new], axis=-1)
        conv[...] = joined[..., joined.shape[-1] - width :]
        return conv

    def update_ssm_state(self, layer_idx: int, new_ssm_state):
        ssm = self.get(layer_idx)[1]
        ssm[...] = to_numpy(new_ssm_state, np.float32)
        return ssm

    def update(self, layer_idx: int, conv_state=None, ssm_state=None):
        if conv_state is not None:
            self.update_conv_state(layer_idx, conv_state)
        if ssm_state is not None:
            self.update_ssm_state(layer_idx, ssm_state)
        return self.get(layer_idx)

    def reset(self):
        if self._state is not None:
            self._state.reset()
        self.seqlen_offset = 0

    def clone(self) -> "MambaCache":
        return self.select(range(self.max_batch_size))

    def select(self, rows) -> "MambaCache":
        """A new cache that begins as these rows, each as often as it is named (beams, shared prefixes)."""
        rows = [int(r) for r in rows]
        out = MambaCache(self._model, len(rows), _state=self._state.select(rows))
        out.seqlen_offset = self.seqlen_offset
        return out

    reorder = select

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.seqlen_offset


def _last_two_swapped(x):
    if x is None or isinstance(x, np.ndarray):
        return x if x is None else np.swapaxes(x, -1, -2)
    return to_torch(x).transpose(-1, -2)  # on a card
