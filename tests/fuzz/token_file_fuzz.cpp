// The input is read as a file of tokens, as it is and with the hash of its end made right, so that what lies
// behind that check is reached. Of a file that opens every document, id and mask bit is read.
#include <cstring>
#include <vector>

#include "fuzz_target.h"
#include "ssm/text/vocab.h"
#include "ssm/train/token_file.h"

namespace {

void read(std::span<const std::byte> bytes) {
  // An exact copy on the heap: a read past its end is one the sanitizer sees.
  const auto copy = std::make_shared<std::vector<std::byte>>(bytes.begin(), bytes.end());
  const ssm::train::TokenFile file({{copy->data(), copy->size()}, copy, "fuzz.tokens"});
  std::vector<int32_t> ids;
  for (int64_t d = 0; d < file.documents(); ++d) {
    ids.resize(static_cast<size_t>(file.length(d)));
    ignore_errors([&] {
      file.read(file.begin(d), ids);
      for (const int32_t id : ids) {
        if (id < 0 || id >= file.vocab()) __builtin_trap();
      }
    });
    for (int64_t i = file.begin(d); i < file.begin(d + 1); ++i) file.learned(i);
  }
  volatile char last = 0;
  for (const char c : file.identity()) last = c;
  static_cast<void>(last);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  ignore_errors([&] { read(bytes_of(data, size)); });
  constexpr size_t kTrailer = 64, kHashed = 40;
  if (size < kTrailer) return 0;
  std::vector<uint8_t> mended(data, data + size);
  uint8_t* const trailer = mended.data() + size - kTrailer;
  const uint64_t hash = ssm::text::hash_bytes(text_of(trailer, kHashed));
  std::memcpy(trailer + kHashed, &hash, sizeof hash);
  ignore_errors([&] { read(bytes_of(mended.data(), size)); });
  return 0;
}
