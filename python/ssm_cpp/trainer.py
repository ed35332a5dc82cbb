"""SFTTrainer: fine-tuning in TRL's habits over the library's trainer. The same run as `ssm finetune` (with a
peft_config) and `ssm train --from`: its folder, checkpoints, logs and report (docs/training.md)."""

import dataclasses
import json
import os
import pathlib
import shutil
import time

from . import _core, evaluation, hub
from .modeling import AutoModelForCausalLM
from .train_config import LoraConfig, SFTConfig, TrainingArguments


class TrainerCallback:
    """Called with (args, state, control, **more); Transformers' callbacks fit too."""

    def on_train_begin(self, args, state, control, **more):
        pass

    def on_step_end(self, args, state, control, **more):
        pass

    def on_log(self, args, state, control, logs=None, **more):
        pass

    def on_evaluate(self, args, state, control, metrics=None, **more):
        pass

    def on_train_end(self, args, state, control, **more):
        pass


class TrainerControl:
    """A callback that sets should_training_stop ends the run, with a checkpoint."""

    __slots__ = ("should_training_stop",)

    def __init__(self):
        self.should_training_stop = False


@dataclasses.dataclass
class TrainerState:
    global_step: int = 0
    max_steps: int = 0
    epoch: float = 0.0
    log_history: list = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class TrainOutput:
    global_step: int
    training_loss: float | None
    metrics: dict


class SFTTrainer:
    """model: a name or folder, or a model of this package, which then changes in place (a new one is read from its
    folder where it cannot be trained as it is: packed, 16-bit products on a CPU, on a card).
    train_dataset, eval_dataset: files (.jsonl, .csv, .txt) or rows, as of datasets or a list: {"text": ...} (or
    another field: dataset_text_field), {"prompt": ..., "completion": ...}, of which the completion is learned, or
    {"messages": [{"role": ..., "content": ...}, ...]}, of which the assistant's turns are.
    compute_metrics(EvalPrediction) -> {name: number}, at every evaluation; preprocess_logits_for_metrics(logits
    [B, L, V], labels [B, L]) says what is kept of each batch's logits, all of which are held otherwise."""

    def __init__(
        self,
        model=None,
        args=None,
        train_dataset=None,
        eval_dataset=None,
        processing_class=None,
        callbacks=None,
        peft_config=None,
        formatting_func=None,
        tokenizer=None,
        dataset_text_field=None,
        max_seq_length=None,
        packing=None,
        compute_metrics=None,
        preprocess_logits_for_metrics=None,
    ):
        self.args = args if args is not None else SFTConfig()
        if not isinstance(self.args, TrainingArguments):
            raise TypeError(f"args: expected ssm_cpp's TrainingArguments or SFTConfig, not {type(args).__name__}")
        self.processing_class = processing_class if processing_class is not None else tokenizer
        self.callbacks = [c() if isinstance(c, type) else c for c in callbacks or []]
        self.compute_metrics, self._preprocess = compute_metrics, preprocess_logits_for_metrics
        self.state, self.control = TrainerState(), TrainerControl()
        if train_dataset is None:
            raise ValueError("SFTTrainer: train_dataset is missing")
        self._name = model if isinstance(model, str) else getattr(model, "name_or_path", "")
        self.model = _trainable(model, self.args)
        lora = None if peft_config is None else LoraConfig.of(peft_config)
        family = self.model.config.model_type
        self.peft_config = None if lora is None else lora.to_core(family, self._name)
        field = dataset_text_field or getattr(self.args, "dataset_text_field", "text")
        self._folder, self._conversations = pathlib.Path(self.args.output_dir) / "data", False
        train = self._sources("train", train_dataset, field, formatting_func)
        held_out = [] if eval_dataset is None else self._sources("eval", eval_dataset, field, formatting_func)
        pack = packing if packing is not None else getattr(self.args, "packing", False)
        options = {
            **self.args.to_core(),
            "mode": "packed" if pack else "documents",
            "length": int(max_seq_length or getattr(self.args, "max_length", None) or 1024),
            "tokenizer": self._tokenizer_folder(),
            "column": self._column,
            "chat_template": self._chat_template(),
            "cache": str(self._folder),
            "held_out_fraction": 0.0,
            "about": {"name": self.args.run_name or pathlib.Path(self.args.output_dir).name, "from": self._name},
        }
        adapter = None if self.peft_config is None else json.dumps(self.peft_config)
        self._run = _core.Training(self.model._core, train, held_out, json.dumps(options), adapter)
        self.state.max_steps = self._run.steps
        self._losses: list = []
        self._computed: dict = {}  # by compute_metrics, lately

    def _tokenizer_folder(self) -> str:
        tokenizer = self.processing_class
        folder = getattr(tokenizer, "_folder", None) or getattr(tokenizer, "name_or_path", None)
        return hub.resolve(folder, weights=False) if folder else ""

    def _chat_template(self) -> str:
        """The name or file of what writes conversations; empty: the model's own."""
        named = getattr(self.args, "chat_template_path", None)
        template = getattr(self.processing_class, "chat_template", None)
        if named or not self._conversations or not isinstance(template, str):
            return str(named or "")
        path = self._folder / "chat_template.jinja"
        path.write_text(template, encoding="utf-8")
        return str(path)

    def _sources(self, name, dataset, field, formatting_func) -> list:
        """Paths of the data, rows written into a file first."""
        self._column = ""
        if isinstance(dataset, str | os.PathLike):
            dataset = [dataset]
        paths = isinstance(dataset, list | tuple) and all(isinstance(d, str | os.PathLike) for d in dataset)
        if paths and all(pathlib.Path(d).exists() for d in dataset):
            if formatting_func is not None:
                raise ValueError("formatting_func: the data are files; give rows")
            self._column = "" if field == "text" else field
            return [str(d) for d in dataset]
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{name}.jsonl"
        rows = [_row(row, field, formatting_func) for row in dataset]
        self._conversations |= any("messages" in row for row in rows)
        text = "".join(json.dumps(row) + "\n" for row in rows)
        if not path.exists() or path.read_text() != text:  # the same file is tokenised once
            path.write_text(text)
        return [str(path)]

    @property
    def num_trainable_parameters(self) -> int:
        return self._run.parameters

    def train(self, resume_from_checkpoint=None) -> TrainOutput:
        """Ctrl-C saves a checkpoint and raises KeyboardInterrupt; resume_from_checkpoint=True goes on from it."""
        checkpoints = pathlib.Path(self.args.output_dir) / "checkpoints"
        if not resume_from_checkpoint and checkpoints.exists():
            if not self.args.overwrite_output_dir:
                raise ValueError(
                    f"{self.args.output_dir}: holds a run already: train(resume_from_checkpoint=True) goes on with "
                    "it, TrainingArguments(overwrite_output_dir=True) begins anew, or name another output_dir"
                )
            shutil.rmtree(checkpoints)
        begin = time.monotonic()
        self._call("on_train_begin")
        result = self._run.run(self._on_step, bool(resume_from_checkpoint))
        mean = sum(self._losses) / len(self._losses) if self._losses else result["loss"]
        metrics = {"train_runtime": time.monotonic() - begin, "train_loss": mean, "epoch": self.state.epoch}
        if result["validation_loss"] is not None:
            metrics.update({"eval_loss": result["validation_loss"], **self._computed})
        self._log(metrics)
        self._call("on_train_end")
        return TrainOutput(result["steps"], mean, metrics)

    def evaluate(self) -> dict:
        loss = self._run.evaluate()
        if loss is None:
            raise ValueError("evaluate: the trainer was given no eval_dataset")
        return self._evaluated(loss)

    def _evaluated(self, loss) -> dict:
        """Logs an evaluation: its loss, and what compute_metrics says of the same texts."""
        if self.compute_metrics is not None:
            rows = int(self.args.per_device_eval_batch_size)
            prediction = evaluation.predict(self.model, self._run.held_out(), rows, self._preprocess)
            self._computed = evaluation.named(self.compute_metrics(prediction))
        metrics = {"eval_loss": loss, **self._computed, "epoch": self.state.epoch}
        self._log(metrics)
        self._call("on_evaluate", metrics=metrics)
        return metrics

    def save_model(self, output_dir=None):
        """The adapter in PEFT's layout, or the model. train() has written it to output_dir when it has ended."""
        self._run.save(str(output_dir or self.args.output_dir))

    def add_callback(self, callback):
        self.callbacks.append(callback() if isinstance(callback, type) else callback)

    def _on_step(self, metrics, seconds_left):
        state, step = self.state, metrics["step"]
        state.global_step, state.epoch = step, step / self._run.steps_per_epoch
        self._losses.append(metrics["loss"])
        if step % self.args.logging_steps == 0 or step == state.max_steps:
            lately = self._losses[-self.args.logging_steps :]
            loss = sum(lately) / len(lately)
            logs = {"loss": loss, "grad_norm": metrics["grad_norm"], "learning_rate": metrics["lr"]}
            self._log({**logs, "tokens_per_second": metrics["tokens_per_second"], "epoch": state.epoch})
        if "validation_loss" in metrics:
            self._evaluated(metrics["validation_loss"])
        self._call("on_step_end")
        return not self.control.should_training_stop

    def _log(self, logs):
        self.state.log_history.append({**logs, "step": self.state.global_step})
        self._call("on_log", logs=logs)

    def _call(self, event, **more):
        for callback in self.callbacks:
            handler = getattr(callback, event, None)
            if handler is not None:
                handler(self.args, self.state, self.control, model=self.model, **more)


def _row(row, field, formatting_func) -> dict:
    if formatting_func is not None:
        return {"text": formatting_func(row)}
    if isinstance(row, str):
        return {"text": row}
    if field in row:
        return {"text": row[field]}
    if "messages" in row:
        return {n: row[n] for n in ("messages", "tools") if row.get(n) is not None}
    if "prompt" in row and "completion" in row:
        return {n: row[n] for n in ("prompt", "completion")}
    raise ValueError(f"a row of the data has {', '.join(row)}: expected {field}, messages, or prompt and completion")


def _trainable(model, args):
    """A model whose parameters the trainer can change."""
    dtype = "bfloat16" if args.bf16 else "float32"
    if model is None or isinstance(model, str | os.PathLike):
        device = "cpu" if args.use_cpu else "auto"
        return AutoModelForCausalLM.from_pretrained(model, device=device, dtype=dtype, training=True)
    ready = model.device == "cpu" and model.dtype == "float32" and model._core.dense
    if args.bf16 and model.device == "cpu":
        raise ValueError("bf16: on a CPU training is in f32")
    if ready or not model.name_or_path:
        return model
    device = model.device.split(":")[0]
    return AutoModelForCausalLM.from_pretrained(model.name_or_path, device=device, dtype=dtype, training=True)
