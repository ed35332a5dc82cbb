"""Fine-tuning from Python: the seeds' recipes, callbacks, logs, resuming, full training, and adapters that PEFT reads
and writes."""

import importlib.util
import json
import signal

import numpy as np
import pytest

import ssm_cpp
from conftest import BUNDLED
from ssm_cpp import AutoModelForCausalLM, AutoTokenizer, LoraConfig, SFTConfig, SFTTrainer, TrainerCallback

QUOTES = [
    {"quote": "Be yourself; everyone else is already taken.", "author": "A"},
    {"quote": "So many books, so little time.", "author": "B"},
    {"quote": "A room without books is like a body without a soul.", "author": "C"},
    {"quote": "You only live once, but if you do it right, once is enough.", "author": "D"},
] * 4
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "vocab_size": 6144}


@pytest.fixture
def folder(kind, tmp_path):
    """A tiny model with the bundled tokenizer."""
    config = {
        "mamba": lambda: ssm_cpp.MambaConfig(**SMALL),
        "mamba2": lambda: ssm_cpp.Mamba2Config(**SMALL, num_heads=4, head_dim=16, n_groups=1, tie_word_embeddings=True),
        "falcon_mamba": lambda: ssm_cpp.FalconMambaConfig(**SMALL, tie_word_embeddings=False),
    }[kind]()
    target = tmp_path / "model"
    AutoModelForCausalLM.from_config(config, seed=1).save_pretrained(target)
    AutoTokenizer.from_pretrained(BUNDLED).save_pretrained(target)
    return str(target)


def arguments(tmp_path, **more):
    fields = {"output_dir": str(tmp_path / "out"), "num_train_epochs": 3, "per_device_train_batch_size": 4}
    fields |= {"learning_rate": 2e-2, "logging_steps": 2, "dataset_text_field": "quote", "use_cpu": True}
    return SFTConfig(**{**fields, **more})


TARGETS = {"mamba2": ["embeddings", "in_proj", "out_proj"]}


def lora(kind, **more):
    return LoraConfig(r=4, target_modules=TARGETS.get(kind, ["x_proj", "embeddings", "in_proj", "out_proj"]), **more)


def test_lora(folder, kind, tmp_path):
    seen = []

    class Watcher(TrainerCallback):
        def on_train_begin(self, args, state, control, **_):
            seen.append("begin")

        def on_log(self, args, state, control, logs=None, **_):
            seen.append(logs)

        def on_evaluate(self, args, state, control, metrics=None, **_):
            seen.append(metrics["eval_loss"])

        def on_train_end(self, args, state, control, **_):
            seen.append("end")

    trainer = SFTTrainer(
        model=folder,
        args=arguments(tmp_path, eval_strategy="epoch"),
        train_dataset=QUOTES,
        eval_dataset=QUOTES[:4],
        peft_config=lora(kind),
        callbacks=[Watcher],
    )
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert trainer.num_trainable_parameters < model.num_parameters() / 2
    first = trainer.evaluate()["eval_loss"]
    output = trainer.train()
    assert output.global_step == 12 and output.metrics["eval_loss"] < first - 0.5
    assert seen[1] == "begin" or seen[2] == "begin"
    assert seen[-1] == "end" and sum(isinstance(s, float) for s in seen) == 4
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 6 and losses[-1] < losses[0]
    assert [e["epoch"] for e in trainer.state.log_history if "loss" in e] == [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
    out = tmp_path / "out"
    assert (out / "report.html").is_file() and list((out / "events").iterdir())
    # The trained model runs at once, and is the one that the adapter makes of its base.
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("So many books", return_tensors="np")["input_ids"]
    adapted = AutoModelForCausalLM.from_pretrained(folder, adapter=str(out))
    np.testing.assert_allclose(trainer.model(ids).logits, adapted(ids).logits, atol=1e-5)
    np.testing.assert_array_equal(trainer.model.generate(ids), adapted.generate(ids))
    assert np.abs(adapted(ids).logits - model(ids).logits).max() > 0.1
    trainer.save_model(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(folder, adapter=str(tmp_path / "again"))
    np.testing.assert_array_equal(again(ids).logits, adapted(ids).logits)
    with pytest.raises(ssm_cpp.Error, match="has an adapter"):
        trainer.model.save_pretrained(tmp_path / "whole")
    with pytest.raises(ValueError, match="holds a run already"):
        trainer.train()


def test_the_whole_model(folder, tmp_path):
    trainer = SFTTrainer(folder, args=arguments(tmp_path, learning_rate=5e-3), train_dataset=QUOTES)
    before = AutoModelForCausalLM.from_pretrained(folder)
    assert trainer.num_trainable_parameters == before.num_parameters()
    result = trainer.train()
    ids = trainer.model.tokenizer()("So many books", return_tensors="np")["input_ids"]
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    np.testing.assert_allclose(after(ids).logits, trainer.model(ids).logits, atol=1e-5)
    assert after(ids, labels=ids).loss < before(ids, labels=ids).loss - 0.5
    assert result.training_loss == pytest.approx(result.metrics["train_loss"])


def test_kinds_of_data(bundled, tmp_path):
    rows = {
        "text": [{"text": q["quote"]} for q in QUOTES],
        "strings": [q["quote"] for q in QUOTES],
        "pairs": [{"prompt": "Say something wise:", "completion": " " + q["quote"]} for q in QUOTES],
        "file": str(tmp_path / "quotes.csv"),
        "rows": QUOTES,
    }
    (tmp_path / "quotes.csv").write_text("quote,author\n" + "".join(f'"{q["quote"]}",x\n' for q in QUOTES))
    for name, data in rows.items():
        model = AutoModelForCausalLM.from_pretrained(BUNDLED, dtype="float32")
        args = SFTConfig(str(tmp_path / name), max_steps=1, packing=name == "text")
        field = {"dataset_text_field": "quote"} if name == "file" else {}
        form = {"formatting_func": lambda q: q["quote"]} if name == "rows" else {}
        assert SFTTrainer(model, args, data, peft_config=LoraConfig(), **field, **form).train().global_step == 1
    with pytest.raises(ValueError, match="quote, author: expected text"):
        SFTTrainer(bundled, SFTConfig(str(tmp_path / "x")), QUOTES)
    with pytest.raises(TypeError, match="learning_rat"):
        SFTConfig(learning_rat=1.0)
    with pytest.raises(ValueError, match="fp16=True is not supported"):
        SFTConfig(fp16=True)
    with pytest.raises(ssm_cpp.Error, match="LoraConfig: bias is some"):
        SFTTrainer(bundled, SFTConfig(str(tmp_path / "z")), ["a"], peft_config=LoraConfig(bias="some"))
    with pytest.raises(ssm_cpp.Error, match="x_proj"):
        SFTTrainer(bundled, SFTConfig(str(tmp_path / "y")), ["a"], peft_config=LoraConfig(target_modules=["x_proj"]))


def test_conversations(bundled, tmp_path):
    def run(name, rows, **more):
        model = AutoModelForCausalLM.from_pretrained(BUNDLED, dtype="float32")
        args = SFTConfig(str(tmp_path / name), max_steps=1, **more)
        trainer = SFTTrainer(model, args, rows, rows, peft_config=LoraConfig())
        return trainer, trainer.evaluate()["eval_loss"]

    said = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because the sea is wide."}]
    trainer, loss = run("own", [{"messages": said}] * 4)
    trainer.train()
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED)
    [(ids, targets)] = trainer._run.held_out()[:1]
    read = tokenizer.decode(ids)
    assert "Why?" in read and "Because" in read
    learned = tokenizer.decode(targets[targets >= 0])
    assert "Because the sea is wide." in learned and "Why?" not in learned
    # A named template, and a tokenizer's own.
    named, other = run("chatml", [{"messages": said}] * 4, chat_template_path="chatml")
    assert "<|im_start|>" in tokenizer.decode(named._run.held_out()[0][0]) and other != loss
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    model = AutoModelForCausalLM.from_pretrained(BUNDLED, dtype="float32")
    args = SFTConfig(str(tmp_path / "jinja"), max_steps=1)
    data = [{"messages": said}] * 4
    trainer = SFTTrainer(model, args, data, data, processing_class=tokenizer, peft_config=LoraConfig())
    assert "<user>Why?<assistant>Because" in tokenizer.decode(trainer._run.held_out()[0][0])
    with pytest.raises(ssm_cpp.Error, match="role"):
        run("bad", [{"messages": [{"role": 1}]}])


def test_metrics(folder, tmp_path):
    seen = []

    def accuracy(prediction):
        logits, labels = prediction
        assert logits.shape[:2] == labels.shape == prediction.label_ids.shape
        seen.append(labels)
        learned = labels[:, 1:] != -100
        scores = logits[:, :-1][learned].astype(np.float64)
        scores -= np.log(np.exp(scores).sum(-1, keepdims=True))
        found = np.take_along_axis(scores, labels[:, 1:][learned][:, None], 1)
        return {"nll": -found.mean(), "eval_right": (logits[:, :-1].argmax(-1) == labels[:, 1:])[learned].mean()}

    def trainer(name, **more):
        args = arguments(tmp_path, output_dir=str(tmp_path / name), eval_strategy="epoch", per_device_eval_batch_size=3)
        data = [{"quote": q["quote"] * (1 + i % 3)} for i, q in enumerate(QUOTES)]
        return SFTTrainer(folder, args, data, data[:7], peft_config=LoraConfig(), **more)

    whole = trainer("whole", compute_metrics=accuracy)
    before = whole.evaluate()
    assert before["eval_nll"] == pytest.approx(before["eval_loss"], abs=1e-5)
    assert seen[0].shape[0] == 7 and (seen[0][:, 0] == -100).all()
    output = whole.train()
    assert output.metrics["eval_nll"] == pytest.approx(output.metrics["eval_loss"], abs=1e-5)
    assert output.metrics["eval_right"] > before["eval_right"]
    logged = [entry for entry in whole.state.log_history if "eval_nll" in entry and "train_loss" not in entry]
    assert len(logged) == 4 and isinstance(logged[0]["eval_right"], float)

    def right(prediction):
        chosen, labels = prediction.predictions[:, :-1], prediction.label_ids[:, 1:]
        return {"right": (chosen == labels)[labels >= 0].mean()}

    best = trainer("best", compute_metrics=right, preprocess_logits_for_metrics=lambda logits, _: logits.argmax(-1))
    assert best.evaluate()["eval_right"] == pytest.approx(before["eval_right"])


@pytest.mark.parametrize("kind", ["mamba"])
def test_stopped_and_resumed(folder, kind, tmp_path):
    class Stop(TrainerCallback):
        def __init__(self, how):
            self.how = how

        def on_step_end(self, args, state, control, **_):
            if state.global_step == 5:
                if self.how == "control":
                    control.should_training_stop = True
                else:
                    signal.raise_signal(signal.SIGINT)

    def run(out, callbacks=(), resume=False):
        args = arguments(tmp_path, output_dir=str(tmp_path / out))
        trainer = SFTTrainer(folder, args, QUOTES, peft_config=lora(kind, lora_dropout=0.1), callbacks=callbacks)
        return trainer.train(resume_from_checkpoint=resume)

    run("whole")
    run("control", [Stop("control")])
    with pytest.raises(KeyboardInterrupt):
        run("signal", [Stop("signal")])
    wanted = (tmp_path / "whole/adapter_model.safetensors").read_bytes()
    for how in ("control", "signal"):
        assert not (tmp_path / how / "adapter_model.safetensors").exists()
        assert run(how, resume=True).global_step == 12
        assert (tmp_path / how / "adapter_model.safetensors").read_bytes() == wanted


def test_a_callback_that_fails_leaves_a_model_that_runs(folder, tmp_path):
    class Broken(TrainerCallback):
        def on_step_end(self, *_, **__):
            raise RuntimeError("from the callback")

    trainer = SFTTrainer(folder, arguments(tmp_path), QUOTES, peft_config=LoraConfig(), callbacks=[Broken()])
    with pytest.raises(RuntimeError, match="from the callback"):
        trainer.train()
    assert np.isfinite(trainer.model([[1, 2, 3]]).logits).all()


needs_peft = pytest.mark.skipif(
    any(importlib.util.find_spec(n) is None for n in ("torch", "transformers", "peft")),
    reason="torch, transformers and peft are not all installed",
)


@needs_peft
def test_peft_reads_our_adapters(folder, kind, tmp_path):
    import peft
    import torch
    import transformers

    out = tmp_path / "out"
    # What PEFT itself takes of these models: it refuses out_proj.
    targets = ["in_proj", "embeddings"] if kind == "mamba2" else ["in_proj", "x_proj", "embeddings"]
    trainer = SFTTrainer(
        folder, arguments(tmp_path), QUOTES, peft_config=LoraConfig(r=4, lora_alpha=16, target_modules=targets)
    )
    trainer.train()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    theirs = peft.PeftModel.from_pretrained(theirs, str(out)).eval()
    ids = torch.tensor([trainer.model.tokenizer()("So many books, so little").input_ids])
    with torch.no_grad():
        torch.testing.assert_close(trainer.model(ids).logits, theirs(ids).logits, atol=1e-4, rtol=1e-3)


@needs_peft
def test_we_read_and_train_by_their_config(folder, kind, tmp_path):
    import peft
    import torch
    import transformers

    targets = ["in_proj"] if kind == "mamba2" else ["in_proj", "x_proj"]
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM", use_rslora=True)
    torch.manual_seed(0)
    theirs = peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(folder), config)
    for name, p in theirs.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.2)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = AutoModelForCausalLM.from_pretrained(folder, adapter=str(tmp_path / "theirs"))
    ids = torch.randint(1, 6000, (2, 20))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, theirs.eval()(ids).logits, atol=2e-4, rtol=1e-3)
    trainer = SFTTrainer(folder, arguments(tmp_path, max_steps=1), QUOTES, peft_config=config)
    trainer.train()
    written = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert written["use_rslora"] and sorted(written["target_modules"]) == targets and written["r"] == 4
    with pytest.raises(ValueError, match="use_dora is not supported"):
        LoraConfig.of(peft.LoraConfig(use_dora=True, target_modules=["in_proj"]))
