// A Mamba model, or a GPT-NeoX, in a GGUF file, as the rest of this room sees models: its configuration as
// the normalised object (ssm/io/config.h), its tensors under Transformers' names and in Transformers' shapes.
//
//   general.architecture   mamba (with ssm.dt_b_c_rms: falcon_mamba) or mamba2
//   blk.{i}.ssm_a          -exp(A_log), and so find() makes A_log: the shortest one that gives the same A
//   ssm_conv1d.weight      [C, K] there, [C, 1, K] here
//   ssm_a, ssm_d, ssm_norm have a dimension more in mamba2
//   output.weight          missing where it is token_embd.weight
//   attn_qkv               of gptneox: rows of all queries, then keys, then values; here head by head
//
// What GGUF has no key for is as in published models: time_step_limit [0, inf], no bias of in_proj and
// out_proj, mixer_rms_eps 1e-6. Throws Error naming the file and the key or tensor.
#pragma once

#include <nlohmann/json.hpp>

#include "ssm/io/gguf.h"

namespace ssm::io {

nlohmann::json gguf_config(const GgufFile& file);

// `config` as gguf_config made it.
std::unique_ptr<WeightSource> gguf_weights(std::shared_ptr<const GgufFile> file,
                                           const nlohmann::json& config);

// Names of the one world in the other; nothing: neither knows such a tensor.
std::optional<std::string> transformers_name(std::string_view gguf_name, std::string_view model_type);
std::optional<std::string> gguf_name(std::string_view transformers_name);
// Of Transformers' names: a matrix that models multiply by, which may be packed or of 16 bits in a file.
bool is_gguf_matrix(std::string_view transformers_name);
// Of them: query_key_value's weight or bias, whose rows GGUF has in another order.
bool is_fused_qkv(std::string_view transformers_name);
// Its rows [3 H D, ...] from Transformers' order, head by head, to GGUF's, or back.
enum class QkvOrder { transformers, gguf };
Tensor reordered_qkv(const Tensor& rows, int64_t heads, QkvOrder to);

}  // namespace ssm::io
