#include "ssm/quant/dequantize.h"

#include <gtest/gtest.h>

#include "ssm/core/parallel.h"
#include "ssm/quant/test_goldens.h"

namespace ssm {
namespace {

// Random bytes as ggml (q types) and the formula of format.h in numpy (int types) read them, to the bit.
void expect_golden(const std::string& file, const QuantFormat& format, int64_t K) {
  const Tensor bytes = test::quant_golden(file + ".noise", {2, row_bytes(format, K)}, DType::u8);
  const Tensor expected = test::quant_golden(file + ".values", {2, K}, DType::f32);
  const Tensor values = dequantize(packed_view(format, {2, K}, bytes));
  ASSERT_EQ(values.shape(), expected.shape());
  for (int64_t i = 0; i < expected.numel(); ++i)
    ASSERT_EQ(values.data<float>()[i], expected.data<float>()[i]) << file << ", weight " << i;
}

TEST(Dequantize, EqualsGgmlToTheBit) {
  for (const char* type : {"q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k"})
    expect_golden(type, *quant_format(type), 512);
}

TEST(Dequantize, GroupsOfIntegersMayEndShort) {
  for (const char* type : {"int8", "int4"}) {
    for (const int64_t group : {32, 64, 128})
      expect_golden(fmt::format("{}_{}", type, group), *quant_format(type, group), 333);
  }
}

TEST(Dequantize, IsTheSameWhateverTheThreads) {
  const QuantFormat format = *quant_format("q4_k");
  const Tensor bytes = test::quant_golden("q4_k.packed", {24, row_bytes(format, 512)}, DType::u8);
  set_num_threads(1);
  const Tensor one = dequantize(packed_view(format, {24, 512}, bytes));
  set_num_threads(3);
  const Tensor three = dequantize(packed_view(format, {24, 512}, bytes));
  set_num_threads(0);
  EXPECT_TRUE(std::equal(one.raw(), one.raw() + one.bytes(), three.raw()));
}

TEST(QuantFormat, NamesAndSizes) {
  EXPECT_EQ(name_of(*quant_format("int4", 128)), "int4 group 128");
  EXPECT_FALSE(quant_format("int4", 48));
  EXPECT_FALSE(quant_format("q9_0"));
  EXPECT_EQ(row_bytes(*quant_format("q4_k"), 512), 288);
  EXPECT_FALSE(fits(*quant_format("q4_0"), 48));
  EXPECT_EQ(row_bytes(*quant_format("int4", 64), 72), 2 * 4 + 32 + 4);
  EXPECT_EQ(row_bytes(*quant_format("int4", 32), 33), 4 + 16 + 4 + 1);
  EXPECT_THROW(row_bytes(*quant_format("q6_k"), 320), Error);
}

}  // namespace
}  // namespace ssm
