// adamw and gradient_norm on a card against the CPU's, which stand against their references: 1e-6 of what p
// can be and of the moments; the norm 1e-6.
#include "ssm/ops/adamw/adamw.h"
#include "ssm/ops/cuda/test_cuda.h"
#include "ssm/ops/gradient_norm/gradient_norm.h"

namespace ssm {
namespace {

TEST(AdamWCuda, EqualsTheCpus) {
  SSM_NEED_CUDA();
  Rng rng(1);
  for (int trial = 0; trial < 20; ++trial) {
    std::vector<AdamWParameter> host, card;
    for (int64_t i = 1 + rng.below(trial % 5 ? 8 : 130); i > 0; --i) {
      const int64_t rows = 1 + rng.below(9), columns = rng.below(trial % 3 ? 40 : 9000), off = rng.below(4);
      const bool transposed = rng.below(2);
      const auto place = [&](const Tensor& flat) {  // off: addresses that are not multiples of 16 bytes
        const Tensor t = flat.slice(0, off, off + rows * columns);
        return transposed ? t.view({columns, rows}).transpose(0, 1) : t.view({rows, columns});
      };
      const DType narrow = rng.below(2) ? DType::bf16 : DType::f16;
      Tensor flats[5];
      for (int k = 0; k < 4; ++k)
        flats[k] = test::random_normal({off + rows * columns}, rng, k < 2 ? 1.0f : 0.0f);
      if (rng.below(2)) flats[4] = Tensor::zeros({off + rows * columns}, narrow);
      AdamWParameter on_host, on_card;
      Tensor* const host_fields[] = {&on_host.p, &on_host.g, &on_host.m, &on_host.v, &on_host.narrow};
      Tensor* const card_fields[] = {&on_card.p, &on_card.g, &on_card.m, &on_card.v, &on_card.narrow};
      for (int k = 0; k < 5; ++k) {
        if (!flats[k].defined()) continue;
        *host_fields[k] = place(flats[k]), *card_fields[k] = place(flats[k].to(kCuda));
      }
      host.push_back(on_host), card.push_back(on_card);
    }
    std::vector<Tensor> gradients, card_gradients;
    for (const auto& a : host) gradients.push_back(a.g);
    for (const auto& a : card) card_gradients.push_back(a.g);
    const AdamW base{.lr = 0.01f, .weight_decay = 0.1f};
    for (int64_t step = 1; step <= 3; ++step) {
      AdamW options = base;
      options.step = step;
      const GradientNorm norm = gradient_norm(gradients, 2.0f),
                         card_norm = gradient_norm(card_gradients, 2.0f);
      const float expected = norm.norm.values<float>()[0];
      EXPECT_NEAR(card_norm.norm.to(kCpu).values<float>()[0], expected, 1e-6 * expected);
      EXPECT_NEAR(card_norm.scale.to(kCpu).values<float>()[0], norm.scale.values<float>()[0], 1e-6);
      adamw(options, host, norm.scale);
      adamw(options, card, card_norm.scale);
    }
    const auto back = [](const Tensor& t) {
      return t.contiguous() ? t.to(kCpu) : t.transpose(0, 1).to(kCpu).transpose(0, 1);
    };
    for (size_t i = 0; i < host.size(); ++i) {
      if (host[i].p.numel() == 0) continue;
      const Tensor p = back(card[i].p).clone(), want = host[i].p.clone();
      for (int64_t k = 0; k < p.numel(); ++k) {
        const float w = want.data<float>()[k];
        EXPECT_NEAR(p.data<float>()[k], w, 1e-6f * (std::abs(w) + 0.03f)) << trial << " " << i;
      }
      EXPECT_LT(test::relative_error(back(card[i].m), test::to_doubles(host[i].m)), 2e-6);
      EXPECT_LT(test::relative_error(back(card[i].v), test::to_doubles(host[i].v)), 2e-6);
      if (!host[i].narrow.defined()) continue;
      EXPECT_EQ(test::to_doubles(back(card[i].narrow)),
                test::to_doubles(p.to(host[i].narrow.dtype()).to(DType::f32)));
    }
  }
}

TEST(AdamWCuda, AScaleThatIsNotFiniteChangesNothing) {
  SSM_NEED_CUDA();
  Rng rng(2);
  const Tensor p = test::random_normal({1000}, rng), g = test::random_normal({1000}, rng);
  g.data<float>()[77] = NAN;
  const Tensor gs[] = {g.to(kCuda)};
  const GradientNorm norm = gradient_norm(gs, 1);
  EXPECT_TRUE(std::isnan(norm.scale.to(kCpu).values<float>()[0]));
  const AdamWParameter a{p.to(kCuda), gs[0], Tensor::zeros({1000}, DType::f32, kCuda),
                         Tensor::zeros({1000}, DType::f32, kCuda)};
  adamw({}, {&a, 1}, norm.scale);
  EXPECT_TRUE(test::same_bits(a.p.to(kCpu), p));
}

}  // namespace
}  // namespace ssm
