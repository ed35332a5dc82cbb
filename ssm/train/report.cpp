#include "ssm/train/report.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

#include "ssm/core/atomic_file.h"
#include "ssm/io/mapped_file.h"
#include "ssm/train/report_page.h"

namespace ssm::train {
namespace {

using nlohmann::ordered_json;

constexpr size_t kMostPoints = 1500;  // of a curve
constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

// One kind of number along the run, NaN where a line has none.
using Column = std::vector<double>;

double number_of(const ordered_json& line, const char* field) {
  const auto it = line.find(field);
  return it != line.end() && it->is_number() ? it->get<double>() : kNone;
}

// Six digits are more than a curve shows.
ordered_json shortened(double x) {
  return std::isfinite(x) ? ordered_json(std::stod(fmt::format("{:.6g}", x))) : ordered_json();
}

ordered_json shortened(const Column& column) {
  ordered_json list = ordered_json::array();
  for (const double x : column) list.push_back(shortened(x));
  return list;
}

struct Run {
  ordered_json configuration = ordered_json::object();
  Column step, tokens, seconds, loss, lr, grad_norm, tokens_per_second, memory;
  Column validation_step, validation_tokens, validation_seconds, validation_loss;
};

Run read_run(std::string_view text) {
  Run run;
  double tokens = kNone, seconds = kNone;  // a validation may stand on a line without them
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size() - 1) + 1;
    const ordered_json line = ordered_json::parse(text.substr(0, end), nullptr, false);
    text.remove_prefix(end);
    if (!line.is_object()) continue;
    if (line.contains("run")) run.configuration = line["run"];
    const double step = number_of(line, "step");
    if (std::isnan(step)) continue;
    if (const double x = number_of(line, "tokens"); !std::isnan(x)) tokens = x;
    if (const double x = number_of(line, "seconds"); !std::isnan(x)) seconds = x;
    if (line.contains("loss")) {
      run.step.push_back(step);
      run.tokens.push_back(tokens);
      run.seconds.push_back(seconds);
      run.loss.push_back(number_of(line, "loss"));
      run.lr.push_back(number_of(line, "lr"));
      run.grad_norm.push_back(number_of(line, "grad_norm"));
      run.tokens_per_second.push_back(number_of(line, "tokens_per_second"));
      run.memory.push_back(number_of(line, "memory"));
    }
    if (line.contains("validation_loss")) {
      run.validation_step.push_back(step);
      run.validation_tokens.push_back(tokens);
      run.validation_seconds.push_back(seconds);
      run.validation_loss.push_back(number_of(line, "validation_loss"));
    }
  }
  return run;
}

enum class Of { last, mean, least, most };

// What stands for each of at most kMostPoints stretches of a column.
Column reduced(const Column& column, Of what) {
  const size_t n = column.size(), points = std::min(n, kMostPoints);
  Column result;
  for (size_t p = 0; p < points; ++p) {
    const size_t begin = p * n / points, end = (p + 1) * n / points;
    double sum = 0, least = kNone, most = kNone;
    size_t count = 0;
    for (size_t i = begin; i < end; ++i) {
      if (std::isnan(column[i])) continue;
      sum += column[i];
      least = count ? std::min(least, column[i]) : column[i];
      most = count ? std::max(most, column[i]) : column[i];
      ++count;
    }
    const double mean = count ? sum / static_cast<double>(count) : kNone;
    result.push_back(what == Of::last    ? column[end - 1]
                     : what == Of::mean  ? mean
                     : what == Of::least ? least
                                         : most);
  }
  return result;
}

ordered_json data_of(const Run& run) {
  const auto curve = [](const Column& column) {
    return ordered_json{{"mean", shortened(reduced(column, Of::mean))},
                        {"least", shortened(reduced(column, Of::least))},
                        {"most", shortened(reduced(column, Of::most))}};
  };
  return {{"configuration", run.configuration},
          {"lines", run.step.size()},
          {"step", shortened(reduced(run.step, Of::last))},
          {"tokens", shortened(reduced(run.tokens, Of::last))},
          {"seconds", shortened(reduced(run.seconds, Of::last))},
          {"loss", curve(run.loss)},
          {"lr", curve(run.lr)},
          {"grad_norm", curve(run.grad_norm)},
          {"tokens_per_second", curve(run.tokens_per_second)},
          {"memory", curve(run.memory)},
          {"validation",
           {{"step", shortened(run.validation_step)},
            {"tokens", shortened(run.validation_tokens)},
            {"seconds", shortened(run.validation_seconds)},
            {"loss", shortened(run.validation_loss)}}}};
}

}  // namespace

std::string html_report(std::string_view metrics) {
  std::string data = data_of(read_run(metrics)).dump(-1, ' ', true, ordered_json::error_handler_t::replace);
  // Nothing in the data may end the script element that holds them.
  for (size_t at = 0; (at = data.find_first_of("<>&", at)) != data.npos;) {
    data.replace(at, 1, fmt::format("\\u{:04x}", static_cast<unsigned>(data[at])));
  }
  std::string page(kReportPage);
  const size_t mark = page.find(kReportDataMark);
  return page.replace(mark, kReportDataMark.size(), data);
}

void write_report(const std::filesystem::path& metrics, const std::filesystem::path& html) {
  const std::string page = html_report(io::map_file(metrics).text());
  write_whole(html, page);
}

}  // namespace ssm::train
