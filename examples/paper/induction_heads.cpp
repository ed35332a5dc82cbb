// Induction heads (Mamba, table 2): random ids, among them once a special one; at the end it stands again,
// and the id that followed it is to be said. Trained at one length, asked at many.
//
//   ids 0 .. vocab - 2, the special one vocab - 1; loss at the last place only
#include <fmt/format.h>

#include <algorithm>

#include "ssm/core/rng.h"
#include "ssm/runtime/sequence_runner.h"
#include "task.h"

namespace {

struct Induction {
  int64_t length = 256, vocab = 16, shortest = 64, longest = 1 << 20, long_tests = 8;

  paper::Sequence sequence(uint64_t seed, std::string_view what, int64_t n, int64_t i) const {
    ssm::Rng rng(seed, paper::stream(what, i));
    paper::Sequence s;
    s.ids.resize(static_cast<size_t>(n));
    s.targets.assign(s.ids.size(), -1);
    for (int32_t& id : s.ids) id = static_cast<int32_t>(rng.below(vocab - 1));
    const auto place = static_cast<size_t>(rng.below(n - 2));
    s.ids[place] = s.ids.back() = static_cast<int32_t>(vocab - 1);
    s.targets.back() = s.ids[place + 1];
    return s;
  }

  // Read with a state, in pieces: memory does not grow with n.
  double accuracy_at(const ssm::LoadedModel& loaded, uint64_t seed, int64_t n) const {
    ssm::StatePool pool(*loaded.model, 1);
    ssm::SequenceRunner runner(*loaded.model, pool);
    int64_t right = 0;
    for (int64_t i = 0; i < long_tests; ++i) {
      const paper::Sequence s = sequence(seed, fmt::format("length {}", n), n, i);
      const int32_t slot = pool.acquire();
      ssm::Tensor last;  // [1, M]: the last piece's last token
      runner.read_all({slot, s.ids}, [&](int64_t, const ssm::Tensor& hidden) {
        last = hidden.slice(0, hidden.size(0) - 1, hidden.size(0));
      });
      const ssm::Tensor logits = runner.logits(last).to(ssm::kCpu);
      const auto row = logits.select(0, 0).values<float>().subspan(0, static_cast<size_t>(vocab));
      right += std::max_element(row.begin(), row.end()) - row.begin() == s.targets.back();
      pool.release(slot);
    }
    return static_cast<double>(right) / static_cast<double>(long_tests);
  }
};

}  // namespace

int main(int argc, char** argv) {
  paper::Options options{.steps = 204'800, .rows = 8, .evaluate_every = 8192, .save_every = 2048, .lr = 1e-3};
  Induction induction;
  return paper::run_program(
      argc, argv, "Induction heads: what followed the special id?", options,
      [&](CLI::App& program) {
        program.add_option("--length", induction.length, "In training")->check(CLI::Range(4, 1 << 24));
        program.add_option("--vocab", induction.vocab, "Ids")->check(CLI::Range(3, 1 << 16));
        program.add_option("--shortest", induction.shortest, "Asked at, and at its doubles")
            ->check(CLI::Range(4, 1 << 30));
        program.add_option("--longest", induction.longest, "Up to this length")
            ->check(CLI::Range(4, 1 << 30));
        program.add_option("--long-tests", induction.long_tests, "Sequences a length")
            ->check(CLI::Range(1, 1 << 20));
      },
      [&] {
        const auto made_of = [&](const char* what) {
          return [&, what](int64_t i) { return induction.sequence(options.seed, what, induction.length, i); };
        };
        const paper::Task task{
            .vocab = induction.vocab, .tied = true, .train = made_of("train"), .test = made_of("test")};
        paper::Study study(options, task);
        if (!study.run()) return;
        for (int64_t n = induction.shortest; n <= induction.longest; n *= 2) {
          fmt::print("{{\"length\":{},\"accuracy\":{}}}\n", n,
                     induction.accuracy_at(study.loaded(), options.seed, n));
          std::fflush(stdout);
        }
      });
}
