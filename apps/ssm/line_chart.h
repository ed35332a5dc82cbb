// Charts of a few lines over logarithmic axes, as one SVG.
#pragma once

#include <string>
#include <vector>

namespace ssm::app {

struct ChartLine {
  std::string name;
  std::vector<std::pair<double, double>> points;  // all above 0, in the order of x
};

struct Chart {
  std::string title, x_label, y_label;
  std::vector<ChartLine> lines;
};

// Side by side. Lines of one place have one colour in all of them.
std::string svg_of(const std::vector<Chart>& charts);

// 2048 -> "2K", 1048576 -> "1M", 0.05 -> "0.05".
std::string short_number(double x);

}  // namespace ssm::app
