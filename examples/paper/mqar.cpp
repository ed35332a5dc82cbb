// Multi-query associative recall (Arora et al., "Zoology", 2023): `pairs` keys, each with its value behind
// it, then all keys again at distances that follow a power law; at each the value is to be said.
//
//   keys 1 .. vocab/2 - 1 and values vocab/2 .. vocab - 1, each at most once in a sequence; 0 stands between,
//   or with --random-non-queries any id
//   place of a query: pairs end + 2 g, with g drawn without repetition by weight 0.01 g^(0.01 - 1)
//
// There are `examples` training sequences, which come back in another order each epoch.
#include <algorithm>
#include <cmath>
#include <mutex>

#include "ssm/core/error.h"
#include "ssm/core/rng.h"
#include "ssm/train/permutation.h"
#include "task.h"

namespace {

constexpr double kPower = 0.01;

struct Recall {
  int64_t length = 64, pairs = 4, vocab = 8192, examples = 100'000, epochs = 64;
  bool random_non_queries = false;

  // n of [from, from + room), none twice.
  static std::vector<int32_t> draw(ssm::Rng& rng, int64_t n, int64_t from, int64_t room) {
    std::vector<int32_t> drawn;
    while (std::ssize(drawn) < n) {
      const auto id = static_cast<int32_t>(from + rng.below(room));
      if (std::find(drawn.begin(), drawn.end(), id) == drawn.end()) drawn.push_back(id);
    }
    return drawn;
  }

  // Without repetition by weight: the n smallest of exponential times (Efraimidis and Spirakis, 2006).
  std::vector<int64_t> gaps(ssm::Rng& rng) const {
    const int64_t room = (length - 2 * pairs) / 2;
    std::vector<std::pair<double, int64_t>> times;
    for (int64_t g = 0; g < room; ++g) {
      const double weight = kPower * std::pow(static_cast<double>(g + 1), kPower - 1);
      const double u = (static_cast<double>(rng.next_u32()) + 0.5) / 4294967296.0;
      times.emplace_back(-std::log(u) / weight, g);
    }
    std::partial_sort(times.begin(), times.begin() + pairs, times.end());
    std::vector<int64_t> chosen;
    for (int64_t i = 0; i < pairs; ++i) chosen.push_back(times[static_cast<size_t>(i)].second);
    return chosen;
  }

  paper::Sequence sequence(uint64_t seed, std::string_view what, int64_t i) const {
    ssm::Rng rng(seed, paper::stream(what, i));
    const std::vector<int32_t> keys = draw(rng, pairs, 1, vocab / 2 - 1);
    const std::vector<int32_t> values = draw(rng, pairs, vocab / 2, vocab - vocab / 2);
    const std::vector<int64_t> places = gaps(rng);
    paper::Sequence s;
    s.ids.assign(static_cast<size_t>(length), 0);
    s.targets.assign(s.ids.size(), -1);
    for (size_t p = 0; p < keys.size(); ++p) {
      s.ids[2 * p] = keys[p];
      s.ids[2 * p + 1] = values[p];
      const auto at = static_cast<size_t>(2 * pairs + 2 * places[p]);
      s.ids[at] = keys[p];
      s.targets[at] = values[p];
    }
    if (random_non_queries) {
      for (int32_t& id : s.ids) {
        if (id == 0) id = static_cast<int32_t>(rng.below(vocab));
      }
    }
    return s;
  }
};

// Which example stands at place i of all epochs, one after another.
class Order {
 public:
  Order(int64_t examples, uint64_t seed) : examples_(examples), seed_(seed) {}

  int64_t operator()(int64_t i) {
    const std::scoped_lock lock(mutex_);
    if (i / examples_ != epoch_) {
      epoch_ = i / examples_;
      order_ = ssm::train::Permutation(examples_, seed_, static_cast<uint64_t>(epoch_));
    }
    return order_(i % examples_);
  }

 private:
  int64_t examples_, epoch_ = -1;
  uint64_t seed_;
  ssm::train::Permutation order_;
  std::mutex mutex_;
};

}  // namespace

int main(int argc, char** argv) {
  paper::Options options{.schedule = "cosine",
                         .steps = 0,
                         .rows = 512,
                         .tests = 3000,
                         .lr = 2.2e-3,
                         .weight_decay = 0.1,
                         .stop_at = 0.99};
  Recall recall;
  return paper::run_program(
      argc, argv, "Multi-query associative recall: which value did each key have?", options,
      [&](CLI::App& program) {
        program.add_option("--length", recall.length, "")->check(CLI::Range(4, 1 << 20));
        program.add_option("--pairs", recall.pairs, "Keys and values")->check(CLI::Range(1, 1 << 16));
        program.add_option("--vocab", recall.vocab, "Ids")->check(CLI::Range(8, 1 << 20));
        program.add_option("--examples", recall.examples, "Sequences of an epoch")
            ->check(CLI::Range(1, 1 << 30));
        program.add_option("--epochs", recall.epochs, "Without --steps")->check(CLI::Range(1, 1 << 20));
        program.add_flag("--random-non-queries", recall.random_non_queries,
                         "Any id between the queries, not 0");
      },
      [&] {
        SSM_CHECK(recall.length >= 4 * recall.pairs, "{} pairs need a length of {}", recall.pairs,
                  4 * recall.pairs);
        SSM_CHECK(recall.pairs < recall.vocab / 2, "{} pairs of {} keys", recall.pairs, recall.vocab / 2 - 1);
        const int64_t per_epoch = std::max<int64_t>(1, recall.examples / options.rows);
        if (options.steps == 0) options.steps = recall.epochs * per_epoch;
        Order order(recall.examples, options.seed);
        const auto train = [&](int64_t i) { return recall.sequence(options.seed, "train", order(i)); };
        const auto test = [&](int64_t i) { return recall.sequence(options.seed, "test", i); };
        const paper::Task task{.vocab = recall.vocab, .tied = true, .train = train, .test = test};
        paper::Study(options, task).run();
      });
}
