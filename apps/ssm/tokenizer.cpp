// ssm tokenizer train: a byte-level BPE vocabulary of one's own texts.
#include <filesystem>

#include "apps/ssm/commands.h"
#include "apps/ssm/flags.h"
#include "apps/ssm/output.h"
#include "ssm/core/atomic_file.h"
#include "ssm/core/error.h"
#include "ssm/core/log.h"
#include "ssm/core/parallel.h"
#include "ssm/text/bpe_trainer.h"
#include "ssm/train/sources.h"

namespace ssm::app {
namespace {

namespace fs = std::filesystem;

constexpr size_t kRoundBytes = size_t{16} << 20;

struct Arguments {
  std::vector<std::string> files;
  std::string out;
  text::BpeTrainerOptions trainer;
  train::RecordOptions records;
  int threads = 0;
  bool json = false;
};

int64_t count_words(const Arguments& arguments, text::BpeTrainer& trainer, Progress& progress) {
  const std::vector<fs::path> paths(arguments.files.begin(), arguments.files.end());
  train::TextPieces pieces(train::find_sources(paths, arguments.records, false), arguments.records,
                           train::TextPieces::Cut::text);
  std::vector<train::TextPiece> round;
  std::vector<std::string_view> texts;
  int64_t bytes = 0;
  for (pieces.next_round(kRoundBytes, round); !round.empty(); pieces.next_round(kRoundBytes, round)) {
    texts.clear();
    for (const auto& piece : round) {
      texts.push_back(piece.text);
      bytes += std::ssize(piece.text);
    }
    trainer.add(texts);
    pieces.release();
    progress.show(fmt::format("reading: {:.0f} %", 100 * pieces.fraction()));
  }
  return bytes;
}

std::string tokenizer_config(const text::TrainedBpe& bpe) {
  const std::string& end = bpe.tokens[0];
  const nlohmann::ordered_json config{{"tokenizer_class", "PreTrainedTokenizerFast"},
                                      {"bos_token", end},
                                      {"eos_token", end},
                                      {"unk_token", end},
                                      {"add_prefix_space", false},
                                      {"clean_up_tokenization_spaces", false},
                                      {"model_max_length", 1 << 20}};
  return config.dump(2) + "\n";
}

void run(const Arguments& arguments) {
  set_num_threads(arguments.threads);
  text::BpeTrainer trainer = reading_arguments([&] { return text::BpeTrainer(arguments.trainer); });
  const fs::path folder = arguments.out;
  std::error_code error;
  fs::create_directories(folder, error);
  SSM_CHECK(!error, "{}: cannot create this folder: {}", arguments.out, error.message());
  Progress progress;
  const int64_t bytes = count_words(arguments, trainer, progress);
  SSM_CHECK(bytes > 0, "{}: no text in it", arguments.files[0]);
  const int64_t wanted = arguments.trainer.vocab_size;
  const text::TrainedBpe bpe = trainer.train(
      [&](int64_t size) { progress.show(fmt::format("merging: {} of {} tokens", size, wanted)); });
  write_whole(folder / "tokenizer.json", bpe.tokenizer_json());
  write_whole(folder / "tokenizer_config.json", tokenizer_config(bpe));
  progress.clear();
  const auto size = std::ssize(bpe.tokens);
  if (size < wanted) {
    log(LogLevel::warning, fmt::format("{} tokens instead of {}: no other pair is there {} times", size,
                                       wanted, arguments.trainer.min_frequency));
  }
  if (arguments.json) {
    print_json({{"path", folder / "tokenizer.json"},
                {"tokens", size},
                {"merges", bpe.merges.size()},
                {"bytes", bytes}});
  } else {
    standard_output().write(fmt::format("{}: {} tokens, {} merges, of {} bytes of text\n",
                                        (folder / "tokenizer.json").string(), size, bpe.merges.size(),
                                        bytes));
  }
}

void add_tokenizer_train(CLI::App& tokenizer) {
  auto arguments = std::make_shared<Arguments>();
  arguments->trainer.special_tokens = {"<|endoftext|>"};
  CLI::App* verb = tokenizer.add_subcommand("train", "Learn a byte-level BPE vocabulary from texts");
  verb->add_option("FILES", arguments->files, "Texts: .txt, .jsonl, .csv, or folders of them")->required();
  verb->add_option("--vocab-size", arguments->trainer.vocab_size,
                   "Tokens, the 256 bytes and special ones included")
      ->transform(integer_between(257, 1 << 24))
      ->option_text("N")
      ->required();
  verb->add_option("--out", arguments->out,
                   "The folder to write tokenizer.json and tokenizer_config.json into")
      ->option_text("DIR")
      ->required();
  repeatable(verb->add_option("--special-token", arguments->trainer.special_tokens,
                              "Repeatable; the first one ends texts. Without it: <|endoftext|>"))
      ->option_text("TEXT");
  verb->add_option("--min-frequency", arguments->trainer.min_frequency,
                   "Of a pair that is merged (default 2)")
      ->transform(integer_between(1, int64_t{1} << 40))
      ->option_text("N");
  verb->add_option("--column", arguments->records.column,
                   "The field or column of .jsonl and .csv that is the text")
      ->option_text("NAME");
  verb->add_option("--separator", arguments->records.separator,
                   "The line between documents of a .txt (default <|endoftext|>)")
      ->option_text("TEXT");
  verb->add_option("--threads", arguments->threads, "CPU threads; without it OMP_NUM_THREADS, or one a CPU")
      ->transform(integer_between(1, 1024))
      ->option_text("N");
  verb->add_flag("--json", arguments->json, "Print one JSON object");
  verb->footer(
      "Texts are cut into words by GPT-2's pattern; every byte is a token, so that any text can be "
      "encoded.\n\n"
      "Examples:\n"
      "  ssm tokenizer train books/ --vocab-size 8192 --out my-tokenizer\n"
      "  ssm tokenizer train quotes.csv --column quote --vocab-size 4096 --out my-tokenizer\n"
      "  ssm tokenize --tokenizer my-tokenizer < book.txt");
  verb->callback([arguments] { run(*arguments); });
}

}  // namespace

void add_tokenizer(CLI::App& program) {
  CLI::App* verb = program.add_subcommand("tokenizer", "Make a tokenizer");
  verb->require_subcommand(1);
  add_tokenizer_train(*verb);
}

}  // namespace ssm::app
