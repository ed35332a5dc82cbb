"""MambaCache: the state of a batch, with get, update, reset and clone."""

import numpy as np

from . import _core
from ._arrays import card_follows_torch, device_name, dtype_name, on_card, to_numpy, to_torch
from .config import PretrainedConfig


class MambaCache:
    """The state of `max_batch_size` sequences of a model. Its arrays are the model's memory itself: what is
    written into them, the next forward call reads.

    conv_states[layer]  [B, C, K - 1]  the last inputs of the convolution, newest last (Transformers keeps K)
    ssm_states[layer]   [B, E, N], of Mamba-2 [B, H, P, N]

    On a card they are tensors of torch. None where a layer keeps no such state. What attention keeps, keys and values
    that grow with the text, is copied, selected and reset with the rest.

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
            self._on_card = place != "cpu"
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
        return tuple(self._shown(x) for x in (self._state.conv(layer_idx), self._state.ssm(layer_idx)))

    def _shown(self, x):
        if on_card(x):  # with a row of the library's own after those of the batch
            x = to_torch(x)[: self._rows]
        return x if x is None else x.swapaxes(-1, -2)

    def settled(self):
        """The state, after what was written into its arrays."""
        if self._on_card:
            card_follows_torch()
        return self._state

    def update_conv_state(self, layer_idx: int, new_conv_state, cache_position=None):
        """Takes over the newest K - 1 columns of [B, C, any]; fewer are shifted in."""
        conv = self.get(layer_idx)[0]
        new = _as_states(new_conv_state, conv)
        if new.ndim == 2:
            new = new[..., None]
        kept = conv.shape[-1] - new.shape[-1]
        if kept > 0:
            conv[..., :kept] = _copy(conv[..., -kept:])
            conv[..., kept:] = new
        else:
            conv[...] = new[..., -kept:]
        return conv

    def update_ssm_state(self, layer_idx: int, new_ssm_state):
        ssm = self.get(layer_idx)[1]
        ssm[...] = _as_states(new_ssm_state, ssm)
        return ssm

    def update(self, layer_idx: int, conv_state=None, ssm_state=None):
        if conv_state is not None:
            self.update_conv_state(layer_idx, conv_state)
        if ssm_state is not None:
            self.update_ssm_state(layer_idx, ssm_state)
        return self.get(layer_idx)

    def reset(self):
        if self._state is not None:
            self.settled().reset()
        self.seqlen_offset = 0

    def clone(self) -> "MambaCache":
        return self.select(range(self.max_batch_size))

    def select(self, rows) -> "MambaCache":
        """A new cache that begins as these rows, each as often as it is named (beams, shared prefixes)."""
        rows = [int(r) for r in rows]
        out = MambaCache(self._model, len(rows), _state=self.settled().select(rows))
        out.seqlen_offset = self.seqlen_offset
        return out

    reorder = select

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.seqlen_offset


def _as_states(x, states):
    """`x` to be written into `states`, which are NumPy's, or torch's on a card."""
    if isinstance(states, np.ndarray):
        return to_numpy(x, np.float32)
    return x.to(states) if hasattr(x, "to") else states.new_tensor(to_numpy(x))


def _copy(x):
    return x.copy() if isinstance(x, np.ndarray) else x.clone()
