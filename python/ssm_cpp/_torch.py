"""The ops and the blocks as torch's autograd functions. Imported only where torch is."""

import numpy as np
import torch

from ._arrays import to_numpy
from .ops import ConvCall, ScanCall, SsdCall


def _array(x):
    return to_numpy(x) if isinstance(x, torch.Tensor) else x


def _tensor(x, like):
    """A gradient or result for `like`: its type and device."""
    if x is None or like is None:
        return None
    return torch.from_numpy(np.ascontiguousarray(x) if any(s < 0 for s in x.strides) else x).to(like)


def _no_gradient(initial, what):
    if isinstance(initial, torch.Tensor) and initial.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{what} has no gradient here: give it detached")
    return _array(initial)


def _on_host(x):
    if x.is_cuda:
        raise ValueError("this op takes tensors of the CPU; on a card use the language models")


def _gradients(ctx, dout):
    """Of a function's tensors, in their types, from the call that its forward has kept."""
    return [_tensor(g, t) for g, t in zip(ctx.call.backward(_array(dout)), ctx.tensors, strict=True)]


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, softplus, initial, *tensors):
        _on_host(tensors[0])
        out, last, ctx.call = ScanCall(*map(_array, tensors), softplus, initial).forward()
        ctx.tensors = tensors
        last = torch.from_numpy(last)
        ctx.mark_non_differentiable(last)
        return _tensor(out, tensors[0]), last

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dout, _):
        return None, None, *_gradients(ctx, dout)


def selective_scan(u, delta, A, B, C, D, z, delta_bias, softplus, initial):
    return _Scan.apply(softplus, _no_gradient(initial, "initial_state"), u, delta, A, B, C, D, z, delta_bias)


class _Ssd(torch.autograd.Function):
    @staticmethod
    def forward(ctx, options, *tensors):
        _on_host(tensors[0])
        call = SsdCall(*map(_array, tensors), *options)
        out, states, varlen, ctx.call = call.forward()
        ctx.tensors = tensors
        states, varlen = torch.from_numpy(states), torch.from_numpy(varlen)
        ctx.mark_non_differentiable(states, varlen)
        return _tensor(out, tensors[0]), states, varlen

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dout, *_):
        return None, *_gradients(ctx, dout)


def chunk_scan(x, dt, A, B, C, D, z, dt_bias, initial, seq_idx, cu_seqlens, softplus, limit):
    options = (_no_gradient(initial, "initial_states"), _array(seq_idx), _array(cu_seqlens), softplus, limit)
    return _Ssd.apply(options, x, dt, A, B, C, D, z, dt_bias)


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, options, *tensors):
        _on_host(tensors[0])
        out, states, ctx.call = ConvCall(*map(_array, tensors), *options).forward()
        ctx.tensors = tensors
        states = torch.from_numpy(states)
        ctx.mark_non_differentiable(states)
        return _tensor(out, tensors[0]), states

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dout, _):
        return None, *_gradients(ctx, dout)


def conv1d(x, weight, bias, seq_idx, initial, silu):
    return _Conv.apply((_array(seq_idx), _no_gradient(initial, "initial_states"), silu), x, weight, bias)
