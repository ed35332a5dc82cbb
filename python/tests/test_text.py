"""The bundled model, its tokenizer, streamers and the pipeline."""

import pathlib
import threading

import numpy as np
import pytest

import ssm_cpp
from conftest import BUNDLED


@pytest.fixture
def tokenizer():
    return ssm_cpp.AutoTokenizer.from_pretrained(BUNDLED)


def test_call(tokenizer):
    one = tokenizer("Once upon a time")
    assert one["input_ids"] == tokenizer.encode("Once upon a time") and set(one.attention_mask) == {1}
    array = tokenizer("Once upon a time", return_tensors="np").to("cpu")["input_ids"]
    assert array.shape == (1, len(one["input_ids"])) and array.dtype == np.int64
    two = ["Once", "Once upon a time"]
    with pytest.raises(ValueError, match="padding=True"):
        tokenizer(two, return_tensors="np")
    with pytest.raises(ValueError, match="pad token"):
        tokenizer(two, padding=True)
    tokenizer.pad_token = tokenizer.eos_token
    for side in ("left", "right"):
        tokenizer.padding_side = side
        batch = tokenizer(two, padding=True, return_tensors="np")
        assert batch.input_ids.shape == batch.attention_mask.shape
        assert batch.attention_mask[0, 0 if side == "left" else -1] == 0
        assert batch.attention_mask.sum(1).tolist() == [len(tokenizer.encode(t)) for t in two]
    assert len(tokenizer(two[1], truncation=True, max_length=2)["input_ids"]) == 2


def test_decode(tokenizer):
    text = "Ünïcödé, 你好 and a 🙂"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    ended = [*ids, tokenizer.eos_token_id]
    assert tokenizer.decode(ended) == text + tokenizer.eos_token
    assert tokenizer.decode(ended, skip_special_tokens=True) == text
    assert tokenizer.batch_decode(np.array([ids, ids])) == [text, text]
    assert tokenizer.convert_tokens_to_ids(tokenizer.eos_token) == tokenizer.eos_token_id
    assert len(tokenizer) == tokenizer.vocab_size


def test_streams(bundled, tokenizer):
    ids = tokenizer("Once upon a time", return_tensors="np")["input_ids"]
    wanted = tokenizer.decode(bundled.generate(ids, max_new_tokens=24)[0])
    streamer = ssm_cpp.TextIteratorStreamer(tokenizer, timeout=60)
    work = threading.Thread(target=bundled.generate, args=(ids,), kwargs={"max_new_tokens": 24, "streamer": streamer})
    work.start()
    assert "".join(streamer) == wanted
    work.join()


def test_stop_strings(bundled, tokenizer):
    ids = tokenizer("Once upon a time", return_tensors="np")["input_ids"]
    out = bundled.generate(ids, max_new_tokens=60, stop_strings=["the"], return_dict_in_generate=True)
    assert out.stop_reasons == ["stop"] and "the" not in out.texts[0]


def test_pipeline(bundled):
    generate = ssm_cpp.pipeline(task="text-generation", model=str(BUNDLED), dtype="auto")
    one = generate("Plants create energy through", max_new_tokens=5)
    assert one[0]["generated_text"].startswith("Plants create energy through")
    pipe = ssm_cpp.TextGenerationPipeline(bundled, bundled.tokenizer())
    two = pipe(["Once upon a time", "He"], max_new_tokens=5)
    alone = pipe("He", max_new_tokens=5)
    assert two[1] == alone and len(two) == 2


def test_the_bundled_model_is_known_by_name():
    if not (pathlib.Path(ssm_cpp.__file__).parent / "models").is_dir():
        pytest.skip("not installed: the source tree has no models beside the package")
    model = ssm_cpp.AutoModelForCausalLM.from_pretrained()
    assert model.config.model_type == "mamba2"


def test_weights_are_packed_while_they_are_read(bundled, tokenizer):
    class Int4WeightOnlyConfig:  # torchao's, by name
        group_size = 64

    ids = tokenizer("Once upon a time there was a king", return_tensors="np")["input_ids"]
    wanted = bundled(ids).logits
    for config, most in (("q8_0", 0.05), ("int8", 0.05), (Int4WeightOnlyConfig(), 0.5)):
        packed = ssm_cpp.AutoModelForCausalLM.from_pretrained(BUNDLED, dtype="float32", quantization_config=config)
        error = np.abs(packed(ids).logits - wanted).mean()
        assert 0 < error < most * wanted.std()
    with pytest.raises(ValueError, match="quantization q3_z"):
        ssm_cpp.AutoModelForCausalLM.from_pretrained(BUNDLED, quantization_config="q3_z")
