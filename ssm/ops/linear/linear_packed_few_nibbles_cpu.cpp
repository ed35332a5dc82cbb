// Few rows of x and a W of four and five bits: the kernel of linear_packed_few-inl.h.
#include "ssm/ops/linear/linear_packed.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ssm/ops/linear/linear_packed_few_nibbles_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "ssm/ops/linear/linear_packed_few-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ssm::HWY_NAMESPACE {

void few_rows_of_nibbles_any(const cpu::PackedProduct& p) {
  with_nibble_format(p.w->format, [&](auto format) { few_packed_rows_of<decltype(format)>(p); });
}

}  // namespace ssm::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ssm {
HWY_EXPORT(few_rows_of_nibbles_any);

void cpu::few_rows_of_nibbles(const PackedProduct& p) { HWY_DYNAMIC_DISPATCH(few_rows_of_nibbles_any)(p); }

}  // namespace ssm
#endif  // HWY_ONCE
