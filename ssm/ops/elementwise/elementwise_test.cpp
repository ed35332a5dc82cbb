#include "ssm/ops/elementwise/elementwise.h"

#include <gtest/gtest.h>

#include "ssm/ops/test_util.h"

namespace ssm {
namespace {

TEST(Elementwise, NegativeExpKeepsTheLayout) {
  Rng rng(1);
  const Tensor x = test::random_normal({5, 7}, rng);
  for (const Tensor& t : {x, x.transpose(0, 1)}) {
    const Tensor y = negative_exp(t);
    EXPECT_EQ(y.stride(0), t.stride(0));
    std::vector<double> expected = test::to_doubles(t);
    for (double& v : expected) v = -std::exp(v);
    EXPECT_LT(test::relative_error(y, expected), 1e-6);
  }
}

}  // namespace
}  // namespace ssm
