// The input is the JSON that a session's file holds beside its state, in an otherwise valid file of a tiny
// Mamba-1 model. What is accepted must be what a later turn relies on.
#include <algorithm>
#include <cstring>
#include <vector>

#include "fuzz_target.h"
#include "json_mutator.h"
#include "ssm/load/random_model.h"
#include "ssm/serve/session_file.h"

namespace {

const ssm::LoadedModel& tiny_model() {
  static const ssm::LoadedModel model = [] {
    nlohmann::json config = ssm::named_shape("mamba-130m").value();
    config.update(
        {{"vocab_size", 8}, {"hidden_size", 2}, {"num_hidden_layers", 1}, {"intermediate_size", 2}});
    config.update({{"state_size", 2}, {"time_step_rank", 1}, {"conv_kernel", 2}});
    return ssm::random_model(config, ssm::DType::f32);
  }();
  return model;
}

std::vector<std::byte> file_with(std::string_view about, bool empty) {
  nlohmann::json header{{"__metadata__", {{"format", "ssm-empty-session"}, {"session", about}}}};
  if (!empty) {
    header["__metadata__"].update({{"format", "ssm-state"},
                                   {"version", "1"},
                                   {"model_type", "mamba"},
                                   {"note", R"({"tokens":5,"pending":[3]})"}});
    header["layers.0.conv"] = {{"dtype", "F32"}, {"shape", {1, 2}}, {"data_offsets", {0, 8}}};
    header["layers.0.ssm"] = {{"dtype", "F32"}, {"shape", {2, 2}}, {"data_offsets", {8, 24}}};
  }
  const std::string text = header.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  const uint64_t length = text.size();
  std::vector<std::byte> file(sizeof length + text.size() + (empty ? 0 : 24));
  std::memcpy(file.data(), &length, sizeof length);
  std::memcpy(file.data() + sizeof length, text.data(), text.size());
  return file;
}

void read(std::span<const std::byte> file) {
  static const ssm::StateLayout layout = ssm::state_layout(ssm::StatePool(*tiny_model().model, 1));
  const ssm::io::SafetensorsFile source({file, nullptr, "fuzz"});
  const ssm::serve::Session session = ssm::serve::read_session(source, "fuzz", tiny_model(), layout);
  const ssm::serve::SessionNote& about = session.about;
  if ((session.text == nullptr) != (about.kind == ssm::serve::SessionKind::empty)) __builtin_trap();
  if (about.turns < 0 || about.created < 0 || about.updated < 0) __builtin_trap();
  if (about.kind != ssm::serve::SessionKind::chat) return;
  if (about.chat.messages.back().at("role") != "assistant") __builtin_trap();
  for (const auto& message : about.chat.messages) {
    if (!message.at("content").is_string()) __builtin_trap();
  }
}

}  // namespace

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
  JsonMutator mutator(seed);
  std::string input(text_of(data, size));
  if (mutator.pick(4) == 0 || !mutator.mutate(input, max_size)) return LLVMFuzzerMutate(data, size, max_size);
  std::copy(input.begin(), input.end(), data);
  return input.size();
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  for (const bool empty : {false, true}) {
    ignore_errors([&] { read(file_with(text_of(data, size), empty)); });
  }
  return 0;
}
