// The input as a GGUF file: its keys and tensors, the model that it may hold, and the tokenizer.
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "read_all.h"
#include "ssm/io/gguf_model.h"
#include "ssm/load/tokenizer.h"

namespace {

void use_tokenizer(const ssm::io::GgufFile& file) {
  const auto parts = ssm::ggml_tokenizer(file);
  if (!parts) return;
  const auto tokenizer = ssm::text::make_tokenizer(*parts, "fuzz");
  for (const int32_t id : tokenizer->encode("Ab  ab don't 12 e\xCC\x81\xF0\x9F\x91\x8D <s>\n\xFF\xE2")) {
    if (id < 0 || id >= tokenizer->size()) std::abort();
    tokenizer->bytes_of(id);
  }
  ssm::text::tokenizer_files(*parts, "fuzz");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  ignore_errors([&] {
    const auto file =
        std::make_shared<ssm::io::GgufFile>(ssm::io::Bytes{bytes_of(data, size), nullptr, "fuzz"});
    read_all(*file);
    ignore_errors([&] { use_tokenizer(*file); });
    const nlohmann::json config = ssm::io::gguf_config(*file);
    read_all(*ssm::io::gguf_weights(file, config));
  });
  return 0;
}
