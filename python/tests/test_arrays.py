"""What goes in and comes out without a copy, and what is said of arrays that do not fit."""

import ast
import json
import pathlib

import numpy as np
import pytest

import ssm_cpp
from ssm_cpp import _core, ops


class Foreign:
    """An array of some other library, that says where it lies."""

    def __init__(self, array, device=(1, 0)):
        self.array, self.device, self.asked = array, device, []
        self.shape, self.dtype, self.ndim = array.shape, array.dtype, array.ndim

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, **options):
        self.asked.append(options)
        return self.array.__dlpack__()


def block():
    config = {"model_type": "mamba", "hidden_size": 4, "intermediate_size": 8, "state_size": 2, "conv_kernel": 4}
    made = _core.Block(json.dumps({**config, "time_step_rank": 1, "use_bias": False, "use_conv_bias": True}))
    return made, [np.ones(shape, np.float32) for _, shape, _ in made.parameters]


def test_states_of_the_caller_are_written_in_place(random):
    made, parameters = block()
    x = random.standard_normal((8, 4)).astype(np.float32)
    conv, ssm = np.zeros((1, 3, 8), np.float32), np.zeros((1, 2, 8), np.float32)
    made.forward(x, parameters, [8], False, conv[:], ssm[:])
    assert np.abs(conv).sum() > 0 and np.abs(ssm).sum() > 0
    conv.flags.writeable = False
    with pytest.raises(_core.Error, match="conv_state: expected an array that may be written, not ndarray"):
        made.forward(x, parameters, [8], False, conv, ssm)


def test_a_model_gives_its_memory(model):
    name = next(n for n in model.state_dict() if n.endswith("in_proj.weight"))
    before = model([[1, 2, 3]]).logits
    model.state_dict()[name][...] *= 2
    assert not np.array_equal(model([[1, 2, 3]]).logits, before)


def test_what_speaks_dlpack_comes_in(random):
    x, w = random.standard_normal((8, 6)).astype(np.float32), np.ones((6, 4), np.float32)
    foreign = Foreign(x)
    y, _ = _core.causal_conv1d(foreign, w, None, False, [8])
    np.testing.assert_array_equal(y, _core.causal_conv1d(x, w, None, False, [8])[0])
    assert foreign.asked


def test_what_does_not_fit_is_named(random):
    x, w = random.standard_normal((8, 6)).astype(np.float32), np.ones((6, 4), np.float32)
    with pytest.raises(_core.Error, match="x: expected an array, not str"):
        _core.causal_conv1d("x", w, None, False, [8])
    with pytest.raises(_core.Error, match="x: an array with negative strides"):
        _core.causal_conv1d(x[::-1], w, None, False, [8])
    with pytest.raises(_core.Error, match="x: an array of type code 5 with 64 bits"):
        _core.causal_conv1d(x.astype(np.complex64), w, None, False, [8])
    with pytest.raises(_core.Error, match="neither a CPU nor a CUDA card"):
        _core.causal_conv1d(Foreign(x, (10, 0)), w, None, False, [8])


@pytest.mark.skipif(not _core.why_unavailable("cuda"), reason="a card works here")
def test_without_a_card_its_arrays_are_refused_in_one_line(random, bundled):
    x, w = random.standard_normal((1, 6, 8)).astype(np.float32), np.ones((6, 4), np.float32)
    with pytest.raises(_core.Error, match="^causal_conv1d: x is on a card, but [^\n]*$"):
        ops.causal_conv1d_fn(Foreign(x, (2, 0)), w)
    with pytest.raises(_core.Error, match="^causal_conv1d: weight is on a card, but [^\n]*$"):
        ops.causal_conv1d_fn(x, Foreign(w, (2, 0)))
    rows = np.ascontiguousarray(x[0].T)
    with pytest.raises(_core.Error, match="^x: an array on a card, but [^\n]*$"):
        _core.causal_conv1d(Foreign(rows, (2, 0)), w, None, False, [8])
    with pytest.raises(_core.Error, match="^inputs_embeds is on a card, the model on the CPU$"):
        bundled(inputs_embeds=Foreign(np.zeros((1, 2, 384), np.float32), (2, 0)))


def test_bf16_goes_out_by_dlpack(bundled, tmp_path):
    bundled.save_pretrained(tmp_path, dtype="bfloat16")
    narrow = ssm_cpp.AutoModelForCausalLM.from_pretrained(tmp_path, dtype="float32")
    name = next(n for n in narrow.state_dict() if n.endswith("in_proj.weight"))
    ours = narrow.state_dict()[name]
    wide = bundled.state_dict()[name]
    wide = wide if isinstance(wide, np.ndarray) else wide.numpy()
    assert ours.dtype == "bf16" and ours.device == "cpu" and ours.__dlpack_device__() == (1, 0)
    assert ours.shape == wide.shape
    np.testing.assert_allclose(ours.numpy(), wide, rtol=2**-8)
    with pytest.raises(BufferError, match="not a copy"):
        ours.__dlpack__(copy=True)
    with pytest.raises(BufferError, match="stays on its device"):
        ours.__dlpack__(dl_device=(2, 0))
    torch = pytest.importorskip("torch", reason="torch is not installed")
    tensor = torch.from_dlpack(ours)
    assert tensor.dtype == torch.bfloat16
    np.testing.assert_array_equal(tensor.float().numpy(), ours.numpy())


def test_types_are_said():
    folder = pathlib.Path(_core.__file__).parent
    assert (folder / "py.typed").exists()
    stubs = ast.parse((folder / "_core.pyi").read_text())  # a stub that is no Python tells a type checker nothing
    said = {node.name for node in stubs.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    missing = {name for name in dir(_core) if not name.startswith("_") and callable(getattr(_core, name))} - said
    assert not missing
    shown = ast.parse((folder / "__init__.pyi").read_text()).body
    names = {alias.asname for node in shown if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert names | {"__version__"} == set(ssm_cpp.__all__)
