// A tokenizer.json from anywhere: it loads and works, or it is an ssm::Error.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "ssm/core/error.h"
#include "ssm/text/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const auto tokenizer =
        ssm::text::parse_tokenizer_json({reinterpret_cast<const char*>(data), size}, "fuzz.json");
    const auto ids = tokenizer->encode("Ab  ab don't 12 e\xCC\x81\xF0\x9F\x91\x8D <s>\n\xFF\xE2");
    ssm::text::StreamDecoder stream(*tokenizer);
    for (const int32_t id : ids) {
      if (id < 0 || id >= tokenizer->size()) std::abort();
      stream.push(id);
    }
    stream.finish();
    tokenizer->decode(ids);
  } catch (const ssm::Error&) {
  }
  return 0;
}
