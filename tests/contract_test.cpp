// The numeric contract of docs/numerics.md on whole models: batched with anything, on any number of threads
// and read in any pieces, a sequence gets the same result.
#include <gtest/gtest.h>

#include <filesystem>

#include "ssm/core/parallel.h"
#include "ssm/load/load_model.h"
#include "ssm/ops/ssd_scan/ssd_scan.h"
#include "ssm/ops/test_util.h"
#include "ssm/runtime/state_pool.h"

namespace ssm {
namespace {

struct Read {
  Tensor hidden;     // [T, M]
  ModelState state;  // of the one slot
};

Tensor ids_tensor(std::span<const int32_t> ids) {
  return Tensor::from_values<int32_t>(ids, {static_cast<int64_t>(ids.size())});
}

class Contract : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    const auto folder = std::filesystem::path(SSM_SOURCE_DIR) / "tests/goldens/models" / GetParam();
    loaded_ = load_model(folder, {.compute = DType::f32, .tokenizer = {}});
    mamba2_ =
        loaded_.config.at("model_type") == "mamba2" || loaded_.config.value("ssm_layer", "") == "Mamba2";
  }
  void TearDown() override { set_num_threads(0); }

  std::vector<int32_t> random_ids(int64_t n) {
    std::vector<int32_t> ids;
    for (int64_t i = 0; i < n; ++i)
      ids.push_back(static_cast<int32_t>(rng_.below(loaded_.model->vocab_size())));
    return ids;
  }

  // In pieces of these lengths, one call each.
  Read read(std::span<const int32_t> ids, std::span<const int64_t> pieces) {
    Read r{Tensor::empty({static_cast<int64_t>(ids.size()), loaded_.model->hidden_size()}),
           loaded_.model->make_state(1)};
    int64_t at = 0;
    for (const int64_t n : pieces) {
      const Tensor h =
          loaded_.model->hidden(ids_tensor(ids.subspan(static_cast<size_t>(at), static_cast<size_t>(n))),
                                SequenceBatch::single(n), r.state);
      std::copy_n(h.raw(), h.bytes(), r.hidden.slice(0, at, at + n).raw());
      at += n;
    }
    return r;
  }
  Read read(std::span<const int32_t> ids) {
    const auto n = static_cast<int64_t>(ids.size());
    return read(ids, std::span(&n, 1));
  }

  std::vector<int64_t> random_pieces(int64_t total, int64_t multiple) {
    std::vector<int64_t> pieces;
    while (total > 0) {
      const int64_t n = std::min(total, (1 + rng_.below(3)) * multiple);
      pieces.push_back(n);
      total -= n;
    }
    return pieces;
  }

  static void expect_same_bits(const Read& a, const Read& b) {
    EXPECT_TRUE(test::same_bits(a.hidden, b.hidden));
    expect_same_state(a.state, 0, b.state, 0);
  }

  static void expect_same_state(const ModelState& a, int64_t slot, const ModelState& b, int64_t other) {
    for (size_t i = 0; i < a.size(); ++i) {
      if (a[i].conv.defined()) {
        EXPECT_TRUE(test::same_bits(a[i].conv.select(0, slot), b[i].conv.select(0, other))) << "layer " << i;
      }
      if (a[i].ssm.defined()) {
        EXPECT_TRUE(test::same_bits(a[i].ssm.select(0, slot), b[i].ssm.select(0, other))) << "layer " << i;
      }
      if (a[i].kv) {
        EXPECT_EQ(kept(*a[i].kv, slot), kept(*b[i].kv, other)) << "layer " << i;
      }
    }
  }

  static std::vector<float> kept(const KvCache& kv, int64_t slot) {
    const int64_t each = kv.tokens(slot) * kv.heads() * kv.head_dim();
    std::vector<float> all(static_cast<size_t>(2 * each));
    kv.read(slot, all.data(), all.data() + each);
    return all;
  }

  LoadedModel loaded_;
  bool mamba2_ = false;
  Rng rng_{7};
};

TEST_P(Contract, ThreadsAndSplitsGiveTheSameBits) {
  for (int trial = 0; trial < 8; ++trial) {
    const std::vector<int32_t> ids = random_ids(1 + rng_.below(400));
    set_num_threads(1);
    const Read whole = read(ids);
    set_num_threads(static_cast<int>(2 + rng_.below(5)));
    expect_same_bits(read(ids), whole);
    // Mamba-1 at any split, Mamba-2 at multiples of the scan chunk.
    const int64_t multiple = mamba2_ ? kSsdChunk : 1 + rng_.below(40);
    expect_same_bits(read(ids, random_pieces(static_cast<int64_t>(ids.size()), multiple)), whole);
  }
}

TEST_P(Contract, AnySplitAndSingleStepsAgreeTo1e5) {
  for (int trial = 0; trial < 4; ++trial) {
    const std::vector<int32_t> ids = random_ids(1 + rng_.below(200));
    const auto T = static_cast<int64_t>(ids.size());
    const Read whole = read(ids);
    for (const auto& pieces : {random_pieces(T, 1 + rng_.below(30)), std::vector<int64_t>(ids.size(), 1)}) {
      const Read split = read(ids, pieces);
      EXPECT_LT(test::relative_error(split.hidden, test::to_doubles(whole.hidden)), 1e-5);
      for (size_t i = 0; i < whole.state.size(); ++i) {
        if (!whole.state[i].ssm.defined()) continue;
        EXPECT_LT(test::relative_error(split.state[i].ssm, test::to_doubles(whole.state[i].ssm)), 1e-5);
      }
    }
  }
}

TEST_P(Contract, BatchedWithAnythingGivesTheSameBits) {
  for (int trial = 0; trial < 8; ++trial) {
    const int64_t B = 1 + rng_.below(6);
    std::vector<std::vector<int32_t>> texts;
    std::vector<int64_t> lengths;
    std::vector<int32_t> slots, all;
    for (int64_t b = 0; b < B; ++b) {
      texts.push_back(random_ids(1 + rng_.below(150)));
      lengths.push_back(static_cast<int64_t>(texts.back().size()));
      slots.push_back(static_cast<int32_t>((b * 5 + 3) % 7));  // not in order, with gaps
      all.insert(all.end(), texts.back().begin(), texts.back().end());
    }
    const ModelState state = loaded_.model->make_state(7);
    const Tensor hidden = loaded_.model->hidden(ids_tensor(all), SequenceBatch(lengths, slots), state);
    int64_t row = 0;
    for (size_t b = 0; b < texts.size(); ++b) {
      const Read alone = read(texts[b]);
      EXPECT_TRUE(test::same_bits(hidden.slice(0, row, row + lengths[b]), alone.hidden)) << b << " of " << B;
      expect_same_state(state, slots[b], alone.state, 0);
      row += lengths[b];
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Models, Contract,
                         testing::Values("mamba-default", "mamba-conv2", "mamba-state5", "falcon-default",
                                         "mamba2-default", "mamba2-head12", "mamba2-groups2", "mamba2-state9",
                                         "original-mamba2-hdim", "neox-default", "neox-serial", "hybrid-attn",
                                         "hybrid-mlp"),
                         [](const auto& param) {
                           std::string name = param.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace ssm
