#include "fuzz_target.h"
#include "ssm/io/config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  ignore_errors([&] { (void)ssm::io::read_config(text_of(data, size), "fuzz"); });
  return 0;
}
