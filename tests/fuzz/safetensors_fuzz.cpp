// The input is read as a file, and as a header (after one byte that says how much data follows it), so that
// mutations of the header need not keep its length right.
#include "read_all.h"
#include "ssm/io/safetensors.h"

namespace {

void read(std::span<const std::byte> file) { read_all(ssm::io::SafetensorsFile({file, nullptr, "fuzz"})); }

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  ignore_errors([&] { read(bytes_of(data, size)); });
  if (size > 0) ignore_errors([&] { read(file_with_header(text_of(data + 1, size - 1), data[0])); });
  return 0;
}
