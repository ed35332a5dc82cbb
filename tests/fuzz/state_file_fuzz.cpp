// The input is read as a saved state of a tiny Mamba-1 model: as a file, and as a header alone (after one
// byte that says how many times 16 bytes of data follow it).
#include <vector>

#include "fuzz_target.h"
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
  ssm::StatePool pool(*tiny_model().model, 1);
  const int32_t slot = pool.acquire();
  const ssm::io::SafetensorsFile source({file, nullptr, "fuzz"});
  const ssm::StateNote note = ssm::read_state(source, "fuzz", tiny_model(), pool, slot);
  if (note.tokens < 0 || note.pending.empty()) __builtin_trap();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  ignore_errors([&] { read(bytes_of(data, size)); });
  if (size == 0) return 0;
  const uint64_t length = size - 1;
  std::vector<std::byte> file(sizeof length + size - 1 + size_t{16} * data[0]);
  std::memcpy(file.data(), &length, sizeof length);
  std::memcpy(file.data() + sizeof length, data + 1, size - 1);
  ignore_errors([&] { read(file); });
  return 0;
}
