// Documents of .txt, .jsonl and .csv, and what is said about malformed ones.
#include "ssm/train/records.h"

#include <random>

#include "ssm/train/csv.h"
#include "ssm/train/test_data.h"

namespace ssm::train {
namespace {

// Each part in brackets, round where it is not learned.
std::vector<std::string> documents(const std::string& name, std::string_view text,
                                   const RecordOptions& options = {}) {
  const auto reader = read_records(heap_bytes(text, name), options);
  std::vector<std::string> all;
  for (Document document; reader->next(document);) {
    std::string shown;
    for (const Part& part : document) {
      shown += part.learn ? "[" : "(";
      shown += part.view();
      shown += part.learn ? "]" : ")";
    }
    all.push_back(shown);
    EXPECT_LE(reader->offset(), text.size());
  }
  EXPECT_EQ(reader->offset(), text.size());
  return all;
}

using Strings = std::vector<std::string>;

TEST(Records, TextIsCutAtSeparatorLines) {
  EXPECT_EQ(documents("a.txt", "one\ntwo\n"), Strings{"[one\ntwo\n]"});
  EXPECT_EQ(documents("a.txt", "one\n<|endoftext|>\ntwo"), (Strings{"[one\n]", "[two]"}));
  EXPECT_EQ(documents("a.TXT", "\xEF\xBB\xBF<|endoftext|>\r\none\n<|endoftext|>\n<|endoftext|>"),
            Strings{"[one\n]"});
  EXPECT_EQ(documents("a.txt", "a <|endoftext|>\nb"), Strings{"[a <|endoftext|>\nb]"})
      << "a line of its own only";
  RecordOptions whole;
  whole.separator = "";
  EXPECT_EQ(documents("a.txt", "one\n<|endoftext|>\ntwo", whole), Strings{"[one\n<|endoftext|>\ntwo]"});
  RecordOptions blank;
  blank.separator = "%";
  EXPECT_EQ(documents("a.txt", "one\n%\ntwo\n%\n", blank), (Strings{"[one\n]", "[two\n]"}));
}

TEST(Records, JsonLines) {
  EXPECT_EQ(documents("a.jsonl",
                      "{\"text\":\"a\\nb\",\"id\":NaN}\n\n  \r\n{\"text\":\"\"}\r\n{\"text\":\"\\u00e9\"}"),
            (Strings{"[a\nb]", "[]", "[\xC3\xA9]"}));
  EXPECT_EQ(documents("a.ndjson", R"({"prompt":"Q: ","completion":"A"})"), Strings{"(Q: )[A]"});
  RecordOptions quote;
  quote.column = "quote";
  EXPECT_EQ(documents("a.jsonl", R"({"text":"no","quote":"yes"})", quote), Strings{"[yes]"});
}

TEST(Records, JsonLinesErrorsNameFileLineAndField) {
  const auto fails = [](std::string_view text, const std::string& error, const RecordOptions& options = {}) {
    expect_error_about([&] { documents("d/a.jsonl", text, options); }, error);
  };
  fails("{\"text\":\"a\"}\n{\"txt\":\"b\"}\n", "d/a.jsonl:2: no field \"text\"");
  fails("{\"text\":\"a\"}\n\n{\"text\":5}\n", "d/a.jsonl:3: field \"text\" is not a string");
  fails("{\"text\":\"a\"\n", "d/a.jsonl:1: not valid JSON");
  fails("[1]\n", "d/a.jsonl:1: not an object");
  fails("{\"quote\":\"a\"}",
        "d/a.jsonl:1: no field \"text\", \"messages\", or \"prompt\" and \"completion\"");
  fails("{\"prompt\":\"a\",\"completion\":\"b\"}\n{\"prompt\":\"a\"}",
        "d/a.jsonl:2: no field \"completion\"");
  fails(R"({"text":"\ud800"})", "d/a.jsonl:1: not valid JSON");
  RecordOptions options;
  options.column = "quote";
  fails("{\"text\":\"a\"}", "d/a.jsonl:1: no field \"quote\"", options);
}

RecordOptions with_chat(const char* source) {
  RecordOptions options;
  options.chat = std::make_shared<const text::ChatTemplate>(source, "t.jinja", text::SpecialTokens{});
  return options;
}

TEST(Records, ConversationsAreWrittenByTheTemplate) {
  const std::string turns =
      R"({"messages":[{"role":"user","content":"Hi"},{"role":"assistant","content":"Yes?"},)"
      R"({"role":"user","content":"-"},{"role":"assistant","content":"+"}],"x":NaN})";
  const RecordOptions marked = with_chat(
      "{% for m in messages %}{{ m.role[0] }}:{% if m.role == 'assistant' %}{% generation %}{{ m.content }};"
      "{% endgeneration %}{% else %}{{ m.content }};{% endif %}{% endfor %}");
  EXPECT_EQ(documents("a.jsonl", turns, marked), Strings{"(u:Hi;a:)[Yes?;](u:-;a:)[+;]"});
  const RecordOptions plain = with_chat(
      "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
      "{% if add_generation_prompt %}<assistant>{% endif %}");
  EXPECT_EQ(documents("a.jsonl", turns, plain),
            Strings{"(<user>Hi<assistant>)[Yes?](<user>-<assistant>)[+]"});
  const RecordOptions tools = with_chat(
      "{% for m in messages %}{{ tools | tojson }}{% generation %}!{% endgeneration %}{% endfor %}");
  EXPECT_EQ(documents("a.jsonl",
                      R"({"tools":[{"z":1,"a":2}],"messages":[{"role":"assistant","content":""}]})", tools),
            Strings{R"(([{"z": 1, "a": 2}])[!])"});
}

TEST(Records, ConversationsThatAreRefused) {
  const std::string turns =
      R"({"messages":[{"role":"user","content":"Hi"},{"role":"assistant","content":"Yes?"}]})";
  RecordOptions none;
  none.why_no_chat = "t.jinja:1: the tag \"x\" is not supported";
  expect_error([&] { documents("a.jsonl", turns, none); },
               "a.jsonl:1: field \"messages\": t.jinja:1: the tag \"x\" is not supported");
  const RecordOptions options = with_chat(
      "{% for m in messages %}\n{% if m.role == 'judge' %}{{ raise_exception('no judges') }}{% endif %}"
      "{{ m.role }}{{ m.content }}{% endfor %}");
  const auto fails = [&](const std::string& messages, const std::string& error) {
    expect_error([&] { documents("a.jsonl", std::string("{\"messages\":") + messages + "}", options); },
                 "a.jsonl:1: " + error);
  };
  fails(R"([{"role":"judge","content":""}])", "t.jinja:2: the template refuses this: no judges");
  fails(R"([{"role":"user"}])", "messages[0]: no field \"content\"");
  fails(R"([{"content":"x"}])", "messages[0]: no field \"role\"");
  fails(R"([{"role":"user","content":"x"}])", "messages: none of them is the assistant's");
  fails("[]", "messages: not a list of messages");
  fails("3", "messages: not a list of messages");
  fails("[7]", "messages[0]: not an object");
}

TEST(Records, Csv) {
  RecordOptions quote;
  quote.column = "quote";
  const std::string text =
      "author,quote,tags\r\n"
      "\"Wilde, Oscar\",\"Be \"\"yourself\"\";\neveryone\",\"['a', 'b']\"\r\n"
      "\n"
      "X,plain words,\n"
      "Y,\"\",z";
  EXPECT_EQ(documents("q.csv", text, quote),
            (Strings{"[Be \"yourself\";\neveryone]", "[plain words]", "[]"}));
  EXPECT_EQ(documents("q.csv", "\xEF\xBB\xBFtext\na\r\n\"b\r\n\"\r\n"), (Strings{"[a]", "[b\r\n]"}));
  EXPECT_EQ(documents("q.csv", "completion,prompt\nB,A\n"), Strings{"(A)[B]"});
  EXPECT_EQ(documents("q.csv", "text\na\r"), Strings{"[a]"});
  EXPECT_EQ(documents("q.csv", "id,text\n1,\n2,"), (Strings{"[]", "[]"}));
}

TEST(Records, CsvErrorsNameFileLineAndField) {
  const auto fails = [](std::string_view text, const std::string& error) {
    expect_error([&] { documents("q.csv", text); }, error);
  };
  fails("id,text\n1,a\n2,b,c\n", "q.csv:3: 3 fields, but the file has 2 columns");
  fails("id,text\n\"1\n\",\"a\n\n", "q.csv:2: field 2: its closing quote is missing");
  fails("id,text\n1,a\"b\n", "q.csv:2: field 2: a quote inside a field that does not begin with one");
  fails("id,text\n\"1\"x,a\n", "q.csv:2: field 1: text behind its closing quote");
  fails(
      "id,quote\n1,a\n",
      "q.csv:1: no field \"text\", \"messages\", or \"prompt\" and \"completion\" (--column names another)");
  fails("text,text\n1,a\n", "q.csv:1: two columns are called \"text\"");
  fails("messages\n[]\n", "q.csv:1: field \"messages\": conversations are read from .jsonl only");
  fails("\n\n", "q.csv: no first record that names the columns");
  expect_error([] { documents("q.parquet", "x"); }, "q.parquet: training data are .txt, .jsonl or .csv");
}

// What a table is written as reads back as it was, whatever its fields hold.
TEST(Records, CsvRoundTripsAnything) {
  std::mt19937 random(7);
  for (int trial = 0; trial < 300; ++trial) {
    const size_t columns = 1 + random() % 4, rows = random() % 6;
    std::vector<Strings> table;
    std::string text;
    for (size_t r = 0; r <= rows; ++r) {
      Strings record;
      for (size_t c = 0; c < columns; ++c) {
        std::string field;
        for (size_t n = random() % 5; n > 0; --n) field += "a,\"\n\r "[random() % 6];
        const bool must = field.find_first_of(",\"\n\r") != field.npos || (columns == 1 && field.empty());
        text += c ? "," : "";
        if (must || random() % 2) {
          text += '"';
          for (const char ch : field) text += ch == '"' ? "\"\"" : std::string(1, ch);
          text += '"';
        } else {
          text += field;
        }
        record.push_back(field);
      }
      table.push_back(record);
      if (r < rows || random() % 2) text += random() % 2 ? "\n" : "\r\n";
    }
    CsvReader reader(text, "t.csv");
    std::vector<CsvField> record;
    for (const Strings& expected : table) {
      ASSERT_TRUE(reader.next(record)) << text;
      Strings read;
      for (const CsvField& field : record) read.push_back(field.text());
      ASSERT_EQ(read, expected) << text;
    }
    EXPECT_FALSE(reader.next(record));
  }
}

}  // namespace
}  // namespace ssm::train
