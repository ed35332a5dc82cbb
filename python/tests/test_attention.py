"""Models with attention in the package: what the goldens say, through the same interface as every other model."""

import json

import numpy as np
import pytest

import ssm_cpp
from conftest import ROOT

MODELS = ROOT / "tests" / "goldens" / "models"
NAMES = ["neox-default", "neox-serial", "hybrid-attn", "hybrid-mlp"]


def golden(name):
    data = (MODELS / name / "golden.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    kinds = {"F32": np.float32, "I64": np.int64}
    return {
        name: np.frombuffer(body[slice(*t["data_offsets"])], kinds[t["dtype"]]).reshape(t["shape"])
        for name, t in header.items()
        if name != "__metadata__"
    }


@pytest.fixture(params=NAMES)
def case(request):
    model = ssm_cpp.AutoModelForCausalLM.from_pretrained(MODELS / request.param, dtype="float32")
    return model, golden(request.param)


def test_logits_and_greedy_tokens(case):
    model, expected = case
    ids = expected["tokens"][None]
    np.testing.assert_allclose(model(ids).logits[0], expected["logits"], atol=2e-3, rtol=1e-3)
    text = model.generate(ids, max_new_tokens=24, do_sample=False, eos_token_id=[])
    assert text[0, ids.shape[1] :].tolist() == expected["greedy"].tolist()


def test_a_cache_goes_on_and_is_copied(case):
    model, expected = case
    ids = expected["tokens"][None]
    whole = model(ids).logits
    first = model(ids[:, :20], use_cache=True)
    copies = first.cache_params.select([0, 0])
    rest = model(np.repeat(ids[:, 20:], 2, axis=0), cache_params=copies, use_cache=True).logits
    for row in rest:
        np.testing.assert_allclose(row, whole[0, 20:], atol=1e-3, rtol=1e-3)
    again = model(ids[:, 20:], cache_params=first.cache_params, use_cache=True).logits
    np.testing.assert_allclose(again, whole[:, 20:], atol=1e-3, rtol=1e-3)


def test_a_config_makes_a_model():
    config = ssm_cpp.GPTNeoXConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    model = ssm_cpp.GPTNeoXForCausalLM(config, seed=2)
    assert model(np.zeros((2, 3), np.int32)).logits.shape == (2, 3, 40)
    with pytest.raises(ValueError, match="3 heads"):
        ssm_cpp.GPTNeoXConfig(hidden_size=16, num_attention_heads=3)
