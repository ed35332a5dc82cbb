// The input is read as a saved state of a tiny Mamba-1 model: as a file, and as a header alone (after one
// byte that says how many times 16 bytes of data follow it), and as the note of an otherwise valid file. What
// is accepted must be what generation relies on.
#include <cmath>

#include "json_mutator.h"
#include "tiny_state.h"

namespace {

void read(std::span<const std::byte> file) {
  const ssm::io::SafetensorsFile source({file, nullptr, "fuzz"});
  const ssm::TextCopy text = ssm::read_text(source, "fuzz", tiny_model(), tiny_layout());
  const ssm::StateNote& note = text.note;
  if (note.tokens < 0 || note.tokens > int64_t{1} << 62 || note.pending.empty()) __builtin_trap();
  for (const int32_t id : note.pending) {
    if (id < 0 || id >= tiny_model().model->vocab_size()) __builtin_trap();
  }
  if (text.state.bytes() != ssm::bytes_of(tiny_layout(), 0)) __builtin_trap();
  for (size_t at = 0; at < text.state.bytes(); at += sizeof(float)) {
    float x = 0;
    std::memcpy(&x, text.state.raw() + at, sizeof x);
    if (!std::isfinite(x)) __builtin_trap();
  }
}

// Changes the JSON that an input is or holds: a note alone, a header after its count, or a whole file's
// header.
bool mutate_json(std::string& input, size_t limit, JsonMutator& mutator) {
  uint64_t length = 0;
  if (input.size() >= sizeof length) std::memcpy(&length, input.data(), sizeof length);
  const bool whole_file =
      length > 0 && input.size() >= sizeof length && length <= input.size() - sizeof length;
  const size_t begin = whole_file ? sizeof length : !input.empty() && input[0] != '{' ? 1 : 0;
  std::string json = input.substr(begin, whole_file ? length : std::string::npos);
  const size_t rest = input.size() - json.size();
  if (rest > limit || !mutator.mutate(json, limit - rest)) return false;
  const std::string data = whole_file ? input.substr(begin + length) : "";
  input = input.substr(0, begin) + json + data;
  length = json.size();
  if (whole_file) std::memcpy(input.data(), &length, sizeof length);
  return true;
}

}  // namespace

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
  return mutate_input(data, size, max_size, seed, 4, mutate_json);
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  ignore_errors([&] { read(bytes_of(data, size)); });
  if (size > 0) {
    ignore_errors([&] { read(file_with_header(text_of(data + 1, size - 1), size_t{16} * data[0])); });
  }
  ignore_errors([&] { read(file_with_header(header_with_note(text_of(data, size)), kTinyStateBytes)); });
  return 0;
}
