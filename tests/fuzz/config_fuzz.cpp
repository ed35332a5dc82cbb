#include "fuzz_target.h"
#include "json_mutator.h"
#include "ssm/io/config.h"

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
  return mutate_input(data, size, max_size, seed, 2);
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  ignore_errors([&] { (void)ssm::io::read_config(text_of(data, size), "fuzz"); });
  return 0;
}
