"""What Transformers' own Mamba tests ask of a model, without Transformers: shapes, caches, padding, losses."""

import json
import subprocess
import sys

import numpy as np
import pytest

import ssm_cpp
from ssm_cpp import _core


def ids_of(random, *shape):
    return random.integers(1, 100, shape)


def test_import_is_quick_and_light():
    code = "import sys, time; t = time.perf_counter(); import ssm_cpp; t = time.perf_counter() - t; "
    code += "print(t, 'torch' in sys.modules, 'transformers' in sys.modules)"
    best = 1e9
    for _ in range(3):
        seconds, *heavy = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split()
        assert heavy == ["False", "False"]
        best = min(best, float(seconds))
    assert best < 0.2


def test_shapes_and_fields(model, random):
    ids = ids_of(random, 2, 7)
    out = model(ids, output_hidden_states=True)
    assert out.logits.shape == (2, 7, 100) and out.logits.dtype == np.float32
    assert len(out.hidden_states) == 3 + 1 and all(h.shape == (2, 7, 32) for h in out.hidden_states)
    assert out.loss is None and out["logits"] is out.logits and out[0] is out.logits
    logits = model(ids, return_dict=False)[0]
    np.testing.assert_array_equal(logits, out.logits)
    assert model(ids, use_cache=False).cache_params is None
    np.testing.assert_array_equal(model(ids, logits_to_keep=1).logits, out.logits[:, -1:])


def test_cached_is_whole(model, random):
    ids = ids_of(random, 2, 40)
    whole = model(ids).logits
    first = model(ids[:, :23])
    rest = model(ids[:, 23:], cache_params=first.cache_params).logits
    np.testing.assert_allclose(np.concatenate([first.logits, rest], 1), whole, atol=2e-5, rtol=1e-5)
    cache, steps = model.new_cache(2), []
    for t in range(40):
        steps.append(model(ids[:, t : t + 1], cache_params=cache).logits)
    np.testing.assert_allclose(np.concatenate(steps, 1), whole, atol=2e-5, rtol=1e-5)
    assert cache.get_seq_length() == 40


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(model, random, side):
    rows = [ids_of(random, n) for n in (9, 4, 12)]
    ids, mask = np.zeros((3, 12), int), np.zeros((3, 12), int)
    for i, row in enumerate(rows):
        at = slice(12 - len(row), 12) if side == "left" else slice(0, len(row))
        ids[i, at], mask[i, at] = row, 1
    logits = model(ids, attention_mask=mask).logits
    for i, row in enumerate(rows):
        alone = model(row[None]).logits[0]
        np.testing.assert_array_equal(logits[i][mask[i] == 1], alone)
        assert not logits[i][mask[i] == 0].any()
    out = model.generate(ids, attention_mask=mask, max_new_tokens=6, eos_token_id=[])
    for i, row in enumerate(rows):
        alone = model.generate(row[None], max_new_tokens=6, eos_token_id=[])
        np.testing.assert_array_equal(out[i, 12:], alone[0, len(row) :])


def test_a_mask_with_a_hole_is_refused(model):
    with pytest.raises(ValueError, match="stand together"):
        model(np.ones((1, 4), int), attention_mask=[[1, 0, 1, 1]])


def test_loss_is_shifted(model, random):
    ids = ids_of(random, 2, 11)
    labels = ids.copy()
    labels[0, :5] = -100
    out = model(ids, labels=labels)
    x = out.logits[:, :-1].astype(np.float64)
    logp = x - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)) - x.max(-1, keepdims=True)
    wanted = labels[:, 1:]
    picked = np.take_along_axis(logp, np.maximum(wanted, 0)[..., None], -1)[..., 0]
    assert out.loss == pytest.approx(-picked[wanted != -100].mean(), rel=1e-5)
    scores = model.token_logprobs([ids[0], ids[1, :4]])
    assert np.isnan(scores[0][0]) and scores[1].shape == (4,)
    whole = np.take_along_axis(logp, ids[:, 1:, None], -1)[..., 0]
    np.testing.assert_allclose(scores[0][1:], whole[0], atol=1e-5)
    np.testing.assert_allclose(scores[1][1:], whole[1, :3], atol=1e-5)


def test_embeddings_take_the_place_of_ids(model, random):
    ids = ids_of(random, 2, 9)
    embeds = model.get_input_embeddings()(ids)
    assert embeds.shape == (2, 9, 32)
    before = embeds.copy()
    np.testing.assert_array_equal(model(inputs_embeds=embeds).logits, model(ids).logits)
    np.testing.assert_array_equal(embeds, before)
    with pytest.raises(ValueError, match="exactly one"):
        model(ids, inputs_embeds=embeds)
    with pytest.raises(ValueError, match="exactly one"):
        model()


def test_cache_get_update_reset_clone(model, random):
    ids = ids_of(random, 2, 8)
    cache = model(ids).cache_params
    copy = cache.clone()
    after = model(ids[:, :3], cache_params=cache).logits
    np.testing.assert_array_equal(model(ids[:, :3], cache_params=copy).logits, after)
    cache.reset()
    assert all(not x.any() for x in cache.ssm_states + cache.conv_states) and cache.get_seq_length() == 0
    np.testing.assert_array_equal(model(ids, cache_params=cache).logits, model(ids).logits)
    other = model.new_cache(2)
    for layer in range(len(other)):
        conv, ssm = cache.get(layer)
        assert conv.shape[:1] == (2,) and conv.shape[-1] == 3
        other.update_conv_state(layer, conv)
        other.update_ssm_state(layer, ssm)
    fork = other.select([1, 0, 1])
    a = model(ids[:, :2], cache_params=other).logits
    np.testing.assert_array_equal(model(ids[[1, 0, 1], :2], cache_params=fork).logits, a[[1, 0, 1]])


def test_generation(model, random):
    ids = ids_of(random, 2, 5)
    greedy = model.generate(ids, max_new_tokens=8, eos_token_id=[])
    assert greedy.shape == (2, 13) and (greedy[:, :5] == ids).all()
    np.testing.assert_array_equal(model.generate(input_ids=ids, max_length=13, eos_token_id=[]), greedy)
    logits = model(greedy).logits
    np.testing.assert_array_equal(logits[:, 4:-1].argmax(-1), greedy[:, 5:])
    options = {"do_sample": True, "temperature": 0.8, "top_k": 0, "top_p": 0.9, "max_new_tokens": 8, "seed": 11}
    drawn = model.generate(ids, **options)
    np.testing.assert_array_equal(model.generate(ids, **options), drawn)
    assert (model.generate(ids, **{**options, "seed": 12}) != drawn).any()
    assert model.generate(ids, num_return_sequences=3, **options).shape[0] == 6
    end = int(greedy[0, 7])
    stopped = model.generate(ids[:1], max_new_tokens=8, eos_token_id=end, return_dict_in_generate=True)
    assert stopped.stop_reasons == ["eos"] and stopped.sequences[0, -1] == end
    with pytest.raises(TypeError, match="unknown argument beams"):
        model.generate(ids, beams=4)
    with pytest.raises(ValueError, match="num_beams=4 is not supported"):
        model.generate(ids, num_beams=4)
    np.testing.assert_array_equal(model.generate(ids, num_beams=1, max_new_tokens=8, eos_token_id=[]), greedy)


def test_loglikelihoods_share_a_prefix(model, random):
    context, endings = ids_of(random, 9), [ids_of(random, n) for n in (1, 4, 2)]
    shared = model.loglikelihoods(context, endings)
    for ending, (value, greedy) in zip(endings, shared, strict=True):
        whole = model.token_logprobs([np.concatenate([context, ending])])[0]
        assert value == pytest.approx(whole[len(context) :].sum(), abs=1e-4)
        best = model(np.concatenate([context, ending])[None]).logits[0, len(context) - 1 : -1].argmax(-1)
        assert greedy == bool((best == ending).all())


def test_saved_is_loaded(model, random, tmp_path):
    ids = ids_of(random, 1, 6)
    model.save_pretrained(tmp_path / "m")
    again = ssm_cpp.AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert type(again) is type(model) and again.num_parameters() == model.num_parameters()
    np.testing.assert_array_equal(again(ids).logits, model(ids).logits)
    config = ssm_cpp.AutoConfig.from_pretrained(tmp_path / "m")
    assert type(config) is type(model.config) and config.hidden_size == 32
    backbone = ssm_cpp.AutoModel.from_pretrained(tmp_path / "m")
    hidden = backbone(ids).last_hidden_state
    np.testing.assert_array_equal(hidden, model(ids, output_hidden_states=True).hidden_states[-1])


def test_errors_are_exceptions_with_the_text(model, tmp_path):
    with pytest.raises(ssm_cpp.Error, match="nobody/nothing: no such folder"):
        ssm_cpp.MambaForCausalLM.from_pretrained("nobody/nothing")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["Llama"]}))
    with pytest.raises(ssm_cpp.Error, match="config.json"):
        ssm_cpp.AutoModelForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(ssm_cpp.Error, match="outside the vocabulary"):
        model.generate([[5, 1000]])
    with pytest.raises(ValueError, match="sequences for a batch"):
        model([[1, 2]], cache_params=model.new_cache(3))
    assert issubclass(ssm_cpp.Error, ValueError)


def test_config_classes_have_every_field():
    config = ssm_cpp.MambaConfig(hidden_size=64)
    assert (config.intermediate_size, config.time_step_rank) == (128, 4)
    assert (config.state_size, config.vocab_size) == (16, 50280)
    again = ssm_cpp.MambaConfig.from_dict(json.loads(config.to_json_string()))
    assert again == config
    with pytest.raises(ValueError, match="must be equal"):
        ssm_cpp.Mamba2Config(hidden_size=100)
    assert ssm_cpp.Mamba2Config().time_step_limit == (0.0, float("inf"))


def test_mamba_ssm_interface(random, tmp_path):
    ssm_cpp.MambaForCausalLM(ssm_cpp.MambaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2)).save_pretrained(
        tmp_path
    )
    model = ssm_cpp.MambaLMHeadModel.from_pretrained(str(tmp_path), device="cpu", dtype="float32")
    ids = random.integers(0, 50, (2, 4))
    out = model.generate(input_ids=ids, max_length=9, cg=True, return_dict_in_generate=True, enable_timing=False)
    assert out.sequences.shape == (2, 9)
    drawn = model.generate(ids, max_length=9, top_k=0, top_p=0.9, temperature=0.7, repetition_penalty=1.2, seed=1)
    assert drawn.shape == (2, 9)
    assert model(ids, num_last_tokens=1).logits.shape == (2, 1, 50)


def test_parameters_are_the_memory_itself(kind):
    from conftest import CONFIGS

    model = ssm_cpp.AutoModelForCausalLM.from_config(CONFIGS[kind]())
    a, b = (model.state_dict()["backbone.layers.0.mixer.in_proj.weight"] for _ in range(2))
    assert a.ctypes.data == b.ctypes.data


def test_ctrl_c_stops(tmp_path):
    code = (
        "import os, signal, threading, ssm_cpp\n"
        "c = ssm_cpp.MambaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2)\n"
        "m = ssm_cpp.MambaForCausalLM(c)\n"
        "threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()\n"
        "try:\n"
        "    m.generate([[1, 2]], max_new_tokens=10**9, eos_token_id=[])\n"
        "except KeyboardInterrupt:\n"
        "    print('stopped')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "stopped\n", done.stderr


def test_work_is_done_without_the_lock(model):
    import threading

    ticks, going = 0, True

    def tick():
        nonlocal ticks
        while going:
            ticks += 1

    thread = threading.Thread(target=tick)
    thread.start()
    hidden = np.zeros((200, 32), np.float32)
    for _ in range(20):
        _core.Model.logits(model._core, hidden)
    model([[1] * 3000])
    going = False
    thread.join()
    assert ticks > 100
