// Vocabularies against those of the Python package `tokenizers` (scripts/make_tokenizer_goldens.py).
#include "ssm/text/bpe_trainer.h"

#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <random>

#include "ssm/core/error.h"
#include "ssm/core/parallel.h"
#include "ssm/text/tokenizer.h"

namespace ssm::text {
namespace {

using nlohmann::json;

TrainedBpe trained(const std::vector<std::string>& texts, int64_t vocab_size, int64_t min_frequency = 1,
                   std::vector<std::string> special_tokens = {"<|endoftext|>"}) {
  BpeTrainer trainer({vocab_size, min_frequency, std::move(special_tokens)});
  const std::vector<std::string_view> views(texts.begin(), texts.end());
  trainer.add(views);
  return trainer.train();
}

std::vector<std::string> spelled_merges(const TrainedBpe& bpe) {
  std::vector<std::string> merges;
  for (const auto& [left, right] : bpe.merges) {
    merges.push_back(bpe.tokens[static_cast<size_t>(left)] + " " + bpe.tokens[static_cast<size_t>(right)]);
  }
  return merges;
}

TEST(BpeTrainer, EqualsTokenizers) {
  std::ifstream file(std::string(SSM_SOURCE_DIR) + "/tests/goldens/tokenizers/bpe_trainer.json");
  const json golden = json::parse(file);
  ASSERT_GT(golden["cases"].size(), 5u);
  for (const json& example : golden["cases"]) {
    const auto texts = example["texts"].get<std::vector<std::string>>();
    const TrainedBpe bpe = trained(texts, example["vocab_size"], example["min_frequency"],
                                   example["special_tokens"].get<std::vector<std::string>>());
    EXPECT_EQ(spelled_merges(bpe), example["merges"].get<std::vector<std::string>>());
    EXPECT_EQ(
        std::vector<std::string>(bpe.tokens.end() - std::ssize(example["last_tokens"]), bpe.tokens.end()),
        example["last_tokens"].get<std::vector<std::string>>());
    const auto tokenizer = parse_tokenizer_json(bpe.tokenizer_json(), "trained.json");
    EXPECT_EQ(tokenizer->size(), std::ssize(bpe.tokens));
    EXPECT_EQ(tokenizer->encode(golden["probe"].get<std::string>()),
              example["ids"].get<std::vector<int32_t>>());
  }
}

std::vector<std::string> random_texts(uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<std::string> texts(40);
  for (std::string& text : texts) {
    for (size_t n = random() % 400; n > 0; --n) text += "aab c\n-é"[random() % 9];
  }
  return texts;
}

// The plain way: count all pairs anew for every merge. Without runs of one byte both must agree; with them
// the reference's counts drift (a merged pair keeps its count), so they are left out here.
TEST(BpeTrainer, EqualsPlainCounting) {
  for (uint32_t seed = 0; seed < 20; ++seed) {
    std::mt19937 random(seed);
    std::vector<std::string> texts(30);
    for (std::string& text : texts) {
      char last = 0;
      for (size_t n = random() % 300; n > 0; --n) {
        char next = "abcd e"[random() % 6];
        if (next != last) text += last = next;
      }
    }
    std::map<std::string, int64_t> words;
    for (const std::string& text : texts) {
      for (size_t at = 0, end = 0; at < text.size();
           at = end) {  // ' ' and the letters behind it, or ' ' at the end
        end = at + 1;
        while (end < text.size() && text[end] != ' ') ++end;
        ++words[text.substr(at, end - at)];
      }
    }
    const TrainedBpe bpe = trained(texts, 257 + 40);
    std::map<std::string, int32_t> ids;
    for (size_t id = 0; id < bpe.tokens.size(); ++id) ids[bpe.tokens[id]] = static_cast<int32_t>(id);
    std::vector<std::pair<std::vector<int32_t>, int64_t>> split;
    for (const auto& [word, count] : words) {
      std::vector<int32_t> symbols;
      for (const char c : word) symbols.push_back(ids.at(c == ' ' ? "\u0120" : std::string(1, c)));
      split.emplace_back(symbols, count);
    }
    for (const auto& merge : bpe.merges) {
      std::map<std::pair<int32_t, int32_t>, int64_t> counts;
      for (const auto& [symbols, count] : split) {
        for (size_t i = 0; i + 1 < symbols.size(); ++i) counts[{symbols[i], symbols[i + 1]}] += count;
      }
      auto best = counts.begin();
      for (auto it = counts.begin(); it != counts.end(); ++it) {
        if (it->second > best->second) best = it;
      }
      ASSERT_EQ(merge, best->first) << "seed " << seed;
      const auto left = static_cast<size_t>(merge.first), right = static_cast<size_t>(merge.second);
      const int32_t id = ids.at(bpe.tokens[left] + bpe.tokens[right]);
      for (auto& [symbols, count] : split) {
        std::vector<int32_t> after;
        for (size_t i = 0; i < symbols.size(); ++i) {
          const bool here =
              symbols[i] == merge.first && i + 1 < symbols.size() && symbols[i + 1] == merge.second;
          after.push_back(here ? id : symbols[i]);
          i += here;
        }
        symbols = after;
      }
    }
  }
}

TEST(BpeTrainer, ThreadsAndPiecesChangeNothing) {
  const int threads = num_threads();
  std::vector<std::string> results;
  for (const int n : {1, 2, 5}) {
    set_num_threads(n);
    results.push_back(trained(random_texts(3), 400).tokenizer_json());
  }
  set_num_threads(threads);
  EXPECT_EQ(results[0], results[1]);
  EXPECT_EQ(results[0], results[2]);
}

TEST(BpeTrainer, EveryByteCanBeEncoded) {
  const auto tokenizer = parse_tokenizer_json(trained(random_texts(1), 300).tokenizer_json(), "trained.json");
  std::string all;
  for (int byte = 0; byte < 256; ++byte) all += static_cast<char>(byte);
  EXPECT_EQ(tokenizer->decode(tokenizer->encode(all)), all);
  EXPECT_EQ(tokenizer->encode("<|endoftext|>"), std::vector<int32_t>{0});
}

TEST(BpeTrainer, StopsWhereNothingIsFrequent) {
  EXPECT_EQ(trained({"ab ab cd"}, 1000, 2).tokens.size(), 258u) << "ab, but for ' ab', which is there once";
  EXPECT_EQ(trained({""}, 1000).tokens.size(), 257u);
}

TEST(BpeTrainer, NonsenseIsRefused) {
  const auto refused = [](int64_t size, std::vector<std::string> special, const std::string& part) {
    try {
      BpeTrainer({size, 2, std::move(special)});
      ADD_FAILURE() << part;
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find(part), std::string::npos) << e.what();
    }
  };
  refused(256, {"<s>"}, "a vocabulary of 256 tokens: at least 257");
  refused(int64_t{1} << 30, {}, "at most 16777216");
  refused(300, {"<s>", "<s>"}, "special token \"<s>\" is named twice");
  refused(300, {""}, "shorter than two bytes");
  refused(300, {"\xFF\xFF"}, "is not UTF-8");
}

}  // namespace
}  // namespace ssm::text
