// How flags are read: numbers within bounds, flags that may be given several times.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>

namespace ssm::app {

// Number in [low, high], or finite and at least low; NaN is neither.
CLI::Validator number_between(double low, double high);
CLI::Validator number_from(double low);
CLI::Validator positive_number();
// For transform(): the text becomes plain digits.
CLI::Validator integer_between(int64_t low, int64_t high);
CLI::Validator any_seed();

// One value each time the flag is given, as often as it is: what follows belongs to others, and a text in
// brackets is a text, no list.
CLI::Option* repeatable(CLI::Option* option);

}  // namespace ssm::app
