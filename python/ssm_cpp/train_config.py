"""What a training run is told, by the names of Transformers, TRL and PEFT. A field that is not here is an error, and
so is a value that the library's trainer cannot follow."""

import dataclasses

from . import _options


@dataclasses.dataclass
class LoraConfig:
    r: int = 8
    target_modules: list | str | None = None  # None: in_proj, x_proj (Mamba-1) and out_proj; "all-linear": dt_proj too
    lora_alpha: float = 8
    lora_dropout: float = 0.0
    bias: str = "none"  # none, all, lora_only
    use_rslora: bool = False
    modules_to_save: list | None = None  # trained whole: conv1d, norm_f, also A_log, D, dt_bias
    alpha_pattern: dict = dataclasses.field(default_factory=dict)
    init_lora_weights: bool = True
    task_type: str | None = "CAUSAL_LM"
    base_model_name_or_path: str | None = None

    @classmethod
    def of(cls, other) -> "LoraConfig":
        """Of PEFT's class too."""
        if isinstance(other, cls):
            return other
        known = {f.name for f in dataclasses.fields(cls)}
        fields, usual = other.to_dict(), type(other)().to_dict()
        # What PEFT has beside these must be as it is unasked.
        extra = [k for k, v in fields.items() if k not in known and k not in _PEFT_NOTES and v != usual.get(k)]
        if extra:
            raise ValueError(f"LoraConfig: {', '.join(sorted(extra))} is not supported")
        return cls(**{k: v for k, v in fields.items() if k in known and v is not None})

    def to_core(self, model_type: str, base: str) -> dict:
        if self.init_lora_weights is not True:
            raise ValueError(f"LoraConfig: init_lora_weights={self.init_lora_weights!r} is not supported")
        if str(getattr(self.task_type, "value", self.task_type)) not in ("CAUSAL_LM", "None"):
            raise ValueError(f"LoraConfig: task_type {self.task_type}: expected CAUSAL_LM")
        targets = self.target_modules
        narrow = _TARGETS.get(model_type, ["in_proj", "x_proj", "out_proj"])
        if targets is None:
            targets = narrow
        elif targets == "all-linear":
            targets = narrow + _OTHER_MATRICES.get(model_type, ["dt_proj"])
        elif isinstance(targets, str):
            raise ValueError(f"LoraConfig: target_modules {targets!r}: give a list of names, or 'all-linear'")
        return {
            "peft_type": "LORA",
            "r": int(self.r),
            "lora_alpha": float(self.lora_alpha),
            "lora_dropout": float(self.lora_dropout),
            "use_rslora": bool(self.use_rslora),
            "bias": self.bias,
            "target_modules": sorted(targets),
            "modules_to_save": sorted(self.modules_to_save or []),
            "alpha_pattern": dict(self.alpha_pattern or {}),
            "base_model_name_or_path": self.base_model_name_or_path or base,
        }


# Of which family a change is trained where nothing is said, and its other matrices.
_TARGETS = {
    "mamba2": ["in_proj", "out_proj"],
    "mamba_hybrid": ["in_proj", "out_proj"],
    "gpt_neox": ["query_key_value", "dense"],
}
_OTHER_MATRICES = {"mamba2": [], "mamba_hybrid": [], "gpt_neox": ["dense_h_to_4h", "dense_4h_to_h"]}
_PEFT_NOTES = {"peft_type", "auto_mapping", "revision", "inference_mode", "peft_version", "runtime_config"}


@dataclasses.dataclass
class TrainingArguments:
    output_dir: str = "trainer_output"
    overwrite_output_dir: bool = False
    num_train_epochs: float = 3.0
    max_steps: int = -1
    per_device_train_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    learning_rate: float = 5e-5
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    lr_scheduler_type: str = "linear"  # or cosine, constant, constant_with_warmup
    warmup_ratio: float = 0.0
    warmup_steps: int = 0
    logging_dir: str | None = None  # of TensorBoard's files
    logging_steps: int = 500
    eval_strategy: str = "no"  # or steps, epoch; there is an evaluation at the end too where there is data for one
    eval_steps: int | None = None  # as logging_steps
    save_strategy: str = "steps"  # or no, epoch; there is a checkpoint at the end too
    save_steps: int = 500
    save_total_limit: int | None = None
    seed: int = 42
    gradient_checkpointing: bool = False
    bf16: bool = False  # products on a card; parameters stay f32
    use_cpu: bool = False  # else a card, where one works and the model is given by name
    # These may be given and change nothing but how others compute or report.
    run_name: str | None = None
    report_to: object = None
    disable_tqdm: bool | None = None
    remove_unused_columns: bool = True
    dataloader_num_workers: int = 0
    per_device_eval_batch_size: int = 8
    # And these say what is so anyway.
    fp16: bool = False
    optim: str = "adamw_torch"
    push_to_hub: bool = False
    load_best_model_at_end: bool = False

    _only = {"fp16": False, "push_to_hub": False, "load_best_model_at_end": False}

    def __post_init__(self):
        _options.check(type(self).__name__, {k: getattr(self, k) for k in self._only}, defaults=self._only)
        if not self.optim.startswith("adamw"):
            raise ValueError(f"{type(self).__name__}: optim {self.optim}: expected AdamW")
        for name in ("eval_strategy", "save_strategy"):
            value = str(getattr(getattr(self, name), "value", getattr(self, name)))
            if value not in ("no", "steps", "epoch"):
                raise ValueError(f"{type(self).__name__}: {name} {value!r}: expected no, steps or epoch")
            setattr(self, name, value)
        for name in ("logging_steps", "save_steps", "eval_steps"):
            value = getattr(self, name)
            if value is not None and value != int(value):
                raise ValueError(f"{type(self).__name__}: {name} {value}: expected a number of steps")

    def to_core(self) -> dict:
        schedule = str(getattr(self.lr_scheduler_type, "value", self.lr_scheduler_type))
        every = {"no": 0, "epoch": -1}  # -1: an epoch's steps
        return {
            "out": str(self.output_dir),
            "events": str(self.logging_dir or ""),
            "rows": int(self.per_device_train_batch_size),
            "accumulate": int(self.gradient_accumulation_steps),
            "epochs": float(self.num_train_epochs),
            "steps": max(int(self.max_steps), 0),
            "lr": float(self.learning_rate),
            "min_lr": 0.0,
            "schedule": schedule.removesuffix("_with_warmup"),
            "warmup": int(self.warmup_steps) if self.warmup_steps else -1,
            "warmup_ratio": float(self.warmup_ratio),
            "weight_decay": float(self.weight_decay),
            "beta1": float(self.adam_beta1),
            "beta2": float(self.adam_beta2),
            "eps": float(self.adam_epsilon),
            "clip": float(self.max_grad_norm or 0.0),
            "recompute": bool(self.gradient_checkpointing),
            "seed": int(self.seed),
            "log_every": int(self.logging_steps),
            "validate_every": every.get(self.eval_strategy, int(self.eval_steps or self.logging_steps)),
            "save_every": every.get(self.save_strategy, int(self.save_steps)),
            "keep": int(self.save_total_limit or 1 << 30),
        }


@dataclasses.dataclass
class SFTConfig(TrainingArguments):
    learning_rate: float = 2e-5
    logging_steps: int = 10
    dataset_text_field: str = "text"
    chat_template_path: str | None = None  # of conversations: a template's name (chatml, mistral, plain) or its file
    max_length: int | None = 1024  # longer texts are cut; packing: the length of a row
    packing: bool = False  # texts laid one after another, none padded, nothing leaks from one into the next
    dataset_num_proc: int | None = None  # changes nothing: all threads tokenise
