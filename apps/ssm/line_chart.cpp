#include "apps/ssm/line_chart.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

namespace ssm::app {
namespace {

constexpr double kWidth = 380, kHeight = 300, kLeft = 60, kRight = 15, kTop = 50, kBottom = 50;
constexpr std::array kColours{"#2060a0", "#c05020", "#308040", "#805090"};

std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text) out += c == '<' ? "&lt;" : c == '&' ? "&amp;" : std::string(1, c);
  return out;
}

// A logarithmic axis from a power of `base` to another, both ends' values in it.
struct Axis {
  double base, low = HUGE_VAL, high = -HUGE_VAL;  // exponents

  void take(double x) {
    low = std::min(low, std::floor(std::log(x) / std::log(base) + 1e-9));
    high = std::max(high, std::ceil(std::log(x) / std::log(base) - 1e-9));
  }
  double place(double x) const { return (std::log(x) / std::log(base) - low) / std::max(1.0, high - low); }
};

std::string text(double x, double y, const char* anchor, const std::string& what, const char* more = "") {
  return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\"{}>{}</text>\n", x, y, anchor, more,
                     escaped(what));
}

// A power of ten, as it stands beside a line.
std::string decimal(double x) {
  for (const auto& [unit, size] :
       {std::pair("T", 1e12), std::pair("G", 1e9), std::pair("M", 1e6), std::pair("K", 1e3)}) {
    if (x >= 0.999 * size) return fmt::format("{:.0f}{}", x / size, unit);
  }
  return fmt::format("{:g}", x);
}

// One chart with its left edge at `left`.
std::string chart_at(double left, const Chart& chart) {
  Axis x{2}, y{10};
  for (const ChartLine& line : chart.lines) {
    for (const auto& [px, py] : line.points) x.take(px), y.take(py);
  }
  const double inner = kWidth - kLeft - kRight, height = kHeight - kTop - kBottom, bottom = kHeight - kBottom;
  const auto at_x = [&](double v) { return left + kLeft + x.place(v) * inner; };
  const auto at_y = [&](double v) { return bottom - y.place(v) * height; };
  std::string out = text(left + kLeft + inner / 2, 18, "middle", chart.title, " font-weight=\"bold\"");
  out += text(left + kLeft + inner / 2, kHeight - 12, "middle", chart.x_label);
  out += text(left + kLeft, kTop - 8, "start", chart.y_label);
  if (x.low > x.high) return out;  // nothing was measured
  for (double e = y.low; e <= y.high; ++e) {
    const double v = std::pow(10.0, e);
    out += fmt::format("<path class=\"grid\" d=\"M{:.1f} {:.1f}h{:.1f}\"/>\n", left + kLeft, at_y(v), inner);
    out += text(left + kLeft - 6, at_y(v) + 4, "end", decimal(v));
  }
  const double step = std::max(1.0, std::ceil((x.high - x.low) / 6));
  for (double e = x.low; e <= x.high; e += step)
    out += text(at_x(std::pow(2.0, e)), bottom + 16, "middle", short_number(std::pow(2.0, e)));
  for (size_t i = 0; i < chart.lines.size(); ++i) {
    const char* const colour = kColours[i % kColours.size()];
    std::string path, dots;
    for (const auto& [px, py] : chart.lines[i].points) {
      path += fmt::format("{}{:.1f} {:.1f}", path.empty() ? "M" : "L", at_x(px), at_y(py));
      dots += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3\" fill=\"{}\"/>\n", at_x(px), at_y(py),
                          colour);
    }
    if (!path.empty())
      out += fmt::format("<path d=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\"/>\n", path, colour);
    out += dots;
  }
  return out;
}

}  // namespace

std::string svg_of(const std::vector<Chart>& charts) {
  const double width = kWidth * static_cast<double>(charts.size()), height = kHeight + 25;
  std::string out = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0:.0f} {1:.0f}\" font-family=\"sans-serif\" "
      "font-size=\"12\">\n<style>.grid{{stroke:#ddd}}</style>\n<rect width=\"{0:.0f}\" height=\"{1:.0f}\" "
      "fill=\"#fff\"/>\n",
      width, height);
  for (size_t i = 0; i < charts.size(); ++i) out += chart_at(kWidth * static_cast<double>(i), charts[i]);
  double at = kLeft;
  for (size_t i = 0; !charts.empty() && i < charts[0].lines.size(); ++i) {
    const std::string& name = charts[0].lines[i].name;
    out += fmt::format("<rect x=\"{:.0f}\" y=\"{:.0f}\" width=\"14\" height=\"4\" fill=\"{}\"/>\n", at,
                       height - 16, kColours[i % kColours.size()]);
    out += text(at + 20, height - 10, "start", name);
    at += 40 + 7.5 * static_cast<double>(name.size());
  }
  return out + "</svg>\n";
}

std::string short_number(double x) {
  for (const auto& [unit, size] : {std::pair("G", 0x1p30), std::pair("M", 0x1p20), std::pair("K", 0x1p10)}) {
    if (x >= size && std::fmod(x, size) == 0) return fmt::format("{:.0f}{}", x / size, unit);
  }
  return fmt::format("{:g}", x);
}

}  // namespace ssm::app
