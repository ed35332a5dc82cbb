// Token files: round trips, damage; the cache and what makes a new one of it.
#include "ssm/train/dataset.h"

#include <random>

#include "ssm/core/log.h"
#include "ssm/text/tokenizer.h"
#include "ssm/train/sources.h"
#include "ssm/train/test_data.h"

namespace ssm::train {
namespace {

namespace fs = std::filesystem;

const fs::path kTokenizer = fs::path(SSM_SOURCE_DIR) / "models/tale-10m";

std::vector<int32_t> ids_of(const TokenFile& file, int64_t document) {
  std::vector<int32_t> ids(static_cast<size_t>(file.length(document)));
  file.read(file.begin(document), ids);
  return ids;
}

struct Options : DatasetOptions {
  explicit Options(const TempFolder& folder, const fs::path& tokenizer_path = {}) {
    cache = folder / "cache";
    tokenizer = tokenizer_path;
  }
};

int64_t files_in(const fs::path& folder) {
  return std::distance(fs::directory_iterator(folder), fs::directory_iterator());
}

TEST(TokenFile, RoundTripsAnyDocuments) {
  const TempFolder folder;
  std::mt19937 random(3);
  for (const int64_t vocab : {256, 65536, 65537, 2147483647}) {
    for (const bool masks : {false, true}) {
      std::vector<std::vector<int32_t>> documents;
      std::vector<bool> learned;
      TokenFileWriter writer(folder / "a.tokens", vocab);
      for (int d = 0; d < 40; ++d) {
        auto& document = documents.emplace_back();
        for (size_t parts = random() % 3; parts > 0; --parts) {
          std::vector<int32_t> ids(random() % 50);
          for (int32_t& id : ids) id = static_cast<int32_t>(random() % static_cast<uint64_t>(vocab));
          const bool learn = !masks || random() % 2;
          writer.append(ids, learn);
          document.insert(document.end(), ids.begin(), ids.end());
          learned.insert(learned.end(), ids.size(), learn);
        }
        writer.end_document();
      }
      writer.commit("made for a test");
      const auto file = TokenFile::open(folder / "a.tokens");
      EXPECT_EQ(file->vocab(), vocab);
      EXPECT_EQ(file->identity(), "made for a test");
      EXPECT_EQ(file->has_mask(), masks);
      ASSERT_EQ(file->documents(), 40);
      ASSERT_EQ(file->tokens(), std::ssize(learned));
      for (int64_t d = 0; d < 40; ++d) EXPECT_EQ(ids_of(*file, d), documents[static_cast<size_t>(d)]);
      for (int64_t t = 0; t < file->tokens(); ++t)
        EXPECT_EQ(file->learned(t), learned[static_cast<size_t>(t)]);
      std::vector<int32_t> beyond(1);
      EXPECT_THROW(file->read(file->tokens(), beyond), Error);
      EXPECT_EQ(files_in(folder.path()), 1) << "nothing else stays behind";
    }
  }
}

TEST(TokenFile, WithoutCommitNothingAppears) {
  const TempFolder folder;
  {
    TokenFileWriter writer(folder / "a.tokens", 10);
    writer.append(std::vector<int32_t>{1, 2, 3});
    expect_error_about([&] { writer.append(std::vector<int32_t>{10}); },
                       "id 10 is outside a vocabulary of 10");
  }
  EXPECT_EQ(files_in(folder.path()), 0);
}

// Reads everything that a file which opened says it has.
void open_and_read(const std::string& text) {
  try {
    const TokenFile file(heap_bytes(text, "a.tokens"));
    for (int64_t d = 0; d < file.documents(); ++d) {
      for (const int32_t id : ids_of(file, d)) EXPECT_TRUE(id >= 0 && id < file.vocab());
    }
    for (int64_t t = 0; t < file.tokens(); ++t) file.learned(t);
  } catch (const Error&) {
  }
}

TEST(TokenFile, DamageIsAnError) {
  const TempFolder folder;
  TokenFileWriter writer(folder / "a.tokens", 300);
  for (int d = 0; d < 5; ++d) {
    writer.append(std::vector<int32_t>{1, 2, 299}, d % 2 != 0);
    writer.end_document();
  }
  writer.commit("x");
  const std::string valid = read_file(folder / "a.tokens");
  for (size_t size = 0; size < valid.size(); ++size) {
    EXPECT_THROW(TokenFile(heap_bytes(valid.substr(0, size), "a.tokens")), Error) << size;
  }
  std::mt19937 random(1);
  for (int i = 0; i < 20000; ++i) {
    std::string text = valid;
    for (int flips = 1 + i % 3; flips > 0; --flips)
      text[random() % text.size()] = static_cast<char>(random());
    open_and_read(text);
  }
  std::string other = valid;
  other[8] = 2;
  expect_error([&] { TokenFile(heap_bytes(other, "a.tokens")); },
               "a.tokens: version 2 of the format, this program reads 1");
  other = valid;
  other[64] = 1, other[65] = 9;
  const TokenFile file(heap_bytes(other, "a.tokens"));
  expect_error([&] { ids_of(file, 0); }, "a.tokens: token 0 is id 2305, outside a vocabulary of 300");
}

TEST(Dataset, IdsOfEveryKindOfSource) {
  const TempFolder folder;
  const auto tokenizer = text::open_tokenizer(kTokenizer);
  write_file(folder / "a.txt", "Once upon a time\n<|endoftext|>\nthe end\n");
  write_file(folder / "b.jsonl", "{\"prompt\":\"Say hello:\",\"completion\":\" hello\"}\n");
  write_file(folder / "c.csv", "id,text\n1,\"A \"\"quoted\"\" word\"\n2,\n");
  Options options(folder, kTokenizer);
  options.eos = 0;
  options.bos = 1;
  const auto file = open_dataset({folder.path()}, options);
  const auto expected = [&](std::vector<std::string> parts) {
    std::vector<int32_t> ids{1};
    for (const std::string& part : parts) {
      const auto more = tokenizer->encode(part);
      ids.insert(ids.end(), more.begin(), more.end());
    }
    ids.push_back(0);
    return ids;
  };
  ASSERT_EQ(file->documents(), 4) << "an empty text is no document";
  EXPECT_EQ(file->vocab(), tokenizer->size());
  EXPECT_EQ(ids_of(*file, 0), expected({"Once upon a time\n"}));
  EXPECT_EQ(ids_of(*file, 1), expected({"the end\n"}));
  EXPECT_EQ(ids_of(*file, 2), expected({"Say hello:", " hello"}));
  EXPECT_EQ(ids_of(*file, 3), expected({"A \"quoted\" word"}));
  ASSERT_TRUE(file->has_mask());
  const int64_t prompt = 1 + std::ssize(tokenizer->encode("Say hello:"));
  for (int64_t i = 0; i < file->length(2); ++i) {
    EXPECT_EQ(file->learned(file->begin(2) + i), i >= prompt) << "the completion and its end";
  }
  EXPECT_TRUE(file->learned(file->begin(1)) && file->learned(file->begin(3)));
}

TEST(Dataset, OfConversationsTheAnswersAreLearned) {
  const TempFolder folder;
  const auto tokenizer = text::open_tokenizer(kTokenizer);
  write_file(folder / "a.jsonl",
             R"({"messages":[{"role":"user","content":"Hi"},{"role":"assistant","content":"Yes?"},)"
             R"({"role":"user","content":"Go"},{"role":"assistant","content":"No."}]})"
             "\n");
  Options options(folder, kTokenizer);
  options.eos = 0;
  options.bos = 1;
  options.records.chat = std::make_shared<const text::ChatTemplate>(
      text::built_in_chat_template("plain", text::special_tokens({}, tokenizer.get())));
  const auto file = open_dataset({folder.path()}, options);
  std::vector<int32_t> ids;
  std::vector<bool> learned;
  const auto add = [&](const std::vector<int32_t>& more, bool learn) {
    ids.insert(ids.end(), more.begin(), more.end());
    learned.insert(learned.end(), more.size(), learn);
  };
  add(tokenizer->encode("User: Hi\nAssistant:"), false);
  add(tokenizer->encode(" Yes?\nUser:"), true);
  add(tokenizer->encode(" Go\nAssistant:"), false);
  add(tokenizer->encode(" No."), true);
  add({*tokenizer->eos()}, true);  // the template's: nothing else is put around
  ASSERT_EQ(file->documents(), 1);
  EXPECT_EQ(ids_of(*file, 0), ids);
  for (int64_t i = 0; i < file->length(0); ++i) {
    EXPECT_EQ(file->learned(file->begin(0) + i), learned[static_cast<size_t>(i)]) << i;
  }
  const auto cached = [&](const char* source) {
    options.records.chat = std::make_shared<const text::ChatTemplate>(source, "t", text::SpecialTokens{});
    return open_dataset({folder.path()}, options)->tokens();
  };
  const int64_t tokens = cached("{% generation %}x{% endgeneration %}");
  EXPECT_EQ(tokens, std::ssize(tokenizer->encode("x"))) << "another template, another cache";
}

TEST(Dataset, BytesOfAnyFile) {
  const TempFolder folder;
  std::string bytes;
  for (int i = 0; i < 3000000; ++i) bytes += static_cast<char>(i * 7);
  write_file(folder / "a.wav", bytes);
  const auto file = open_dataset({folder / "a.wav"}, Options(folder));
  EXPECT_EQ(file->vocab(), 256);
  ASSERT_EQ(file->documents(), 1);
  const auto ids = ids_of(*file, 0);
  ASSERT_EQ(ids.size(), bytes.size());
  for (size_t i = 0; i < ids.size(); ++i) ASSERT_EQ(ids[i], static_cast<uint8_t>(bytes[i]));
}

// A document of many pieces has the ids of the whole.
TEST(Dataset, LongDocumentsAreTokenisedInPieces) {
  const TempFolder folder;
  std::mt19937 random(5);
  std::string text;
  while (text.size() < 3500000) {
    for (int word = 0; word < 50; ++word) {
      for (size_t n = 1 + random() % 9; n > 0; --n) text += static_cast<char>('a' + random() % 26);
      text += random() % 7 ? " " : ", \n"[random() % 2] == ' ' ? "  " : "\n\n ";
    }
  }
  write_file(folder / "a.txt", text);
  const auto file = open_dataset({folder / "a.txt"}, Options(folder, kTokenizer));
  ASSERT_EQ(file->documents(), 1);
  EXPECT_TRUE(ids_of(*file, 0) == text::open_tokenizer(kTokenizer)->encode(text));
}

// Of a tokenizer that puts a space before every text, too.
TEST(Dataset, LongDocumentsOfSentencePiece) {
  for (const char* kind : {"bpe", "unigram"}) {
    const TempFolder folder;
    const fs::path model = fs::path(SSM_SOURCE_DIR) / "tests/goldens/tokenizers" /
                           (std::string("sentencepiece-") + kind + ".model");
    std::mt19937 random(8);
    std::string text;
    while (text.size() < 1300000) {
      for (size_t n = 1 + random() % 7; n > 0; --n) text += "etaoinshrd"[random() % 10];
      text += random() % 9 ? " " : random() % 2 ? ", " : "  \n";
    }
    write_file(folder / "a.txt", text);
    const auto file = open_dataset({folder / "a.txt"}, Options(folder, model));
    EXPECT_TRUE(ids_of(*file, 0) == text::open_tokenizer(model)->encode(text)) << kind;
  }
}

TEST(Dataset, PiecesEndBetweenCharacters) {
  const std::string words = "one two three four";
  EXPECT_EQ(tokenisable_prefix(words, 100), words.size());
  EXPECT_EQ(tokenisable_prefix(words, 10), 7u);
  EXPECT_EQ(tokenisable_prefix("ab cd  ef  gh ij", 12), 12u)
      << "no space between two letters in its second half";
  std::string wide;
  for (int i = 0; i < 10; ++i) wide += "\xF0\x9F\x91\x8D";
  for (size_t limit = 8; limit < 30; ++limit) EXPECT_EQ(tokenisable_prefix(wide, limit), limit / 4 * 4);
  EXPECT_EQ(tokenisable_prefix(std::string(50, '\x80'), 20), 20u) << "bytes that are no text";
}

TEST(Dataset, TheCacheIsUsedUntilSomethingChanges) {
  const TempFolder folder;
  const fs::path source = write_file(folder / "a.txt", "one two");
  Options options(folder);
  int made = 0;
  options.progress = [&](double) { ++made; };
  const auto count = [&] {
    open_dataset({source}, options);
    return made;
  };
  EXPECT_EQ(count(), 1);
  EXPECT_EQ(count(), 1) << "the cache is used";
  fs::last_write_time(source, fs::last_write_time(source) + std::chrono::seconds(1));
  EXPECT_EQ(count(), 2) << "another time";
  write_file(source, "one two three");
  EXPECT_EQ(count(), 3) << "another size";
  const auto time = fs::last_write_time(source);
  write_file(source, "one two thref");
  fs::last_write_time(source, time);
  EXPECT_EQ(count(), 4) << "another content of the same size and time";
  options.eos = 10;
  EXPECT_EQ(count(), 5) << "another option";
  options.tokenizer = kTokenizer;
  EXPECT_EQ(count(), 6) << "another tokenizer";
  EXPECT_EQ(count(), 6);
}

TEST(Dataset, ADamagedCacheIsMadeAnew) {
  const TempFolder folder;
  const fs::path source = write_file(folder / "a.txt", "one two");
  const Options options(folder);
  const std::string name = open_dataset({source}, options)->name();
  write_file(name, "rubbish");
  std::string warning;
  set_log_handler([&](LogLevel, std::string_view message) { warning = message; });
  EXPECT_EQ(open_dataset({source}, options)->tokens(), 7);
  set_log_handler(nullptr);
  EXPECT_EQ(warning, name + ": not a file of tokens; tokenising again");
  EXPECT_EQ(files_in(folder / "cache"), 1);
}

TEST(Dataset, ErrorsLeaveNothingBehind) {
  const TempFolder folder;
  const Options options(folder);
  const fs::path bad = write_file(folder / "a.jsonl", "{\"text\":\"a\"}\n{\"text\":7}\n");
  expect_error([&] { open_dataset({bad}, options); }, bad.string() + ":2: field \"text\" is not a string");
  EXPECT_EQ(files_in(folder / "cache"), 0);
  const fs::path none = folder / "none.txt";
  expect_error([&] { open_dataset({none}, options); }, none.string() + ": no such file or folder");
  expect_error([&] { open_dataset({}, options); }, "no training data are given");
  const fs::path blank = write_file(folder / "blank.csv", "text\n");
  expect_error([&] { open_dataset({blank}, options); }, blank.string() + ": no document with text in it");
  const fs::path empty = write_file(folder / "empty.txt", "");
  expect_error([&] { open_dataset({empty}, options); }, empty.string() + ": the file is empty");
  fs::create_directory(folder / "folder");
  expect_error([&] { open_dataset({folder / "folder"}, options); },
               (folder / "folder").string() + ": no .txt, .jsonl or .csv in this folder");
  Options eos(folder);
  eos.eos = 256;
  const fs::path good = write_file(folder / "a.txt", "a");
  expect_error([&] { open_dataset({good}, eos); },
               "id 256 before or after documents is outside a vocabulary of 256");
}

}  // namespace
}  // namespace ssm::train
