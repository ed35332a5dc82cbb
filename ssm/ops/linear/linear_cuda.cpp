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
using Key = std::array<int64_t, 10>;
Key key_of(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& y) {
  return {x.size(0),
          w.size(0),
          w.size(1),
          stride_of(x),
          stride_of(w),
          static_cast<int64_t>(x.dtype()) * 64 + static_cast<int64_t>(y.dtype()),
          alignment_of(x.raw()),
          alignment_of(w.raw()),
          alignment_of(y.raw()),
          bias.defined()};
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

// y^T [N, T] = w^T transposed [N, K] * x^T [K, T] in the library's column-major terms.
struct Plan {
  cublasLtMatmulDesc_t product = nullptr;
  Layout w, x, y;
  cublasLtMatmulAlgo_t algorithm{};
  bool exists = false;

  Plan(cublasLtHandle_t library, const Tensor& x_, const Tensor& w_, const Tensor& bias, const Tensor& y_)
      : w(w_.dtype(), w_.size(0), w_.size(1), stride_of(w_)),
        x(x_.dtype(), x_.size(0), x_.size(1), stride_of(x_)),
        y(y_.dtype(), y_.size(0), y_.size(1), stride_of(y_)) {
    SSM_CUBLAS_CHECK(cublasLtMatmulDescCreate(&product, CUBLAS_COMPUTE_32F, CUDA_R_32F));  // no TF32
    const cublasOperation_t transposed = CUBLAS_OP_T;
    set(CUBLASLT_MATMUL_DESC_TRANSA, transposed);
    if (bias.defined()) {
      set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
      set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, static_cast<const void*>(bias.raw()));
    }
    cublasLtMatmulPreference_t wish = nullptr;
    SSM_CUBLAS_CHECK(cublasLtMatmulPreferenceCreate(&wish));
    auto want = [&](cublasLtMatmulPreferenceAttributes_t what, const auto& value) {
      SSM_CUBLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(wish, what, &value, sizeof(value)));
    };
    want(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kWorkspace);
    want(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment_of(w_.raw()));
    want(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment_of(x_.raw()));
    want(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment_of(y_.raw()));
    want(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment_of(y_.raw()));
    // Parts of K are added in f32, never in the result's type.
    want(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
         static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
    cublasLtMatmulHeuristicResult_t found{};
    int count = 0;
    const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(library, product, w.handle, x.handle,
                                                                 y.handle, y.handle, wish, 1, &found, &count);
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

bool linear_library(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& y) {
  // The epilogue adds a bias of the result's type.
  Tensor b = bias;
  if (bias.defined() && y.dtype() != DType::f32) {
    b = Tensor::empty(bias.shape(), y.dtype(), y.device());
    round_bias(bias, b);
  }
  Library& lib = library();
  const std::lock_guard lock(lib.mutex);
  if (lib.plans.size() >= kPlans) lib.plans.clear();
  Plan& plan = lib.plans.try_emplace(key_of(x, w, b, y), lib.handle, x, w, b, y).first->second;
  if (!plan.exists) return false;
  if (b.defined()) plan.set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, static_cast<const void*>(b.raw()));
  const float one = 1, zero = 0;
  SSM_CUBLAS_CHECK(cublasLtMatmul(lib.handle, plan.product, &one, w.raw(), plan.w.handle, x.raw(),
                                  plan.x.handle, &zero, y.raw(), plan.y.handle, y.raw(), plan.y.handle,
                                  &plan.algorithm, lib.workspace.get(), kWorkspace, stream()));
  return true;
}

void linear(const Tensor& x, const Tensor& w, const Tensor& bias, DType /*compute: x's type*/,
            const Tensor& y) {
  if (y.numel() == 0) return;
  if (!linear_few_rows(x, w, bias, y) && !linear_library(x, w, bias, y)) linear_any(x, w, bias, y);
}

bool multiplies_natively(DType dtype) {
  return dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::f16;
}

}  // namespace ssm::cuda
