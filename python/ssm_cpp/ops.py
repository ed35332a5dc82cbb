"""The ops, argument for argument as mamba_ssm and causal_conv1d have them. NumPy arrays in, NumPy arrays out; torch
tensors in, torch tensors out, differentiable; on a card tensors of torch, CuPy's arrays and JAX's, without a copy to
the host. On the CPU they compute in f32 whatever the type; on a card in the operands' type where all activations have
one, else in f32. Results have u's (x's) type."""

import numpy as np

from . import _core
from ._arrays import any_torch, check_together, library_of, to_numpy

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
    joined = library_of(x).concatenate(joined, -1)
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


class _Operands:
    """An op's operands as the library's memory: rows [B * L, D] of one type, parameters in f32."""

    def __init__(self, activations, first):
        self.library = library_of(first)
        types = {x.dtype for x in activations if x is not None}
        same = len(types) == 1 and not self.library.is_host
        narrow = same and str(next(iter(types))).split(".")[-1] in ("bfloat16", "float16")
        self.dtype = first.dtype if narrow else self.library.float32

    def f32(self, x):
        return None if x is None else self.library.compact(self.library.cast(x, self.library.float32))

    def flat(self, x, *shape):
        """Row-major, of the activations' type."""
        return self.library.compact(self.library.cast(x, self.dtype)).reshape(*shape)

    def rows(self, x):
        """[B, D, L] -> [B * L, D]; a view where the channels are neighbours in memory."""
        if x is None:
            return None
        x = self.library.swapaxes(self.library.cast(x, self.dtype), 1, 2)
        return self.library.compact(x).reshape(-1, x.shape[-1])

    def unrows(self, x, batch: int):
        """[B * L, D] -> [B, D, L], a view."""
        return self.library.swapaxes(x.reshape(batch, -1, x.shape[-1]), 1, 2)

    def swapped(self, x, a=-1, b=-2):
        """States between mamba_ssm's layout and ours, f32."""
        return None if x is None else self.f32(self.library.swapaxes(x, a, b))

    def typed(self, x, like):
        return x if x.dtype == like.dtype else self.library.cast(x, like.dtype)

    def call(self, op, *operands):
        """The op's results as arrays of the caller's library. Operands live until that has put them in order."""
        results = op(*operands)
        return tuple(None if r is None else self.library.taken(r) for r in results)


def segments(batch: int, length: int, seq_idx=None, cu_seqlens=None):
    """(lengths of the sequences, the batch row of each)"""
    if cu_seqlens is not None:
        if batch != 1:
            raise ValueError(f"cu_seqlens with a batch of {batch}: expected 1")
        lengths = np.diff(to_numpy(cu_seqlens)).tolist()
        return lengths, [0] * len(lengths)
    if seq_idx is None:
        return [length] * batch, list(range(batch))
    lengths, owners = [], []
    for b, row in enumerate(to_numpy(seq_idx)):
        ends = [*(np.flatnonzero(np.diff(row)) + 1), length]
        lengths += np.diff([0, *ends]).tolist()
        owners += [b] * len(ends)
    return lengths, owners


class ScanCall:
    """One selective scan: its operands in rows, its result, its gradients."""

    states_have_gradients = False

    def __init__(self, u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state):
        operands = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z, "delta_bias": delta_bias}
        check_together("selective_scan", {**operands, "initial_state": initial_state})
        for name, x in (("B", B), ("C", C)):
            if len(np.shape(x)) not in (3, 4):
                raise ValueError(f"selective_scan: {name} is {np.shape(x)}; expected [B, N, L] or [B, G, N, L]")
        if "complex" in str(A.dtype):
            raise ValueError("selective_scan: A is complex; only real ones are supported")
        self.o = o = _Operands((u, delta, B, C, z), u)
        self.u, self.batch, self.length = u, u.shape[0], u.shape[2]
        self.shapes = tuple(B.shape), tuple(C.shape)
        self.groups = max(s[1] if len(s) == 4 else 1 for s in self.shapes)
        self.operands = [o.rows(u), o.rows(delta), o.f32(A), self._by_group(B), self._by_group(C)]
        self.operands += [o.f32(D), o.rows(z), o.f32(delta_bias)]
        self.softplus, self.lengths = bool(delta_softplus), [self.length] * self.batch
        self.initial = o.swapped(initial_state, 1, 2)  # [B, N, E]

    def _by_group(self, x):
        """[B, N, L] or [B, G, N, L] -> rows of each group."""
        groups = [x] if len(x.shape) == 3 else [x[:, g] for g in range(x.shape[1])]
        return [self.o.rows(g) for g in (groups * self.groups if len(groups) == 1 else groups)]

    def _parts(self, *more):
        """For each group its operands, and its channels of `more`."""
        u, delta, A, B, C, D, z, bias = self.operands
        width = u.shape[1] // self.groups
        for g in range(self.groups):
            at = slice(g * width, (g + 1) * width)

            def cut(x, at=at):
                return x if x is None or self.groups == 1 else x[..., at]

            def state(x, cut=cut):
                return None if x is None else self.o.library.compact(cut(x))

            operands = (cut(u), cut(delta), A[at], B[g], C[g], cut(D), cut(z), cut(bias))
            yield operands, state(self.initial), *map(state, more)

    def _joined(self, parts, axis=-1):
        if parts[0] is None or len(parts) == 1:
            return parts[0]
        return self.o.library.concatenate(parts, axis)

    def forward(self):
        """(out [B, D, L], last state [B, D, N], this)"""
        results = [
            self.o.call(_core.selective_scan, *operands, self.softplus, self.lengths, initial)
            for operands, initial in self._parts()
        ]
        y, last = map(self._joined, zip(*results, strict=True))
        return self.o.typed(self.o.unrows(y, self.batch), self.u), self.o.library.swapaxes(last, 1, 2), self

    def backward(self, dout):
        """Gradients of u, delta, A, B, C, D, z, delta_bias, in their layouts."""
        grads = [
            self.o.call(_core.selective_scan_backward, *operands, self.softplus, self.lengths, initial, dy)
            for operands, initial, dy in self._parts(self.o.rows(dout))
        ]
        du, ddelta, dA, dB, dC, dD, dz, dbias = zip(*grads, strict=True)
        du, ddelta, dz = (self._joined(g) for g in (du, ddelta, dz))
        return (
            self.o.unrows(du, self.batch),
            self.o.unrows(ddelta, self.batch),
            self._joined(dA, 0),
            self._grouped(dB, self.shapes[0]),
            self._grouped(dC, self.shapes[1]),
            self._joined(dD),
            None if dz is None else self.o.unrows(dz, self.batch),
            self._joined(dbias),
        )

    def _grouped(self, parts, shape):
        parts = [self.o.unrows(p, self.batch) for p in parts]
        if len(shape) == 4 and shape[1] > 1:
            return self.o.library.stack(parts, 1)
        return sum(parts[1:], start=parts[0]).reshape(shape)


class _Segments:
    """The sequences of a batch: lengths, owners, and the first and last one of each row."""

    def __init__(self, batch: int, length: int, seq_idx=None, cu_seqlens=None):
        self.lengths, self.owners = segments(batch, length, seq_idx, cu_seqlens)
        self.first = [self.owners.index(b) for b in range(batch)]
        self.last = [len(self.owners) - 1 - self.owners[::-1].index(b) for b in range(batch)]
        self.whole = len(self.owners) == batch  # a sequence a row

    def begin(self, library, initial):
        """Begin states [sequences, ...]: `initial` [B, ...] for the first of each row."""
        if initial is None or self.whole:
            return initial
        zeros = library.zeros((len(self.owners), *initial.shape[1:]))
        return library.put(zeros, self.first, initial)


class SsdCall:
    """One scan of Mamba-2, likewise."""

    states_have_gradients = True

    def __init__(self, x, dt, A, B, C, D, z, dt_bias, initial_states, seq_idx, cu_seqlens, dt_softplus, dt_limit):
        operands = {"x": x, "dt": dt, "A": A, "B": B, "C": C, "D": D, "z": z, "dt_bias": dt_bias}
        check_together("mamba_chunk_scan_combined", {**operands, "initial_states": initial_states})
        self.o = o = _Operands((x, dt, B, C), x)
        self.x, self.shape, self.z = x, tuple(x.shape), o.f32(z)
        batch, length, heads, _ = x.shape
        self.groups, self.n = B.shape[2], B.shape[3]
        d = o.f32(D)
        self.operands = (
            o.flat(x, batch * length, -1),
            o.flat(dt, batch * length, heads),
            o.f32(A),
            o.flat(B, batch * length, -1),
            o.flat(C, batch * length, -1),
            None if d is None else d.reshape(-1),
            o.f32(dt_bias),
        )
        self.options = (self.groups, bool(dt_softplus), float(dt_limit[0]), float(dt_limit[1]))
        self.segments = _Segments(batch, length, seq_idx, cu_seqlens)
        self.initial = self.segments.begin(o.library, o.swapped(initial_states))
        self.initial_gradient = initial_states is not None  # wanted
        self.d_shape = None if D is None else tuple(D.shape)

    def _gate(self):
        s = self.o.library.sigmoid(self.z)
        return s, self.z * s

    def forward(self):
        """(out [B, L, H, P], last state of each row, and of each sequence [., H, P, N], this)"""
        lengths = self.segments.lengths
        y, state = self.o.call(_core.ssd_scan, *self.operands, *self.options, lengths, self.initial)
        self.y = y.reshape(self.shape)
        states = self.o.library.swapaxes(state, -1, -2)
        out = self.y if self.z is None else self.o.f32(self.y) * self._gate()[1]
        last = states if self.segments.whole else self.o.library.take(states, self.segments.last)
        return self.o.typed(out, self.x), last, states, self

    def _after(self, dlast, dstates):
        """The gradient of the state after each sequence."""
        dlast, dstates = self.o.swapped(dlast), self.o.swapped(dstates)
        if dlast is not None and not self.segments.whole:
            zeros = self.o.library.zeros((len(self.segments.owners), *dlast.shape[1:]))
            dlast = self.o.library.put(zeros, self.segments.last, dlast)
        both = [x for x in (dlast, dstates) if x is not None]
        return sum(both[1:], start=both[0]) if both else None

    def backward(self, dout, dlast=None, dstates=None):
        """Gradients of x, dt, A, B, C, D, z, dt_bias, initial_states, in their layouts, from those of forward()'s."""
        dy, dz = dout, None
        if self.z is not None:
            s, gate = self._gate()
            dy = self.o.f32(dout)
            dz = dy * self.o.f32(self.y) * (s * (1 + self.z * (1 - s)))
            dy = dy * gate
        batch, length = self.shape[:2]
        grads = self.o.call(
            _core.ssd_scan_backward,
            *self.operands,
            *self.options,
            self.segments.lengths,
            self.initial,
            self.o.flat(dy, batch * length, -1),
            self._after(dlast, dstates),
            self.initial_gradient,
        )
        dx, ddt, dA, dB, dC, dD, dbias, dinitial = grads
        if dinitial is not None:
            whole = self.segments.whole
            dinitial = dinitial if whole else self.o.library.take(dinitial, self.segments.first)
            dinitial = self.o.library.swapaxes(dinitial, -1, -2)
        projection = (batch, length, self.groups, self.n)
        return (
            dx.reshape(self.shape),
            ddt.reshape(batch, length, -1),
            dA,
            dB.reshape(projection),
            dC.reshape(projection),
            None if dD is None else dD.reshape(self.d_shape),
            dz,
            dbias,
            dinitial,
        )


class ConvCall:
    """One causal convolution, likewise."""

    states_have_gradients = False

    def __init__(self, x, weight, bias, seq_idx, initial_states, silu):
        operands = {"x": x, "weight": weight, "bias": bias, "initial_states": initial_states}
        check_together("causal_conv1d", operands)
        self.o = o = _Operands((x,), x)
        self.x, (self.batch, _, length) = x, x.shape
        self.operands = (o.rows(x), o.f32(weight), o.f32(bias), bool(silu))
        self.segments = _Segments(self.batch, length, seq_idx)
        self.initial = self.segments.begin(o.library, o.swapped(initial_states, 1, 2))

    def forward(self):
        """(out [B, D, L], the last inputs of each row [B, D, K - 1], this)"""
        y, last = self.o.call(_core.causal_conv1d, *self.operands, self.segments.lengths, self.initial)
        last = last if self.segments.whole else self.o.library.take(last, self.segments.last)
        return self.o.typed(self.o.unrows(y, self.batch), self.x), self.o.library.swapaxes(last, 1, 2), self

    def backward(self, dout):
        """Gradients of x, weight, bias."""
        lengths, dy = self.segments.lengths, self.o.rows(dout)
        dx, dweight, dbias = self.o.call(_core.causal_conv1d_backward, *self.operands, lengths, self.initial, dy)
        return self.o.unrows(dx, self.batch), dweight, dbias
