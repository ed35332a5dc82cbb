#include "ssm/text/jinja/builtins.h"

namespace ssm::text::jinja {

const Value* Arguments::find(size_t position, std::string_view name) {
  if (position < positional_.size()) {
    used_positional_ = std::max(used_positional_, position + 1);
    return &positional_[position];
  }
  for (const auto& [key, value] : named_) {
    if (key != name) continue;
    ++used_named_;
    return &value;
  }
  return nullptr;
}

const Value& Arguments::need(size_t position, std::string_view name) {
  const Value* value = find(position, name);
  SSM_CHECK(value, "{}: the argument \"{}\" is missing", callee_, name);
  return *value;
}

std::string Arguments::text(size_t position, std::string_view name) {
  const Value& value = need(position, name);
  SSM_CHECK(value.string(), "{}: the argument \"{}\" is a {}, not a str", callee_, name, type_name(value));
  return *value.string();
}

std::string Arguments::text_or(size_t position, std::string_view name, std::string otherwise) {
  return find(position, name) ? text(position, name) : std::move(otherwise);
}

int64_t Arguments::integer_or(size_t position, std::string_view name, int64_t otherwise) {
  const Value* value = find(position, name);
  if (!value || value->is_none()) return otherwise;
  SSM_CHECK(value->integer(), "{}: the argument \"{}\" is a {}, not an int", callee_, name,
            type_name(*value));
  return *value->integer();
}

bool Arguments::flag(size_t position, std::string_view name) {
  const Value* value = find(position, name);
  return value && truthy(*value);
}

void Arguments::finish() const {
  SSM_CHECK(used_positional_ >= positional_.size(), "{}: {} arguments are too many", callee_,
            positional_.size());
  SSM_CHECK(used_named_ >= named_.size(), "{}: an argument with a name that is not supported", callee_);
}

Arguments Arguments::rest(size_t n, std::string callee) const {
  const auto begin = positional_.begin() + static_cast<std::ptrdiff_t>(std::min(n, positional_.size()));
  return {std::move(callee), {begin, positional_.end()}, named_};
}

}  // namespace ssm::text::jinja
