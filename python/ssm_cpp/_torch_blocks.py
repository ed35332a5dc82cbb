"""The blocks as modules of torch, their parameters named as in checkpoints."""

import numpy as np
import torch

from ._arrays import to_numpy
from ._blocks import mamba2_spec, mamba_spec
from .ops import segments


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(ctx, core, lengths, gradient, x, *parameters):
        arrays = [np.ascontiguousarray(to_numpy(p, np.float32)) for p in parameters]
        y, ctx.recorded = core.forward(np.ascontiguousarray(to_numpy(x, np.float32)), arrays, lengths, gradient)
        ctx.types = [t.dtype for t in (x, *parameters)]
        return torch.from_numpy(y).to(x.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        dx, gradients = ctx.recorded.backward(np.ascontiguousarray(to_numpy(dy, np.float32)))
        out = [torch.from_numpy(g).to(t) for g, t in zip([dx, *gradients], ctx.types, strict=True)]
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
        if hidden_states.is_cuda:
            raise ValueError("the block takes tensors of the CPU")
        batch, length, width = hidden_states.shape
        parameters = self._parameters_in_order()
        gradient = torch.is_grad_enabled() and any(t.requires_grad for t in (hidden_states, *parameters))
        lengths, _ = segments(batch, length, _host(seq_idx), _host(cu_seqlens))
        y = _Block.apply(self._spec.core, lengths, gradient, hidden_states.reshape(-1, width), *parameters)
        return y.reshape(batch, length, width)

    def allocate_inference_cache(self, batch_size, max_seqlen=None, dtype=None):
        """(conv state, SSM state) of zeros for step(), f32 and of a fixed size however long the text gets."""
        if dtype not in (None, torch.float32):
            raise ValueError(f"allocate_inference_cache: dtype {dtype}: states are kept in f32")
        conv, ssm = self._spec.state_shapes(batch_size)
        return torch.zeros(conv), torch.zeros(ssm)

    @torch.no_grad()
    def step(self, hidden_states, conv_state, ssm_state):
        """[B, 1, M] -> ([B, 1, M], conv_state, ssm_state), the states written in place."""
        parameters = [np.ascontiguousarray(to_numpy(p, np.float32)) for p in self._parameters_in_order()]
        x = np.ascontiguousarray(to_numpy(hidden_states[:, 0], np.float32))
        y = self._spec.step(x, parameters, conv_state.numpy(), ssm_state.numpy())
        return torch.from_numpy(y).to(hidden_states.dtype)[:, None], conv_state, ssm_state


class Mamba(_Module):
    def __init__(self, d_model, *args, device=None, dtype=None, layer_idx=None, **kwargs):
        super().__init__(mamba_spec(d_model, *args, **kwargs), device, dtype, layer_idx)


class Mamba2(_Module):
    def __init__(self, d_model, *args, device=None, dtype=None, layer_idx=None, **kwargs):
        super().__init__(mamba2_spec(d_model, *args, **kwargs), device, dtype, layer_idx)


def _host(x):
    return None if x is None else to_numpy(x)
