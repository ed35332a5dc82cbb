// The input is the JSON that a session's file holds beside its state, in an otherwise valid file of a tiny
// Mamba-1 model. What is accepted must be what a later turn relies on.
#include "json_mutator.h"
#include "ssm/serve/session_file.h"
#include "tiny_state.h"

namespace {

std::vector<std::byte> file_with(std::string_view about, bool empty) {
  nlohmann::json header = nlohmann::json::object();
  if (!empty) header = header_with_note(R"({"tokens":5,"pending":[3]})");
  header["__metadata__"]["session"] = about;
  if (empty) header["__metadata__"]["format"] = "ssm-empty-session";
  return file_with_header(header, empty ? 0 : kTinyStateBytes);
}

void read(std::span<const std::byte> file) {
  const ssm::io::SafetensorsFile source({file, nullptr, "fuzz"});
  const ssm::serve::Session session = ssm::serve::read_session(source, "fuzz", tiny_model(), tiny_layout());
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

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
  return mutate_input(data, size, max_size, seed, 4);
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  for (const bool empty : {false, true}) {
    ignore_errors([&] { read(file_with(text_of(data, size), empty)); });
  }
  return 0;
}
