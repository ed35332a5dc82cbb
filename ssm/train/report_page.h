// The page of a report, with kReportDataMark where its data go.
#pragma once

#include <string_view>

namespace ssm::train {

inline constexpr std::string_view kReportDataMark = "@@DATA@@";
extern const std::string_view kReportPage;

}  // namespace ssm::train
