// A SentencePiece model from anywhere: it loads and works, or it is an ssm::Error.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "ssm/core/error.h"
#include "ssm/text/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const auto tokenizer =
        ssm::text::parse_sentencepiece({reinterpret_cast<const char*>(data), size}, "fuzz.model");
    tokenizer->decode(tokenizer->encode("Ab  ab <s>\n\xEF\xBC\xA1\xFF\xE2"));
  } catch (const ssm::Error&) {
  }
  return 0;
}
