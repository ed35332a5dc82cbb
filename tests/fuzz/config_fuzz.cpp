#include <algorithm>

#include "fuzz_target.h"
#include "json_mutator.h"
#include "ssm/io/config.h"

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
  JsonMutator mutator(seed);
  std::string input(text_of(data, size));
  if (mutator.pick(2) == 0 || !mutator.mutate(input, max_size)) return LLVMFuzzerMutate(data, size, max_size);
  std::copy(input.begin(), input.end(), data);
  return input.size();
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  ignore_errors([&] { (void)ssm::io::read_config(text_of(data, size), "fuzz"); });
  return 0;
}
