// A slot on disk: a safetensors file with one tensor a layer and state, and what it belongs to in its
// metadata. Portable between devices, versioned, written atomically.
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

void save_state(const std::filesystem::path& path, const LoadedModel& model, const StatePool& pool,
                int32_t slot, const StateNote& note);
// Into an acquired slot. Throws Error naming the file and the field when the file is damaged or belongs to a
// model of another shape; the slot is then as it was.
StateNote load_state(const std::filesystem::path& path, const LoadedModel& model, const StatePool& pool,
                     int32_t slot);

// The same from an opened file; `file` is the name that errors begin with.
StateNote read_state(const io::SafetensorsFile& source, const std::string& file, const LoadedModel& model,
                     const StatePool& pool, int32_t slot);

}  // namespace ssm
