// mla_rope_and_cache of every CPU variant against ref, and attention at MLA's sizes: one KV head of
// up to 576 numbers for up to 128 query heads.
#include "kernels/parity_fixture.h"

namespace nibble::kernels {
namespace {

class MlaParity : public testing::TestWithParam<const OpTable*> {
 protected:
  const OpTable& ops() const { return *GetParam(); }
};

INSTANTIATE_TEST_SUITE_P(Cpu, MlaParity, testing::ValuesIn(TestedTables()),
                         [](const auto& info) { return std::string(info.param->variant); });

struct MlaCase {
  int32_t latent_dim, rope_dim, q_heads;
  KvFormat format = KvFormat::kBf16;
  int32_t page_size = 16;
  RopePairs pairs = RopePairs::kNeighbours;
};

struct MlaResult {
  std::vector<uint16_t> q;
  std::vector<float> cache;  // what the codes stand for, without the scale
};

constexpr int64_t kTokens = 21;
constexpr uint16_t kUntouched = 0x1234;

// Tokens [first, first + count) of kTokens.
MlaResult RunMla(const OpTable& ops, const MlaCase& c, int threads, int64_t first = 0,
                 int64_t count = kTokens) {
  const int64_t positions_count = 50, nope = 5;  // in front of the rope part of a query head
  const int64_t width = c.latent_dim + c.rope_dim, kv_stride = width + 3;
  const int64_t q_head_stride = nope + c.rope_dim, q_stride = c.q_heads * q_head_stride + 7;
  const std::vector<uint16_t> kv_a = NoiseBf16(1, kTokens * kv_stride, 3.0f);
  const std::vector<uint16_t> q = NoiseBf16(2, kTokens * q_stride, 3.0f);
  const std::vector<float> norm = NoiseF32(3, c.latent_dim, 2.0f);
  const std::vector<float> cos = NoiseF32(4, positions_count * c.rope_dim / 2);
  const std::vector<float> sin = NoiseF32(5, positions_count * c.rope_dim / 2);
  std::vector<int32_t> positions;
  std::vector<int64_t> slots;
  for (int64_t i = 0; i < kTokens; ++i) {
    positions.push_back(static_cast<int32_t>(i * 7 % positions_count));
    slots.push_back((kTokens - i) * 3);
  }
  const int64_t elements = (3 * kTokens / c.page_size + 2) * c.page_size * width;
  std::vector<std::byte> cache(KvBytes(c.format, elements));
  MlaResult result = {.q = std::vector<uint16_t>(count * c.q_heads * width, kUntouched)};
  ops.mla_rope_and_cache(DirtyContext(threads, 0),
                         {.kv_a = kv_a.data() + first * kv_stride,
                          .kv_a_stride = kv_stride,
                          .kv_norm = norm.data(),
                          .eps = 1e-6f,
                          .latent_dim = c.latent_dim,
                          .rope_dim = c.rope_dim,
                          .q = q.data() + first * q_stride + nope,
                          .q_stride = q_stride,
                          .q_head_stride = q_head_stride,
                          .q_heads = c.q_heads,
                          .t = count,
                          .pairs = c.pairs,
                          .cos = cos.data(),
                          .sin = sin.data(),
                          .positions = positions.data() + first,
                          .slots = slots.data() + first,
                          .cache = {.k = cache.data(),
                                    .v = cache.data(),
                                    .format = c.format,
                                    .k_scale = 0.01f,
                                    .v_scale = 0.01f,
                                    .page_size = c.page_size,
                                    .kv_heads = 1,
                                    .head_dim = static_cast<int32_t>(width)},
                          .q_out = result.q.data()});
  if (c.format == KvFormat::kNvfp4) {
    result.cache = Nvfp4CacheValues(
        {.page_size = c.page_size, .head_dim = static_cast<int32_t>(width)}, cache);
    return result;
  }
  for (size_t i = 0; i < cache.size(); i += KvElementBytes(c.format)) {
    uint16_t bits;
    if (c.format == KvFormat::kBf16) std::memcpy(&bits, &cache[i], 2);
    result.cache.push_back(c.format == KvFormat::kBf16
                               ? Bf16ToFloat(bits)
                               : E4M3ToFloat(static_cast<uint8_t>(cache[i])));
  }
  return result;
}

const MlaCase kCases[] = {
    {.latent_dim = 512, .rope_dim = 64, .q_heads = 3},
    {.latent_dim = 40, .rope_dim = 12, .q_heads = 5, .page_size = 64},
    {.latent_dim = 33, .rope_dim = 6, .q_heads = 2, .format = KvFormat::kFp8},
    {.latent_dim = 64, .rope_dim = 16, .q_heads = 4, .pairs = RopePairs::kHalves},
    {.latent_dim = 512, .rope_dim = 64, .q_heads = 2, .format = KvFormat::kNvfp4},
    {.latent_dim = 40, .rope_dim = 8, .q_heads = 2, .format = KvFormat::kNvfp4},
};

TEST_P(MlaParity, RopeAndCache) {
  for (const MlaCase& c : kCases) {
    SCOPED_TRACE(testing::Message() << "R " << c.latent_dim << ", P " << c.rope_dim);
    const MlaResult got = RunMla(ops(), c, 1);
    const MlaResult expected = RunMla(RefOps(), c, 1);
    const MlaResult threaded = RunMla(ops(), c, 3);
    EXPECT_EQ(got.q, expected.q);  // without a norm: exact; what lies before the rope part stays
    EXPECT_EQ(got.q, threaded.q);
    EXPECT_EQ(got.cache, threaded.cache);
    ExpectNear(got.cache, expected.cache, c.latent_dim + c.rope_dim,
               c.format == KvFormat::kBf16  ? kRopeNormTolerance
               : c.format == KvFormat::kFp8 ? kRopeNormFp8Tolerance
                                            : kRopeNormNvfp4Tolerance);
    const MlaResult alone = RunMla(ops(), c, 1, 7, 1);
    const int64_t width = int64_t{c.q_heads} * (c.latent_dim + c.rope_dim);
    EXPECT_TRUE(std::equal(alone.q.begin(), alone.q.end(), got.q.begin() + 7 * width));
  }
}

// Worked out by hand: an angle of 90 degrees sends (a, b) to (-b, a).
TEST_P(MlaParity, NeighboursComeOutAsHalves) {
  const std::vector<uint16_t> kv_a = {Bf16FromFloat(3), Bf16FromFloat(3), Bf16FromFloat(1),
                                      Bf16FromFloat(2), Bf16FromFloat(5), Bf16FromFloat(7)};
  const std::vector<float> norm = {1, 2}, cos = {0, 1}, sin = {1, 0};
  const std::vector<int32_t> position = {0};
  const std::vector<int64_t> slot = {1};
  std::vector<uint16_t> cache(16 * 6), q_out(6);
  for (const OpTable* table : {GetParam(), &RefOps()}) {
    table->mla_rope_and_cache({}, {.kv_a = kv_a.data(),
                                   .kv_a_stride = 6,
                                   .kv_norm = norm.data(),
                                   .latent_dim = 2,
                                   .rope_dim = 4,
                                   .q = kv_a.data() + 2,
                                   .q_stride = 4,
                                   .q_head_stride = 4,
                                   .q_heads = 1,
                                   .t = 1,
                                   .cos = cos.data(),
                                   .sin = sin.data(),
                                   .positions = position.data(),
                                   .slots = slot.data(),
                                   .cache = {.k = reinterpret_cast<std::byte*>(cache.data()),
                                             .v = reinterpret_cast<std::byte*>(cache.data()),
                                             .kv_heads = 1,
                                             .head_dim = 6},
                                   .q_out = q_out.data()});
    const std::vector<float> row = Widen({cache.begin() + 6, cache.begin() + 12});
    EXPECT_EQ(row, (std::vector<float>{1, 2, -2, 5, 1, 7}));
    EXPECT_EQ(Widen({q_out.begin() + 2, q_out.end()}), (std::vector<float>{-2, 5, 1, 7}));
  }
}

TEST_P(MlaParity, Attention) {
  const AttentionShape wide = {
      .q_heads = 128, .kv_heads = 1, .head_dim = 576, .keys_are_values = true};
  AttentionShape fp8 = wide;
  fp8.q_heads = 20;
  fp8.format = KvFormat::kFp8;
  AttentionShape nvfp4 = fp8;
  nvfp4.format = KvFormat::kNvfp4;
  const std::vector<AttentionSequence> batch = {{1, 1, 1}, {2, 2, 40}, {3, 1, 300}};
  for (const AttentionShape& shape : {wide, fp8, nvfp4}) {
    SCOPED_TRACE(testing::Message() << "Hq " << shape.q_heads);
    const std::vector<uint16_t> got = RunAttention(ops(), shape, batch, 32);
    ExpectNear(got, RunAttention(RefOps(), shape, batch), shape.head_dim,
               AttentionTolerance(ops()));
    EXPECT_EQ(got, RunAttention(ops(), shape, batch, 16, 3));
  }
}

}  // namespace
}  // namespace nibble::kernels
