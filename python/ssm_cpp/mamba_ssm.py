"""mamba_ssm's language model."""

from .modeling import CausalLM


class MambaLMHeadModel(CausalLM):
    """mamba_ssm's language model: either generation, and its generate()."""

    def generate(
        self,
        input_ids,
        max_length,
        top_k=1,
        top_p=0.0,
        min_p=0.0,
        temperature=1.0,
        repetition_penalty=1.0,
        return_dict_in_generate=False,
        output_scores=False,
        cg=False,
        enable_timing=False,
        vocab_size=None,
        eos_token_id=None,
        **options,
    ):
        """top_k=1 is greedy. `cg` changes nothing: graphs are used where there are some; padding of the vocabulary
        is never chosen."""
        if output_scores or enable_timing:
            raise ValueError("generate: output_scores and enable_timing are not supported")
        if vocab_size is not None and vocab_size < self._core.usable_vocab:
            raise ValueError(f"generate: vocab_size={vocab_size}, but the model has {self._core.usable_vocab} tokens")
        if top_k != 1:
            options.update(do_sample=True, top_k=top_k, top_p=top_p if top_p > 0 else 1.0)
            options.update(min_p=min_p, temperature=temperature)
        return super().generate(
            input_ids,
            max_length=max_length,
            repetition_penalty=repetition_penalty,
            return_dict_in_generate=return_dict_in_generate,
            eos_token_id=eos_token_id if eos_token_id is not None else [],
            **options,
        )


Mamba2LMHeadModel = MambaLMHeadModel
