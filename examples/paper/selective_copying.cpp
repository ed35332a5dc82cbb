// Selective copying (Mamba, table 1): `data` tokens at random places among `length` of noise, then as many
// marks, at which the tokens are to be said in their order.
//
//   noise 0, data 1 .. vocab - 3, mark vocab - 1; length + 2 data ids in all
#include <algorithm>

#include "ssm/core/rng.h"
#include "task.h"

namespace {

struct Copying {
  int64_t length = 4096, data = 16, vocab = 16;

  paper::Sequence sequence(uint64_t seed, std::string_view what, int64_t i) const {
    ssm::Rng rng(seed, paper::stream(what, i));
    const int64_t room = length + data;
    paper::Sequence s;
    s.ids.assign(static_cast<size_t>(room + data), 0);
    s.targets.assign(s.ids.size(), -1);
    int64_t wanted = data;
    for (int64_t at = 0; at < room; ++at) {  // each set of places is as likely as another
      if (rng.below(room - at) >= wanted) continue;
      const auto token = static_cast<int32_t>(1 + rng.below(vocab - 2));
      s.ids[static_cast<size_t>(at)] = token;
      s.targets[static_cast<size_t>(room + data - wanted)] = token;
      --wanted;
    }
    std::fill(s.ids.begin() + room, s.ids.end(), static_cast<int32_t>(vocab - 1));
    return s;
  }
};

}  // namespace

int main(int argc, char** argv) {
  paper::Options options{.steps = 400'000, .rows = 64, .lr = 1e-4};
  Copying copying;
  return paper::run_program(
      argc, argv, "Selective copying: which tokens were there, in their order?", options,
      [&](CLI::App& program) {
        program.add_option("--length", copying.length, "Noise")->check(CLI::Range(1, 1 << 24));
        program.add_option("--data", copying.data, "Tokens to copy")->check(CLI::Range(1, 1 << 16));
        program.add_option("--vocab", copying.vocab, "Ids, the noise's and the mark's with them")
            ->check(CLI::Range(4, 1 << 16));
      },
      [&] {
        const auto made_of = [&](const char* what) {
          return [&, what](int64_t i) { return copying.sequence(options.seed, what, i); };
        };
        const paper::Task task{
            .vocab = copying.vocab, .tied = false, .train = made_of("train"), .test = made_of("test")};
        paper::Study(options, task).run();
      });
}
