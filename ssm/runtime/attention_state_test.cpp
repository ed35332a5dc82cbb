// What attention keeps of texts, as the runtime handles it: pools, files, the cache of prefixes, and the
// bound of its memory.
#include <gtest/gtest.h>

#include "ssm/core/test_error.h"
#include "ssm/core/test_folder.h"
#include "ssm/io/safetensors.h"
#include "ssm/ops/test_util.h"
#include "ssm/runtime/test_requests.h"

namespace ssm {
namespace {

using test::golden_model;
using test::random_ids;
using test::request_of;
using test::run;
using test::submit;

size_t page_bytes(const LoadedModel& model) {  // of all layers
  const ModelState state = model.model->make_state(1);
  size_t bytes = 0;
  for (const MixerState& layer : state) bytes += layer.kv ? static_cast<size_t>(layer.kv->page_bytes()) : 0;
  return bytes;
}

TEST(AttentionState, AForkGoesItsOwnWayAndALoadedCopyGoesOn) {
  for (const char* name : {"neox-default", "hybrid-attn", "hybrid-mlp"}) {
    const LoadedModel model = golden_model(name);
    StatePool pool(*model.model, 3);
    SequenceRunner runner(*model.model, pool);
    Rng rng(1);
    const std::vector<int32_t> begin = random_ids(model, 100, rng), one = random_ids(model, 40, rng),
                               other = random_ids(model, 40, rng);
    const int32_t a = pool.acquire();
    const auto read = [&](int32_t slot, const std::vector<int32_t>& ids) {
      const SequenceRunner::Input input{slot, ids};
      return runner.hidden(std::span(&input, 1)).clone();
    };
    read(a, begin);
    const int32_t b = pool.fork(a);
    const Tensor kept = pool.copy_out(a);
    EXPECT_EQ(kept.bytes(), pool.bytes_of(a));
    EXPECT_EQ(kept.bytes(), pool.bytes_per_slot() + 100 * pool.bytes_per_token());
    const Tensor narrow = pool.copy_out(a, DType::f16);
    EXPECT_EQ(2 * narrow.bytes(), kept.bytes());
    const Tensor after_one = read(a, one), after_other = read(b, other);
    const int32_t c = pool.acquire();
    pool.copy_in(c, kept);
    EXPECT_TRUE(test::same_bits(read(c, one), after_one)) << name;
    pool.copy_in(c, kept);
    EXPECT_TRUE(test::same_bits(read(c, other), after_other)) << name;
    pool.copy_in(c, narrow, DType::f16);
    EXPECT_LT(test::relative_error(read(c, one), test::to_doubles(after_one)), 0.05) << name;
    test::expect_error([&] { pool.copy_in(c, kept.slice(0, 0, kept.size(0) - 1)); }, {"a state of", "bytes"});
  }
}

TEST(AttentionState, MemoryIsBoundedAndGivenBack) {
  const LoadedModel model = golden_model("neox-default");
  StatePool pool(*model.model, 2, DType::f32, 2 * page_bytes(model));
  SequenceRunner runner(*model.model, pool);
  Rng rng(2);
  const std::vector<int32_t> ids = random_ids(model, 65, rng);
  const int32_t a = pool.acquire(), b = pool.acquire();
  const SequenceRunner::Input first{a, ids}, second{b, ids};
  runner.hidden(std::span(&first, 1));  // two pages
  test::expect_error([&] { runner.hidden(std::span(&second, 1)); }, {"keys and values", "--kv-memory"});
  EXPECT_EQ(pool.bytes_of(b), pool.bytes_per_slot());
  const std::vector<int32_t> more = random_ids(model, 63, rng), one = random_ids(model, 1, rng);
  const SequenceRunner::Input fits{a, more}, does_not{a, one};
  runner.hidden(std::span(&fits, 1));
  const Tensor before = pool.copy_out(a);
  test::expect_error([&] { runner.hidden(std::span(&does_not, 1)); }, {"keys and values"});
  EXPECT_TRUE(test::same_bits(pool.copy_out(a), before));
  pool.release(a);
  EXPECT_NO_THROW(runner.hidden(std::span(&second, 1)));
}

TEST(AttentionState, AFileHoldsItAndNamesWhatDoesNotFit) {
  const test::TempFolder folder;
  const LoadedModel model = golden_model("neox-default");
  TextPool texts(model, 2);
  const StateLayout layout = state_layout(texts.states());
  Rng rng(3);
  const std::vector<int32_t> ids = random_ids(model, 70, rng);
  const int32_t slot = texts.begin(ids);
  SequenceRunner runner(*model.model, texts.states());
  const SequenceRunner::Input input{slot, std::span(ids).first(69)};
  runner.hidden(std::span(&input, 1));
  texts.was_read(slot, 69);
  texts.save(slot, folder / "a.state");
  const TextCopy loaded = load_text(folder / "a.state", model, layout);
  EXPECT_TRUE(test::same_bits(loaded.state, texts.copy_out(slot).state));
  EXPECT_EQ(loaded.state.bytes(), bytes_of(layout, 69));
  const auto source = io::SafetensorsFile::open(folder / "a.state");
  EXPECT_EQ(source->find("layers.1.keys")->shape(), (Shape{69, 2, 8}));
  // A note that says less was read than the tensors hold.
  std::vector<io::NamedTensor> tensors;
  for (const std::string& name : source->names()) tensors.push_back({name, *source->find(name)});
  io::Metadata metadata = source->metadata();
  for (const int64_t tokens : {0, 60, 71}) {
    metadata["note"] = fmt::format(R"({{"tokens":{},"pending":[1]}})", tokens);
    io::write_safetensors(folder / "b.state", tensors, metadata);
    test::expect_error([&] { load_text(folder / "b.state", model, layout); }, {"b.state", "layers.0.keys"});
  }
}

TEST(AttentionState, ARequestThatPassesTheBoundFailsAlone) {
  LoadedModel model = golden_model("neox-default");
  model.kv_bytes = 4 * page_bytes(model);
  Scheduler scheduler(model, {.slots = 4});
  Rng rng(4);
  const auto fits = submit(scheduler, request_of(random_ids(model, 60, rng), 100));
  const auto long_prompt = submit(scheduler, request_of(random_ids(model, 400, rng), 5));
  const auto waits = submit(scheduler, request_of(random_ids(model, 150, rng), 5));
  Request endless = request_of(random_ids(model, 10, rng), -1);
  const auto grows = submit(scheduler, std::move(endless));
  run(scheduler);
  EXPECT_EQ(fits->finished.error, "");
  EXPECT_EQ(fits->ids[0].size(), 100u);
  EXPECT_NE(long_prompt->finished.error.find("keys and values"), std::string::npos);
  EXPECT_EQ(long_prompt->reasons[0], StopReason::failed);
  EXPECT_EQ(waits->finished.error, "");
  EXPECT_EQ(waits->ids[0].size(), 5u);
  EXPECT_NE(grows->finished.error.find("keys and values"), std::string::npos);
  EXPECT_GT(grows->ids[0].size(), 100u);  // what was written was told
}

TEST(AttentionState, ThePrefixCacheCountsWhatItKeeps) {
  const LoadedModel model = golden_model("neox-default");
  const StatePool one(*model.model, 1);
  Rng rng(5);
  const std::vector<int32_t> prompt = random_ids(model, 300, rng);
  const size_t kept = 300 * one.bytes_per_token();
  for (const bool enough : {true, false}) {
    Scheduler scheduler(model, {.slots = 2, .cache_bytes = enough ? 4 * kept : kept / 2});
    const auto first = submit(scheduler, request_of(prompt, 4));
    run(scheduler);
    const auto again = submit(scheduler, request_of(prompt, 4));
    run(scheduler);
    EXPECT_EQ(again->ids, first->ids);
    EXPECT_EQ(again->cached, enough ? 300 : 0);
    EXPECT_EQ(scheduler.stats().cache_bytes >= kept, enough);
  }
}

}  // namespace
}  // namespace ssm
