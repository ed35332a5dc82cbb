#include "ssm/ops/attention/kv_cache.h"

#include <gtest/gtest.h>

#include "ssm/core/rng.h"
#include "ssm/core/test_error.h"

namespace ssm {
namespace {

std::vector<float> numbers(int64_t n, Rng& rng) {
  std::vector<float> values(static_cast<size_t>(n));
  for (float& x : values) x = rng.normal();
  return values;
}

TEST(KvCache, GivesBackWhatWasAssigned) {
  Rng rng(1);
  for (const int64_t tokens : {0, 1, 63, 64, 65, 200}) {
    KvCache kv(2, 3, 5);
    const auto keys = numbers(tokens * 15, rng), values = numbers(tokens * 15, rng);
    kv.assign(1, tokens, keys.data(), values.data());
    EXPECT_EQ(kv.tokens(1), tokens);
    std::vector<float> k(keys.size()), v(values.size());
    kv.read(1, k.data(), v.data());
    EXPECT_EQ(k, keys);
    EXPECT_EQ(v, values);
  }
}

TEST(KvCache, CopiesShareFullPagesAndGoTheirOwnWays) {
  Rng rng(2);
  const auto budget = std::make_shared<KvBudget>(size_t{1} << 30);
  KvCache kv(3, 1, 4, budget);
  const auto keys = numbers(130 * 4, rng), values = numbers(130 * 4, rng);
  kv.assign(0, 130, keys.data(), values.data());
  const size_t page = static_cast<size_t>(kv.page_bytes());
  EXPECT_EQ(budget->used(), 3 * page);
  kv.copy(2, kv, 0);
  EXPECT_EQ(budget->used(), 4 * page);
  EXPECT_EQ(kv.page(2, 0, 0), kv.page(0, 0, 0));
  kv.page(2, 2, 0)[2] = 7;  // the third token of the third page
  kv.added(2, 1);
  std::vector<float> k(keys.size()), v(values.size());
  kv.read(0, k.data(), v.data());
  EXPECT_EQ(k, keys);
  EXPECT_EQ(kv.page(0, 2, 0)[2], 0);
  kv.clear(0);
  EXPECT_EQ(budget->used(), 3 * page);
  kv.clear(2);
  EXPECT_EQ(budget->used(), 0u);
}

TEST(KvCache, RefusesWhatPassesTheBudget) {
  KvCache shape(1, 2, 8);
  const auto budget = std::make_shared<KvBudget>(static_cast<size_t>(3 * shape.page_bytes()));
  KvCache a(2, 2, 8, budget), b(1, 2, 8, budget);
  a.reserve(0, 100);
  EXPECT_EQ(a.bytes_for(0, 1), 0u);
  EXPECT_EQ(a.bytes_for(1, 65), static_cast<size_t>(2 * a.page_bytes()));
  test::expect_error([&] { b.reserve(0, 65); }, {"keys and values", "MiB", "--kv-memory"});
  EXPECT_EQ(budget->left(), static_cast<size_t>(a.page_bytes()));
  b.reserve(0, 64);
  a.clear(0);
  EXPECT_NO_THROW(b.reserve(0, 192));
}

}  // namespace
}  // namespace ssm
