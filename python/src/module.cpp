// ssm_cpp._core: the library as Python sees it. The package's own modules give it the habits of NumPy, torch
// and Transformers; here is what needs the library itself.
#include "python/src/bindings.h"
#include "ssm/core/log.h"
#include "ssm/core/parallel.h"
#include "ssm/hub/pull.h"

namespace ssm::python {
namespace {

// on_progress(file, bytes done, bytes in all)
std::string find_or_pull(const std::string& name, bool weights, bool local_files_only,
                         const std::optional<std::string>& token,
                         const std::optional<nb::callable>& on_progress) {
  const std::optional<hub::HubName> parsed = hub::parse_hub_name(name);
  SSM_CHECK(parsed, "{}: no such folder, and no name of the hub (owner/name)", name);
  std::optional<nb::python_error> trouble;  // kept, since nothing may be thrown through libcurl
  const nb::gil_scoped_release unlocked;
  const auto options = [&] {
    SSM_CHECK(!local_files_only, "local_files_only asks for no network");
    hub::PullOptions o = hub::pull_options_from_environment();
    if (token) o.token = *token;
    o.stop = [&] {
      const nb::gil_scoped_acquire gil;
      if (!trouble && PyErr_CheckSignals() != 0) trouble.emplace();
      return trouble.has_value();
    };
    o.progress = [&](const std::string& file, int64_t done, int64_t size) {
      const nb::gil_scoped_acquire gil;
      try {
        if (on_progress && !trouble) (*on_progress)(file, done, size);
      } catch (nb::python_error& e) {
        trouble.emplace(std::move(e));
      }
    };
    return o;
  };
  try {
    return hub::find_or_pull(*parsed, weights, options).string();
  } catch (const Error&) {
    if (!trouble) throw;
    throw nb::python_error(std::move(*trouble));
  }
}

}  // namespace
}  // namespace ssm::python

NB_MODULE(_core, m) {
  using namespace ssm::python;
  nb::set_leak_warnings(false);  // what is alive at the end of a program is no fault of it
  m.attr("version") = SSM_VERSION;
  const nb::exception<ssm::Error> error(m, "Error", PyExc_ValueError);
  m.def("num_threads", &ssm::num_threads);
  m.def("set_num_threads", &ssm::set_num_threads, nb::arg("n"),
        "0: OMP_NUM_THREADS, or the number of CPUs the process may use.");
  m.def(
      "why_unavailable",
      [](const std::string& device) {
        return ssm::why_unavailable(device == "cuda" ? ssm::kCuda : ssm::kCpu);
      },
      nb::arg("device"), "Empty when the device works here, else why not.");
  m.def("find_or_pull", &find_or_pull, nb::arg("name"), nb::arg("weights"),
        nb::arg("local_files_only") = false, nb::arg("token") = nb::none(),
        nb::arg("on_progress") = nb::none(),
        "The folder of owner/name or owner/name@revision in the Hugging Face cache, pulled where it is not "
        "there.");
  bind_arrays(m);
  bind_ops(m);
  bind_blocks(m);
  bind_tokenizer(m);
  bind_model(m);
  bind_state(m);
  bind_generate(m);
  bind_train(m);
}
