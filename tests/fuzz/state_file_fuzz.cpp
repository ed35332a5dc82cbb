// The input is read as a saved state of a tiny Mamba-1 model: as a file, and as a header alone (after one
// byte that says how many times 16 bytes of data follow it), and as the note of an otherwise valid file. What
// is accepted must be what generation relies on.
#include <algorithm>
#include <cmath>
#include <vector>

#include "fuzz_target.h"
#include "json_mutator.h"
#include "ssm/io/safetensors.h"
#include "ssm/load/random_model.h"
#include "ssm/runtime/state_file.h"

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

void read(std::span<const std::byte> file) {
  static const ssm::StateLayout layout = ssm::state_layout(ssm::StatePool(*tiny_model().model, 1));
  const ssm::io::SafetensorsFile source({file, nullptr, "fuzz"});
  const ssm::TextCopy text = ssm::read_text(source, "fuzz", tiny_model(), layout);
  const ssm::StateNote& note = text.note;
  if (note.tokens < 0 || note.tokens > int64_t{1} << 62 || note.pending.empty()) __builtin_trap();
  for (const int32_t id : note.pending) {
    if (id < 0 || id >= tiny_model().model->vocab_size()) __builtin_trap();
  }
  if (text.state.bytes() != ssm::bytes_of(layout)) __builtin_trap();
  for (size_t at = 0; at < text.state.bytes(); at += sizeof(float)) {
    float x = 0;
    std::memcpy(&x, text.state.raw() + at, sizeof x);
    if (!std::isfinite(x)) __builtin_trap();
  }
}

void read_with_header(std::string_view header, size_t data_bytes) {
  const uint64_t length = header.size();
  std::vector<std::byte> file(sizeof length + header.size() + data_bytes);
  std::memcpy(file.data(), &length, sizeof length);
  std::memcpy(file.data() + sizeof length, header.data(), header.size());
  read(file);
}

std::string header_with_note(std::string_view note) {
  const nlohmann::json header{
      {"__metadata__", {{"format", "ssm-state"}, {"version", "1"}, {"model_type", "mamba"}, {"note", note}}},
      {"layers.0.conv", {{"dtype", "F32"}, {"shape", {1, 2}}, {"data_offsets", {0, 8}}}},
      {"layers.0.ssm", {{"dtype", "F32"}, {"shape", {2, 2}}, {"data_offsets", {8, 24}}}}};
  return header.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
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

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
  JsonMutator mutator(seed);
  std::string input(text_of(data, size));
  if (mutator.pick(4) == 0 || !mutate_json(input, max_size, mutator)) {
    return LLVMFuzzerMutate(data, size, max_size);
  }
  std::copy(input.begin(), input.end(), data);
  return input.size();
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  ignore_errors([&] { read(bytes_of(data, size)); });
  if (size > 0) ignore_errors([&] { read_with_header(text_of(data + 1, size - 1), size_t{16} * data[0]); });
  ignore_errors([&] { read_with_header(header_with_note(text_of(data, size)), 24); });
  return 0;
}
