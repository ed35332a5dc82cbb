// The input is read as a file, and as a header (after one byte that says how much data follows it), so that
// mutations of the header need not keep its length right.
#include <cstddef>
#include <vector>

#include "read_all.h"
#include "ssm/io/safetensors.h"

namespace {

void read_as_header(const uint8_t* data, size_t size) {
  const uint64_t length = size - 1;
  std::vector<std::byte> file(sizeof length + size - 1 + data[0]);
  std::memcpy(file.data(), &length, sizeof length);
  std::memcpy(file.data() + sizeof length, data + 1, size - 1);
  read_all(ssm::io::SafetensorsFile({file, nullptr, "fuzz"}));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  ignore_errors([&] { read_all(ssm::io::SafetensorsFile({bytes_of(data, size), nullptr, "fuzz"})); });
  if (size > 0) ignore_errors([&] { read_as_header(data, size); });
  return 0;
}
