// The input is a pickle; it is read alone and as the data.pkl of a zip with one small storage, so that the
// mutations also reach the checks of tensors without having to keep a zip directory intact.
#include <string>

#include "read_all.h"
#include "ssm/io/pickle.h"
#include "ssm/io/test_zip.h"
#include "ssm/io/torch_zip.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  ignore_errors([&] { (void)ssm::io::read_pickle(bytes_of(data, size), "fuzz"); });
  ignore_errors([&] {
    const std::string zip = ssm::io::make_zip(
        {{"m/data.pkl", std::string(text_of(data, size))}, {"m/data/0", std::string(16, 'x')}});
    read_all(ssm::io::TorchFile({std::as_bytes(std::span(zip)), nullptr, "fuzz"}));
  });
  return 0;
}
