"""Arguments are heard or refused, none is taken and dropped; and generation that goes on from a cache."""

import numpy as np
import pytest

import ssm_cpp
from conftest import BUNDLED, CONFIGS


def ids_of(random, *shape):
    return random.integers(1, 100, shape)


@pytest.mark.parametrize("sampled", [False, True])
def test_generate_goes_on_from_a_cache(model, random, sampled):
    ids = ids_of(random, 3, 20)
    options = {"max_new_tokens": 9, "eos_token_id": []}
    if sampled:
        options.update(do_sample=True, temperature=0.9, top_k=0, seed=7)
    whole = model.generate(ids, **options)
    cache = model(ids[:, :13]).cache_params
    before = cache.clone()
    rest = model.generate(ids[:, 13:], cache_params=cache, **options)
    np.testing.assert_array_equal(rest, whole[:, 13:])
    for a, b in zip(cache.ssm_states + cache.conv_states, before.ssm_states + before.conv_states, strict=True):
        np.testing.assert_array_equal(a, b)  # the cache stays as it was
    again = model.generate(ids[:, 13:], cache_params=cache, **options)
    np.testing.assert_array_equal(again, rest)


def test_the_result_has_a_cache_to_go_on_from(model, random):
    ids, more = ids_of(random, 2, 8), ids_of(random, 2, 4)
    options = {"eos_token_id": [], "return_dict_in_generate": True}
    first = model.generate(ids, max_new_tokens=6, **options)
    assert first.cache_params.get_seq_length() == 8 + 6 - 1
    prompt = np.concatenate([first.sequences[:, -1:], more], 1)
    second = model.generate(prompt, cache_params=first.cache_params, max_new_tokens=5, **options)
    whole = model.generate(np.concatenate([first.sequences, more], 1), max_new_tokens=5, eos_token_id=[])
    np.testing.assert_array_equal(second.sequences[:, 5:], whole[:, -5:])
    logits = model(first.sequences[:, -1:], cache_params=first.cache_params).logits[:, -1]
    np.testing.assert_allclose(logits, model(first.sequences).logits[:, -1], atol=2e-5, rtol=1e-5)


def test_caches_fork_and_fit(model, random):
    ids = ids_of(random, 2, 10)
    cache = model(ids[:, :6]).cache_params
    options = {"max_new_tokens": 4, "eos_token_id": []}
    twice = model.generate(ids[:, 6:], cache_params=cache, num_return_sequences=2, **options)
    once = model.generate(ids[:, 6:], cache_params=cache, **options)
    np.testing.assert_array_equal(twice, once[[0, 0, 1, 1]])
    with pytest.raises(ValueError, match="a cache of 2 sequences for a batch of 1"):
        model.generate(ids[:1], cache_params=cache)
    other = ssm_cpp.AutoModelForCausalLM.from_config(model.config, seed=9)
    with pytest.raises(ssm_cpp.Error, match="another model"):
        other.generate(ids, cache_params=cache)


def test_what_is_not_known_is_refused(model, random, tmp_path):
    ids = ids_of(random, 1, 4)
    for call, argument in (
        (model, "head_mask"),
        (model.generate, "beams"),
        (model.save_pretrained, "shard"),
        (ssm_cpp.AutoModelForCausalLM.from_pretrained, "quantisation"),
        (ssm_cpp.AutoTokenizer.from_pretrained, "pad_tokens"),
    ):
        with pytest.raises(TypeError, match=f"unknown argument {argument}"):
            call(*([ids] if call in (model, model.generate) else [tmp_path]), **{argument: 1})
    for call, options in (
        (model, {"output_attentions": True}),
        (model.generate, {"output_scores": True}),
        (model.generate, {"num_beams": 2}),
        (model.save_pretrained, {"safe_serialization": False}),
        (ssm_cpp.AutoModelForCausalLM.from_pretrained, {"load_in_8bit": True}),
    ):
        with pytest.raises(ValueError, match="is not supported"):
            call(*([ids] if call in (model, model.generate) else [tmp_path]), **options)
    with pytest.raises(ValueError, match="inputs_embeds is not supported"):
        model.generate(inputs_embeds=np.zeros((1, 2, 32)))
    with pytest.raises(ValueError, match="once"):
        model.generate(ids, input_ids=ids)
    tokenizer = ssm_cpp.AutoTokenizer.from_pretrained(BUNDLED)
    with pytest.raises(ValueError, match="text_pair"):
        tokenizer("a", text_pair="b")
    with pytest.raises(TypeError, match="unknown argument trunkate"):
        tokenizer("a", trunkate=True)


def test_what_has_no_effect_is_said(model, bundled):
    with pytest.warns(UserWarning, match="temperature has no effect without do_sample"):
        model.generate([[1, 2]], temperature=0.5, max_new_tokens=1)
    with pytest.raises(TypeError, match="dtype is for a model that is named"):
        ssm_cpp.pipeline(model=bundled, dtype="float16")


def test_a_model_stays_where_it_is(model):
    assert model.to("cpu").to(device="cpu").to(model.dtype) is model
    with pytest.raises(ValueError, match="from_pretrained"):
        model.to("cuda")
    with pytest.raises(ValueError, match="from_pretrained"):
        model.to("float16")


def test_config_arguments(kind, tmp_path, random):
    config = CONFIGS[kind]()
    model = ssm_cpp.AutoModelForCausalLM.from_config(config, seed=1)
    model.save_pretrained(tmp_path)
    ids = ids_of(random, 1, 5)
    loud = ssm_cpp.AutoModelForCausalLM.from_pretrained(tmp_path, output_hidden_states=True, use_cache=False)
    out = loud(ids)
    assert out.hidden_states is not None and out.cache_params is None
    given = CONFIGS[kind]()
    given.use_cache = False
    same = ssm_cpp.AutoModelForCausalLM.from_pretrained(tmp_path, config=given)
    assert same(ids).cache_params is None
    given.num_hidden_layers = 2
    with pytest.raises(ValueError, match="num_hidden_layers is 2, the model's 3"):
        ssm_cpp.AutoModelForCausalLM.from_pretrained(tmp_path, config=given)
    with pytest.raises(ValueError, match="hidden_act"):
        ssm_cpp.AutoModelForCausalLM.from_config(type(config).from_dict({**config.to_dict(), "hidden_act": "relu"}))


def test_loss_over_a_given_number(model, random):
    ids = ids_of(random, 2, 9)
    mean = model(ids, labels=ids).loss
    assert model(ids, labels=ids, num_items_in_batch=32).loss == pytest.approx(mean * 16 / 32, rel=1e-6)


def test_gradients_are_those_of_the_loss(model, random):
    ids, mask = ids_of(random, 2, 9), np.ones((2, 9), int)
    mask[0, :3] = 0
    labels = np.where(random.random(ids.shape) < 0.2, -100, ids)
    before = {name: value.copy() for name, value in model.state_dict().items()}
    loss, gradients = model.loss_and_gradients(ids, mask, labels)
    assert loss == pytest.approx(model(ids, attention_mask=mask, labels=labels).loss, rel=1e-5)
    values = model.state_dict()
    assert set(gradients) == set(values)
    size = np.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in gradients.values()))
    for name, value in values.items():
        np.testing.assert_array_equal(value, before[name])
        value -= np.float32(1e-2 / size) * gradients[name]  # the model's memory itself: a step downhill
    after, _ = model.loss_and_gradients(ids, mask, labels)
    assert loss - after == pytest.approx(1e-2 * size, rel=0.1)


def test_tokenizers_are_saved_with_what_was_changed(tmp_path):
    tokenizer = ssm_cpp.AutoTokenizer.from_pretrained(BUNDLED, padding_side="left", legacy=False, from_slow=True)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(tmp_path)
    again = ssm_cpp.AutoTokenizer.from_pretrained(tmp_path)
    assert again.padding_side == "left" and again.pad_token == tokenizer.eos_token
    assert again("Once upon a time") == tokenizer("Once upon a time")
    rows = tokenizer(["Once", "Once upon a time"], padding=True, pad_to_multiple_of=8, return_tensors="np")
    assert rows.input_ids.shape[1] % 8 == 0
    unequal = [tokenizer("Once"), tokenizer("Once upon a time")]
    assert tokenizer.pad(unequal, return_tensors="np").attention_mask.sum() == sum(len(r.input_ids) for r in unequal)
    assert tokenizer.pad(unequal, padding="max_length", max_length=12, return_tensors="np").input_ids.shape == (2, 12)
