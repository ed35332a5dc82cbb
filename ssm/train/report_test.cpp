// The report's data, and that nothing in a run can break out of them. How it looks is for eyes.
#include "ssm/train/report.h"

#include <nlohmann/json.hpp>

#include "ssm/train/metrics.h"
#include "ssm/train/test_data.h"

namespace ssm::train {
namespace {

using nlohmann::json;

// The element that holds the data, as a browser would cut it out.
json data_in(const std::string& page) {
  const std::string open = "<script type=\"application/json\" id=\"data\">";
  const size_t begin = page.find(open) + open.size();
  return json::parse(page.substr(begin, page.find("</script", begin) - begin));
}

TEST(Report, HoldsTheRun) {
  const TempFolder folder;
  {
    MetricsLog log(folder / "metrics.jsonl", {{"name", "</script><script>alert(1)</script>"}, {"lr", 0.1}});
    for (int64_t step = 1; step <= 4; ++step) {
      Metrics metrics;
      metrics.step = step;
      metrics.loss = step == 3 ? 0.0 / 0.0 : 1.0 / static_cast<double>(step);
      metrics.tokens = step * 100;
      metrics.seconds = 0.5 * static_cast<double>(step);
      log.write(metrics);
    }
    Metrics validation;
    validation.step = 4;
    validation.validation_loss = 2.123456789;
    log.write(validation);
  }
  write_file(folder / "metrics.jsonl", read_file(folder / "metrics.jsonl") + "{\"step\":5,\"lo");
  write_report(folder / "metrics.jsonl", folder / "report.html");
  const std::string page = read_file(folder / "report.html");
  const json data = data_in(page);
  EXPECT_EQ(data["configuration"]["name"], "</script><script>alert(1)</script>");
  EXPECT_EQ(data["step"], (json{1, 2, 3, 4}));
  EXPECT_EQ(data["tokens"], (json{100, 200, 300, 400}));
  EXPECT_EQ(data["loss"]["mean"], (json{1, 0.5, nullptr, 0.25}));
  EXPECT_EQ(data["lr"]["mean"], (json{nullptr, nullptr, nullptr, nullptr}));
  EXPECT_EQ(data["validation"],
            (json{{"step", {4}}, {"tokens", {400}}, {"seconds", {2}}, {"loss", {2.12346}}}));
  EXPECT_EQ(page.find("alert(1)<"), page.npos);
  for (const char* outside : {"src=", "href=", "@import", "url("})
    EXPECT_EQ(page.find(outside), page.npos) << outside;
}

TEST(Report, LongRunsAreReduced) {
  std::string lines;
  for (int step = 1; step <= 30000; ++step)
    lines += fmt::format("{{\"step\":{},\"loss\":{}}}\n", step, step % 20);
  const std::string page = html_report(lines);
  const json data = data_in(page);
  EXPECT_EQ(data["lines"], 30000);
  ASSERT_EQ(data["step"].size(), 1500u);
  EXPECT_EQ(data["step"].back(), 30000);
  EXPECT_EQ(data["loss"]["mean"][7], 9.5);
  EXPECT_EQ(data["loss"]["least"][7], 0);
  EXPECT_EQ(data["loss"]["most"][7], 19);
  EXPECT_LT(page.size(), 200000u);
}

TEST(Report, OfNothing) {
  EXPECT_EQ(data_in(html_report(""))["lines"], 0);
  EXPECT_EQ(data_in(html_report("rubbish\n[1]\n{\"step\":\"x\"}\n"))["lines"], 0);
  expect_error_about([] { write_report("/nowhere/metrics.jsonl", "/nowhere/report.html"); },
                     "/nowhere/metrics.jsonl");
}

}  // namespace
}  // namespace ssm::train
