#include "ssm/io/ggml_types.h"

#include <algorithm>
#include <array>

namespace ssm::io {
namespace {

constexpr std::array kTypes{GgmlType{0, "F32", DType::f32},
                            GgmlType{1, "F16", DType::f16},
                            GgmlType{2, "Q4_0", {}, QuantType::q4_0},
                            GgmlType{3, "Q4_1", {}, QuantType::q4_1},
                            GgmlType{6, "Q5_0", {}, QuantType::q5_0},
                            GgmlType{7, "Q5_1", {}, QuantType::q5_1},
                            GgmlType{8, "Q8_0", {}, QuantType::q8_0},
                            GgmlType{9, "Q8_1"},
                            GgmlType{10, "Q2_K", {}, QuantType::q2_k},
                            GgmlType{11, "Q3_K", {}, QuantType::q3_k},
                            GgmlType{12, "Q4_K", {}, QuantType::q4_k},
                            GgmlType{13, "Q5_K", {}, QuantType::q5_k},
                            GgmlType{14, "Q6_K", {}, QuantType::q6_k},
                            GgmlType{15, "Q8_K"},
                            GgmlType{16, "IQ2_XXS"},
                            GgmlType{17, "IQ2_XS"},
                            GgmlType{18, "IQ3_XXS"},
                            GgmlType{19, "IQ1_S"},
                            GgmlType{20, "IQ4_NL"},
                            GgmlType{21, "IQ3_S"},
                            GgmlType{22, "IQ2_S"},
                            GgmlType{23, "IQ4_XS"},
                            GgmlType{24, "I8", DType::i8},
                            GgmlType{25, "I16"},
                            GgmlType{26, "I32", DType::i32},
                            GgmlType{27, "I64", DType::i64},
                            GgmlType{28, "F64", DType::f64},
                            GgmlType{29, "IQ1_M"},
                            GgmlType{30, "BF16", DType::bf16},
                            GgmlType{34, "TQ1_0"},
                            GgmlType{35, "TQ2_0"},
                            GgmlType{39, "MXFP4"},
                            GgmlType{40, "NVFP4"},
                            GgmlType{41, "Q1_0"},
                            GgmlType{42, "Q2_0"}};

template <class Wanted>
const GgmlType* find_type(Wanted&& wanted) {
  const auto* type = std::find_if(kTypes.begin(), kTypes.end(), wanted);
  return type == kTypes.end() ? nullptr : type;
}

}  // namespace

QuantFormat GgmlType::format() const { return quant_format(name_of(QuantFormat{*packed})).value(); }

const GgmlType* ggml_type(uint32_t id) {
  return find_type([&](const GgmlType& t) { return t.id == id; });
}

const GgmlType* ggml_type(DType dtype) {
  return find_type([&](const GgmlType& t) { return t.dense == dtype; });
}

const GgmlType* ggml_type(const QuantFormat& format) {
  return find_type([&](const GgmlType& t) { return t.packed == format.type; });
}

}  // namespace ssm::io
