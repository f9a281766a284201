// Norms, activations and additions inside linear and moe: the bits of the ops one after the other.
#include "kernels/linear_fixture.h"
#include "kernels/parity_fixture.h"

namespace nibble::kernels {
namespace {

class FusionParity : public testing::TestWithParam<const OpTable*> {
 protected:
  const OpTable& ops() const { return *GetParam(); }
  // Vector ops have no layout of their own.
  const OpTable& packer() const { return ops().pack_weight != nullptr ? ops() : CpuOps(); }

  std::unique_ptr<PackedWeight> Pack(const Stored& stored, ActivationFormat activations) {
    auto packed = packer().pack_weight(
        {.parts = {&stored.view, 1}, .activations = activations, .pool = &pool_});
    EXPECT_TRUE(packed) << packed.error().message();
    return std::move(*packed);
  }

  void ExpectFusedExperts(int64_t d);

  std::vector<uint16_t> Normed(const InputNorm& norm, std::vector<uint16_t> x, int64_t t) {
    std::vector<uint16_t> out(x.size());
    ops().rms_norm(DirtyContext(2, 0), {.x = x.data(),
                                        .weight = norm.weight,
                                        .out = out.data(),
                                        .t = t,
                                        .d = static_cast<int64_t>(x.size()) / t,
                                        .eps = norm.eps,
                                        .style = norm.style});
    return out;
  }

  std::vector<uint16_t> Sum(std::vector<uint16_t> x, const std::vector<uint16_t>& delta) {
    ops().add(DirtyContext(2, 0),
              {.x = x.data(), .delta = delta.data(), .t = 1, .d = static_cast<int64_t>(x.size())});
    return x;
  }

  ThreadPool pool_{1};
};

INSTANTIATE_TEST_SUITE_P(Cpu, FusionParity, testing::ValuesIn(TestedTables()),
                         [](const auto& info) { return std::string(info.param->variant); });
INSTANTIATE_TEST_SUITE_P(Ref, FusionParity, testing::Values(&RefOps()),
                         [](const auto& info) { return std::string(info.param->variant); });

constexpr NormStyle kStyles[] = {NormStyle::kRoundThenScale, NormStyle::kScaleOnePlus,
                                 NormStyle::kScaleThenRound};

struct LinearCase {
  std::string name;
  int64_t n, k;
  WeightFormat format = WeightFormat::kNvfp4;
  ActivationFormat activations = ActivationFormat::kBf16;
  bool order = false;  // and an input multiplier
  int64_t gap = 0;     // between the rows of x
};

std::vector<LinearCase> LinearCases() {
  return {
      {"nvfp4", 80, 256},
      {"nvfp4, int8 activations", 80, 256, WeightFormat::kNvfp4, ActivationFormat::kInt8},
      {"wide", 32, 2880},
      {"wider than a norm's registers", 16, 20480},
      {"awkward K", 33, 100, WeightFormat::kBf16},
      {"column order and multiplier", 48, 320, WeightFormat::kNvfp4, ActivationFormat::kBf16, true},
      {"groups", 48, 256, WeightFormat::kInt4},
      {"rows apart", 48, 512, WeightFormat::kFp8, ActivationFormat::kBf16, false, 64}};
}

TEST_P(FusionParity, ALinearHasTheBitsOfNormProductAndSum) {
  for (const LinearCase& c : LinearCases()) {
    Stored stored = MakeWeight(c.format, c.n, c.k, 1, 0.003f);
    if (c.order) TransformInputs(stored, true, true, 2);
    const auto weight = Pack(stored, c.activations);
    const std::vector<float> norm_weight = NoiseF32(3, c.k), bias = NoiseF32(4, c.n);
    for (const int64_t m : {1, 3, 8, 9, 16, 17, 33, 64, 65, 200}) {
      const NormStyle style = kStyles[m % 3];
      SCOPED_TRACE(testing::Message() << c.name << ", M " << m);
      const InputNorm norm = {.weight = norm_weight.data(), .eps = 1e-5f, .style = style};
      const int64_t stride = c.k + c.gap;
      const std::vector<uint16_t> x = NoiseBf16(5, m * stride, 4.0f);
      std::vector<uint16_t> dense;
      for (int64_t t = 0; t < m; ++t)
        dense.insert(dense.end(), x.begin() + t * stride, x.begin() + t * stride + c.k);
      const std::vector<uint16_t> stream = NoiseBf16(6, m * c.n, 2.0f);
      const DirtyContext context(2, ops().linear_workspace(m, c.k));
      LinearParams params = {.weight = weight.get(), .bias = bias.data(), .y_stride = c.n, .m = m};

      const std::vector<uint16_t> normed = Normed(norm, dense, m);
      std::vector<uint16_t> delta(m * c.n);
      params.x = normed.data(), params.x_stride = c.k, params.y = delta.data();
      ops().linear(context, params);

      std::vector<uint16_t> fused = stream;
      params.x = x.data(), params.x_stride = stride, params.norm = norm;
      params.y = fused.data(), params.add = true;
      ops().linear(context, params);
      ASSERT_EQ(fused, Sum(stream, delta));

      std::vector<float> values(m * c.n);
      params.y = nullptr, params.y_f32 = values.data(), params.add = false;
      ops().linear(context, params);
      std::vector<uint16_t> rounded(values.size());
      for (size_t i = 0; i < values.size(); ++i) rounded[i] = Bf16FromFloat(values[i]);
      ASSERT_EQ(rounded, delta);
    }
  }
}

// Gate and up stacked from two weights, or stored as one.
TEST_P(FusionParity, AnActivatedLinearHasTheBitsOfProductAndActivation) {
  struct Case {
    std::string name;
    int64_t f, k;
    WeightFormat format = WeightFormat::kNvfp4;
    ActivationFormat activations = ActivationFormat::kBf16;
  };
  for (const Case& c :
       {Case{"nvfp4", 40, 256},
        {"int8 activations", 40, 256, WeightFormat::kNvfp4, ActivationFormat::kInt8},
        {"awkward sizes", 33, 100, WeightFormat::kBf16},
        {"groups", 48, 256, WeightFormat::kInt4}}) {
    const Stored gate = MakeWeight(c.format, c.f, c.k, 1, 0.003f);
    const Stored up = MakeWeight(c.format, c.f, c.k, 2, 0.005f);
    const Stored both = MakeWeight(c.format, 2 * c.f, c.k, 3, 0.003f);
    const QuantView views[] = {gate.view, up.view};
    const std::span<const QuantView> stacks[] = {views, {&both.view, 1}};
    const std::vector<float> norm_weight = NoiseF32(3, c.k), bias = NoiseF32(4, 2 * c.f);
    for (const std::span<const QuantView>& parts : stacks) {
      PackParams pack = {.parts = parts, .activations = c.activations, .pool = &pool_};
      const auto plain = std::move(*packer().pack_weight(pack));
      pack.gate_up = true;
      const auto paired = std::move(*packer().pack_weight(pack));
      for (const int64_t m : {1, 3, 8, 17, 70}) {
        SCOPED_TRACE(testing::Message() << c.name << ", " << parts.size() << " parts, M " << m);
        const Activation activation = {static_cast<ActivationKind>(m % 3), 1.3f, 0.5f};
        const std::vector<uint16_t> x = NoiseBf16(5, m * c.k, 4.0f);
        const DirtyContext context(
            2, ops().linear_workspace(m, c.k) + ops().activated_workspace(m, c.f));
        LinearParams params = {.x = x.data(),
                               .x_stride = c.k,
                               .norm = {.weight = norm_weight.data(), .eps = 1e-5f},
                               .weight = plain.get(),
                               .bias = bias.data(),
                               .y_stride = 2 * c.f,
                               .m = m};
        std::vector<uint16_t> gate_up(m * 2 * c.f), expected(m * c.f), fused(m * c.f);
        params.y = gate_up.data();
        ops().linear(context, params);
        ops().activation(context, {.gate_up = gate_up.data(),
                                   .out = expected.data(),
                                   .t = m,
                                   .f = c.f,
                                   .activation = activation});
        params.weight = paired.get(), params.activation = &activation;
        params.y = fused.data(), params.y_stride = c.f;
        ops().linear(context, params);
        ASSERT_EQ(fused, expected);
      }
    }
  }
}

// A small block of experts with a shared one.
void FusionParity::ExpectFusedExperts(int64_t d) {
  constexpr int64_t kF = 64, kRouterD = 192;
  constexpr int32_t kExperts = 6, kTopK = 2;
  const auto pack = [&](WeightFormat format, int64_t n, int64_t k, uint32_t seed) {
    return Pack(MakeWeight(format, n, k, seed, 3e-3f), ActivationFormat::kBf16);
  };
  std::vector<std::unique_ptr<PackedWeight>> weights;
  std::vector<ExpertWeights> experts;
  for (int32_t e = 0; e <= kExperts; ++e) {
    weights.push_back(pack(WeightFormat::kNvfp4, 2 * kF, d, 10 + e));
    weights.push_back(pack(WeightFormat::kNvfp4, d, kF, 30 + e));
    experts.push_back({.gate_up = weights[2 * e].get(), .down = weights[2 * e + 1].get()});
  }
  const ExpertWeights shared = experts.back();
  experts.pop_back();
  std::unique_ptr<PreparedWeights> prepared;
  if (packer().prepare_experts != nullptr) prepared = std::move(*packer().prepare_experts(experts));
  for (const bool latent : {false, true}) {
    const int64_t seen = latent ? kRouterD : d;
    const auto router = pack(WeightFormat::kBf16, kExperts, seen, 50);
    const auto gate = pack(WeightFormat::kBf16, 1, d, 51);
    const std::vector<float> norm_weight = NoiseF32(3, seen);
    for (const int64_t t : {1, 2, 7, 16, 64, 150}) {
      SCOPED_TRACE(testing::Message() << "T " << t << (latent ? ", latent" : ""));
      const InputNorm norm = {.weight = norm_weight.data(), .eps = 1e-5f, .style = kStyles[t % 3]};
      const std::vector<uint16_t> x = NoiseBf16(5, t * d, 2.0f);
      const std::vector<uint16_t> router_x = NoiseBf16(7, t * kRouterD, 2.0f);
      const std::vector<uint16_t> stream = NoiseBf16(6, t * d, 2.0f);
      const MoeSizes sizes = {.t = t,
                              .d = d,
                              .f = kF,
                              .router_d = latent ? kRouterD : 0,
                              .experts = kExperts,
                              .top_k = kTopK};
      const DirtyContext context(2, ops().moe_workspace(2, sizes));
      MoeParams params = {.t = t,
                          .d = d,
                          .router = router.get(),
                          .routing = {.experts = kExperts, .top_k = kTopK},
                          .experts = experts,
                          .f = kF,
                          .prepared = prepared.get()};
      if (!latent) {
        params.shared = shared;
        params.shared_f = kF;
        params.shared_gate = gate.get();
      }
      const std::vector<uint16_t> normed = Normed(norm, latent ? router_x : x, t);
      std::vector<uint16_t> delta(t * d);
      params.x = latent ? x.data() : normed.data();
      params.router_x = latent ? normed.data() : nullptr;
      params.out = delta.data();
      ops().moe(context, params);

      std::vector<uint16_t> fused = stream;
      params.x = x.data();
      params.router_x = latent ? router_x.data() : nullptr;
      params.norm = norm;
      params.out = fused.data();
      params.add = true;
      ops().moe(context, params);
      ASSERT_EQ(fused, Sum(stream, delta));
    }
  }
}

// GPUs have routers of their own for one token: of whole slices of 256 columns, and of any up to
// 3,072.
TEST_P(FusionParity, ExpertsHaveTheBitsOfNormBlockAndSum) {
  for (const int64_t d : {128, 320, 512}) ExpectFusedExperts(d);
  // ref would take half a minute.
  if (ops().backend == "cuda") ExpectFusedExperts(2880);
}

}  // namespace
}  // namespace nibble::kernels
