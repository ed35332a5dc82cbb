// Batches over files whose token i is id i, so that every batch shows where it comes from.
#include "ssm/train/batches.h"

#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <set>

#include "ssm/train/test_data.h"

namespace ssm::train {
namespace {

using Lengths = std::vector<int64_t>;

std::shared_ptr<const TokenFile> counting_file(const Lengths& lengths, int64_t unlearned_every = 0) {
  const TempFolder folder;
  TokenFileWriter writer(folder / "a.tokens", 1 << 30);
  int32_t id = 0;
  for (const int64_t length : lengths) {
    for (int64_t i = 0; i < length; ++i, ++id) {
      writer.append(std::span(&id, 1), unlearned_every == 0 || id % unlearned_every != 0);
    }
    writer.end_document();
  }
  writer.commit("counting");
  return TokenFile::open(folder / "a.tokens");  // stays mapped without its name
}

Lengths random_lengths(std::mt19937& random, size_t documents, int64_t longest) {
  Lengths lengths(documents);
  for (int64_t& length : lengths)
    length = static_cast<int64_t>(random() % static_cast<uint64_t>(longest + 1));
  lengths[0] = std::max<int64_t>(lengths[0], 2);
  return lengths;
}

// What holds for every batch: sequences of consecutive tokens of one document, the next token as target.
void check(const Batch& batch, const TokenFile& file, bool flows, std::map<int32_t, int32_t>& stream_ends) {
  ASSERT_EQ(batch.ids.size(), batch.targets.size());
  ASSERT_EQ(batch.lengths.size(), batch.streams.size());
  std::set<int32_t> document_ends;
  for (int64_t d = 0; d < file.documents(); ++d)
    document_ends.insert(static_cast<int32_t>(file.begin(d + 1) - 1));
  size_t at = 0;
  int64_t learned = 0;
  std::map<int32_t, int32_t> ends;
  for (size_t s = 0; s < batch.lengths.size(); ++s) {
    ASSERT_GT(batch.lengths[s], 0);
    if (batch.continues[s] && !flows) {
      ASSERT_TRUE(stream_ends.count(batch.streams[s]));
      EXPECT_EQ(batch.ids[at], stream_ends[batch.streams[s]] + 1) << "it goes on where it was";
    }
    for (int64_t i = 0; i < batch.lengths[s]; ++i, ++at) {
      const bool ends_document = document_ends.count(batch.ids[at]) > 0;
      EXPECT_TRUE(flows || !ends_document) << "a last token is no input";
      const bool wanted = !ends_document && file.learned(batch.ids[at] + 1);
      EXPECT_EQ(batch.targets[at], wanted ? batch.ids[at] + 1 : -1);
      learned += wanted;
      if (i > 0 && !flows) {
        EXPECT_EQ(batch.ids[at], batch.ids[at - 1] + 1);
      }
    }
    if (batch.carries_on[s]) ends[batch.streams[s]] = batch.ids[at - 1];
  }
  EXPECT_EQ(at, batch.ids.size());
  EXPECT_EQ(learned, batch.learned);
  stream_ends = ends;
}

const BatchMode kModes[] = {BatchMode::packed, BatchMode::stream, BatchMode::documents};

BatchOptions random_options(std::mt19937& random, BatchMode mode) {
  BatchOptions options;
  options.mode = mode;
  options.rows = 1 + static_cast<int64_t>(random() % 5);
  options.length = 1 + static_cast<int64_t>(random() % 20);
  options.seed = random();
  options.shuffle = random() % 4 != 0;
  options.reset_at_documents = random() % 3 != 0;
  options.longest = static_cast<int64_t>(random() % 3 * 15);
  return options;
}

TEST(Permutation, IsOne) {
  for (const int64_t n : {1, 2, 3, 5, 100, 4097, 65536, 65537, 100000}) {
    std::set<int64_t> seen;
    const Permutation order(n, 11, 0), other(n, 11, 1);
    int64_t fixed = 0, same = 0;
    for (int64_t i = 0; i < n; ++i) {
      ASSERT_TRUE(order(i) >= 0 && order(i) < n);
      seen.insert(order(i));
      fixed += order(i) == i;
      same += order(i) == other(i);
    }
    EXPECT_EQ(std::ssize(seen), n);
    if (n >= 100) {
      EXPECT_TRUE(fixed < 12 && same < 12) << fixed << " " << same;
    }
  }
  const Permutation huge(int64_t{1} << 50, 1, 2);
  EXPECT_TRUE(huge(12345) >= 0 && huge(12345) < int64_t{1} << 50);
}

// Every ordering of 4 things comes about equally often: chi-squared of 24 classes, above 58 in 1 of 10,000.
TEST(Permutation, IsFair) {
  std::map<std::vector<int64_t>, int> counts;
  constexpr int kDraws = 24000;
  for (int seed = 0; seed < kDraws; ++seed) {
    const Permutation order(4, static_cast<uint64_t>(seed), 0);
    ++counts[{order(0), order(1), order(2), order(3)}];
  }
  EXPECT_EQ(counts.size(), 24u);
  double chi = 0;
  for (const auto& [order, count] : counts) chi += (count - 1000.0) * (count - 1000.0) / 1000.0;
  EXPECT_LT(chi, 58);
}

TEST(Batches, AnEpochHasEveryInputOnce) {
  std::mt19937 random(2);
  for (int trial = 0; trial < 120; ++trial) {
    const auto file = counting_file(random_lengths(random, 1 + random() % 30, 60), trial % 3 ? 0 : 5);
    BatchOptions options = random_options(random, kModes[trial % 3]);
    const bool flows = options.mode == BatchMode::stream && !options.reset_at_documents;
    options.epochs = 2;
    Batches batches(DocumentSet(file), options);
    Batch batch;
    std::map<int32_t, int> counts;
    std::map<int32_t, int32_t> ends;
    int64_t steps = 0;
    while (batches.next(batch)) {
      check(batch, *file, flows, ends);
      if (HasFatalFailure()) return;
      for (const int32_t id : batch.ids) ++counts[id];
      ASSERT_LE(std::ssize(batch.ids), options.rows * options.length);
      ASSERT_EQ(batches.position().step, ++steps);
      for (const int64_t length : batch.lengths) {
        if (options.mode != BatchMode::stream) {
          EXPECT_LE(length, options.length);
        }
      }
    }
    EXPECT_FALSE(batches.next(batch)) << "it has ended";
    for (int64_t d = 0; d < file->documents(); ++d) {
      const int64_t inputs = std::max<int64_t>(0, file->length(d) - !flows);
      const int64_t seen = options.mode == BatchMode::documents ? std::min(inputs, options.length) : inputs;
      for (int64_t i = 0; i < inputs; ++i) {
        EXPECT_EQ(counts[static_cast<int32_t>(file->begin(d) + i)], i < seen ? 2 : 0);
      }
    }
    EXPECT_EQ(batches.position().epoch, 2);
    EXPECT_EQ(batches.epochs_done(), 2.0);
  }
}

// A run that is killed after any step and resumed from its position goes on with the same batches.
TEST(Batches, ResumedEqualsUninterrupted) {
  std::mt19937 random(4);
  for (int trial = 0; trial < 90; ++trial) {
    const auto file = counting_file(random_lengths(random, 1 + random() % 40, 50));
    const BatchOptions options = random_options(random, kModes[trial % 3]);
    Batches whole(DocumentSet(file), options);
    auto resumed = std::make_unique<Batches>(DocumentSet(file), options);
    Batch expected, batch;
    for (int step = 0; step < 60; ++step) {
      if (random() % 5 == 0) {
        const auto saved = nlohmann::json::parse(resumed->position().to_json().dump());
        resumed = std::make_unique<Batches>(DocumentSet(file), options);
        if (random() % 2) resumed->next(batch);  // whatever it has read
        resumed->seek(BatchPosition::from_json(saved, "checkpoint"));
      }
      ASSERT_TRUE(whole.next(expected) && resumed->next(batch));
      ASSERT_EQ(batch.ids, expected.ids);
      ASSERT_EQ(batch.targets, expected.targets);
      ASSERT_EQ(batch.lengths, expected.lengths);
      ASSERT_EQ(batch.streams, expected.streams);
      ASSERT_EQ(batch.continues, expected.continues);
      ASSERT_EQ(batch.carries_on, expected.carries_on);
      ASSERT_EQ(resumed->position(), whole.position());
    }
  }
}

TEST(Batches, WithoutEndEveryStepIsFull) {
  std::mt19937 random(9);
  const auto file = counting_file(random_lengths(random, 25, 40));
  for (const BatchMode mode : {BatchMode::packed, BatchMode::stream}) {
    BatchOptions options;
    options.mode = mode;
    options.rows = 3;
    options.length = 17;
    Batches batches(DocumentSet(file), options);
    Batch batch;
    std::set<std::vector<int32_t>> distinct;
    for (int64_t step = 0; step < 10 * batches.steps_per_epoch(); ++step) {
      ASSERT_TRUE(batches.next(batch));
      ASSERT_EQ(batch.ids.size(), 51u);
      distinct.insert(batch.ids);
    }
    EXPECT_GT(std::ssize(distinct), 9 * batches.steps_per_epoch()) << "epochs differ";
    EXPECT_NEAR(batches.epochs_done(), 10, 1.1);
  }
}

TEST(Batches, FewLongDocumentsFillEveryStream) {
  const auto file = counting_file({1000});
  BatchOptions options;
  options.mode = BatchMode::stream;
  options.rows = 4;
  options.length = 10;
  Batches batches(DocumentSet(file), options);
  Batch batch;
  ASSERT_TRUE(batches.next(batch));
  EXPECT_EQ(batch.lengths, (Lengths{10, 10, 10, 10}));
  EXPECT_EQ(batch.carries_on, (std::vector<uint8_t>{1, 1, 1, 1}));
  EXPECT_EQ(std::set<int32_t>(batch.ids.begin(), batch.ids.end()).size(), 40u);
  const auto before = batch.ids;
  ASSERT_TRUE(batches.next(batch));
  for (size_t i = 0; i < 40; ++i) EXPECT_EQ(batch.ids[i], before[i] + 10);
}

TEST(Batches, StateFlowsThroughDocumentsWhereAsked) {
  const auto file = counting_file({3, 4, 2});
  BatchOptions options;
  options.mode = BatchMode::stream;
  options.rows = 1;
  options.length = 5;
  options.shuffle = false;
  options.longest = 100;
  options.reset_at_documents = false;
  Batches flowing(DocumentSet(file), options);
  Batch batch;
  flowing.next(batch);
  EXPECT_EQ(batch.ids, (std::vector<int32_t>{0, 1, 2, 3, 4}));
  EXPECT_EQ(batch.targets, (std::vector<int32_t>{1, 2, -1, 4, 5}));
  EXPECT_EQ(batch.lengths, Lengths{5});
  EXPECT_EQ(batch.continues[0], 0);
  flowing.next(batch);
  EXPECT_EQ(batch.ids, (std::vector<int32_t>{5, 6, 7, 8, 0}));
  EXPECT_EQ(batch.targets, (std::vector<int32_t>{6, -1, 8, -1, 1}));
  EXPECT_EQ(batch.continues[0], 1);

  options.reset_at_documents = true;
  Batches resetting(DocumentSet(file), options);
  resetting.next(batch);
  EXPECT_EQ(batch.ids, (std::vector<int32_t>{0, 1, 3, 4, 5}));
  EXPECT_EQ(batch.targets, (std::vector<int32_t>{1, 2, 4, 5, 6}));
  EXPECT_EQ(batch.lengths, (Lengths{2, 3}));
  EXPECT_EQ(batch.carries_on, (std::vector<uint8_t>{0, 0}));
}

TEST(Batches, APositionOfOtherDataIsRefused) {
  const auto file = counting_file({30, 30});
  BatchOptions options;
  options.length = 7;
  Batches batches(DocumentSet(file), options);
  BatchPosition position = batches.position();
  options.seed = 1;
  Batches others(DocumentSet(file), options);
  expect_error_about([&] { others.seek(position); },
                     "the position is one of other data, or of batches of another kind");
  position.next = 1000;
  expect_error_about([&] { batches.seek(position); }, "piece 1000 of 10");
  position.next = 0;
  position.streams[0] = {3, 7, false};
  expect_error_about([&] { batches.seek(position); }, "input 7 of piece 3");
  auto json = position.to_json();
  json["step"] = 1.5;
  expect_error([&] { BatchPosition::from_json(json, "x.json"); }, "x.json: \"step\" is no whole number");
  json.erase("data");
  expect_error([&] { BatchPosition::from_json(json, "x.json"); }, "x.json: \"data\" is no string");
}

TEST(Batches, NonsenseIsRefused) {
  const auto file = counting_file({1, 0, 1});
  expect_error_about([&] { Batches(DocumentSet(file), {}); }, "no document has two tokens");
  BatchOptions options;
  options.rows = 0;
  expect_error([&] { Batches(DocumentSet(file), options); }, "batches of 0 rows");
}

TEST(HoldOut, EveryDocumentIsInOneSet) {
  std::mt19937 random(6);
  const auto file = counting_file(random_lengths(random, 200, 9));
  const auto [train, held] = hold_out(file, 0.1, 5);
  EXPECT_EQ(held.size(), 20);
  EXPECT_EQ(train.size(), 180);
  std::multiset<int64_t> begins;
  for (int64_t i = 0; i < train.size(); ++i) begins.insert(train[i].begin);
  for (int64_t i = 0; i < held.size(); ++i) begins.insert(held[i].begin);
  std::multiset<int64_t> expected;
  for (int64_t d = 0; d < 200; ++d) expected.insert(file->begin(d));
  EXPECT_EQ(begins, expected);
  EXPECT_EQ(train.tokens() + held.tokens(), file->tokens());
  EXPECT_NE(train.fingerprint(), held.fingerprint());
  EXPECT_NE(train.fingerprint(), hold_out(file, 0.1, 6).first.fingerprint());
  EXPECT_EQ(train.fingerprint(), hold_out(file, 0.1, 5).first.fingerprint());
}

TEST(HoldOut, OfFewDocumentsTheirEnds) {
  const auto file = counting_file({100, 10});
  const auto [train, held] = hold_out(file, 0.2, 5);
  EXPECT_EQ(train[0].end, 80);
  EXPECT_EQ(held[0].begin, 80);
  EXPECT_EQ(held[0].end, 100);
  EXPECT_EQ(train[1].size() + held[1].size(), 10);
  BatchOptions options;
  options.epochs = 1;
  Batches batches(train, options);
  Batch batch;
  ASSERT_TRUE(batches.next(batch));
  EXPECT_EQ(batch.ids.size(), 79u + 7u);
  for (const int32_t target : batch.targets)
    EXPECT_TRUE(target < 80 || (target >= 100 && target < 108)) << target;
  expect_error([&] { hold_out(file, 1.0, 0); }, "a fraction of 1 cannot be held out for validation");
}

}  // namespace
}  // namespace ssm::train
