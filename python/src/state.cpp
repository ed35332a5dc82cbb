#include "python/src/bindings.h"
#include "python/src/model.h"

namespace ssm::python {

State::State(ModelPtr model, int64_t slots)
    : model_(std::move(model)), pool_(*model_->model, slots, model_->state) {
  for (int64_t slot = 0; slot < slots; ++slot) pool_.acquire();
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
    SSM_CHECK(rows[i] >= 0 && rows[i] < from.slots(), "row {} of a state of {}", rows[i], from.slots());
    SSM_CHECK(slots[i] >= 0 && slots[i] < this->slots(), "slot {} of a state of {}", slots[i], this->slots());
    for (size_t layer = 0; layer < pool_.state().size(); ++layer) {
      from.pool_.state()[layer].for_each_with(pool_.state()[layer], [&](const Tensor& a, const Tensor& b) {
        if (a.numel() == 0) return;  // a convolution of width 1 keeps nothing
        const Tensor source = a.select(0, rows[i]), target = b.select(0, slots[i]);
        copy_bytes(target.raw(), target.device(), source.raw(), source.device(), source.bytes());
      });
    }
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
