"""Arrays on a card: tensors of torch in and out without a copy to the host, in the order that DLPack's streams give
them, against the same calls on the CPU. CuPy's and JAX's arrays where these are installed."""

import numpy as np
import pytest

import ssm_cpp
from conftest import BUNDLED, CONFIGS
from ssm_cpp import _core, ops

torch = pytest.importorskip("torch", reason="torch is not installed")
if not torch.cuda.is_available():
    pytest.skip("torch finds no card", allow_module_level=True)
if _core.why_unavailable("cuda"):
    pytest.skip(f"ssm_cpp: {_core.why_unavailable('cuda')}", allow_module_level=True)


def scan_case(groups=None):
    torch.manual_seed(0)
    b, d, n, length = 2, 48, 16, 70
    grouped = (b, n, length) if groups is None else (b, groups, n, length)
    shapes = [(b, d, length), (b, d, length), (d, n), grouped, grouped, (d,), (b, d, length), (d,)]
    case = [torch.randn(s) for s in shapes]
    case[2] = -torch.exp(case[2])
    return case


def ssd_case():
    torch.manual_seed(0)
    b, length, h, p, g, n = 2, 150, 4, 64, 2, 64
    shapes = [(b, length, h, p), (b, length, h), (h,), (b, length, g, n), (b, length, g, n)]
    x, dt, A, B, C = (torch.randn(s) for s in shapes)
    return [x, dt, -torch.exp(A), B, C, torch.randn(h), torch.randn(b, length, h, p), torch.randn(h)]


def scan(u, delta, A, B, C, D, z, bias):
    return ops.selective_scan(u, delta, A, B, C, D, z, bias, True, return_last_state=True)


def ssd(x, dt, A, B, C, D, z, bias):
    return ops.mamba_chunk_scan_combined(
        x, dt, A, B, C, 64, D=D, z=z, dt_bias=bias, dt_softplus=True, return_final_states=True
    )


def conv(x, weight, bias):
    return ops.causal_conv1d_fn(x, weight, bias, activation="silu", return_final_states=True)


CASES = {
    "scan": (scan, scan_case),
    "scan of 3 groups": (scan, lambda: scan_case(3)),
    "ssd": (ssd, ssd_case),
    "conv": (conv, lambda: [torch.randn(2, 48, 70), torch.randn(48, 4), torch.randn(48)]),
}


def close(ours, wanted, tolerance=1e-4):
    ours, wanted = ours.detach().float().cpu(), wanted.detach().float().cpu()
    assert ours.shape == wanted.shape
    assert (ours - wanted).abs().max() <= tolerance * wanted.abs().max().clamp(min=1), (ours - wanted).abs().max()


@pytest.mark.parametrize("name", CASES)
def test_an_op_and_its_gradients_are_the_cpus(name):
    op, make = CASES[name]
    host = [t.requires_grad_() for t in make()]
    card = [t.detach().cuda().requires_grad_() for t in host]
    (wanted, wanted_last), (y, last) = op(*host), op(*card)
    assert y.is_cuda and last.is_cuda and y.dtype == torch.float32
    close(y, wanted)
    close(last, wanted_last)
    dy = torch.randn_like(wanted)
    for ours, theirs in zip(
        torch.autograd.grad(y, card, dy.cuda()), torch.autograd.grad(wanted, host, dy), strict=True
    ):
        assert ours.is_cuda
        close(ours, theirs, 5e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", CASES)
def test_an_op_in_sixteen_bits(name, dtype):
    op, make = CASES[name]
    parameters = {"conv": (1, 2)}.get(name, (2, 5, 7))  # stay f32
    card = [t.cuda() if i in parameters else t.cuda().to(dtype) for i, t in enumerate(make())]
    card = [t.requires_grad_() for t in card]
    y, last = op(*card)
    assert y.dtype == dtype and last.is_cuda
    wanted, wanted_last = op(*(t.detach().float().cpu() for t in card))
    close(y, wanted, 2e-2)
    close(last, wanted_last, 2e-2)
    gradients = torch.autograd.grad(y, card, torch.ones_like(y))
    assert [g.dtype for g in gradients] == [t.dtype for t in card]
    assert all(bool(torch.isfinite(g).all()) for g in gradients)


def test_states_before_and_segments():
    u, delta, A, B, C, *_ = (t.cuda() for t in scan_case())
    whole, last = ops.selective_scan(u, delta.abs(), A, B, C, return_last_state=True)
    u, delta, B, C = ((t[..., :30], t[..., 30:]) for t in (u, delta.abs(), B, C))
    _, state = ops.selective_scan(u[0], delta[0], A, B[0], C[0], return_last_state=True)
    rest, end = ops.selective_scan(u[1], delta[1], A, B[1], C[1], return_last_state=True, initial_state=state)
    close(rest, whole[..., 30:])
    close(end, last)
    x, dt, A, B, C, D, *_ = ssd_case()
    seq_idx = (torch.arange(150) >= 64).int().expand(2, 150)
    host = ops.mamba_chunk_scan_combined(x, dt, A, B, C, 64, D=D, dt_softplus=True, seq_idx=seq_idx)
    card = (t.cuda() for t in (x, dt, A, B, C))
    close(ops.mamba_chunk_scan_combined(*card, 64, D=D.cuda(), dt_softplus=True, seq_idx=seq_idx.cuda()), host)
    x, w = torch.randn(2, 8, 20), torch.randn(8, 4)
    kept = torch.zeros(2, 8, 4, device="cuda")
    steps = [ops.causal_conv1d_update(x[:, :, t].cuda(), kept, w.cuda(), activation="silu") for t in range(20)]
    close(torch.stack(steps, 2), ops.causal_conv1d_fn(x, w, activation="silu"))
    torch.testing.assert_close(kept.cpu(), x[:, :, -4:])


def test_memory_is_shared():
    x = torch.randn(64, 48, device="cuda")
    w = torch.randn(48, 4, device="cuda")
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    y, _ = _core.causal_conv1d(x, w, None, False, [64])
    assert torch.cuda.memory_allocated() == before  # nothing of torch's for it
    assert isinstance(y, _core.DlpackArray) and y.__dlpack_device__() == (2, 0) and y.shape == (64, 48)
    a, b = torch.from_dlpack(y), torch.from_dlpack(y)
    assert a.data_ptr() == b.data_ptr() and a.is_cuda
    np.testing.assert_array_equal(y.numpy(), a.cpu().numpy())
    host = torch.ones(64, 48, device="cuda")
    a.copy_(host)
    del y, b
    torch.testing.assert_close(a, host)


def test_the_order_of_streams():
    """Operands that another stream still computes, results that it reads at once, memory that it gives back."""
    w = torch.eye(512, device="cuda") * 0.5
    weight = torch.zeros(512, 4, device="cuda")
    weight[:, 3] = 2  # the convolution doubles, the product halves
    for stream in (torch.cuda.default_stream(), torch.cuda.Stream(), torch.cuda.Stream()):
        with torch.cuda.stream(stream):
            first = torch.randn(1, 512, 4096, device="cuda")
            x = first
            for _ in range(20):
                for _ in range(8):
                    late = w @ x * 2  # in the stream, for a while
                y = ops.causal_conv1d_fn(late, weight)
                x = w @ y
                del late, y
                torch.full((1, 512, 4096), float("nan"), device="cuda")  # over what was given back
            torch.testing.assert_close(x, first, rtol=1e-2, atol=1e-2)


def test_other_devices_are_told_apart():
    x, w = torch.randn(1, 6, 8), torch.randn(6, 4)
    with pytest.raises(_core.Error, match="^causal_conv1d: x is on a card, weight on the host$"):
        ops.causal_conv1d_fn(x.cuda(), w)
    with pytest.raises(_core.Error, match="^causal_conv1d: x is on the host, weight on a card$"):
        ops.causal_conv1d_fn(x, w.cuda())
    with pytest.raises(_core.Error, match="^causal_conv1d: weight is on cpu, x on cuda$"):
        _core.causal_conv1d(x[0].T.contiguous().cuda(), w, None, False, [8])
    with pytest.raises(_core.Error, match="hidden_states is on a card, A_log on the host"):
        ssm_cpp.Mamba(16)(torch.randn(1, 4, 16).cuda())


@pytest.mark.parametrize("kind", ["Mamba", "Mamba2"])
def test_a_block_trains_on_a_card(kind):
    torch.manual_seed(1)
    options = {"d_state": 16} if kind == "Mamba" else {"d_state": 64, "headdim": 64}
    host = getattr(ssm_cpp, kind)(128, **options)
    card = getattr(ssm_cpp, kind)(128, **options)
    card.load_state_dict(host.state_dict())
    card = card.cuda()
    x = torch.randn(2, 40, 128)
    a, b = x.clone().requires_grad_(), x.cuda().requires_grad_()
    ya, yb = host(a), card(b)
    assert yb.is_cuda
    close(yb, ya)
    dy = torch.randn_like(ya)
    ya.backward(dy)
    yb.backward(dy.cuda())
    close(b.grad, a.grad, 1e-3)
    wanted = dict(host.named_parameters())
    for name, p in card.named_parameters():
        assert p.grad.is_cuda and p.grad.shape == p.shape, name
        close(p.grad, wanted[name].grad, 1e-3)
    conv_state, ssm_state = card.allocate_inference_cache(2)
    assert conv_state.is_cuda
    steps = torch.cat([card.step(x[:, t : t + 1].cuda(), conv_state, ssm_state)[0] for t in range(40)], 1)
    close(steps, ya)
    optimizer = torch.optim.AdamW(card.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = (card(b.detach()) - b.detach().flip(-1)).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def models(request, tmp_path_factory):
    """(on the CPU, on the card in f32)"""
    folder = tmp_path_factory.mktemp(request.param)
    ssm_cpp.AutoModelForCausalLM.from_config(CONFIGS[request.param](), init="reference", seed=3).save_pretrained(folder)
    load = ssm_cpp.AutoModelForCausalLM.from_pretrained
    return load(folder, dtype="float32"), load(folder, dtype="float32", device="cuda")


def test_a_model_takes_and_gives_tensors_of_a_card(models):
    host, card = models
    ids = torch.tensor([[3, 14, 15, 92, 65], [0, 0, 35, 89, 79]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    wanted = host(ids, attention_mask=mask, labels=ids, output_hidden_states=True)
    out = card(ids.cuda(), attention_mask=mask.cuda(), labels=ids.cuda(), output_hidden_states=True)
    assert out.logits.is_cuda and out.loss.is_cuda and all(h.is_cuda for h in out.hidden_states)
    close(out.logits, wanted.logits)
    close(out.loss, wanted.loss)
    for ours, theirs in zip(out.hidden_states, wanted.hidden_states, strict=True):
        close(ours, theirs)
    assert bool((out.logits[1, :2] == 0).all())
    close(card(ids.cuda(), logits_to_keep=2).logits, host(ids, logits_to_keep=2).logits)
    plain = card(ids.numpy(), attention_mask=mask.numpy()).logits
    assert isinstance(plain, np.ndarray)
    np.testing.assert_array_equal(plain, out.logits.cpu().numpy())
    assert not card(ids).logits.is_cuda  # where the ids were


def test_embeddings_of_a_card(models):
    host, card = models
    ids = torch.tensor([[3, 14, 15, 92, 65]])
    embeddings = card.get_input_embeddings()(ids.cuda())
    assert embeddings.is_cuda
    out = card(inputs_embeds=embeddings)
    assert out.logits.is_cuda
    torch.testing.assert_close(out.logits, card(ids.cuda()).logits)
    close(card(inputs_embeds=embeddings.bfloat16()).logits, out.logits, 5e-2)
    with pytest.raises(_core.Error, match="^inputs_embeds is on a card, the model on the CPU$"):
        host(inputs_embeds=embeddings)


def test_caches_on_a_card(models):
    host, card = models
    ids = torch.tensor([[3, 14, 15], [92, 65, 35]])
    first = card(ids.cuda(), use_cache=True)
    cache = first.cache_params
    wanted = host(ids, use_cache=True).cache_params
    for i in range(len(cache)):
        for ours, theirs in zip(cache.get(i), wanted.get(i), strict=True):
            assert ours.is_cuda and tuple(ours.shape) == theirs.shape
            close(ours, torch.from_numpy(np.ascontiguousarray(theirs)))
    copy, turned = cache.clone(), cache.select([1, 0])
    after = card(ids[:, :1].cuda(), cache_params=cache).logits
    torch.testing.assert_close(card(ids[:, :1].cuda(), cache_params=copy).logits, after)
    torch.testing.assert_close(card(ids.flip(0)[:, :1].cuda(), cache_params=turned).logits, after.flip(0))
    again = card(ids.cuda(), use_cache=True).cache_params
    ssm = again.get(0)[1]
    assert ssm.data_ptr() == again.get(0)[1].data_ptr()
    ssm.mul_(0)  # read by the next call
    again.update(0, ssm_state=again.get(0)[1] + 1)
    assert bool((again.get(0)[1] == 1).all())
    assert not torch.allclose(card(ids[:, :1].cuda(), cache_params=again).logits, after)
    again.reset()
    assert bool((again.get(0)[1] == 0).all())
    torch.testing.assert_close(card(ids.cuda(), cache_params=again).logits, first.logits)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_model_in_sixteen_bits(dtype):
    load = ssm_cpp.AutoModelForCausalLM.from_pretrained
    card, host = load(BUNDLED, dtype=dtype, device="cuda"), load(BUNDLED, dtype="float32")
    ids = torch.tensor([card.tokenizer().encode("Once upon a time there was")])
    out = card(ids.cuda(), output_hidden_states=True, labels=ids.cuda())
    assert str(out.hidden_states[-1].dtype) == f"torch.{dtype}" and out.logits.dtype == torch.float32
    wanted = host(ids, labels=ids)
    close(out.logits, wanted.logits, 5e-2)
    close(out.loss, wanted.loss, 2e-2)
    np.testing.assert_array_equal(card(ids.numpy()).logits, out.logits.cpu().numpy())
    made = card.generate(ids.cuda(), max_new_tokens=8)
    assert made.is_cuda and made.shape == (1, ids.shape[1] + 8)
    weight = torch.from_dlpack(card.state_dict()["backbone.layers.0.mixer.D"])
    assert weight.is_cuda


@pytest.mark.parametrize("library", ["cupy", "jax"])
def test_other_libraries(library):
    if library == "cupy":
        arrays = pytest.importorskip("cupy", reason="cupy is not installed")
        to_host = arrays.asnumpy
    else:
        jax = pytest.importorskip("jax", reason="jax is not installed")
        if jax.default_backend() != "gpu":
            pytest.skip("jax finds no card")
        arrays, to_host = jax.numpy, np.asarray
    for op, make in CASES.values():
        case = [t.numpy() for t in make()]
        y, last = op(*map(arrays.asarray, case))
        assert type(y) is type(arrays.asarray(case[0]))
        wanted, wanted_last = op(*case)
        close(torch.from_numpy(np.array(to_host(y))), torch.from_numpy(wanted))
        close(torch.from_numpy(np.array(to_host(last))), torch.from_numpy(np.ascontiguousarray(wanted_last)))
