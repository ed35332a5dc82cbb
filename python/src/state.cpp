#include "python/src/bindings.h"
#include "python/src/model.h"

namespace ssm::python {

State::State(ModelPtr model, int64_t slots)
    : model_(std::move(model)), pool_(*model_->model, slots, model_->state, model_->kv_bytes) {
  for (int64_t slot = 0; slot < slots; ++slot) pool_.acquire();
}

void State::check_slot(int64_t slot) const {
  SSM_CHECK(slot >= 0 && slot < slots(), "slot {} of a state of {}", slot, slots());
}

void State::reset() {
  for (int64_t slot = 0; slot < slots(); ++slot) pool_.reset(static_cast<int32_t>(slot));
}

std::unique_ptr<State> State::select(const std::vector<int32_t>& rows) const {
  auto out = std::make_unique<State>(model_, std::ssize(rows));
  std::vector<int32_t> slots(rows.size());
  for (size_t i = 0; i < rows.size(); ++i) slots[i] = static_cast<int32_t>(i);
  out->assign(slots, *this, rows);
  return out;
}

void State::assign(const std::vector<int32_t>& slots, const State& from, const std::vector<int32_t>& rows) {
  SSM_CHECK(model_ == from.model_, "states of another model");
  SSM_CHECK(slots.size() == rows.size(), "{} slots for {} rows", slots.size(), rows.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    from.check_slot(rows[i]);
    check_slot(slots[i]);
    copy_slot(from.pool_.state(), rows[i], pool_.state(), slots[i]);
  }
}

void bind_state(nb::module_& m) {
  using nb::arg;
  nb::class_<State>(m, "State")
      .def(nb::init<ModelPtr, int64_t>(), arg("model"), arg("slots"))
      .def_prop_ro("slots", &State::slots)
      .def_prop_ro("layers", &State::layers)
      .def("conv", &State::conv, arg("layer"), "[B, K - 1, C], the memory itself")
      .def("ssm", &State::ssm, arg("layer"), "[B, N, E] or [B, H, N, P], the memory itself")
      .def("reset", &State::reset)
      .def("select", &State::select, arg("rows"), "New states that begin as these rows.")
      .def("assign", &State::assign, arg("slots"), arg("source"), arg("rows"),
           "Rows of another into these slots.");
}

}  // namespace ssm::python
