"""The ops, argument for argument as mamba_ssm and causal_conv1d have them. NumPy arrays in, NumPy arrays out; torch
tensors in, torch tensors out, differentiable. Computed in f32 whatever the type; results have u's (x's) type."""

import numpy as np

from . import _core
from ._arrays import any_torch

__all__ = [
    "causal_conv1d_fn",
    "causal_conv1d_update",
    "mamba_chunk_scan_combined",
    "selective_scan",
    "selective_scan_fn",
    "selective_state_update",
]


def selective_scan(
    u,
    delta,
    A,
    B,
    C,
    D=None,
    z=None,
    delta_bias=None,
    delta_softplus=False,
    return_last_state=False,
    initial_state=None,
):
    """Mamba-1's scan (docs of ssm/ops/selective_scan).

    u, delta, z  [B, D, L];  A [D, N];  B, C [B, N, L] or [B, G, N, L];  D, delta_bias [D]
    out          [B, D, L];  with return_last_state also the state [B, D, N], f32, which has no gradient

    Cheapest where the memory lies as [B, L, D]: nothing is copied then. initial_state [B, D, N] has no gradient.
    """
    if any_torch(u):
        from ._torch import selective_scan as torch_scan

        out, last = torch_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state)
    else:
        out, last, _ = ScanCall(u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state).forward()
    return (out, last) if return_last_state else out


selective_scan_fn = selective_scan


def mamba_chunk_scan_combined(
    x,
    dt,
    A,
    B,
    C,
    chunk_size=None,
    D=None,
    z=None,
    dt_bias=None,
    initial_states=None,
    seq_idx=None,
    cu_seqlens=None,
    dt_softplus=False,
    dt_limit=(0.0, float("inf")),
    return_final_states=False,
    return_varlen_states=False,
):
    """Mamba-2's scan (docs of ssm/ops/ssd_scan).

    x, z [B, L, H, P];  dt [B, L, H];  A, dt_bias [H];  B, C [B, L, G, N];  D [H] or [H, P]
    out  [B, L, H, P];  with return_final_states also [B, H, P, N], f32, as initial_states; both have gradients

    seq_idx [B, L] and cu_seqlens (B = 1) say where sequences begin anew. chunk_size changes nothing.
    """
    arguments = (x, dt, A, B, C, D, z, dt_bias, initial_states, seq_idx, cu_seqlens, dt_softplus, dt_limit)
    if any_torch(x):
        from ._torch import chunk_scan

        out, states, varlen = chunk_scan(*arguments)
    else:
        out, states, varlen, _ = SsdCall(*arguments).forward()
    extra = ([states] if return_final_states else []) + ([varlen] if return_varlen_states else [])
    return (out, *extra) if extra else out


def causal_conv1d_fn(
    x,
    weight,
    bias=None,
    seq_idx=None,
    initial_states=None,
    return_final_states=False,
    final_states_out=None,
    activation=None,
):
    """x [B, D, L], weight [D, K], bias [D], states [B, D, K - 1] -> [B, D, L]. `activation`: None, "silu" or
    "swish". seq_idx [B, L] says where sequences begin anew. The states have no gradient."""
    if activation not in (None, "silu", "swish"):
        raise ValueError(f"activation {activation!r}: expected None, 'silu' or 'swish'")
    arguments = (x, weight, bias, seq_idx, initial_states, activation is not None)
    if any_torch(x):
        from ._torch import conv1d

        out, states = conv1d(*arguments)
    else:
        out, states, _ = ConvCall(*arguments).forward()
    if final_states_out is not None:
        final_states_out[...] = states
        states = final_states_out
    return (out, states) if return_final_states else out


def causal_conv1d_update(x, conv_state, weight, bias=None, activation=None):
    """One step or some, x [B, D] or [B, D, L]; conv_state [B, D, K - 1 or more] is written in place."""
    step = x.ndim == 2
    width = weight.shape[1] - 1
    out, new = causal_conv1d_fn(
        x[..., None] if step else x,
        weight,
        bias,
        initial_states=conv_state[..., conv_state.shape[-1] - width :],
        return_final_states=True,
        activation=activation,
    )
    length = 1 if step else x.shape[-1]
    kept = conv_state.shape[-1]
    joined = [conv_state[..., length:], new[..., max(width - length, 0) :]] if length < kept else [new]
    if any_torch(x):
        import torch

        joined = torch.cat(joined, dim=-1)
    else:
        joined = np.concatenate(joined, axis=-1)
    conv_state[..., kept - min(joined.shape[-1], kept) :] = joined[..., -kept:]
    return out[..., 0] if step else out


def selective_state_update(
    state, x, dt, A, B, C, D=None, z=None, dt_bias=None, dt_softplus=False, state_batch_indices=None
):
    """One step; `state` is read and written in place.

    Mamba-1:   state [B, D, N];     x, dt, z, out [B, D];     A [D, N];     B, C [B, N];     D, dt_bias [D]
    heads:     state [B, H, P, N];  x, dt, z, out [B, H, P];  A [H, P, N];  B, C [B, G, N];  D, dt_bias [H, P]

    What heads share (Mamba-2's dt, A, D) comes expanded. state_batch_indices [B]: which row of `state` each of x has.
    """
    heads = state.ndim == 4

    def channels(t, at):
        """Head and head dim, which begin at dimension `at`, as one."""
        return t if t is None or not heads else t.reshape(*t.shape[:at], -1, *t.shape[at + 2 :])

    def column(t):
        return None if t is None else t[..., None]

    rows_of_x = ... if state_batch_indices is None else state_batch_indices
    out, last = selective_scan(
        *(column(channels(t, 1)) for t in (x, dt)),
        channels(A, 0),
        *(column(t) for t in (B, C)),
        channels(D, 0),
        column(channels(z, 1)),
        channels(dt_bias, 0),
        dt_softplus,
        return_last_state=True,
        initial_state=channels(state[rows_of_x], 1),
    )
    state[rows_of_x] = last.reshape(x.shape[0], *state.shape[1:])
    return out[..., 0].reshape(x.shape)


def rows(x) -> np.ndarray:
    """[B, D, L] -> [B * L, D] f32; a view where the channels are neighbours in memory."""
    x = np.ascontiguousarray(np.swapaxes(np.asarray(x, np.float32), 1, 2))
    return x.reshape(-1, x.shape[-1])


def unrows(x, batch: int) -> np.ndarray:
    """[B * L, D] -> [B, D, L], a view."""
    return np.swapaxes(x.reshape(batch, -1, x.shape[-1]), 1, 2)


def _f32(x):
    return None if x is None else np.ascontiguousarray(x, np.float32)


def _typed(x, like):
    return x if like.dtype == np.float32 else x.astype(like.dtype)


def segments(batch: int, length: int, seq_idx=None, cu_seqlens=None):
    """(lengths of the sequences, the batch row of each)"""
    if cu_seqlens is not None:
        if batch != 1:
            raise ValueError(f"cu_seqlens with a batch of {batch}: expected 1")
        lengths = np.diff(np.asarray(cu_seqlens)).tolist()
        return lengths, [0] * len(lengths)
    if seq_idx is None:
        return [length] * batch, list(range(batch))
    lengths, owners = [], []
    for b, row in enumerate(np.asarray(seq_idx)):
        ends = [*(np.flatnonzero(np.diff(row)) + 1), length]
        lengths += np.diff([0, *ends]).tolist()
        owners += [b] * len(ends)
    return lengths, owners


def _states(shape, lengths, owners, initial):
    """Begin states [sequences, ...]: `initial` [B, ...] for the first sequence of each row."""
    out = np.zeros((len(lengths), *shape), np.float32)
    if initial is not None:
        first = [owners.index(b) for b in range(owners[-1] + 1)]
        out[first] = initial
    return out


class ScanCall:
    """One selective scan: its operands in rows, its result, its gradients."""

    states_have_gradients = False

    def __init__(self, u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state):
        for name, x in (("B", B), ("C", C)):
            if np.ndim(x) not in (3, 4):
                raise ValueError(f"selective_scan: {name} is {np.shape(x)}; expected [B, N, L] or [B, G, N, L]")
        if np.iscomplexobj(A):
            raise ValueError("selective_scan: A is complex; only real ones are supported")
        self.u, self.batch, self.length = u, u.shape[0], u.shape[2]
        self.shapes = np.shape(B), np.shape(C)
        self.groups = max(s[1] if len(s) == 4 else 1 for s in self.shapes)
        self.operands = [rows(u), rows(delta), _f32(A), self._by_group(B), self._by_group(C)]
        self.operands += [_f32(D), None if z is None else rows(z), _f32(delta_bias)]
        self.softplus, self.lengths = delta_softplus, [self.length] * self.batch
        initial = np.zeros((self.batch, *A.shape), np.float32) if initial_state is None else initial_state
        self.initial = np.ascontiguousarray(np.swapaxes(np.asarray(initial, np.float32), 1, 2))  # [B, N, E]

    def _by_group(self, x):
        """[B, N, L] or [B, G, N, L] -> rows of each group."""
        x = np.asarray(x)
        groups = [x] if x.ndim == 3 else [x[:, g] for g in range(x.shape[1])]
        return [rows(g) for g in (groups * self.groups if len(groups) == 1 else groups)]

    def _parts(self):
        """For each group its operands and the channels they stand for."""
        u, delta, A, B, C, D, z, bias = self.operands
        width = u.shape[1] // self.groups
        for g in range(self.groups):
            at = slice(g * width, (g + 1) * width)

            def cut(x, at=at):
                return None if x is None else x[..., at]

            yield at, (cut(u), cut(delta), A[at], B[g], C[g], cut(D), cut(z), cut(bias))

    def forward(self):
        """(out [B, D, L], last state [B, D, N], this)"""
        y = np.empty_like(self.operands[0])
        last = np.empty_like(self.initial)
        for at, operands in self._parts():
            state = np.array(self.initial[..., at], order="C")  # a copy: it is written
            y[:, at] = _core.selective_scan(*operands, self.softplus, self.lengths, state)
            last[..., at] = state
        return _typed(unrows(y, self.batch), self.u), np.swapaxes(last, 1, 2), self

    def backward(self, dout):
        """Gradients of u, delta, A, B, C, D, z, delta_bias, in their layouts."""
        dy = rows(dout)
        u, delta, A, B, C, D, z, bias = self.operands
        full = [None if x is None else np.empty_like(x) for x in (u, delta, A, D, z, bias)]
        dB, dC = [], []
        for at, operands in self._parts():
            state = np.ascontiguousarray(self.initial[..., at])
            grads = _core.selective_scan_backward(
                *operands, self.softplus, self.lengths, state, np.ascontiguousarray(dy[:, at])
            )
            du, ddelta, dA, dB_part, dC_part, dD, dz, dbias = grads
            for whole, part in zip(full, (du, ddelta, None, dD, dz, dbias), strict=True):
                if whole is not None and part is not None:
                    whole[..., at] = part
            full[2][at] = dA
            dB.append(dB_part)
            dC.append(dC_part)
        du, ddelta, dA, dD, dz, dbias = full
        dB, dC = self._grouped(dB, self.shapes[0]), self._grouped(dC, self.shapes[1])
        dz = None if dz is None else unrows(dz, self.batch)
        return unrows(du, self.batch), unrows(ddelta, self.batch), dA, dB, dC, dD, dz, dbias

    def _grouped(self, parts, shape):
        parts = [unrows(p, self.batch) for p in parts]
        if len(shape) == 4 and shape[1] > 1:
            return np.stack(parts, 1)
        return sum(parts).reshape(shape)


class SsdCall:
    """One scan of Mamba-2, likewise."""

    states_have_gradients = True

    def __init__(self, x, dt, A, B, C, D, z, dt_bias, initial_states, seq_idx, cu_seqlens, dt_softplus, dt_limit):
        self.x, self.shape, self.z = x, x.shape, _f32(z)
        batch, length, heads, width = x.shape
        self.groups, self.n = B.shape[2], B.shape[3]

        def flat(t, columns):
            return _f32(t).reshape(batch * length, columns)

        d = _f32(D)
        self.operands = (
            flat(x, heads * width),
            flat(dt, heads),
            _f32(A),
            flat(B, self.groups * self.n),
            flat(C, self.groups * self.n),
            None if d is None else d.reshape(-1),
            _f32(dt_bias),
        )
        self.options = (self.groups, dt_softplus, float(dt_limit[0]), float(dt_limit[1]))
        self.lengths, self.owners = segments(batch, length, seq_idx, cu_seqlens)
        initial = None if initial_states is None else np.swapaxes(np.asarray(initial_states, np.float32), -1, -2)
        self.initial = _states((heads, self.n, width), self.lengths, self.owners, initial)
        self.has_initial = initial is not None
        self.first = [self.owners.index(b) for b in range(batch)]  # of each row's sequences
        self.last = [len(self.owners) - 1 - self.owners[::-1].index(b) for b in range(batch)]
        self.d_shape = None if D is None else np.shape(D)

    def forward(self):
        """(out [B, L, H, P], last state of each row, and of each sequence [., H, P, N], this)"""
        state = self.initial.copy()
        self.y = _core.ssd_scan(*self.operands, *self.options, self.lengths, state).reshape(self.shape)
        states = np.swapaxes(state, -1, -2)
        out = self.y if self.z is None else self.y * (self.z * _sigmoid(self.z))
        return _typed(out, self.x), states[self.last], states, self

    def backward(self, dout, dlast=None, dstates=None):
        """Gradients of x, dt, A, B, C, D, z, dt_bias, initial_states, in their layouts, from those of forward()'s."""
        dy, dz = _f32(dout), None
        if self.z is not None:
            s = _sigmoid(self.z)
            dz = dy * self.y * (s * (1 + self.z * (1 - s)))
            dy = dy * (self.z * s)
        dy = np.ascontiguousarray(dy.reshape(self.operands[0].shape))
        dafter = None
        if dlast is not None or dstates is not None:
            dafter = np.zeros_like(self.initial)
            if dstates is not None:
                dafter += np.swapaxes(dstates, -1, -2)
            if dlast is not None:
                dafter[self.last] += np.swapaxes(dlast, -1, -2)
        grads = _core.ssd_scan_backward(*self.operands, *self.options, self.lengths, self.initial, dy, dafter)
        dx, ddt, dA, dB, dC, dD, dbias, dinitial = grads
        batch, length = self.shape[:2]
        projection = (batch, length, self.groups, self.n)
        dD = None if dD is None else dD.reshape(self.d_shape)
        return (
            dx.reshape(self.shape),
            ddt.reshape(batch, length, -1),
            dA,
            dB.reshape(projection),
            dC.reshape(projection),
            dD,
            dz,
            dbias,
            np.swapaxes(dinitial[self.first], -1, -2) if self.has_initial else None,
        )


class ConvCall:
    """One causal convolution, likewise."""

    states_have_gradients = False

    def __init__(self, x, weight, bias, seq_idx, initial_states, silu):
        self.x, (self.batch, channels, length) = x, x.shape
        self.weight, self.bias, self.silu = _f32(weight), _f32(bias), silu
        self.rows = rows(x)
        self.lengths, self.owners = segments(self.batch, length, seq_idx)
        initial = None if initial_states is None else np.swapaxes(np.asarray(initial_states, np.float32), 1, 2)
        self.initial = _states((self.weight.shape[1] - 1, channels), self.lengths, self.owners, initial)

    def forward(self):
        """(out [B, D, L], the last inputs of each row [B, D, K - 1], this)"""
        state = self.initial.copy()
        kept = state if state.size else None
        y = _core.causal_conv1d(self.rows, self.weight, self.bias, self.silu, self.lengths, kept)
        last = [len(self.owners) - 1 - self.owners[::-1].index(b) for b in range(self.batch)]
        return _typed(unrows(y, self.batch), self.x), np.swapaxes(state[last], 1, 2), self

    def backward(self, dout):
        """Gradients of x, weight, bias."""
        initial = self.initial if self.initial.size else None
        dx, dweight, dbias = _core.causal_conv1d_backward(
            self.rows, self.weight, self.bias, self.silu, self.lengths, initial, rows(dout)
        )
        return unrows(dx, self.batch), dweight, dbias


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))
