#include "ssm/ops/elementwise/elementwise.h"

#include "ssm/ops/check.h"
#include "ssm/ops/dispatch.h"
#include "ssm/ops/elementwise/elementwise_cpu.h"
#include "ssm/ops/elementwise/elementwise_cuda.h"
#include "ssm/ops/gradient.h"

namespace ssm {

Tensor negative_exp(const Tensor& x) {
  SSM_CHECK(x.defined() && x.dtype() == DType::f32, "negative_exp: x is not f32");
  if (!x.contiguous()) {
    SSM_CHECK(x.rank() == 2, "negative_exp: x has shape {} and is not contiguous", x.shape());
    const Tensor other = x.transpose(0, 1);
    return negative_exp(other.row_major()).transpose(0, 1);
  }
  Tensor y = Tensor::empty(x.shape(), DType::f32, x.device());
  SSM_DISPATCH(x.device(), negative_exp(x, y));
  if (!records(x)) return y;
  return record(y,
                [x = x.borrowed(), y](const Tensor& dy) { negative_exp_backward(y, dy, gradient_sum(x)); });
}

void negative_exp_backward(const Tensor& y, const Tensor& dy, const Tensor& dx) {
  SSM_CHECK(y.defined() && (y.rank() == 1 || y.rank() == 2),
            "negative_exp_backward: y has shape {}, expected rank 1 or 2", y.shape());
  const auto check = [&](std::string_view name, const Tensor& t) {
    SSM_CHECK(t.defined() && t.shape() == y.shape() && t.dtype() == DType::f32 && t.device() == y.device(),
              "negative_exp_backward: {} is {} {} on {}, expected f32 {} on {}", name, name_of(t.dtype()),
              t.shape(), name_of(t.device()), y.shape(), name_of(y.device()));
  };
  check("y", y), check("dy", dy), check("dx", dx);
  SSM_DISPATCH(y.device(), negative_exp_backward(y, dy, dx));
}

Tensor add_scaled(const Tensor& y, const Tensor& x, float scale) {
  SSM_CHECK(y.defined() && y.rank() == 2, "add_scaled: y has shape {}, expected [T, M]", y.shape());
  check_first("add_scaled", "y", y, y.shape());
  check_activation("add_scaled", "x", x, y.shape(), y);
  SSM_DISPATCH(y.device(), add_scaled(y, x, scale));
  if (!records(y, x)) return y;
  return record(y, [before = y.borrowed(), x = x.borrowed(), scale](const Tensor& dy) {
    if (const GradientTarget dx = gradient_target(x); dx.tensor.defined()) {
      if (!dx.adds) zero_gradient(dx.tensor);
      SSM_DISPATCH(dy.device(), add_scaled(dx.tensor, dy, scale));
    }
    give_gradient(before, dy);
  });
}

Tensor sum(const Tensor& a, const Tensor& b) {
  SSM_CHECK(a.defined() && a.rank() == 2, "sum: a has shape {}, expected [T, M]", a.shape());
  check_first("sum", "a", a, a.shape());
  check_activation("sum", "b", b, a.shape(), a);
  Tensor y = a.clone();
  SSM_DISPATCH(y.device(), add_scaled(y, b, 1.0f));
  if (!records(a, b)) return y;
  return record(std::move(y), [a = a.borrowed(), b = b.borrowed()](const Tensor& dy) {
    give_gradient(a, dy);
    give_gradient(b, dy);
  });
}

void move_average(const Tensor& average, const Tensor& value, float weight) {
  SSM_CHECK(average.defined() && average.dtype() == DType::f32 && value.dtype() == DType::f32 &&
                average.shape() == value.shape() && average.strides() == value.strides() && value.dense() &&
                average.device() == value.device(),
            "move_average: average is {} {} on {}, value {} {} on {}", name_of(average.dtype()),
            average.shape(), name_of(average.device()), name_of(value.dtype()), value.shape(),
            name_of(value.device()));
  SSM_DISPATCH(value.device(), move_average(average, value, weight));
}

Tensor dropout(const Tensor& x, float p, uint64_t seed) {
  SSM_CHECK(x.defined() && x.rank() == 2, "dropout: x has shape {}, expected [T, M]", x.shape());
  check_first("dropout", "x", x, x.shape());
  SSM_CHECK(0 <= p && p < 1, "dropout: a probability of {}, expected 0 to 1", p);
  Tensor y = Tensor::empty(x.shape(), x.dtype(), x.device());
  SSM_DISPATCH(x.device(), dropout(x, p, seed, y));
  if (!records(x)) return y;
  return record(std::move(y), [x = x.borrowed(), p, seed](const Tensor& dy) {
    const OverwrittenGradient dx(x);
    SSM_DISPATCH(dy.device(), dropout(dy, p, seed, dx.tensor()));
  });
}

Tensor take_rows(const Tensor& x, const Tensor& places) {
  SSM_CHECK(x.defined() && x.rank() == 2, "take_rows: x has shape {}, expected [T, M]", x.shape());
  check_first("take_rows", "x", x, x.shape());
  SSM_CHECK(places.defined() && places.rank() == 1 && places.dtype() == DType::i32 && places.contiguous() &&
                places.device() == x.device(),
            "take_rows: places are not contiguous i32 [n] on {}", name_of(x.device()));
  for (int64_t i = 0; !x.device().is_cuda() && i < places.size(0); ++i) {
    const int32_t place = places.data<int32_t>()[i];
    SSM_CHECK(place >= 0 && place < x.size(0), "take_rows: place {} at {} is outside the {} rows", place, i,
              x.size(0));
  }
  Tensor y = Tensor::empty({places.size(0), x.size(1)}, x.dtype(), x.device());
  SSM_DISPATCH(x.device(), take_rows(x, places, y));
  if (!records(x)) return y;
  return record(std::move(y), [x = x.borrowed(), places](const Tensor& dy) {
    const OverwrittenGradient dx(x);
    zero_gradient(dx.tensor());
    SSM_DISPATCH(dy.device(), put_rows(dy, places, dx.tensor()));
  });
}

}  // namespace ssm
