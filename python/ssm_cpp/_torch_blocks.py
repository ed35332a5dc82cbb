"""The blocks as modules of torch, their parameters named as in checkpoints."""

import numpy as np
import torch

from ._arrays import check_together, on_card, to_numpy, to_torch
from ._blocks import mamba2_spec, mamba_spec
from .ops import segments


def _given(x, channels_innermost=False):
    """f32 as the kernels read it: memory of the host as NumPy's, a card's as it is."""
    x = x.detach().float()
    if not on_card(x):
        return np.ascontiguousarray(x.numpy())
    return x.transpose(0, -1).contiguous().transpose(0, -1) if channels_innermost else x.contiguous()


def _all_given(spec, parameters):
    return [_given(p, name in spec.channels_innermost) for name, p in zip(spec.names, parameters, strict=True)]


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(ctx, spec, lengths, gradient, x, *parameters):
        operands = _given(x), _all_given(spec, parameters)  # live until the result has put them in order
        y, ctx.recorded = spec.core.forward(*operands, lengths, gradient)
        ctx.types = [t.dtype for t in (x, *parameters)]
        return to_torch(y).to(x.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        given = _given(dy)
        dx, gradients = ctx.recorded.backward(given)
        out = [to_torch(g).to(t) for g, t in zip([dx, *gradients], ctx.types, strict=True)]
        return None, None, None, *out


class _Part(torch.nn.Module):
    """Holds `weight` and `bias` of a projection. Not an nn.Linear: who replaces those would not be heard."""


class _Module(torch.nn.Module):
    def __init__(self, spec, device=None, dtype=None, layer_idx=None):
        super().__init__()
        self._spec, self.layer_idx = spec, layer_idx
        self.d_model, self.d_conv = spec.d_model, spec.d_conv
        seed = int(torch.randint(2**62, ()))  # torch.manual_seed decides
        for name, value in spec.first_values(np.random.default_rng(seed)).items():
            parameter = torch.nn.Parameter(torch.from_numpy(value).to(device=device, dtype=dtype))
            *path, last = name.split(".")
            home = self
            for part in path:
                if not hasattr(home, part):
                    home.add_module(part, _Part())
                home = getattr(home, part)
            home.register_parameter(last, parameter)
        for name in ("A_log", "D", "dt_bias"):
            if hasattr(self, name):
                getattr(self, name)._no_weight_decay = True

    def _parameters_in_order(self):
        return [self.get_parameter(name) for name in self._spec.names]

    def forward(self, hidden_states, inference_params=None, seq_idx=None, cu_seqlens=None):
        """[B, L, M] -> [B, L, M]. seq_idx [B, L] or cu_seqlens (B = 1) say where sequences begin anew."""
        if inference_params is not None:
            raise ValueError("inference_params is not supported: use allocate_inference_cache and step")
        batch, length, width = hidden_states.shape
        parameters = self._parameters_in_order()
        named = zip(["hidden_states", *self._spec.names], [hidden_states, *parameters], strict=True)
        check_together(type(self).__name__, dict(named))
        gradient = torch.is_grad_enabled() and any(t.requires_grad for t in (hidden_states, *parameters))
        lengths, _ = segments(batch, length, _host(seq_idx), _host(cu_seqlens))
        y = _Block.apply(self._spec, lengths, gradient, hidden_states.reshape(-1, width), *parameters)
        return y.reshape(batch, length, width)

    def allocate_inference_cache(self, batch_size, max_seqlen=None, dtype=None):
        """(conv state, SSM state) of zeros for step(), f32 and of a fixed size however long the text gets."""
        if dtype not in (None, torch.float32):
            raise ValueError(f"allocate_inference_cache: dtype {dtype}: states are kept in f32")
        device = self.get_parameter(self._spec.names[0]).device
        return tuple(torch.zeros(shape, device=device) for shape in self._spec.state_shapes(batch_size))

    @torch.no_grad()
    def step(self, hidden_states, conv_state, ssm_state):
        """[B, 1, M] -> ([B, 1, M], conv_state, ssm_state), the states written in place."""
        parameters = _all_given(self._spec, self._parameters_in_order())
        states = [x if on_card(x) else x.numpy() for x in (conv_state, ssm_state)]
        y = self._spec.step(_given(hidden_states[:, 0]), parameters, *states)
        y = y if isinstance(y, torch.Tensor) else torch.from_numpy(y)
        return y.to(hidden_states.dtype)[:, None], conv_state, ssm_state


class Mamba(_Module):
    def __init__(self, d_model, *args, device=None, dtype=None, layer_idx=None, **kwargs):
        super().__init__(mamba_spec(d_model, *args, **kwargs), device, dtype, layer_idx)


class Mamba2(_Module):
    def __init__(self, d_model, *args, device=None, dtype=None, layer_idx=None, **kwargs):
        super().__init__(mamba2_spec(d_model, *args, **kwargs), device, dtype, layer_idx)


def _host(x):
    return None if x is None else to_numpy(x)
