// ssm bench ops: each op alone, on the shapes of real models, beside the machine's copy bandwidth and GEMM
// rate.
#include <fmt/format.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <vector>

#include "apps/ssm/commands.h"
#include "apps/ssm/flags.h"
#include "apps/ssm/machine_limits.h"
#include "apps/ssm/model_options.h"
#include "apps/ssm/output.h"
#include "ssm/core/parallel.h"
#include "ssm/core/rng.h"
#include "ssm/ops/activation/activation.h"
#include "ssm/ops/attention/attention.h"
#include "ssm/ops/causal_conv1d/causal_conv1d.h"
#include "ssm/ops/layer_norm/layer_norm.h"
#include "ssm/ops/linear/linear.h"
#include "ssm/ops/rms_norm/rms_norm.h"
#include "ssm/ops/selective_scan/selective_scan.h"
#include "ssm/ops/simd/kernel_target.h"
#include "ssm/ops/ssd_scan/ssd_scan.h"
#include "ssm/quant/card_layout.h"
#include "ssm/quant/quantize.h"

namespace ssm::app {
namespace {

constexpr int64_t kCopyBytes = int64_t{128} << 20;  // operands are repeated to more than a cache holds
constexpr int kMostCopies = 64;

// One op on one shape. `bytes` are what it must move at least, `flops` what its matrix products do.
struct Case {
  std::string op, shape;
  double bytes, flops;
  std::function<void(int)> run;  // on the i-th copy of the operands
  bool replayed = true;          // on a card: what keeps to its memory is captured
};

struct Result {
  std::string op, shape;
  double seconds, bytes, flops;
};

class Suite {
 public:
  Suite(Device device, DType dtype, DType state)
      : device_(device), dtype_(dtype), state_(state), large_(device.is_cuda()) {}

  std::vector<Case> cases() const {
    std::vector<Case> all;
    const int64_t T = large_ ? 2048 : 512;
    add_products(all, T);
    add_packed_products(all, T);
    all.push_back(norm(T, 768));
    if (large_) all.push_back(norm(8 * T, 2560));
    for (const int64_t rows : {int64_t{1}, T}) {
      all.push_back(centred_norm(rows, 2560));
      all.push_back(mlp_gelu(rows, 2560));
      all.push_back(mlp_gate(rows, 2560));
    }
    all.push_back(conv(T, large_ ? 8 : 1, large_ ? 4096 : 1536));
    add_scans(all, T);
    add_steps(all);
    all.push_back(attention_of_prompt(T));
    if (device_.is_cuda()) {
      all.push_back(attention_of_steps(1, 8192));
      all.push_back(attention_of_steps(64, 200));
    }
    return all;
  }

 private:
  static constexpr int64_t kWidths[][2] = {{3072, 768}, {768, 1536}, {10240, 2560}, {2560, 5120}};

  Tensor random(const Shape& shape, float scale = 1.0f, float mean = 0.0f, bool parameter = false) const {
    const DType dtype = parameter ? DType::f32 : activation_dtype(dtype_, device_);
    Rng rng(shape.numel());
    Tensor block =
        Tensor::empty({std::min<int64_t>(shape.numel(), 99991)});  // a prime: no row repeats another
    for (float& x : block.values<float>()) x = mean + scale * rng.normal();
    block = block.to(dtype);
    const Tensor t = Tensor::empty(shape, dtype);
    for (size_t at = 0; at < t.bytes(); at += block.bytes())
      std::memcpy(t.raw() + at, block.raw(), std::min(block.bytes(), t.bytes() - at));
    return t.to(device_);
  }
  Tensor parameter(const Shape& shape, float scale, float mean) const {
    return random(shape, scale, mean, true);
  }

  // As many of make() as push one another out of the cache.
  template <class Make>
  auto copies(double bytes, Make&& make) const {
    std::vector<decltype(make())> all;
    const int count = static_cast<int>(
        std::clamp(static_cast<double>(kCopyBytes) / bytes + 1, 1.0, static_cast<double>(kMostCopies)));
    for (int i = 0; i < count; ++i) all.push_back(make());
    return all;
  }
  double size() const { return static_cast<double>(size_of(activation_dtype(dtype_, device_))); }
  double weight_size() const { return static_cast<double>(size_of(dtype_)); }

  Case product(int64_t T, int64_t N, int64_t K) const {
    struct Operands {
      Tensor x;
      Weight w;
    };
    const double bytes =
        weight_size() * static_cast<double>(N * K) + size() * static_cast<double>(T * (K + N));
    auto operands = copies(bytes, [&] {
      return Operands{random({T, K}), parameter({N, K}, 0.02f, 0.0f).to(kCpu).to(dtype_).to(device_)};
    });
    return {"linear", fmt::format("T {} N {} K {}", T, N, K), bytes, 2.0 * static_cast<double>(T * N * K),
            [operands, dtype = dtype_](int i) {
              const Operands& o = operands[static_cast<size_t>(i) % operands.size()];
              linear(o.x, o.w, {}, dtype);
            }};
  }

  // Rows of 64 random ones over and over: only sizes matter.
  QuantizedTensor packed_weight(const QuantFormat& format, int64_t N, int64_t K) const {
    const QuantizedTensor some = quantize(parameter({64, K}, 0.02f, 0.0f).to(kCpu), format);
    const Tensor bytes = Tensor::empty({N, some.bytes.size(1)}, DType::u8);
    for (int64_t n = 0; n < N; n += 64) {
      const Tensor rows = bytes.slice(0, n, std::min(n + 64, N));
      std::memcpy(rows.raw(), some.bytes.raw(), rows.bytes());
    }
    const QuantizedTensor packed = packed_view(format, {N, K}, bytes);
    return device_.is_cuda() ? to_card(packed, device_) : packed;
  }

  Case packed_product(const QuantFormat& format, int64_t T, int64_t N, int64_t K) const {
    struct Operands {
      Tensor x;
      Weight w;
    };
    const QuantizedTensor one = packed_weight(format, N, K);
    const double bytes = static_cast<double>(one.bytes.bytes()) + size() * static_cast<double>(T * (K + N));
    auto operands = copies(bytes, [&] {
      return Operands{random({T, K}), QuantizedTensor{one.format, one.shape, one.bytes.clone()}};
    });
    return {"linear", fmt::format("T {} N {} K {} {}", T, N, K, name_of(format)), bytes,
            2.0 * static_cast<double>(T * N * K), [operands, dtype = dtype_](int i) {
              const Operands& o = operands[static_cast<size_t>(i) % operands.size()];
              linear(o.x, o.w, {}, dtype);
            }};
  }

  void add_packed_products(std::vector<Case>& all, int64_t T) const {
    for (const char* type : {"int4", "int8", "q8_0", "q4_k", "q4_0"}) {
      const QuantFormat format = *quant_format(type, 128);
      for (const auto& [N, K] : kWidths) {
        if (large_ != (N * K > 3072 * 768)) continue;
        for (const int64_t rows : {int64_t{1}, int64_t{32}, T})
          all.push_back(packed_product(format, rows, N, K));
      }
    }
  }

  void add_products(std::vector<Case>& all, int64_t T) const {
    for (const auto& [N, K] : kWidths) {
      if (!large_ && N * K > 3072 * 768) continue;
      for (const int64_t rows : {int64_t{1}, int64_t{32}, T}) all.push_back(product(rows, N, K));
    }
  }

  Case norm(int64_t T, int64_t M) const {
    const double elements = static_cast<double>(T * M), bytes = elements * (2 * size() + 8);
    struct Operands {
      Tensor x, residual;
    };
    auto operands = copies(bytes, [&] { return Operands{random({T, M}), parameter({T, M}, 1.0f, 0.0f)}; });
    const Tensor weight = parameter({M}, 0.1f, 1.0f);
    return {"add_rms_norm", fmt::format("T {} M {}", T, M), bytes, 0, [operands, weight](int i) {
              Operands o = operands[static_cast<size_t>(i) % operands.size()];
              add_rms_norm(o.x, o.residual, weight, 1e-5f);
            }};
  }

  Case centred_norm(int64_t T, int64_t M) const {
    const double elements = static_cast<double>(T * M), bytes = elements * (2 * size() + 8);
    struct Operands {
      Tensor x, residual;
    };
    auto operands = copies(bytes, [&] { return Operands{random({T, M}), parameter({T, M}, 1.0f, 0.0f)}; });
    const Tensor weight = parameter({M}, 0.1f, 1.0f), bias = parameter({M}, 0.1f, 0.0f);
    return {"add_layer_norm", fmt::format("T {} M {}", T, M), bytes, 0, [operands, weight, bias](int i) {
              Operands o = operands[static_cast<size_t>(i) % operands.size()];
              add_layer_norm(o.x, o.residual, weight, bias, 1e-5f);
            }};
  }

  Case mlp_gelu(int64_t T, int64_t M) const {
    const double bytes = 2 * size() * static_cast<double>(T * M);
    auto operands = copies(bytes, [&] { return random({T, M}); });
    return {"gelu", fmt::format("T {} M {}", T, M), bytes, 0,
            [operands](int i) { gelu(operands[static_cast<size_t>(i) % operands.size()]); }};
  }

  Case mlp_gate(int64_t T, int64_t M) const {
    const double bytes = 3 * size() * static_cast<double>(T * M);
    auto operands = copies(bytes, [&] { return random({T, 2 * M}); });
    return {"gated_silu", fmt::format("T {} M {}", T, M), bytes, 0, [operands, M](int i) {
              const Tensor& h = operands[static_cast<size_t>(i) % operands.size()];
              gated_silu(h.slice(1, 0, M), h.slice(1, M, 2 * M));
            }};
  }

  Case conv(int64_t T, int64_t B, int64_t C) const {
    const double bytes = 2 * size() * static_cast<double>(B * T * C);
    auto operands = copies(bytes, [&] { return random({B * T, C}); });
    const Tensor weight = parameter({4, C}, 0.3f, 0.0f).transpose(0, 1), bias = parameter({C}, 0.3f, 0.0f);
    return {"causal_conv1d", fmt::format("B {} T {} C {}", B, T, C), bytes, 0,
            [operands, weight, bias, batch = SequenceBatch::equal(B, T)](int i) {
              causal_conv1d(operands[static_cast<size_t>(i) % operands.size()], weight, bias,
                            Activation::silu, batch, {});
            }};
  }

  // Of pythia-2.8b.
  static constexpr AttentionHeads kHeads{
      .heads = 32, .kv_heads = 32, .head_dim = 80, .rotary_dim = 20, .by_head = true};

  Case attention_of_prompt(int64_t T) const {
    const auto H = static_cast<double>(kHeads.heads * kHeads.head_dim), tokens = static_cast<double>(T);
    const double bytes = 4 * size() * tokens * H;
    auto operands = copies(bytes, [&] { return random({T, kHeads.width()}); });
    return {"attention",
            fmt::format("T {} H 32 D 80", T),
            bytes,
            2 * tokens * tokens * H,
            [operands, batch = SequenceBatch::single(T)](int i) {
              attention(operands[static_cast<size_t>(i) % operands.size()], kHeads, batch, nullptr);
            },
            false};
  }

  // The same step again and again, over texts of `context` tokens.
  Case attention_of_steps(int64_t B, int64_t context) const {
    const auto H = static_cast<double>(kHeads.heads * kHeads.head_dim);
    const double tokens = static_cast<double>(B * context);
    const KvStorage storage{device_, activation_dtype(dtype_, device_)};
    // With a budget it is a pool's cache: it outlives the memory of a step.
    const auto budget = std::make_shared<KvBudget>(std::numeric_limits<size_t>::max());
    auto kv = std::make_shared<KvCache>(B, kHeads.kv_heads, kHeads.head_dim, budget, storage);
    std::vector<int32_t> slots;
    for (int32_t b = 0; b < B; ++b) {
      kv->reserve(b, context);
      slots.push_back(b);
    }
    const Tensor on_card = Tensor::from_values<int32_t>(slots, {B}).to(device_);
    const std::vector<int64_t> last(slots.size(), context - 1);
    const SequenceBatch batch =
        SequenceBatch::steps_on_device(on_card, Tensor::from_values<int64_t>(last, {B}).to(device_));
    return {"attention", fmt::format("B {} T 1 H 32 D 80, text of {}", B, context), 2 * size() * tokens * H,
            4 * tokens * H,
            [qkv = random({B, kHeads.width()}), kv, batch](int) { attention(qkv, kHeads, batch, kv.get()); }};
  }

  Tensor state(int64_t slots, const Shape& row) const {
    std::vector<int64_t> dims{slots};
    dims.insert(dims.end(), row.begin(), row.end());
    return Tensor::zeros(Shape(dims), state_, device_);
  }

  // Bytes of u, delta, z, y, B and C, and of the state where there is one token a sequence.
  Case scan(int64_t B, int64_t T, int64_t E, int64_t N) const {
    const double rows = static_cast<double>(B * T);
    double bytes = size() * rows * static_cast<double>(4 * E + 2 * N);
    if (T == 1) bytes += 2.0 * static_cast<double>(size_of(state_)) * rows * static_cast<double>(E * N);
    struct Operands {
      SelectiveScanArgs args;
      Tensor state;
    };
    auto operands = copies(bytes, [&] {
      SelectiveScanArgs args{.u = random({B * T, E}),
                             .delta = random({B * T, E}, 1.0f, -3.0f),
                             .A = parameter({N, E}, 0.5f, -4.0f).transpose(0, 1),
                             .B = random({B * T, N}),
                             .C = random({B * T, N}),
                             .D = parameter({E}, 1.0f, 0.0f),
                             .z = random({B * T, E}),
                             .delta_bias = parameter({E}, 0.1f, 0.0f)};
      return Operands{args, state(B, {N, E})};
    });
    return {"selective_scan", fmt::format("B {} T {} E {} N {}", B, T, E, N), bytes, 0,
            [operands, batch = SequenceBatch::equal(B, T)](int i) {
              const Operands& o = operands[static_cast<size_t>(i) % operands.size()];
              selective_scan(o.args, batch, o.state);
            }};
  }

  // Flops of the products of the chunked form with chunks of 128: C B^T, the scores times x, and the states
  // in and out.
  Case ssd(int64_t B, int64_t T, int64_t H, int64_t P, int64_t N) const {
    const double rows = static_cast<double>(B * T);
    double bytes = size() * rows * static_cast<double>(2 * H * P + H + 2 * N), flops = 0;
    if (T == 1) bytes += 2.0 * static_cast<double>(size_of(state_)) * rows * static_cast<double>(H * N * P);
    if (T > 1) {
      const double chunk = 128;
      flops =
          rows * (chunk * static_cast<double>(N) +
                  static_cast<double>(H) * (chunk + 4.0 * static_cast<double>(N)) * static_cast<double>(P));
    }
    struct Operands {
      SsdScanArgs args;
      Tensor state;
    };
    auto operands = copies(bytes, [&] {
      SsdScanArgs args;
      args.x = random({B * T, H * P}), args.dt = random({B * T, H}, 1.0f, -3.0f);
      args.A = parameter({H}, 0.5f, -4.0f), args.D = parameter({H}, 1.0f, 0.0f);
      args.B = random({B * T, N}), args.C = random({B * T, N}), args.dt_bias = parameter({H}, 0.1f, 0.0f);
      return Operands{args, state(B, {H, N, P})};
    });
    return {"ssd_scan", fmt::format("B {} T {} H {} P {} N {}", B, T, H, P, N), bytes, flops,
            [operands, batch = SequenceBatch::equal(B, T)](int i) {
              const Operands& o = operands[static_cast<size_t>(i) % operands.size()];
              ssd_scan(o.args, batch, o.state);
            }};
  }

  void add_scans(std::vector<Case>& all, int64_t T) const {
    if (!large_) {
      all.push_back(scan(1, T, 1536, 16));
      all.push_back(ssd(1, T, 24, 64, 128));
      return;
    }
    all.push_back(scan(8, 2048, 2048, 16));
    for (const int64_t length : {2048, 8192, 65536}) all.push_back(scan(1, length, 2048, 16));
    all.push_back(ssd(1, 2048, 32, 64, 64));
    all.push_back(ssd(8, 2048, 32, 64, 128));
    all.push_back(ssd(1, 16384, 80, 64, 128));
  }

  void add_steps(std::vector<Case>& all) const {
    all.push_back(scan(1, 1, 1536, 16));
    all.push_back(ssd(1, 1, 24, 64, 128));
    if (!large_) return;
    for (const int64_t B : {64, 128}) all.push_back(scan(B, 1, 5120, 16));
    for (const int64_t B : {64, 128}) all.push_back(ssd(B, 1, 80, 64, 128));
  }

  Device device_;
  DType dtype_, state_;
  bool large_;
};

void print(const std::vector<Result>& results, Device device, DType dtype, double bandwidth, double gemm,
           bool json) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  Output& out = standard_output();
  if (!json) {
    const std::string where = device.is_cuda()
                                  ? description_of(device)
                                  : fmt::format("{} threads, {}", num_threads(), kernel_target());
    out.write(fmt::format("{}, {}: {:.1f} GB/s {}, {:.1f} GFLOP/s\n\n", where, name_of(dtype),
                          bandwidth / 1e9, device.is_cuda() ? "copied" : "read", gemm / 1e9));
    out.write(fmt::format("{:<16}{:<32}{:>12}{:>10}{:>12}{:>10}\n", "op", "shape", "time us", "GB/s",
                          "GFLOP/s", "of limit"));
  }
  for (const Result& r : results) {
    const double limit = std::max(r.bytes / bandwidth, r.flops / gemm);
    if (json) {
      list.push_back({{"op", r.op},
                      {"shape", r.shape},
                      {"seconds", r.seconds},
                      {"bytes", r.bytes},
                      {"flops", r.flops},
                      {"fraction_of_limit", finite_or_null(limit / r.seconds)}});
      continue;
    }
    out.write(fmt::format("{:<16}{:<32}{:>12.2f}{:>10.1f}{:>12.1f}{:>9.1f}%\n", r.op, r.shape,
                          1e6 * r.seconds, r.bytes / r.seconds / 1e9, r.flops / r.seconds / 1e9,
                          100 * limit / r.seconds));
  }
  if (json) {
    print_json({{"device", name_of(device)},
                {"card", description_of(device)},
                {"dtype", name_of(dtype)},
                {"bandwidth", bandwidth},
                {"gemm_rate", gemm},
                {"ops", list}});
  }
}

void run(const ModelOptions& options) {
  const LoadOptions load = load_options(options);
  const DType dtype =
      load.compute.value_or(multiplies_natively(DType::bf16, load.device) ? DType::bf16 : DType::f32);
  const Suite suite(load.device, dtype, load.state);
  std::vector<Result> results;
  Progress progress;
  for (const Case& c : suite.cases()) {
    progress.show(fmt::format("{} {}", c.op, c.shape));
    results.push_back({c.op, c.shape, seconds_of(load.device, c.run, c.replayed), c.bytes, c.flops});
  }
  progress.clear();
  print(results, load.device, dtype, measure_bandwidth(load.device),
        measure_gemm_rate(load.device, dtype, dtype), options.json);
}

}  // namespace

void add_bench_ops(CLI::App& bench) {
  auto options = std::make_shared<ModelOptions>();
  CLI::App* verb =
      bench.add_subcommand("ops", "Each op alone on real models' shapes, beside the machine's limits");
  add_json_flag(*verb, *options);
  add_machine_flags(*verb, *options);
  verb->footer(
      "bytes: what an op must move at least, each operand once. The limit is the longer of these bytes at "
      "the "
      "measured\n"
      "bandwidth and the operations of its matrix products at the measured GEMM rate. Operands are repeated "
      "so "
      "that they\n"
      "come from memory, not from a cache.");
  verb->callback([options, &bench] {
    refuse_arguments(bench, "ops");
    run(*options);
  });
}

}  // namespace ssm::app
