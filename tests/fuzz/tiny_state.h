// A tiny Mamba-1 model, and files that hold a state of it.
#pragma once

#include "fuzz_target.h"
#include "ssm/io/safetensors.h"
#include "ssm/load/random_model.h"
#include "ssm/runtime/state_file.h"

inline const ssm::LoadedModel& tiny_model() {
  static const ssm::LoadedModel model = [] {
    nlohmann::json config = ssm::named_shape("mamba-130m").value();
    config.update(
        {{"vocab_size", 8}, {"hidden_size", 2}, {"num_hidden_layers", 1}, {"intermediate_size", 2}});
    config.update({{"state_size", 2}, {"time_step_rank", 1}, {"conv_kernel", 2}});
    return ssm::random_model(config, ssm::DType::f32);
  }();
  return model;
}

inline const ssm::StateLayout& tiny_layout() {
  static const ssm::StateLayout layout = ssm::state_layout(ssm::StatePool(*tiny_model().model, 1));
  return layout;
}

inline constexpr size_t kTinyStateBytes = 24;

// Of a file with a state, whose note is JSON.
inline nlohmann::json header_with_note(std::string_view note) {
  return {
      {"__metadata__", {{"format", "ssm-state"}, {"version", "1"}, {"model_type", "mamba"}, {"note", note}}},
      {"layers.0.conv", {{"dtype", "F32"}, {"shape", {1, 2}}, {"data_offsets", {0, 8}}}},
      {"layers.0.ssm", {{"dtype", "F32"}, {"shape", {2, 2}}, {"data_offsets", {8, kTinyStateBytes}}}}};
}

inline std::vector<std::byte> file_with_header(const nlohmann::json& header, size_t data_bytes) {
  const std::string text = header.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  return file_with_header(std::string_view(text), data_bytes);
}
