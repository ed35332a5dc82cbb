#include "read_all.h"
#include "ssm/io/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  ignore_errors([&] { read_all(ssm::io::SafetensorsFile({bytes_of(data, size), nullptr, "fuzz"})); });
  return 0;
}
