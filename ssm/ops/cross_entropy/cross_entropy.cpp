#include "ssm/ops/cross_entropy/cross_entropy.h"

#include "ssm/ops/check.h"
#include "ssm/ops/cross_entropy/cross_entropy_cpu.h"
#include "ssm/ops/cross_entropy/cross_entropy_cuda.h"
#include "ssm/ops/dispatch.h"

namespace ssm {

CrossEntropy cross_entropy(const Tensor& logits, const Tensor& targets, int64_t vocab) {
  SSM_CHECK(logits.defined() && logits.rank() == 2 && vocab >= 1 && vocab <= logits.size(1),
            "cross_entropy: logits have shape {}, expected [T, at least {}]", logits.shape(), vocab);
  const int64_t T = logits.size(0);
  check_first("cross_entropy", "logits", logits, {T, logits.size(1)});
  SSM_CHECK(logits.dtype() == DType::f32, "cross_entropy: logits are {}, expected f32",
            name_of(logits.dtype()));
  SSM_CHECK(targets.defined() && targets.shape() == Shape{T},
            "cross_entropy: targets have shape {}, expected [{}]", targets.shape(), T);
  SSM_CHECK(targets.dtype() == DType::i32 && targets.contiguous() && targets.device() == logits.device(),
            "cross_entropy: targets are {} on {}, expected contiguous i32 on {}", name_of(targets.dtype()),
            name_of(targets.device()), name_of(logits.device()));
  SSM_CHECK(vocab <= INT32_MAX, "cross_entropy: a vocabulary of {}", vocab);
  for (int64_t t = 0; !logits.device().is_cuda() && t < T; ++t) {
    const int32_t target = targets.values<int32_t>()[static_cast<size_t>(t)];
    SSM_CHECK(target >= -1 && target < vocab,
              "cross_entropy: target {} in row {} is outside the vocabulary of {}", target, t, vocab);
  }
  CrossEntropy result{Tensor::empty({T}, DType::f32, logits.device()),
                      Tensor::empty({T}, DType::i32, logits.device())};
  SSM_DISPATCH(logits.device(), cross_entropy(logits, targets, vocab, result));
  return result;
}

}  // namespace ssm
