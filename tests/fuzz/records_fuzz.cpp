// The input is training data: its first byte says whether of .txt, .jsonl or .csv and whether a column is
// named, the rest is the file. Every document is read, views into the file too.
#include <vector>

#include "fuzz_target.h"
#include "ssm/train/records.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const auto copy = std::make_shared<std::vector<std::byte>>();
  for (const std::byte b : bytes_of(data + 1, size - 1)) copy->push_back(b);
  copy->shrink_to_fit();
  ssm::train::RecordOptions options;
  const char* const formats[] = {"txt", "jsonl", "csv"};
  options.format = formats[data[0] % 3];
  if (data[0] & 4) options.column = "quote";
  if (data[0] & 8) options.separator = "";
  if (data[0] & 16) {
    options.chat =
        std::make_shared<const ssm::text::ChatTemplate>(ssm::text::built_in_chat_template("plain", {}));
  }
  ignore_errors([&] {
    const auto reader = ssm::train::read_records({{copy->data(), copy->size()}, copy, "fuzz"}, options);
    size_t total = 0, offset = 0;
    volatile char last = 0;
    for (ssm::train::Document document; reader->next(document);) {
      for (const auto& part : document) {
        for (const char c : part.view()) last = c;
        total += part.view().size();
      }
      if (reader->offset() < offset || reader->offset() > copy->size()) __builtin_trap();
      offset = reader->offset();
    }
    static_cast<void>(last);
    if (total > copy->size() * 2)
      __builtin_trap();  // every byte is in one document at most, but for names of roles
  });
  return 0;
}
