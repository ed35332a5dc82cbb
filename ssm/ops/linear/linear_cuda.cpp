// Many rows are cuBLASLt's. Its plan for a shape (descriptors and an algorithm) is kept, so that a call costs
// one enqueue; its workspace is allocated once, so that a call can be captured.
#include <cublasLt.h>

#include <array>
#include <map>
#include <mutex>

#include "ssm/core/cuda.h"
#include "ssm/ops/linear/linear_cuda.h"

namespace ssm::cuda {
namespace {

constexpr size_t kWorkspace = size_t{32} << 20;  // what cuBLAS advises on Hopper
constexpr size_t kPlans = 4096;                  // prompts of many lengths make many: then all are made anew

void check(cublasStatus_t status, const char* what) {
  if (status != CUBLAS_STATUS_SUCCESS) fail("cuda: {}: {}", what, cublasLtGetStatusString(status));
}
#define SSM_CUBLAS_CHECK(call) check((call), #call)

cudaDataType_t type_of(DType dtype) {
  return dtype == DType::f32 ? CUDA_R_32F : dtype == DType::bf16 ? CUDA_R_16BF : CUDA_R_16F;
}

uint32_t alignment_of(const void* p) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(p) | 256;
  return static_cast<uint32_t>(address & (~address + 1));
}

// Distance of rows; of a single row whatever the library likes.
int64_t stride_of(const Tensor& t) { return t.size(0) > 1 ? t.stride(0) : t.size(1); }

// What an algorithm depends on.
using Key = std::array<int64_t, 12>;
Key key_of(const LibraryProduct& p) {
  return {p.a.size(0),
          p.a.size(1),
          p.b.size(0),
          p.b.size(1),
          stride_of(p.a),
          stride_of(p.b),
          stride_of(p.c),
          static_cast<int64_t>(p.a.dtype()) * 64 + static_cast<int64_t>(p.c.dtype()),
          alignment_of(p.a.raw()),
          alignment_of(p.b.raw()),
          alignment_of(p.c.raw()),
          p.a_transposed + 2 * p.b_transposed + 4 * p.bias.defined() + 8 * p.adds};
}

struct Layout {
  cublasLtMatrixLayout_t handle = nullptr;
  // Row-major [rows, columns] is column-major [columns, rows].
  Layout(DType dtype, int64_t rows, int64_t columns, int64_t stride) {
    SSM_CUBLAS_CHECK(cublasLtMatrixLayoutCreate(&handle, type_of(dtype), static_cast<uint64_t>(columns),
                                                static_cast<uint64_t>(rows), stride));
  }
  ~Layout() { cublasLtMatrixLayoutDestroy(handle); }
  Layout(const Layout&) = delete;
  Layout& operator=(const Layout&) = delete;
};

// In the library's column-major terms: c^T = op(b)^T op(a)^T, where what lies there is transposed already.
struct Plan {
  cublasLtMatmulDesc_t product = nullptr;
  Layout a, b, c;
  cublasLtMatmulAlgo_t algorithm{};
  bool exists = false;

  Plan(cublasLtHandle_t library, const LibraryProduct& p)
      : a(p.a.dtype(), p.a.size(0), p.a.size(1), stride_of(p.a)),
        b(p.b.dtype(), p.b.size(0), p.b.size(1), stride_of(p.b)),
        c(p.c.dtype(), p.c.size(0), p.c.size(1), stride_of(p.c)) {
    SSM_CUBLAS_CHECK(cublasLtMatmulDescCreate(&product, CUBLAS_COMPUTE_32F, CUDA_R_32F));  // no TF32
    set(CUBLASLT_MATMUL_DESC_TRANSA, p.b_transposed ? CUBLAS_OP_T : CUBLAS_OP_N);
    set(CUBLASLT_MATMUL_DESC_TRANSB, p.a_transposed ? CUBLAS_OP_T : CUBLAS_OP_N);
    if (p.bias.defined()) {
      set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
      set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, static_cast<const void*>(p.bias.raw()));
    }
    cublasLtMatmulPreference_t wish = nullptr;
    SSM_CUBLAS_CHECK(cublasLtMatmulPreferenceCreate(&wish));
    auto want = [&](cublasLtMatmulPreferenceAttributes_t what, const auto& value) {
      SSM_CUBLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(wish, what, &value, sizeof(value)));
    };
    want(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kWorkspace);
    want(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment_of(p.b.raw()));
    want(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment_of(p.a.raw()));
    want(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment_of(p.c.raw()));
    want(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment_of(p.c.raw()));
    // Parts of K are added in f32, never in the result's type.
    want(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
         static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
    cublasLtMatmulHeuristicResult_t found{};
    int count = 0;
    const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(library, product, b.handle, a.handle,
                                                                 c.handle, c.handle, wish, 1, &found, &count);
    cublasLtMatmulPreferenceDestroy(wish);
    exists = status == CUBLAS_STATUS_SUCCESS && count == 1 && found.state == CUBLAS_STATUS_SUCCESS;
    algorithm = found.algo;
  }
  ~Plan() { cublasLtMatmulDescDestroy(product); }
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;

  template <class T>
  void set(cublasLtMatmulDescAttributes_t what, const T& value) {
    SSM_CUBLAS_CHECK(cublasLtMatmulDescSetAttribute(product, what, &value, sizeof(value)));
  }
};

struct Library {
  cublasLtHandle_t handle = nullptr;
  std::shared_ptr<std::byte> workspace;
  std::mutex mutex;
  std::map<Key, Plan> plans;
  Library() : workspace(allocate(kWorkspace)) { SSM_CUBLAS_CHECK(cublasLtCreate(&handle)); }
};

// Lives as long as the process: the driver may be gone before a destructor would run.
Library& library() {
  static Library& made = *new Library;
  return made;
}

}  // namespace

bool library_product(const LibraryProduct& p) {
  Library& lib = library();
  const std::lock_guard lock(lib.mutex);
  if (lib.plans.size() >= kPlans) lib.plans.clear();
  Plan& plan = lib.plans.try_emplace(key_of(p), lib.handle, p).first->second;
  if (!plan.exists) return false;
  if (p.bias.defined()) plan.set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, static_cast<const void*>(p.bias.raw()));
  const float one = 1, beta = p.adds ? 1 : 0;
  SSM_CUBLAS_CHECK(cublasLtMatmul(lib.handle, plan.product, &one, p.b.raw(), plan.b.handle, p.a.raw(),
                                  plan.a.handle, &beta, p.c.raw(), plan.c.handle, p.c.raw(), plan.c.handle,
                                  &plan.algorithm, lib.workspace.get(), kWorkspace, stream()));
  return true;
}

bool linear_library(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& y) {
  // The epilogue adds a bias of the result's type.
  const bool rounds = bias.defined() && bias.dtype() != y.dtype();
  const Tensor b = rounds ? cuda::round_bias(bias, y.dtype()) : bias;
  return library_product({.a = x, .b = w, .b_transposed = true, .c = y, .bias = b});
}

namespace {

constexpr int64_t kLarge = 8 << 20;  // weights

// Large matrices times more than 64 rows are as quick or quicker by cuBLASLt.
bool streams(int64_t T, const Tensor& w) { return T <= 64 || w.numel() <= kLarge; }

}  // namespace

void linear(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& rounded_bias,
            DType /*compute: x's type*/, const Tensor& y) {
  if (y.numel() == 0 || linear_few_rows(x, w, bias, y)) return;
  if (streams(x.size(0), w) && linear_streamed(x, w, bias, y)) return;
  const bool rounded = rounded_bias.defined() && rounded_bias.dtype() == y.dtype();
  if (!linear_library(x, w, rounded ? rounded_bias : bias, y)) linear_any(x, w, bias, y);
}

// Products of what is not divided yet may leave f16's range. Of few rows and small matrices a norm's kernel
// is as quick: the product's weights come while it runs.
bool has_linear_of_norm(int64_t T, const Weight& w) {
  const auto* dense = std::get_if<Tensor>(&w);
  return dense && dense->dtype() == DType::bf16 && T > kStepRows && (T > 16 || dense->numel() >= kLarge) &&
         streams(T, *dense) && can_stream(T, *dense);
}

bool has_linear_add(int64_t T, const Weight& w) { return !is_packed(w) || has_linear_step(T, w); }

void linear_add(const Tensor& x, const Weight& w, const Tensor& bias, const Tensor& residual) {
  if (residual.numel() == 0) return;
  const bool is_step = is_packed(w) || x.size(0) <= kStepRows;
  if (is_step && has_linear_step(x.size(0), w) && in_packs(x))
    return linear_add_step({.x = x, .norm_weight = {}, .gate = {}}, w, bias, residual);
  const Tensor& dense = std::get<Tensor>(w);
  if (linear_add_few_rows(x, dense, bias, residual)) return;
  if (streams(x.size(0), dense) && linear_add_streamed(x, dense, bias, residual)) return;
  const LibraryProduct product{
      .a = x, .b = dense, .b_transposed = true, .c = residual, .bias = bias, .adds = true};
  if (!library_product(product)) any_product(product);
}

void linear_backward(const Tensor& x, const Tensor& w, const Tensor& dy, const LinearGrads& grads) {
  if (const Tensor& dx = grads.dx; dx.defined() && dx.numel() > 0) {
    const LibraryProduct product{.a = dy, .b = w, .c = dx, .adds = grads.dx_adds};
    if (w.size(0) == 0 || !library_product(product)) any_product(product);
  }
  if (dy.numel() == 0) return;
  if (const Tensor& dweight = grads.dweight; dweight.defined() && dweight.numel() > 0) {
    const LibraryProduct product{.a = dy, .a_transposed = true, .b = x, .c = dweight, .adds = true};
    if (!library_product(product)) any_product(product);
  }
  if (grads.dbias.defined()) add_column_sums(dy, grads.dbias);
}

bool multiplies_natively(DType dtype) {
  return dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::f16;
}

}  // namespace ssm::cuda
