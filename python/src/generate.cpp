#include "ssm/runtime/generate.h"

#include <nanobind/stl/function.h>

#include <chrono>

#include "python/src/bindings.h"
#include "python/src/model.h"

namespace ssm::python {
namespace {

// Called with (sequence, id, text); False stops that sequence.
using OnToken = std::optional<nb::callable>;

// Tells of tokens, and of Ctrl-C. Where nobody listens it takes Python's lock only now and then: a small
// model makes a token in microseconds, and other threads would hardly get it.
class Telling {
 public:
  explicit Telling(const OnToken& on_token) : on_token_(on_token) {}

  bool operator()(size_t index, int32_t id, std::string_view text) {
    if (!on_token_) {
      const auto now = std::chrono::steady_clock::now();
      if (now - looked_ < kBetweenLooks) return true;
      looked_ = now;
    }
    const nb::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0) throw nb::python_error();
    if (!on_token_) return true;
    const nb::object answer = (*on_token_)(index, id, nb::str(text.data(), text.size()));
    return !answer.is(nb::bool_(false));
  }

 private:
  static constexpr std::chrono::milliseconds kBetweenLooks{20};
  const OnToken& on_token_;
  std::chrono::steady_clock::time_point looked_ = {};
};

nb::list generate(const ModelPtr& model, const std::vector<std::vector<int32_t>>& prompts,
                  int64_t max_new_tokens, float temperature, int32_t top_k, float top_p, float min_p,
                  float repetition_penalty, uint64_t seed, const std::optional<std::vector<int32_t>>& eos,
                  bool ignore_eos, const std::vector<std::string>& stop, const OnToken& on_token, State* from,
                  const std::vector<int32_t>& slots, int64_t tokens, State* to) {
  SSM_CHECK(!from || (from->model() == model && slots.size() == prompts.size()),
            "{} slots of a state for {} prompts, or another model's", slots.size(), prompts.size());
  SSM_CHECK(!to || (to->model() == model && to->slots() == std::ssize(prompts)),
            "a state of {} slots for {} prompts, or another model's", to->slots(), prompts.size());
  const GenerateOptions options{.sampling = {.temperature = temperature,
                                             .top_k = top_k,
                                             .top_p = top_p,
                                             .min_p = min_p,
                                             .repetition_penalty = repetition_penalty,
                                             .seed = seed},
                                .max_new_tokens = max_new_tokens,
                                .stop = stop,
                                .ignore_eos = ignore_eos,
                                .eos = eos};
  const std::vector<Generated> results = unlocked([&] {
    Generator generator(*model, std::ssize(prompts));
    for (size_t i = 0; i < prompts.size(); ++i) {
      if (from) {
        from->check_slot(slots[i]);
        generator.add(prompts[i], from->pool().state(), slots[i], tokens);
      } else {
        generator.add(prompts[i]);
      }
    }
    std::vector<Generated> generated = generator.run(options, Telling(on_token));
    for (size_t i = 0; to && i < prompts.size(); ++i) {
      generator.copy_state(i, to->pool().state(), static_cast<int64_t>(i));
    }
    return generated;
  });
  nb::list out;
  for (const Generated& g : results) {
    out.append(nb::make_tuple(g.ids, g.text, std::string(name_of(g.reason))));
  }
  return out;
}

}  // namespace

void bind_generate(nb::module_& m) {
  using nb::arg;
  m.def(
      "generate", &generate, arg("model"), arg("prompts"), arg("max_new_tokens"), arg("temperature") = 0.0f,
      arg("top_k") = 0, arg("top_p") = 1.0f, arg("min_p") = 0.0f, arg("repetition_penalty") = 1.0f,
      arg("seed") = 0, arg("eos") = nb::none(), arg("ignore_eos") = false,
      arg("stop") = std::vector<std::string>(), arg("on_token") = nb::none(), arg("from_state") = nb::none(),
      arg("slots") = std::vector<int32_t>(), arg("tokens") = 0, arg("to_state") = nb::none(),
      "[(new ids, text, reason)] of each prompt; on_token(sequence, id, text) -> False stops a sequence. "
      "Prompts may go on from slots of a state that has read `tokens`; to_state gets those of the end, which "
      "have read all but each sequence's last token.");
}

}  // namespace ssm::python
