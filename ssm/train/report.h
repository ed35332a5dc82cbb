// A training run as one HTML page: curves of loss, validation loss, learning rate, gradient norm, throughput
// and memory over steps, tokens or time, and the run's configuration, from the JSON lines of MetricsLog. The
// page holds its data, style and script, opens without a network, and follows the reader's light or dark
// theme.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

namespace ssm::train {

// `metrics` is the text of such a file. Lines that are none of its objects (the last one of a killed run) are
// left out. Long runs are drawn from means over neighbouring steps.
std::string html_report(std::string_view metrics);

// Reads and writes files, atomically. Throws Error naming the path.
void write_report(const std::filesystem::path& metrics, const std::filesystem::path& html);

}  // namespace ssm::train
