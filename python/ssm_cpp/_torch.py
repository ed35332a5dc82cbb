"""The ops and the blocks as torch's autograd functions. Imported only where torch is."""

import torch

from ._arrays import on_card, to_numpy, to_torch
from .ops import ConvCall, ScanCall, SsdCall


def _array(x):
    """What a call takes: memory of the host as NumPy's, a card's as it is."""
    if not isinstance(x, torch.Tensor):
        return x
    return x.detach() if on_card(x) else to_numpy(x)


def _tensor(x, like):
    """A gradient or result for `like`: its type and device."""
    if x is None or like is None:
        return None
    return (x if isinstance(x, torch.Tensor) else to_torch(x)).to(like)


def _no_gradient(initial, what):
    if isinstance(initial, torch.Tensor) and initial.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{what} has no gradient here: give it detached")
    return _array(initial)


class _Op(torch.autograd.Function):
    """make(*arrays): the call of ops.py, whose forward() gives the result, states, and itself."""

    @staticmethod
    def forward(ctx, make, *tensors):
        out, *states, ctx.call = make(*map(_array, tensors)).forward()
        ctx.tensors = tensors
        ctx.set_materialize_grads(False)
        states = [x if isinstance(x, torch.Tensor) else torch.from_numpy(x) for x in states]
        if not ctx.call.states_have_gradients:
            ctx.mark_non_differentiable(*states)
        return _tensor(out, tensors[0]), *states

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dout, *dstates):
        dout = torch.zeros_like(ctx.tensors[0]) if dout is None else dout
        if ctx.call.states_have_gradients:  # of the last operand, the states before
            ctx.call.initial_gradient = ctx.needs_input_grad[-1]
        dstates = map(_array, dstates) if ctx.call.states_have_gradients else ()
        grads = ctx.call.backward(_array(dout), *dstates)
        return None, *(_tensor(g, t) for g, t in zip(grads, ctx.tensors, strict=True))


def selective_scan(u, delta, A, B, C, D, z, delta_bias, softplus, initial):
    options = softplus, _no_gradient(initial, "initial_state")
    return _Op.apply(lambda *x: ScanCall(*x, *options), u, delta, A, B, C, D, z, delta_bias)


def chunk_scan(x, dt, A, B, C, D, z, dt_bias, initial, seq_idx, cu_seqlens, softplus, limit):
    options = _array(seq_idx), _array(cu_seqlens), softplus, limit
    return _Op.apply(lambda *x: SsdCall(*x, *options), x, dt, A, B, C, D, z, dt_bias, initial)


def conv1d(x, weight, bias, seq_idx, initial, silu):
    options = _array(seq_idx), _no_gradient(initial, "initial_states"), silu
    return _Op.apply(lambda *x: ConvCall(*x, *options), x, weight, bias)
