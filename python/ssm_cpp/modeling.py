"""Models with Transformers' interface over the library. They run; training is in the blocks and ops for torch,
and in the trainer. What comes in as torch goes out as torch, anything else as NumPy."""

import os

import numpy as np

from . import _core, _options, hub
from ._arrays import device_name, dtype_name, is_torch, library_of, like, on_card, to_numpy, to_torch
from ._batch import Batch
from ._loading import checked_config, config_of, config_text
from .cache import MambaCache
from .config import USAGE_FIELDS, FalconMambaConfig, GPTNeoXConfig, Mamba2Config, MambaConfig, MambaHybridConfig
from .generation import GenerationConfig, joined, new_tokens, stream_to
from .outputs import BaseModelOutput, CausalLMOutput, GenerateOutput
from .quantization import type_and_group
from .scoring import loglikelihoods
from .tokenizer import Tokenizer


class PreTrainedModel:
    config_class = None

    def __init__(self, config, init: str = "huggingface", seed: int = 0, _loaded=None):
        """With new weights, initialised as Transformers does ("huggingface") or as mamba_ssm ("reference")."""
        self._core = _loaded or _core.Model.create(config_text(config), init, seed)
        self.config = config
        self.generation_config = GenerationConfig.from_folder(self._core.folder or "/nonexistent")
        self.training = False
        self.name_or_path = self._core.folder

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path=None,
        dtype=None,
        torch_dtype=None,
        device=None,
        device_map=None,
        revision=None,
        tokenizer=None,
        adapter=None,
        config=None,
        quantization_config=None,
        training=False,
        local_files_only=False,
        token=None,
        subfolder=None,
        **options,
    ):
        """A folder of any layout, a name of the Hugging Face hub, or nothing for the bundled model. `dtype` is
        that of activations at matrix products; weights stay as they are stored, or are packed while they are
        read: quantization_config is "q4_k", "int8", ..., or torchao's config for weights alone. `training`: for
        a trainer. Fields of the config that say how a model is used may be given too; options of Transformers
        that concern its own way of loading change nothing here."""
        used = {k: options.pop(k) for k in list(options) if k in USAGE_FIELDS}
        _options.check("from_pretrained", options, _options.LOADING, _options.LOADING_DEFAULTS)
        where = {"local_files_only": local_files_only, "token": token}
        folder = hub.resolve(pretrained_model_name_or_path, revision, subfolder=subfolder, **where)
        loaded = _core.Model.load(
            folder,
            dtype_name(dtype if dtype is not None else torch_dtype),
            device_name(device if device is not None else device_map),
            hub.resolve(tokenizer, weights=False, **where) if tokenizer else "",
            hub.resolve(adapter, **where) if adapter else "",
            *type_and_group(quantization_config),
            training=training,
        )
        config = checked_config(config, config_of(loaded))
        for name, value in used.items():
            setattr(config, name, value)
        if cls.config_class and not isinstance(config, cls.config_class):
            raise _core.Error(f"{folder}: is a {config.model_type} model, not one for {cls.__name__}")
        return cls(config, _loaded=loaded)

    def save_pretrained(self, folder, dtype=None, **options):
        """config.json, model.safetensors and the tokenizer's files, for this library and for Transformers."""
        defaults = {"safe_serialization": True, "push_to_hub": False}
        _options.check("save_pretrained", options, {"max_shard_size"}, defaults)
        self._core.save(str(folder), dtype_name(dtype))

    @property
    def device(self) -> str:
        return self._core.device

    @property
    def dtype(self) -> str:
        return {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}[self._core.dtype]

    @property
    def vocab_size(self) -> int:
        return self._core.vocab_size

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """All of them can be trained."""
        return self._core.num_parameters - exclude_embeddings * self._core.vocab_size * self._core.hidden_size

    def state_dict(self) -> dict:
        """Parameters by name, the model's memory itself: NumPy arrays, or DLPack objects where NumPy lacks the
        type."""
        return self._core.parameters()

    def eval(self):
        self.training = False
        return self

    def to(self, *places, device=None, dtype=None):
        """A model stays where from_pretrained(device=..., dtype=...) put it: anything else is an error."""
        types = ("float", "half", "bfloat", "f16", "f32", "bf16")
        for place in [device, dtype, *places]:
            if place is None:
                continue
            is_type = any(t in str(getattr(place, "__name__", place)) for t in types)
            now = dtype_name(self.dtype) if is_type else self.device.split(":")[0]
            if (dtype_name(place) if is_type else device_name(place)) not in (now, "auto"):
                option = "dtype" if is_type else "device"
                raise ValueError(f"to({place}): the model is {now}; say from_pretrained({option}=...) instead")
        return self

    def tokenizer(self) -> Tokenizer:
        """The one in the model's folder."""
        core = self._core.tokenizer
        if core is None:
            raise _core.Error(f"{self._core.folder or 'this model'}: has no tokenizer")
        return Tokenizer(core, self._core.folder)

    def new_cache(self, batch_size: int = 1) -> MambaCache:
        return MambaCache(self, batch_size)

    def get_input_embeddings(self):
        """A function: ids of any shape -> embeddings [..., M]."""

        def embeddings(ids):
            flat = np.ascontiguousarray(to_numpy(ids, np.int32)).reshape(-1)
            return like(self._core.embed(flat), ids).reshape(*np.shape(ids), -1)

        return embeddings

    def __call__(self, *args, **kwargs):
        return self.forward(*args, **kwargs)

    def _read(self, input_ids, inputs_embeds, attention_mask, cache, use_cache, layers, logits=False):
        """(Batch, hidden states [T, M], those of each layer, logits [T, V] or None, cache)"""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("exactly one of input_ids and inputs_embeds is needed")
        if inputs_embeds is None:
            given = to_numpy(input_ids, np.int32)
            if given.ndim == 1:
                given = given[None]
        else:
            given = inputs_embeds if on_card(inputs_embeds) else to_numpy(inputs_embeds, np.float32)
            if on_card(given) and self.device == "cpu":
                raise _core.Error("inputs_embeds is on a card, the model on the CPU")
        batch = Batch(given.shape[:2], attention_mask)
        if batch.length == 0:
            raise ValueError("the sequences are empty")
        if cache is None and use_cache:
            cache = MambaCache(self, batch.rows)
        elif cache is not None:
            cache.bind(self)
        slots = batch.slots
        state = None
        if cache is None:
            slots = list(range(len(slots)))
        elif cache.max_batch_size != batch.rows:
            raise ValueError(f"a cache of {cache.max_batch_size} sequences for a batch of {batch.rows}")
        else:
            state = cache.settled()
        ids = embeddings = None
        if inputs_embeds is None:
            ids = np.ascontiguousarray(batch.flat(given))
        else:
            library = library_of(given)
            embeddings = library.compact(library.cast(batch.flat(given), library.float32))
        hidden, by_layer, scores = self._core.forward(ids, embeddings, batch.kept_lengths, state, slots, layers, logits)
        if cache is not None:
            cache.seqlen_offset += batch.length
        return batch, hidden, by_layer, scores, cache

    def _hidden_states(self, batch, hidden, by_layer, source):
        """After each layer, and after the last norm."""
        return tuple(batch.padded(like(h, source)) for h in [*by_layer, hidden])


class Backbone(PreTrainedModel):
    def forward(
        self,
        input_ids=None,
        inputs_embeds=None,
        cache_params=None,
        use_cache=None,
        output_hidden_states=None,
        return_dict=None,
        attention_mask=None,
        **options,
    ):
        if options:
            _options.check("forward", options, _options.FORWARD, _options.FORWARD_DEFAULTS)
        layers = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        use_cache = self.config.use_cache if use_cache is None else use_cache
        batch, hidden, by_layer, _, cache = self._read(
            input_ids, inputs_embeds, attention_mask, cache_params, use_cache, layers
        )
        source = input_ids if inputs_embeds is None else inputs_embeds
        out = BaseModelOutput(
            last_hidden_state=batch.padded(like(hidden, source)),
            cache_params=cache if use_cache or cache_params is not None else None,
            hidden_states=self._hidden_states(batch, hidden, by_layer, source) if layers else None,
        )
        return out if self.config.return_dict and return_dict is not False else out.to_tuple()


class CausalLM(PreTrainedModel):
    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        inputs_embeds=None,
        cache_params=None,
        labels=None,
        output_hidden_states=None,
        return_dict=None,
        use_cache=None,
        logits_to_keep: int = 0,
        num_last_tokens: int = 0,
        num_items_in_batch=None,
        **options,
    ):
        """Logits [B, L, V] f32, zeros where padding is. `labels` are shifted inside and -100 counts as none; a
        token behind padding has no prediction and is left out of the loss, which is the mean over the labels, or
        their sum over `num_items_in_batch`."""
        if options:
            _options.check("forward", options, _options.FORWARD, _options.FORWARD_DEFAULTS)
        layers = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        use_cache = self.config.use_cache if use_cache is None else use_cache
        keep = logits_to_keep or num_last_tokens
        batch, hidden, by_layer, scores, cache = self._read(
            input_ids, inputs_embeds, attention_mask, cache_params, use_cache, layers, not keep
        )
        source = input_ids if inputs_embeds is None else inputs_embeds
        if keep:
            last = batch.padded(like(hidden, source if on_card(source) else None))[:, -keep:]
            rows = library_of(last).compact(last).reshape(-1, last.shape[-1])
            logits = like(self._core.logits(rows), source).reshape(batch.rows, last.shape[1], -1)
        else:
            logits = batch.padded(like(scores, source))
        out = CausalLMOutput(
            loss=None if labels is None else self._loss(batch, hidden, to_numpy(labels), source, num_items_in_batch),
            logits=logits,
            cache_params=cache if use_cache or cache_params is not None else None,
            hidden_states=self._hidden_states(batch, hidden, by_layer, source) if layers else None,
        )
        return out if self.config.return_dict and return_dict is not False else out.to_tuple()

    def _loss(self, batch, hidden, labels, source, count):
        targets = _targets(batch, labels)
        nll, _ = self._core.nll(hidden, targets)
        count = int((targets >= 0).sum()) if count is None else int(count)
        loss = np.float32(nll.sum(dtype=np.float64) / count if count else np.nan)
        return to_torch(np.asarray(loss).reshape(1))[0].to(source.device) if is_torch(source) else loss

    def loss_and_gradients(self, input_ids, attention_mask=None, labels=None) -> tuple:
        """(loss, {parameter's name: its gradient}) of the shifted mean loss, `labels` being the ids where none are
        given. For a model in f32 on the CPU; it stays as it is. To train one, see SFTTrainer."""
        ids = to_numpy(input_ids)
        batch = Batch(ids.shape, attention_mask)
        targets = _targets(batch, to_numpy(input_ids if labels is None else labels))
        flat = np.ascontiguousarray(batch.flat(ids), np.int32)
        loss, gradients = _core.gradients(self._core, flat, targets, [n for n in batch.lengths if n > 0])
        return loss, {name: like(g, input_ids) for name, g in gradients.items()}

    def token_logprobs(self, sequences) -> list:
        """The log-probability of each token after those before it, for a list of id sequences (of any lengths):
        an array each, NaN first. Logits are never in memory all at once."""
        rows = [np.ascontiguousarray(to_numpy(s), np.int32).reshape(-1) for s in sequences]
        ids = np.concatenate(rows)
        targets = np.concatenate([np.append(r[1:], -1) for r in rows]).astype(np.int32)
        lengths = [len(r) for r in rows]
        hidden, *_ = self._core.forward(ids, None, lengths, None, list(range(len(rows))), False)
        nll, _ = self._core.nll(hidden, targets)
        ends = np.cumsum(lengths)
        return [
            np.concatenate([[np.float32("nan")], -nll[end - n : end - 1]]) for n, end in zip(lengths, ends, strict=True)
        ]

    def loglikelihood(self, context, continuation) -> tuple:
        """(log-probability of the continuation's ids after the context's, whether each is the best one)"""
        return self.loglikelihoods(context, [continuation])[0]

    def loglikelihoods(self, context, continuations) -> list:
        """The same for several continuations of one context, which is read once."""
        return loglikelihoods(self._core, context, continuations)

    def generate(
        self,
        inputs=None,
        attention_mask=None,
        generation_config=None,
        streamer=None,
        input_ids=None,
        tokenizer=None,
        inputs_embeds=None,
        cache_params=None,
        **options,
    ):
        """Prompts [B, L] (padding on either side, told by `attention_mask`) -> [B, L + new tokens]. Options by
        Transformers' names: GenerationConfig's fields. Greedy unless do_sample; a row that ended is filled with
        pad_token_id. Ctrl-C stops between tokens.

        `cache_params` holds what stands before the prompts, which are then only what comes after it; it stays as
        it is. With return_dict_in_generate the result has a cache of its own, which has read all of each row but
        its last token: to go on, give both, with that token before what is new."""
        if inputs_embeds is not None:
            raise ValueError("generate: inputs_embeds is not supported; read them with forward, and its cache")
        source = inputs if inputs is not None else input_ids
        if source is None or (inputs is not None and input_ids is not None):
            raise ValueError("generate: give input_ids, once")
        g = GenerationConfig.of(generation_config or self.generation_config).updated(**options)
        ids = to_numpy(source)
        ids = ids[None] if ids.ndim == 1 else ids
        prompts = Batch(ids.shape, attention_mask).split(ids)
        if cache_params is not None:
            cache_params.bind(self)
        if cache_params is not None and cache_params.max_batch_size != len(prompts):
            raise ValueError(f"a cache of {cache_params.max_batch_size} sequences for a batch of {len(prompts)}")
        prompts = [p for p in prompts for _ in range(g.num_return_sequences)]
        cache = MambaCache(self, len(prompts)) if g.return_dict_in_generate else None
        count = new_tokens(g, ids.shape[1])
        results = self._run(prompts, g, count, streamer, tokenizer, ids, cache_params, cache)
        pad = g.pad_token_id
        pad = pad if pad is not None else getattr(self.config, "pad_token_id", None)
        sequences = joined(np.repeat(ids, g.num_return_sequences, axis=0), [r[0] for r in results], pad or 0)
        sequences = like(sequences, source)
        if not g.return_dict_in_generate:
            return sequences
        read = 0 if cache_params is None else cache_params.get_seq_length()
        cache.seqlen_offset = read + sequences.shape[1] - 1
        return GenerateOutput(sequences, [r[2] for r in results], [r[1] for r in results], cache)

    def _run(self, prompts, g, count, streamer, tokenizer, ids, before, after):
        on_token = None
        if streamer is not None:
            if len(prompts) > 1:
                raise ValueError("generate: a streamer takes one sequence")
            on_token = stream_to(streamer, ids, tokenizer or getattr(streamer, "tokenizer", None))
        stop = [g.stop_strings] if isinstance(g.stop_strings, str) else list(g.stop_strings or [])
        eos = g.eos_token_id
        sampling = {"temperature": 0.0}
        if g.do_sample:
            sampling = {"temperature": g.temperature, "top_k": g.top_k, "top_p": g.top_p, "min_p": g.min_p or 0.0}
        results = _core.generate(
            self._core,
            prompts,
            count,
            **sampling,
            repetition_penalty=g.repetition_penalty,
            seed=g.seed if g.seed is not None else int.from_bytes(os.urandom(7), "little"),
            eos=None if eos is None else [eos] if isinstance(eos, int) else list(eos),
            stop=stop,
            on_token=on_token,
            from_state=None if before is None else before.settled(),
            slots=[i // g.num_return_sequences for i in range(len(prompts))] if before is not None else [],
            tokens=0 if before is None else before.get_seq_length(),
            to_state=None if after is None else after._state,
        )
        if streamer is not None:
            streamer.end()
        return results


class MambaModel(Backbone):
    config_class = MambaConfig


class FalconMambaModel(Backbone):
    config_class = FalconMambaConfig


class Mamba2Model(Backbone):
    config_class = Mamba2Config


class GPTNeoXModel(Backbone):
    config_class = GPTNeoXConfig


class MambaHybridModel(Backbone):
    config_class = MambaHybridConfig


class MambaForCausalLM(CausalLM):
    config_class = MambaConfig


class FalconMambaForCausalLM(CausalLM):
    config_class = FalconMambaConfig


class Mamba2ForCausalLM(CausalLM):
    config_class = Mamba2Config


class GPTNeoXForCausalLM(CausalLM):
    config_class = GPTNeoXConfig


class MambaHybridForCausalLM(CausalLM):
    config_class = MambaHybridConfig


class _Auto:
    @classmethod
    def from_config(cls, config, **options):
        return cls._classes[config.model_type](config, **options)

    @classmethod
    def from_pretrained(cls, name=None, **options):
        model = cls._base.from_pretrained(name, **options)
        kind = cls._classes[model.config.model_type]
        return kind(model.config, _loaded=model._core)


class AutoModelForCausalLM(_Auto):
    _base = CausalLM
    _classes = {
        "mamba": MambaForCausalLM,
        "mamba2": Mamba2ForCausalLM,
        "falcon_mamba": FalconMambaForCausalLM,
        "gpt_neox": GPTNeoXForCausalLM,
        "mamba_hybrid": MambaHybridForCausalLM,
    }


class AutoModel(_Auto):
    _base = Backbone
    _classes = {
        "mamba": MambaModel,
        "mamba2": Mamba2Model,
        "falcon_mamba": FalconMambaModel,
        "gpt_neox": GPTNeoXModel,
        "mamba_hybrid": MambaHybridModel,
    }


def _targets(batch, labels) -> np.ndarray:
    """[T] of labels [B, L]: the next one of the same row; -1 for none."""
    targets = np.full(labels.shape, -1, np.int32)
    targets[:, :-1] = np.where(labels[:, 1:] == -100, -1, labels[:, 1:])
    if batch.mask is not None:
        targets[:, :-1][~batch.mask[:, 1:]] = -1
    return np.ascontiguousarray(batch.flat(targets))
