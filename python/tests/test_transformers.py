"""Against Transformers itself, on tiny random models: logits, hidden states, losses, padding, generation; and the
code of its documentation with the import line changed."""

import numpy as np
import pytest

import ssm_cpp
from conftest import SMALL

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")


def config_of(kind):
    if kind == "mamba":
        return transformers.MambaConfig(**SMALL)
    if kind == "falcon_mamba":
        return transformers.FalconMambaConfig(**SMALL, tie_word_embeddings=False)
    return transformers.Mamba2Config(**SMALL, num_heads=4, head_dim=16, n_groups=1, chunk_size=16)


@pytest.fixture
def pair(kind, tmp_path):
    torch.manual_seed(4)
    theirs = transformers.AutoModelForCausalLM.from_config(config_of(kind)).eval()
    theirs.save_pretrained(tmp_path)
    return theirs, ssm_cpp.AutoModelForCausalLM.from_pretrained(tmp_path)


def test_forward(pair):
    theirs, ours = pair
    ids = torch.randint(1, 100, (2, 33))
    labels = ids.clone()
    labels[1, :9] = -100
    with torch.no_grad():
        a = theirs(ids, labels=labels, output_hidden_states=True)
    b = ours(ids, labels=labels, output_hidden_states=True)
    assert isinstance(b.logits, torch.Tensor)
    torch.testing.assert_close(b.logits, a.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(b.loss, a.loss, atol=1e-5, rtol=1e-5)
    assert len(a.hidden_states) == len(b.hidden_states)
    for x, y in zip(a.hidden_states, b.hidden_states, strict=True):
        torch.testing.assert_close(y, x, atol=1e-4, rtol=1e-4)
    embeds = theirs.get_input_embeddings()(ids).detach()
    torch.testing.assert_close(ours(inputs_embeds=embeds).logits, a.logits, atol=1e-4, rtol=1e-4)


def test_gradients(pair):
    theirs, ours = pair
    ids = torch.randint(1, 100, (2, 33))
    labels = ids.clone()
    labels[1, :9] = -100
    out = theirs(ids, labels=labels)
    out.loss.backward()
    loss, gradients = ours.loss_and_gradients(ids, labels=labels)
    assert loss == pytest.approx(out.loss.item(), rel=1e-5)
    wanted = {name: p.grad for name, p in theirs.named_parameters()}
    assert set(gradients) == set(wanted)
    for name, gradient in gradients.items():
        error = (gradient - wanted[name]).norm() / wanted[name].norm()
        assert error < 1e-3, f"{name}: {error}"


def test_padding_and_generation(pair):
    theirs, ours = pair
    ids, mask = torch.randint(1, 100, (3, 8)), torch.ones(3, 8, dtype=torch.long)
    mask[0, :3], ids[0, :3] = 0, 0
    with torch.no_grad():
        a = theirs(ids, attention_mask=mask).logits
    b = ours(ids, attention_mask=mask).logits
    torch.testing.assert_close(b[mask == 1], a[mask == 1], atol=1e-4, rtol=1e-4)
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": 99, "pad_token_id": 0}
    torch.testing.assert_close(
        ours.generate(ids, attention_mask=mask, **options), theirs.generate(ids, attention_mask=mask, **options)
    )


def test_config_fields(kind):
    theirs, ours = config_of(kind).to_dict(), None
    ours = ssm_cpp.AutoConfig.from_dict(theirs).to_dict()
    for name in ("hidden_size", "state_size", "time_step_rank", "expand", "conv_kernel", "layer_norm_epsilon"):
        assert ours[name] == theirs[name]
    defaults = getattr(ssm_cpp, type(config_of(kind)).__name__)().to_dict()
    known = {k for k in getattr(transformers, type(config_of(kind)).__name__)().__dataclass_fields__ if k[0] != "_"}
    inherited = set(transformers.PretrainedConfig().__dataclass_fields__)
    assert sorted(known - inherited - set(defaults)) == []


def test_saved_is_theirs(model, tmp_path):
    model.save_pretrained(tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.randint(1, 100, (1, 20))
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, theirs(ids).logits, atol=1e-4, rtol=1e-4)


def test_documented_code(pair, tmp_path):
    from conftest import BUNDLED
    from ssm_cpp import AutoModelForCausalLM, AutoTokenizer, pipeline

    tokenizer = AutoTokenizer.from_pretrained(str(BUNDLED))
    model = AutoModelForCausalLM.from_pretrained(str(BUNDLED), dtype=torch.float32, device_map="cpu")
    input_ids = tokenizer("Hey how are you doing?", return_tensors="pt")["input_ids"]
    out = model.generate(input_ids, max_new_tokens=10)
    assert isinstance(out, torch.Tensor) and len(tokenizer.batch_decode(out)) == 1
    inputs = tokenizer("Plants create energy through a process known as", return_tensors="pt").to(model.device)
    output = model.generate(**inputs)
    assert tokenizer.decode(output[0], skip_special_tokens=True).startswith("Plants create energy")
    output = model.generate(**inputs, max_length=50)
    assert output.shape[1] <= 50
    generator = pipeline(task="text-generation", model=str(BUNDLED), dtype="auto")
    assert generator("Plants create energy through a process known as photosynthesis.")
    theirs = transformers.AutoTokenizer.from_pretrained(str(BUNDLED))
    text = "Hey how are you doing? 你好"
    assert tokenizer(text)["input_ids"] == theirs(text)["input_ids"]
    theirs.pad_token = tokenizer.pad_token = tokenizer.eos_token
    theirs.padding_side = tokenizer.padding_side = "left"
    a, b = (t([text, "Hey"], padding=True, return_tensors="np") for t in (theirs, tokenizer))
    np.testing.assert_array_equal(a["input_ids"], b["input_ids"])
    np.testing.assert_array_equal(a["attention_mask"], b["attention_mask"])
