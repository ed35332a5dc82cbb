// Metrics as JSON lines, as TensorBoard's records (read back with a reader of our own), and as a line.
#include "ssm/train/metrics.h"

#include <cmath>
#include <limits>
#include <map>

#include "ssm/core/crc32c.h"
#include "ssm/train/test_data.h"

namespace ssm::train {
namespace {

using nlohmann::json;

Metrics metrics_of(int64_t step) {
  Metrics metrics;
  metrics.step = step;
  metrics.loss = 3.5 / static_cast<double>(step);
  metrics.lr = 1e-3;
  metrics.grad_norm = 0.25;
  metrics.tokens = step * 1000;
  metrics.tokens_per_second = 12345.6;
  metrics.seconds = 0.5 * static_cast<double>(step);
  metrics.memory = int64_t{5} << 28;
  return metrics;
}

std::vector<json> lines_of(const std::filesystem::path& path) {
  std::vector<json> lines;
  std::ifstream in(path);
  for (std::string line; std::getline(in, line);) lines.push_back(json::parse(line));
  return lines;
}

TEST(MetricsLog, OneObjectALine) {
  const TempFolder folder;
  MetricsLog log(folder / "metrics.jsonl", {{"lr", 0.5}, {"model", "tiny"}});
  log.write(metrics_of(1));
  Metrics odd;
  odd.step = 2;
  odd.loss = std::nan("");
  odd.grad_norm = std::numeric_limits<double>::infinity();
  odd.validation_loss = 2.5;
  log.write(odd);
  const auto lines = lines_of(folder / "metrics.jsonl");
  ASSERT_EQ(lines.size(), 3u);
  EXPECT_EQ(lines[0], (json{{"run", {{"lr", 0.5}, {"model", "tiny"}}}}));
  EXPECT_EQ(lines[1], (json{{"step", 1},
                            {"loss", 3.5},
                            {"lr", 1e-3},
                            {"grad_norm", 0.25},
                            {"tokens", 1000},
                            {"tokens_per_second", 12345.6},
                            {"seconds", 0.5},
                            {"memory", int64_t{5} << 28}}));
  EXPECT_EQ(lines[2],
            (json{{"step", 2}, {"loss", nullptr}, {"validation_loss", 2.5}, {"grad_norm", nullptr}}));
}

TEST(MetricsLog, AResumedRunDropsWhatCameAfterItsCheckpoint) {
  const TempFolder folder;
  const auto path = folder / "metrics.jsonl";
  {
    MetricsLog log(path, {{"lr", 1}});
    for (int64_t step = 1; step <= 5; ++step) log.write(metrics_of(step));
  }
  write_file(path, read_file(path) + "{\"step\":6,\"lo");  // killed while writing
  MetricsLog log(path, {{"lr", 2}}, 3);
  log.write(metrics_of(4));
  const auto lines = lines_of(path);
  ASSERT_EQ(lines.size(), 5u);
  EXPECT_EQ(lines[0]["run"]["lr"], 2);
  for (size_t i = 1; i < 5; ++i) EXPECT_EQ(lines[i]["step"], i);
  MetricsLog anew(path, {});
  EXPECT_EQ(lines_of(path).size(), 1u);
  expect_error_about([&] { MetricsLog(folder / "no" / "metrics.jsonl", {}); },
                     "metrics.jsonl: cannot create");
}

// A message's fields: numbers as they are, everything else as bytes.
struct Field {
  uint64_t number = 0;
  std::string bytes;
};

std::multimap<uint64_t, Field> parse(std::string_view message) {
  std::multimap<uint64_t, Field> fields;
  size_t at = 0;
  const auto varint = [&] {
    uint64_t value = 0;
    for (int shift = 0;; shift += 7) {
      const auto byte = static_cast<uint8_t>(message.at(at++));
      value |= uint64_t{byte & 0x7Fu} << shift;
      if (byte < 0x80) return value;
    }
  };
  while (at < message.size()) {
    const uint64_t key = varint();
    Field field;
    if (key % 8 == 0) {
      field.number = varint();
    } else {
      const size_t size = key % 8 == 1 ? 8 : key % 8 == 5 ? 4 : varint();
      field.bytes = message.substr(at, size);
      EXPECT_EQ(field.bytes.size(), size);
      at += size;
    }
    fields.emplace(key / 8, field);
  }
  return fields;
}

std::vector<std::string> records_of(const std::filesystem::path& path) {
  const std::string file = read_file(path);
  const auto number = [&](size_t at, size_t size) {
    uint64_t value = 0;
    std::memcpy(&value, file.data() + at, size);
    return value;
  };
  const auto unmasked = [](uint64_t crc) {
    const auto rotated = static_cast<uint32_t>(crc) - 0xA282EAD8u;
    return rotated >> 17 | rotated << 15;
  };
  std::vector<std::string> records;
  for (size_t at = 0; at < file.size();) {
    const uint64_t size = number(at, 8);
    EXPECT_EQ(unmasked(number(at + 8, 4)), crc32c(file.substr(at, 8)));
    records.push_back(file.substr(at + 12, size));
    EXPECT_EQ(unmasked(number(at + 12 + size, 4)), crc32c(records.back()));
    at += size + 16;
  }
  return records;
}

std::map<std::string, float> scalars_of(std::string_view event) {
  std::map<std::string, float> scalars;
  const auto fields = parse(event);
  const auto summary = fields.find(5);
  if (summary == fields.end()) return scalars;
  for (const auto& [number, value] : parse(summary->second.bytes)) {
    const auto scalar = parse(value.bytes);
    float x = 0;
    std::memcpy(&x, scalar.find(2)->second.bytes.data(), sizeof x);
    scalars[scalar.find(1)->second.bytes] = x;
  }
  return scalars;
}

TEST(EventLog, ReadsBack) {
  const TempFolder folder;
  EventLog log(folder / "events");
  log.write(metrics_of(300));
  Metrics validation;
  validation.step = 301;
  validation.validation_loss = 2.5;
  log.write(validation);
  const auto records = records_of(log.path());
  ASSERT_EQ(records.size(), 3u);
  EXPECT_EQ(parse(records[0]).find(3)->second.bytes, "brain.Event:2");
  EXPECT_EQ(parse(records[1]).find(2)->second.number, 300u);
  EXPECT_EQ(scalars_of(records[1]),
            (std::map<std::string, float>{{"train/loss", static_cast<float>(3.5 / 300)},
                                          {"train/lr", 1e-3f},
                                          {"train/grad_norm", 0.25f},
                                          {"train/tokens_per_second", 12345.6f}}));
  EXPECT_EQ(scalars_of(records[2]), (std::map<std::string, float>{{"validation/loss", 2.5f}}));
  double time = 0;
  std::memcpy(&time, parse(records[1]).find(1)->second.bytes.data(), sizeof time);
  EXPECT_GT(time, 1.7e9);

  EventLog resumed(folder / "events", 300);
  EXPECT_GT(resumed.path().filename(), log.path().filename());
  const auto start = parse(records_of(resumed.path()).at(1));
  EXPECT_EQ(start.find(2)->second.number, 301u);
  EXPECT_EQ(parse(start.find(7)->second.bytes).find(1)->second.number, 1u);
}

TEST(Progress, Lines) {
  EXPECT_EQ(progress_line(metrics_of(7), 1200, 192),
            "step 7/1200  loss 0.5000  12.3k tokens/s  ETA 3m12s  1.25 GiB");
  Metrics bare;
  EXPECT_EQ(progress_line(bare, 10, std::nullopt), "step 0/10");
  EXPECT_EQ(show_duration(59.4), "59s");
  EXPECT_EQ(show_duration(3599.6), "1h00m");
  EXPECT_EQ(show_duration(200000), "2d07h");
  EXPECT_EQ(show_duration(std::nan("")), "?");
  EXPECT_EQ(show_count(950), "950");
  EXPECT_EQ(show_count(999.7), "1.00k");
  EXPECT_EQ(show_count(9996), "10.0k");
  EXPECT_EQ(show_count(412345), "412k");
  EXPECT_EQ(show_count(999600), "1.00M");
  EXPECT_GT(resident_memory(), 1 << 20);
}

}  // namespace
}  // namespace ssm::train
