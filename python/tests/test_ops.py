"""The ops and blocks over NumPy against plain loops in f64, gradients against differences."""

import numpy as np
import pytest

from ssm_cpp import modules, ops


def silu(x):
    return x / (1 + np.exp(-x))


def scan_reference(u, delta, A, B, C, D, z, bias, softplus, h=None):
    batch, channels, length = u.shape
    B, C = (x if x.ndim == 4 else x[:, None] for x in (B, C))
    B, C = (np.repeat(x, channels // x.shape[1], 1) for x in (B, C))
    h = np.zeros((batch, channels, A.shape[1])) if h is None else h.astype(np.float64)
    delta = delta + (0 if bias is None else bias[:, None])
    delta = np.log1p(np.exp(delta)) if softplus else delta
    y = np.zeros(u.shape)
    for t in range(length):
        h = h * np.exp(delta[:, :, t, None] * A) + delta[:, :, t, None] * B[..., t] * u[:, :, t, None]
        y[:, :, t] = (h * C[..., t]).sum(-1)
    y = y + (0 if D is None else u * D[:, None])
    return (y if z is None else y * silu(z)), h


def scan_case(random, groups=None, full=True):
    b, d, n, length = 2, 6, 4, 21
    grouped = (b, n, length) if groups is None else (b, groups, n, length)
    shapes = [(b, d, length), (b, d, length), (d, n), grouped, grouped, (d,), (b, d, length), (d,)]
    out = [random.standard_normal(s) for s in shapes]
    out[2] = -np.exp(out[2])
    out = [x.astype(np.float32) for x in out]
    return out if full else [*out[:5], None, None, None]


@pytest.mark.parametrize("groups", [None, 1, 3])
@pytest.mark.parametrize("full", [True, False])
def test_selective_scan(random, groups, full):
    case = scan_case(random, groups, full)
    case[1] = case[1] if full else np.abs(case[1])
    y, last = ops.selective_scan(*case, delta_softplus=full, return_last_state=True)
    wanted, h = scan_reference(*(None if x is None else x.astype(np.float64) for x in case), full)
    np.testing.assert_allclose(y, wanted, atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(last, h, atol=1e-4, rtol=1e-4)
    first, state = ops.selective_scan(
        *(x[..., :9] if x is not None and x.ndim > 2 else x for x in case), delta_softplus=full, return_last_state=True
    )
    rest = ops.selective_scan(
        *(x[..., 9:] if x is not None and x.ndim > 2 else x for x in case), delta_softplus=full, initial_state=state
    )
    np.testing.assert_array_equal(np.concatenate([first, rest], 2), y)


def update_reference(state, x, dt, A, B, C, D, z, bias, softplus):
    """state-spaces' formula: heads [B, H, P, N], groups [B, G, N]."""
    dt = dt + (0 if bias is None else bias)
    dt = np.log1p(np.exp(dt)) if softplus else dt
    B, C = (np.repeat(t, A.shape[0] // t.shape[1], 1)[:, :, None] for t in (B, C))
    state = state * np.exp(dt[..., None] * A) + dt[..., None] * B * x[..., None]
    y = (state * C).sum(-1) + (0 if D is None else x * D)
    return (y if z is None else y * silu(z)), state


def update_case(random, groups, tied):
    """What heads share lies expanded, as the original's callers leave it."""
    b, h, p, n = 3, 4, 5, 6

    def own(*shape):
        return random.standard_normal(shape).astype(np.float32)

    def shared(*shape):
        return np.broadcast_to(own(*shape[:-1], 1), shape) if tied else own(*shape)

    A = -np.exp(np.broadcast_to(own(h, 1, 1), (h, p, n)) if tied else own(h, p, n))
    projections = own(b, groups, n), own(b, groups, n)
    return [own(b, h, p, n), own(b, h, p), shared(b, h, p), A, *projections, shared(h, p), own(b, h, p), shared(h, p)]


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("tied", [True, False])
def test_selective_state_update_of_heads(random, groups, tied):
    state, *case = update_case(random, groups, tied)
    wanted, after = update_reference(*(t.astype(np.float64) for t in (state, *case)), True)
    y = ops.selective_state_update(state, *case, dt_softplus=True)
    np.testing.assert_allclose(y, wanted, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(state, after, atol=1e-5, rtol=1e-5)


def test_selective_state_update(random):
    state, x, dt, A, B, C, D, z, bias = update_case(random, 1, False)
    plain = state[:, 0].copy(), x[:, 0], np.abs(dt[:, 0]), A[0], B[:, 0], C[:, 0]
    heads = (t[:, None] for t in plain[:3])
    wanted, after = update_reference(*(t.astype(np.float64) for t in (*heads, A[:1], B, C)), None, None, None, False)
    y = ops.selective_state_update(*plain)
    np.testing.assert_allclose(y, wanted[:, 0], atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(plain[0], after[:, 0], atol=1e-5, rtol=1e-5)
    # Rows of a larger state, in any order; the others stay.
    many = random.standard_normal((7, *state.shape[1:])).astype(np.float32)
    at, before = np.array([5, 0, 3]), many.copy()
    expected = many[at]
    y = ops.selective_state_update(expected, x, dt, A, B, C, D, z, bias, dt_softplus=True)
    same = ops.selective_state_update(many, x, dt, A, B, C, D, z, bias, dt_softplus=True, state_batch_indices=at)
    np.testing.assert_array_equal(same, y)
    before[at] = expected
    np.testing.assert_array_equal(many, before)


def check_gradients(call, function, operands, random):
    """call.backward against central differences of function(*operands), one direction each."""
    y = function(*operands)
    dy = random.standard_normal(y.shape).astype(np.float32)
    grads = call.backward(dy)
    wanted = 0
    for i, (x, g) in enumerate(zip(operands, grads, strict=True)):
        if x is None:
            assert g is None
            continue
        assert g.shape == x.shape
        direction = random.standard_normal(x.shape)
        step = 1e-6
        up, down = (
            (function(*(x + s * step * direction if j == i else o for j, o in enumerate(operands))) * dy).sum()
            for s in (1, -1)
        )
        wanted = (up - down) / (2 * step)
        assert (g * direction).sum() == pytest.approx(wanted, rel=2e-3, abs=2e-3), i


@pytest.mark.parametrize("groups", [None, 3])
def test_selective_scan_gradients(random, groups):
    case = scan_case(random, groups)
    call = ops.ScanCall(*case, True, None)
    call.forward()
    wide = [x.astype(np.float64) for x in case]
    check_gradients(call, lambda *x: scan_reference(*x, True)[0], wide, random)


def ssd_reference(x, dt, A, B, C, D, z, bias, initial=None, softplus=True, limit=(0.0, np.inf)):
    batch, length, heads, width = x.shape
    B, C = (np.repeat(m, heads // m.shape[2], 2) for m in (B, C))
    dt = np.clip(np.log1p(np.exp(dt + bias)) if softplus else dt, *limit)
    h, y = np.zeros((batch, heads, width, B.shape[-1])) if initial is None else initial, np.zeros(x.shape)
    for t in range(length):
        h = h * np.exp(dt[:, t] * A)[..., None, None]
        h = h + (dt[:, t, :, None] * x[:, t])[..., None] * B[:, t, :, None, :]
        y[:, t] = (h * C[:, t, :, None, :]).sum(-1)
    y = y + x * (D[:, None] if D.ndim == 1 else D)
    return (y if z is None else y * silu(z)), h


@pytest.mark.parametrize("wide_D", [False, True])
def test_chunk_scan(random, wide_D):
    b, length, h, p, g, n = 2, 70, 4, 8, 2, 16
    shapes = [(b, length, h, p), (b, length, h), (h,), (b, length, g, n), (b, length, g, n)]
    shapes += [(h, p) if wide_D else (h,), (b, length, h, p), (h,)]
    case = [random.standard_normal(s).astype(np.float32) for s in shapes]
    case[2] = -np.exp(case[2])
    x, dt, A, B, C, D, z, bias = case
    y, last = ops.mamba_chunk_scan_combined(
        x, dt, A, B, C, 16, D=D, z=z, dt_bias=bias, dt_softplus=True, return_final_states=True
    )
    wide = [v.astype(np.float64) for v in case]
    wanted, state = ssd_reference(*wide)
    np.testing.assert_allclose(y, wanted, atol=2e-4, rtol=1e-4)
    np.testing.assert_allclose(last, state, atol=2e-4, rtol=1e-4)
    initial = random.standard_normal((b, h, p, n)).astype(np.float32)
    call = ops.SsdCall(*case[:6], z, bias, initial, None, None, True, (0.0, float("inf")))
    call.forward()
    check_gradients(call, lambda *v: ssd_reference(*v)[0], [*wide, initial.astype(np.float64)], random)
    seq_idx = np.repeat([[0, 1, 2]], b, 0).repeat([20, 30, 20], 1)
    packed = ops.mamba_chunk_scan_combined(x, dt, A, B, C, 16, D=D, dt_bias=bias, dt_softplus=True, seq_idx=seq_idx)
    for begin, end in ((0, 20), (20, 50), (50, 70)):
        part = slice(begin, end)
        alone = ops.mamba_chunk_scan_combined(
            x[:, part], dt[:, part], A, B[:, part], C[:, part], 16, D=D, dt_bias=bias, dt_softplus=True
        )
        np.testing.assert_array_equal(packed[:, part], alone)


@pytest.mark.parametrize("activation", [None, "silu"])
def test_causal_conv1d(random, activation):
    x, w, bias = (random.standard_normal(s).astype(np.float32) for s in ((2, 5, 17), (5, 4), (5,)))

    def reference(x, w, bias):
        padded = np.pad(x, ((0, 0), (0, 0), (3, 0)))
        y = sum(w[:, k, None] * padded[:, :, k : k + x.shape[2]] for k in range(4)) + bias[:, None]
        return silu(y) if activation else y

    y, states = ops.causal_conv1d_fn(x, w, bias, return_final_states=True, activation=activation)
    wide = [v.astype(np.float64) for v in (x, w, bias)]
    np.testing.assert_allclose(y, reference(*wide), atol=1e-5)
    np.testing.assert_array_equal(states, x[:, :, -3:])
    call = ops.ConvCall(x, w, bias, None, None, activation is not None)
    call.forward()
    check_gradients(call, reference, wide, random)
    kept = np.zeros((2, 5, 4), np.float32)
    steps = [ops.causal_conv1d_update(x[:, :, t], kept, w, bias, activation) for t in range(17)]
    np.testing.assert_array_equal(np.stack(steps, 2), y)
    np.testing.assert_array_equal(kept, x[:, :, -4:])


def test_wrong_operands_are_named(random):
    u, delta, A, B, C, *_ = scan_case(random)
    with pytest.raises(ValueError, match="delta"):
        ops.selective_scan(u, delta[:, :3], A, B, C)
    with pytest.raises(ValueError, match=r"B is \(6, 4\)"):
        ops.selective_scan(u, delta, A, B[0, :, :1].repeat(6, 1).T, C)


@pytest.mark.parametrize("block", ["mamba", "mamba2"])
def test_numpy_blocks(random, block):
    kind = {"mamba": modules.NumpyMamba, "mamba2": modules.NumpyMamba2}[block]
    m = kind(16, d_state=8, seed=2) if block == "mamba" else kind(16, d_state=8, headdim=8, seed=2)
    x = random.standard_normal((2, 12, 16)).astype(np.float32)
    y = m(x, gradient=True)
    assert y.shape == x.shape
    dy = random.standard_normal(y.shape).astype(np.float32)
    dx = m.backward(dy)
    for name, value in [("x", x), *m.parameters.items()]:
        gradient = dx if name == "x" else m.gradients[name]
        assert gradient.shape == value.shape
        direction = random.standard_normal(value.shape).astype(np.float32)
        ends = []
        for sign in (1, -1):
            moved = value + sign * np.float32(1e-2) * direction
            if name == "x":
                ends.append((m(moved).astype(np.float64) * dy).sum())
            else:
                m.parameters[name] = moved
                ends.append((m(x).astype(np.float64) * dy).sum())
                m.parameters[name] = value
        wanted = (ends[0] - ends[1]) / 2e-2
        assert (gradient.astype(np.float64) * direction).sum() == pytest.approx(wanted, rel=3e-2, abs=3e-2), name
