#include "ssm/text/jinja/builtins.h"

namespace ssm::text::jinja {

Value range(Arguments& arguments, Budget& budget) {
  constexpr int64_t kLongestRange = 100'000;
  int64_t begin = 0, end = 0, step = 1;
  for (size_t i = 0; i < arguments.count(); ++i) {
    SSM_CHECK(arguments.at(i).integer(), "range: of a {}", type_name(arguments.at(i)));
    const int64_t value = *arguments.find(i, "")->integer();
    (i == 2 ? step : i == 1 ? end : begin) = value;
  }
  SSM_CHECK(arguments.count() >= 1 && arguments.count() <= 3 && step != 0,
            "range: wants one to three numbers");
  if (arguments.count() == 1) std::swap(begin, end);
  std::vector<Value> items;
  for (int64_t i = begin; step > 0 ? i < end : i > end;) {
    SSM_CHECK(std::ssize(items) < kLongestRange, "range: more than {} numbers", kLongestRange);
    items.emplace_back(i);
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  return make_list(std::move(items), budget);
}

std::string time_text(const std::string& format, const std::tm& now) {
  constexpr size_t kLongest = 128;
  SSM_CHECK(format.size() <= kLongest, "strftime_now: a format of {} bytes", format.size());
  if (format.empty()) return {};
  for (size_t i = 0; i < format.size(); ++i) {
    if (format[i] != '%') continue;
    if (format.substr(i + 1).starts_with('-')) ++i;
    const char letter = ++i < format.size() ? format[i] : ' ';
    SSM_CHECK(std::string_view("aAbBcdFHIjmMpSTuUwWxXyYZ%").find(letter) != std::string_view::npos,
              "strftime_now: the format \"%{}\" is not supported", letter);
  }
  std::string text(16 * kLongest, '\0');
  text.resize(std::strftime(text.data(), text.size(), format.c_str(), &now));
  return text;
}

}  // namespace ssm::text::jinja
