// A text on disk: a safetensors file with one tensor a layer and state, of attention its keys and values, and
// what it belongs to in its metadata. Portable between devices, versioned, written atomically.
#pragma once

#include <filesystem>
#include <vector>

#include "ssm/io/safetensors.h"
#include "ssm/load/load_model.h"
#include "ssm/runtime/state_pool.h"

namespace ssm {

inline constexpr int kStateFileVersion = 1;

// What belongs to a state beside the tensors: where its text stands.
struct StateNote {
  int64_t tokens = 0;            // of the text so far, the pending ones included
  std::vector<int32_t> pending;  // the text's last tokens, not read into the state yet: at least one
  Tensor seen;  // [V] u8, 1 where the text holds the token; undefined when nothing asked for it
};

// A text outside of its pool, in host memory: to be kept, or begun from any number of times.
struct TextCopy {
  Tensor state;  // as StatePool::copy_out gives it
  StateNote note;
};

// What a pool's states are made of, in the order of copy_out's bytes.
struct StateRow {
  std::string name;
  Shape shape;  // where `per_token`, of a token that was read: the text's tensor is [tokens, shape...]
  DType dtype;
  bool per_token = false;
};
using StateLayout = std::vector<StateRow>;
StateLayout state_layout(const StatePool& pool);
size_t bytes_of(const StateLayout& layout, int64_t tokens);  // after so many tokens

// `more` is added to the file's metadata.
void save_text(const std::filesystem::path& path, const LoadedModel& model, const StateLayout& layout,
               const TextCopy& text, const io::Metadata& more = {});
// Throw Error naming the file and the field when the file is damaged or belongs to a model of another shape.
// `file` is the name that errors begin with.
TextCopy load_text(const std::filesystem::path& path, const LoadedModel& model, const StateLayout& layout);
TextCopy read_text(const io::SafetensorsFile& source, const std::string& file, const LoadedModel& model,
                   const StateLayout& layout);

}  // namespace ssm
