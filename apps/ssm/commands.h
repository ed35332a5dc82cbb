// The verbs. Each adds a subcommand whose callback runs it; a failure is an exception.
#pragma once

#include <CLI/CLI.hpp>

namespace ssm::app {

void add_generate(CLI::App& program);
void add_chat(CLI::App& program);
void add_score(CLI::App& program);
void add_tokenize(CLI::App& program);
void add_tokenizer(CLI::App& program);  // `ssm tokenizer train`
void add_finetune(CLI::App& program);
void add_merge(CLI::App& program);
void add_convert(CLI::App& program);
void add_quantize(CLI::App& program);
void add_info(CLI::App& program);
void add_pull(CLI::App& program);
void add_serve(CLI::App& program);
void add_train(CLI::App& program);
void add_bench(CLI::App& program);
void add_completion(CLI::App& program);  // these two describe all of `program`, which must outlive parsing
void add_man(CLI::App& program);
void add_bench_ops(CLI::App& bench);      // `ssm bench ops`
void add_bench_compare(CLI::App& bench);  // `ssm bench compare`

}  // namespace ssm::app
