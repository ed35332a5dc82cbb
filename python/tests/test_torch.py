"""Ops and blocks as torch sees them: autograd through the ops, blocks against Transformers' mixers."""

import pytest

import ssm_cpp
from ssm_cpp import ops

torch = pytest.importorskip("torch", reason="torch is not installed")


def leaf(*shape):
    return torch.randn(*shape, requires_grad=True)


def test_selective_scan_gradients_flow():
    torch.manual_seed(0)
    u, delta, B, C, z = leaf(2, 6, 9), leaf(2, 6, 9), leaf(2, 4, 9), leaf(2, 4, 9), leaf(2, 6, 9)
    A = (-torch.rand(6, 4) - 0.5).requires_grad_()
    D, bias = leaf(6), leaf(6)
    operands = (u, delta, A, B, C, D, z, bias)

    def plain(u, delta, A, B, C, D, z, bias):
        delta = torch.nn.functional.softplus(delta + bias[:, None])
        h, y = torch.zeros(2, 6, 4), []
        for t in range(9):
            h = h * torch.exp(delta[:, :, t, None] * A) + (delta * u)[:, :, t, None] * B[:, None, :, t]
            y.append((h * C[:, None, :, t]).sum(-1))
        return (torch.stack(y, 2) + u * D[:, None]) * torch.nn.functional.silu(z)

    y, last = ops.selective_scan(*operands, delta_softplus=True, return_last_state=True)
    assert not last.requires_grad and last.shape == (2, 6, 4)
    wanted = plain(*operands)
    torch.testing.assert_close(y, wanted, atol=1e-5, rtol=1e-4)
    dy = torch.randn_like(y)
    for a, b in zip(torch.autograd.grad(y, operands, dy), torch.autograd.grad(wanted, operands, dy), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="initial_state has no gradient here"):
        ops.selective_scan(*operands, initial_state=leaf(2, 6, 4))
    half = ops.selective_scan(*(t.detach().bfloat16() for t in operands[:5]))
    assert half.dtype == torch.bfloat16


def test_chunk_scan_and_conv_gradients_flow():
    torch.manual_seed(0)
    x, dt, B, C = leaf(2, 9, 4, 8), leaf(2, 9, 4), leaf(2, 9, 2, 16), leaf(2, 9, 2, 16)
    A, D = (-torch.rand(4)).requires_grad_(), leaf(4)
    y = ops.mamba_chunk_scan_combined(x, dt, A, B, C, 64, D=D, dt_softplus=True)
    y.square().sum().backward()
    assert all(t.grad is not None and t.grad.shape == t.shape and t.grad.abs().sum() > 0 for t in (x, dt, A, B, C, D))
    # In two parts: the second one's gradients reach the first through the state between them.
    before, operands = leaf(2, 4, 8, 16), (x, dt, A, B, C, D)
    whole = {"D": D, "dt_softplus": True, "return_final_states": True}
    y, last = ops.mamba_chunk_scan_combined(x, dt, A, B, C, 64, initial_states=before, **whole)
    first, state = ops.mamba_chunk_scan_combined(
        *(t[:, :5] for t in (x, dt)), A, B[:, :5], C[:, :5], 64, initial_states=before, **whole
    )
    second, end = ops.mamba_chunk_scan_combined(
        *(t[:, 5:] for t in (x, dt)), A, B[:, 5:], C[:, 5:], 64, initial_states=state, **whole
    )
    dy, dlast = torch.randn_like(y), torch.randn_like(last)
    wanted = torch.autograd.grad((y, last), (*operands, before), (dy, dlast))
    parts = torch.autograd.grad((first, second, end), (*operands, before), (dy[:, :5], dy[:, 5:], dlast))
    for a, b in zip(wanted, parts, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    assert wanted[-1].abs().sum() > 0
    x, w, b = leaf(2, 5, 9), leaf(5, 4), leaf(5)
    y = ops.causal_conv1d_fn(x, w, b, activation="silu")
    wanted = torch.nn.functional.silu(torch.nn.functional.conv1d(x, w[:, None], b, padding=3, groups=5)[..., :9])
    torch.testing.assert_close(y, wanted)
    dy = torch.randn_like(y)
    for a, c in zip(torch.autograd.grad(y, (x, w, b), dy), torch.autograd.grad(wanted, (x, w, b), dy), strict=True):
        torch.testing.assert_close(a, c, atol=1e-5, rtol=1e-4)


def test_a_step_writes_the_state_of_torch():
    torch.manual_seed(0)
    x, z, B, C = (torch.randn(2, *shape) for shape in [(4, 8), (4, 8), (2, 16), (2, 16)])
    dt, D, A = torch.randn(2, 4, 1), torch.randn(4, 1), -torch.rand(4, 1, 1)
    state = torch.zeros(2, 4, 8, 16)
    shared = dt.expand(2, 4, 8), A.expand(4, 8, 16)
    y = ops.selective_state_update(state, x, *shared, B, C, D.expand(4, 8), z, dt_softplus=True)
    wanted, last = ops.mamba_chunk_scan_combined(
        *(x[:, None], dt[:, None, :, 0], A[:, 0, 0], B[:, None], C[:, None]),
        D=D[:, 0],
        z=z[:, None],
        dt_softplus=True,
        return_final_states=True,
    )
    torch.testing.assert_close(y, wanted[:, 0])
    torch.testing.assert_close(state, last)


def test_documented_block():
    batch, length, dim = 2, 64, 16
    x = torch.randn(batch, length, dim)
    model = ssm_cpp.Mamba(d_model=dim, d_state=16, d_conv=4, expand=2).to("cpu")
    y = model(x)
    assert y.shape == x.shape
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    first = None
    for _ in range(60):
        loss = (model(x) - x.flip(-1)).square().mean()
        first = first if first is not None else loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.8 * first


@pytest.mark.parametrize("block", ["mamba", "mamba2"])
def test_blocks_are_transformers_mixers(block):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(1)
    if block == "mamba":
        from transformers.models.mamba.modeling_mamba import MambaMixer as Mixer

        config = transformers.MambaConfig(hidden_size=32, state_size=8)
        ours = ssm_cpp.Mamba(32, d_state=8)
    else:
        from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer as Mixer

        config = transformers.Mamba2Config(
            hidden_size=32, state_size=8, num_heads=4, head_dim=16, n_groups=1, chunk_size=16
        )
        ours = ssm_cpp.Mamba2(32, d_state=8, headdim=16)
    theirs = Mixer(config, layer_idx=0).eval()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 20, 32)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    ya, yb = theirs(a), ours(b)
    torch.testing.assert_close(yb, ya, atol=1e-5, rtol=1e-4)
    dy = torch.randn_like(ya)
    ya.backward(dy)
    yb.backward(dy)
    torch.testing.assert_close(b.grad, a.grad, atol=1e-5, rtol=1e-3)
    wanted = dict(theirs.named_parameters())
    for name, p in ours.named_parameters():
        torch.testing.assert_close(p.grad, wanted[name].grad, atol=2e-4, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")
    conv, ssm = ours.allocate_inference_cache(2)
    steps = torch.cat([ours.step(x[:, t : t + 1], conv, ssm)[0] for t in range(20)], 1)
    torch.testing.assert_close(steps, yb.detach(), atol=1e-5, rtol=1e-4)
