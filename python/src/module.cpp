// ssm_cpp._core: the library as Python sees it. The package's own modules give it the habits of NumPy, torch
// and Transformers; here is what needs the library itself.
#include "python/src/bindings.h"
#include "ssm/core/log.h"
#include "ssm/core/parallel.h"
#include "ssm/hub/model_cache.h"

namespace ssm::python {
namespace {

std::optional<std::string> find_cached(const std::string& name) {
  const auto found = hub::find_cached_model(name);
  return found ? std::optional(found->string()) : std::nullopt;
}

}  // namespace
}  // namespace ssm::python

NB_MODULE(_core, m) {
  using namespace ssm::python;
  nb::set_leak_warnings(false);  // what is alive at the end of a program is no fault of it
  m.attr("__version__") = SSM_VERSION;
  nb::exception<ssm::Error>(m, "Error", PyExc_ValueError);
  m.def("num_threads", &ssm::num_threads);
  m.def("set_num_threads", &ssm::set_num_threads, nb::arg("n"),
        "0: OMP_NUM_THREADS, or the number of CPUs the process may use.");
  m.def(
      "why_unavailable",
      [](const std::string& device) {
        return ssm::why_unavailable(device == "cuda" ? ssm::kCuda : ssm::kCpu);
      },
      nb::arg("device"), "Empty when the device works here, else why not.");
  m.def("cache_folder", [] { return ssm::hub::cache_folder().string(); });
  m.def("find_cached_model", &find_cached, nb::arg("name"),
        "The folder of owner/name or owner/name@revision in the Hugging Face cache, or None.");
  bind_ops(m);
  bind_blocks(m);
  bind_tokenizer(m);
  bind_model(m);
  bind_state(m);
  bind_generate(m);
}
