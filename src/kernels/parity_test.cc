// Every op of every CPU variant against ref, within tolerance.h; and that a token's bits do not
// depend on batch, chunk, pages or threads.
#include "kernels/parity_fixture.h"

namespace nibble::kernels {
namespace {

class Parity : public testing::TestWithParam<const OpTable*> {
 protected:
  const OpTable& ops() const { return *GetParam(); }
};

INSTANTIATE_TEST_SUITE_P(Cpu, Parity, testing::ValuesIn(TestedTables()),
                         [](const auto& info) { return std::string(info.param->variant); });

constexpr int64_t kWidths[] = {1, 2, 15, 16, 17, 40, 64, 100, 576, 1031};

// ---- Norm, add, SwiGLU ----

struct NormResult {
  std::vector<uint16_t> x;
  std::vector<uint16_t> out;
};

NormResult RunNorm(const OpTable& ops, int64_t t, int64_t d, NormStyle style, bool with_delta,
                   int threads = 1) {
  NormResult result = {NoiseBf16(1, t * d, 4.0f), std::vector<uint16_t>(t * d)};
  const std::vector<uint16_t> delta = NoiseBf16(2, t * d);
  const std::vector<float> weight = NoiseF32(3, d);
  const DirtyContext context(threads, 0);
  ops.rms_norm(context, {.x = result.x.data(),
                         .delta = with_delta ? delta.data() : nullptr,
                         .weight = weight.data(),
                         .out = result.out.data(),
                         .t = t,
                         .d = d,
                         .eps = 1e-5f,
                         .style = style});
  return result;
}

TEST_P(Parity, RmsNorm) {
  for (int64_t d : kWidths)
    for (NormStyle style :
         {NormStyle::kRoundThenScale, NormStyle::kScaleOnePlus, NormStyle::kScaleThenRound})
      for (bool with_delta : {false, true}) {
        SCOPED_TRACE(testing::Message() << "D " << d << ", style " << static_cast<int>(style));
        const NormResult got = RunNorm(ops(), 3, d, style, with_delta);
        const NormResult expected = RunNorm(RefOps(), 3, d, style, with_delta);
        EXPECT_EQ(got.x, expected.x);
        ExpectNear(got.out, expected.out, d, kRmsNormTolerance);
      }
}

TEST_P(Parity, RmsNormOfRealWidths) {
  for (int64_t d : {2048, 2880, 5120, 8192, 12288, 28672}) {
    SCOPED_TRACE(testing::Message() << "D " << d);
    const NormResult got = RunNorm(ops(), 2, d, NormStyle::kScaleOnePlus, true);
    const NormResult expected = RunNorm(RefOps(), 2, d, NormStyle::kScaleOnePlus, true);
    EXPECT_EQ(got.x, expected.x);
    ExpectNear(got.out, expected.out, d, kRmsNormTolerance);
  }
}

TEST_P(Parity, RmsNormIsTheSameInAnyBatch) {
  for (const auto& [t, d] : {std::array<int64_t, 2>{200, 577}, {2100, 2048}, {140, 5120}}) {
    SCOPED_TRACE(testing::Message() << "D " << d);
    const NormResult whole = RunNorm(ops(), t, d, NormStyle::kRoundThenScale, true);
    const NormResult threaded = RunNorm(ops(), t, d, NormStyle::kRoundThenScale, true, 3);
    const NormResult start = RunNorm(ops(), 1, d, NormStyle::kRoundThenScale, true);
    EXPECT_EQ(threaded.out, whole.out);
    EXPECT_EQ(threaded.x, whole.x);
    EXPECT_TRUE(std::equal(start.out.begin(), start.out.end(), whole.out.begin()));
  }
}

TEST_P(Parity, AddRoundsToNearestEvenAndKeepsNan) {
  std::vector<uint16_t> x = NoiseBf16(1, 40000, 100.0f);
  std::vector<uint16_t> delta = NoiseBf16(2, 40000, 0.7f);
  x[3] = 0x7F80, delta[3] = 0xFF80;  // inf - inf
  x[4] = 0x7F7F, delta[4] = 0x7F7F;  // overflows
  x[5] = 0x0001, delta[5] = 0x0001;  // subnormal
  std::vector<uint16_t> expected = x;
  RefOps().add({}, {.x = expected.data(), .delta = delta.data(), .t = 5, .d = 8000});
  ops().add(DirtyContext(2, 0), {.x = x.data(), .delta = delta.data(), .t = 5, .d = 8000});
  EXPECT_NE(x[3] & 0x7F, 0);
  x[3] = expected[3];  // which NaN is not ours to say
  EXPECT_EQ(x, expected);
}

TEST_P(Parity, Round) {
  const std::vector<float> x = NoiseF32(1, 40001, 100.0f);
  std::vector<uint16_t> got(x.size()), expected(x.size());
  RoundParams params = {.x = x.data(), .y = expected.data(), .n = static_cast<int64_t>(x.size())};
  RefOps().round({}, params);
  params.y = got.data();
  ops().round(DirtyContext(2, 0), params);
  EXPECT_EQ(got, expected);
}

TEST_P(Parity, GatherRows) {
  const std::vector<uint16_t> x = NoiseBf16(1, 7 * 33);
  const std::vector<int32_t> rows = {6, 0, 0, 3};
  std::vector<uint16_t> got(4 * 33), expected(4 * 33);
  GatherRowsParams params = {
      .x = x.data(), .rows = rows.data(), .out = expected.data(), .r = 4, .d = 33};
  RefOps().gather_rows({}, params);
  params.out = got.data();
  ops().gather_rows({}, params);
  EXPECT_EQ(got, expected);
}

TEST_P(Parity, Activation) {
  for (const ActivationKind kind : {ActivationKind::kSilu, ActivationKind::kGeluTanh,
                                    ActivationKind::kClampedSilu, ActivationKind::kSquaredRelu})
    for (int64_t f : kWidths) {
      SCOPED_TRACE(testing::Message() << "kind " << static_cast<int>(kind) << ", F " << f);
      const int64_t t = 9;
      const Activation activation = {.kind = kind};
      const int64_t width = activation.inputs(f);
      std::vector<uint16_t> gate_up = NoiseBf16(f, t * width, 10.0f);
      gate_up[0] = Bf16FromFloat(-150.0f);
      gate_up[2 * width] = Bf16FromFloat(1e15f);
      gate_up[4 * width] = Bf16FromFloat(-1e15f);
      gate_up[6 * width] = Bf16FromFloat(-0.0f);
      std::vector<uint16_t> got(t * f), expected(t * f), alone(f);
      ActivationParams params = {.gate_up = gate_up.data(),
                                 .out = expected.data(),
                                 .t = t,
                                 .f = f,
                                 .activation = activation};
      RefOps().activation({}, params);
      params.out = got.data();
      ops().activation(DirtyContext(3, 0), params);
      ExpectNear(got, expected, f, kActivationTolerance);
      ops().activation({}, {.gate_up = gate_up.data() + 4 * width,
                            .out = alone.data(),
                            .t = 1,
                            .f = f,
                            .activation = activation});
      EXPECT_TRUE(std::equal(alone.begin(), alone.end(), got.begin() + 4 * f));
    }
}

TEST_P(Parity, SigmoidGate) {
  for (int64_t n : kWidths) {
    SCOPED_TRACE(testing::Message() << "N " << n);
    const int64_t t = 5, stride = n + 7;
    const std::vector<uint16_t> gate = NoiseBf16(1, t * stride, 8.0f);
    std::vector<uint16_t> got = NoiseBf16(2, t * n, 3.0f);
    std::vector<uint16_t> expected = got;
    SigmoidGateParams params = {
        .x = expected.data(), .gate = gate.data(), .gate_stride = stride, .t = t, .n = n};
    RefOps().sigmoid_gate({}, params);
    params.x = got.data();
    ops().sigmoid_gate(DirtyContext(3, 0), params);
    ExpectNear(got, expected, n, kActivationTolerance);
  }
}

// ---- RoPE and the cache ----

struct RopeCase {
  int32_t q_heads, kv_heads, head_dim, rotary_dim;
  bool norm;
  KvFormat format;
  int32_t page_size;
  RopePairs pairs = RopePairs::kHalves;
  bool norm_after_rotation = false;
  bool rotate = true;
  bool scale_q = false;
  int32_t gap = 0;  // between the rows of qkv
};

struct RopeResult {
  std::vector<uint16_t> q;
  std::vector<std::byte> k, v;
};

// The first t of as many tokens as you like.
RopeResult RunRope(const OpTable& ops, const RopeCase& c, int threads, int64_t t = 21) {
  const int64_t dh = c.head_dim, positions_count = 50;
  const int64_t stride = (c.q_heads + 2 * c.kv_heads) * dh + c.gap;
  const std::vector<uint16_t> qkv = NoiseBf16(1, t * stride, 3.0f);
  const std::vector<float> q_scale = NoiseF32(6, positions_count, 2.0f);
  const std::vector<float> q_norm = NoiseF32(2, dh, 2.0f), k_norm = NoiseF32(3, dh, 2.0f);
  const std::vector<float> cos = NoiseF32(4, positions_count * c.rotary_dim / 2 + 1);
  const std::vector<float> sin = NoiseF32(5, positions_count * c.rotary_dim / 2 + 1);
  std::vector<int32_t> positions;
  std::vector<int64_t> slots;
  for (int64_t i = 0; i < t; ++i) {
    positions.push_back(static_cast<int32_t>(i * 7 % positions_count));
    slots.push_back(i * 3 + 1);
  }
  const int64_t cache_elements = (3 * t / c.page_size + 2) * c.page_size * c.kv_heads * dh;
  const auto cache_bytes = static_cast<size_t>(KvBytes(c.format, cache_elements));
  RopeResult result = {std::vector<uint16_t>(t * c.q_heads * dh),
                       std::vector<std::byte>(cache_bytes), std::vector<std::byte>(cache_bytes)};
  ops.rope_and_cache(DirtyContext(threads, 0), {.qkv = qkv.data(),
                                                .qkv_stride = c.gap > 0 ? stride : 0,
                                                .t = t,
                                                .q_heads = c.q_heads,
                                                .q_norm = c.norm ? q_norm.data() : nullptr,
                                                .k_norm = c.norm ? k_norm.data() : nullptr,
                                                .norm_after_rotation = c.norm_after_rotation,
                                                .cos = c.rotate ? cos.data() : nullptr,
                                                .sin = c.rotate ? sin.data() : nullptr,
                                                .rotary_dim = c.rotary_dim,
                                                .pairs = c.pairs,
                                                .positions = positions.data(),
                                                .q_scale = c.scale_q ? q_scale.data() : nullptr,
                                                .slots = slots.data(),
                                                .cache = {.k = result.k.data(),
                                                          .v = result.v.data(),
                                                          .format = c.format,
                                                          .k_scale = 0.01f,
                                                          .v_scale = 0.03f,
                                                          .page_size = c.page_size,
                                                          .kv_heads = c.kv_heads,
                                                          .head_dim = c.head_dim},
                                                .q_out = result.q.data()});
  return result;
}

std::vector<float> CacheValues(const std::vector<std::byte>& bytes, const RopeCase& c) {
  const KvFormat format = c.format;
  if (format == KvFormat::kNvfp4)
    return Nvfp4CacheValues({.page_size = c.page_size, .head_dim = c.head_dim}, bytes);
  std::vector<float> values;
  for (size_t i = 0; i < bytes.size(); i += KvElementBytes(format)) {
    uint16_t bits;
    if (format == KvFormat::kBf16) std::memcpy(&bits, &bytes[i], 2);
    values.push_back(format == KvFormat::kBf16 ? Bf16ToFloat(bits)
                                               : E4M3ToFloat(static_cast<uint8_t>(bytes[i])));
  }
  return values;
}

Tolerance NormedCacheTolerance(KvFormat format) {
  return format == KvFormat::kBf16  ? kRopeNormTolerance
         : format == KvFormat::kFp8 ? kRopeNormFp8Tolerance
                                    : kRopeNormNvfp4Tolerance;
}

TEST_P(Parity, RopeAndCache) {
  for (const auto& [q_heads, kv_heads, head_dim, rotary_dim] :
       {std::array{3, 1, 64, 64}, {4, 2, 40, 24}, {2, 2, 18, 6}, {6, 3, 128, 0}, {1, 1, 256, 64}})
    for (bool norm : {false, true})
      for (KvFormat format : {KvFormat::kBf16, KvFormat::kFp8, KvFormat::kNvfp4})
        for (int32_t page_size : {16, 64}) {
          if (format == KvFormat::kNvfp4 && head_dim % 16 != 0) continue;
          SCOPED_TRACE(testing::Message() << "Dh " << head_dim << ", rotary " << rotary_dim
                                          << ", norm " << norm << ", page " << page_size);
          const RopeCase c = {q_heads, kv_heads, head_dim, rotary_dim, norm, format, page_size};
          const RopeResult got = RunRope(ops(), c, 1);
          const RopeResult threaded = RunRope(ops(), c, 3);
          const RopeResult expected = RunRope(RefOps(), c, 1);
          EXPECT_EQ(got.q, threaded.q);
          EXPECT_EQ(got.k, threaded.k);
          EXPECT_EQ(got.v, expected.v);
          ExpectNear(got.q, expected.q, head_dim, norm ? kRopeNormTolerance : kExact);
          ExpectNear(CacheValues(got.k, c), CacheValues(expected.k, c), head_dim,
                     norm ? NormedCacheTolerance(format) : kExact);
        }
}

// Qwen3-Next, gpt-oss, Gemma 3, the widest head.
TEST_P(Parity, RopeAndCacheOfRealModels) {
  const RopeCase cases[] = {{16, 2, 256, 64, true, KvFormat::kFp8, 64},
                            {64, 8, 64, 64, false, KvFormat::kBf16, 16},
                            {32, 16, 128, 128, true, KvFormat::kBf16, 16},
                            {2, 1, 1024, 512, true, KvFormat::kFp8, 16},
                            {32, 4, 128, 128, true, KvFormat::kNvfp4, 16},
                            {2, 1, 1024, 512, false, KvFormat::kNvfp4, 32}};
  for (const RopeCase& c : cases) {
    SCOPED_TRACE(testing::Message() << "Dh " << c.head_dim);
    const RopeResult got = RunRope(ops(), c, 2);
    const RopeResult expected = RunRope(RefOps(), c, 1);
    EXPECT_EQ(got.v, expected.v);
    ExpectNear(got.q, expected.q, c.head_dim, c.norm ? kRopeNormTolerance : kExact);
    ExpectNear(CacheValues(got.k, c), CacheValues(expected.k, c), c.head_dim,
               c.norm ? NormedCacheTolerance(c.format) : kExact);
    const RopeResult alone = RunRope(ops(), c, 1, 1);
    EXPECT_TRUE(std::equal(alone.q.begin(), alone.q.end(), got.q.begin()));
    if (c.format == KvFormat::kNvfp4) continue;  // rows are in two places
    for (int32_t h = 0; h < c.kv_heads; ++h) {   // token 0 lies in slot 1
      const int64_t bytes = c.head_dim * KvElementBytes(c.format);
      const int64_t at = (h * c.page_size + 1) * bytes;
      EXPECT_EQ(std::memcmp(&alone.k[at], &got.k[at], bytes), 0);
    }
  }
}

TEST_P(Parity, RopeVariants) {
  const RopeCase base = {4, 2, 40, 24, true, KvFormat::kBf16, 16};
  RopeCase neighbours = base, norm_last = base, none = base, scaled = base;
  neighbours.pairs = RopePairs::kNeighbours;
  neighbours.gap = 24;
  norm_last.norm_after_rotation = true;
  none.rotate = false;
  scaled.scale_q = true;
  for (const RopeCase& c : {neighbours, norm_last, none, scaled}) {
    const RopeResult got = RunRope(ops(), c, 3);
    const RopeResult expected = RunRope(RefOps(), c, 1);
    EXPECT_NE(expected.q, RunRope(RefOps(), base, 1).q);
    EXPECT_EQ(got.v, expected.v);
    ExpectNear(got.q, expected.q, c.head_dim, kRopeNormTolerance);
    ExpectNear(CacheValues(got.k, c), CacheValues(expected.k, c), c.head_dim, kRopeNormTolerance);
  }
}

// A block by hand: the largest is 6 times the scale, the others are its multiples.
TEST_P(Parity, Nvfp4CacheHoldsWhatItsRuleSays) {
  const int32_t dh = 16;
  const std::vector<float> values = {24, -12, 6, 4, 2, -2, 0, 8, 16, -24, 12, 1, 0.5f, 3, -1, 5};
  const std::vector<float> expected = {24, -12, 6, 4, 2, -2, 0, 8, 16, -24, 12, 0, 0, 4, 0, 4};
  std::vector<uint16_t> qkv(3 * dh);
  for (int32_t d = 0; d < dh; ++d) qkv[2 * dh + d] = Bf16FromFloat(values[d]);
  const std::vector<int32_t> positions = {0};
  const std::vector<int64_t> slots = {18};
  std::vector<std::byte> k(KvBytes(KvFormat::kNvfp4, 32 * dh)), v(k.size());
  std::vector<uint16_t> q(dh);
  const KvLayerView cache = {.k = k.data(),
                             .v = v.data(),
                             .format = KvFormat::kNvfp4,
                             .page_size = 16,
                             .kv_heads = 1,
                             .head_dim = dh};
  ops().rope_and_cache({}, {.qkv = qkv.data(),
                            .t = 1,
                            .q_heads = 1,
                            .positions = positions.data(),
                            .slots = slots.data(),
                            .cache = cache,
                            .q_out = q.data()});
  // Page 1 begins behind 16 rows of 9 bytes; its third token's scale behind 16 rows of codes.
  EXPECT_EQ(static_cast<uint8_t>(v[16 * 9 + 16 * 8 + 2]), E4M3FromFloat(4.0f));
  std::vector<uint16_t> row(dh);
  LoadNvfp4Row(cache, v.data(), 18, row.data());
  EXPECT_EQ(Widen(row), expected);
}

TEST_P(Parity, Fp8CacheHoldsEveryBf16AsE4M3FromFloatDoes) {
  const int32_t dh = 256, t = 256;
  std::vector<uint16_t> qkv(t * 3 * dh);
  std::vector<int32_t> positions(t, 0);
  std::vector<int64_t> slots(t);
  for (int32_t i = 0; i < t; ++i) {
    slots[i] = i;
    for (int32_t d = 0; d < dh; ++d) qkv[(i * 3 + 2) * dh + d] = static_cast<uint16_t>(i * dh + d);
  }
  std::vector<std::byte> k(t * dh), v(t * dh);
  std::vector<uint16_t> q(t * dh);
  ops().rope_and_cache({}, {.qkv = qkv.data(),
                            .t = t,
                            .q_heads = 1,
                            .positions = positions.data(),
                            .slots = slots.data(),
                            .cache = {.k = k.data(),
                                      .v = v.data(),
                                      .format = KvFormat::kFp8,
                                      .v_scale = 3.0f,
                                      .page_size = 256,
                                      .kv_heads = 1,
                                      .head_dim = dh},
                            .q_out = q.data()});
  for (int32_t bits = 0; bits < 65536; ++bits)
    ASSERT_EQ(static_cast<uint8_t>(v[bits]),
              E4M3FromFloat(Bf16ToFloat(static_cast<uint16_t>(bits)) / 3.0f))
        << bits;
}

// ---- Attention ----

const AttentionShape kShapes[] = {
    {.q_heads = 9, .kv_heads = 3, .head_dim = 64},
    {.q_heads = 4, .kv_heads = 4, .head_dim = 128},
    {.q_heads = 8, .kv_heads = 1, .head_dim = 80, .window = 100},
    {.q_heads = 6, .kv_heads = 2, .head_dim = 20, .window = 7, .sinks = true},
    {.q_heads = 5, .kv_heads = 1, .head_dim = 34, .sinks = true},
    {.q_heads = 40, .kv_heads = 1, .head_dim = 6},
    {.q_heads = 9, .kv_heads = 3, .head_dim = 64, .format = KvFormat::kFp8},
    {.q_heads = 6, .kv_heads = 2, .head_dim = 28, .window = 30, .format = KvFormat::kFp8},
    {.q_heads = 6, .kv_heads = 2, .head_dim = 16, .chunk = 48},
    {.q_heads = 9, .kv_heads = 3, .head_dim = 64, .format = KvFormat::kNvfp4},
    {.q_heads = 8, .kv_heads = 2, .head_dim = 128, .window = 100, .format = KvFormat::kNvfp4},
    {.q_heads = 6,
     .kv_heads = 2,
     .head_dim = 48,
     .chunk = 48,
     .sinks = true,
     .format = KvFormat::kNvfp4},
};

std::string Describe(const AttentionShape& s) {
  return "Hq " + std::to_string(s.q_heads) + ", Hk " + std::to_string(s.kv_heads) + ", Dh " +
         std::to_string(s.head_dim) + ", window " + std::to_string(s.window) +
         (s.sinks ? ", sinks" : "") +
         (s.format == KvFormat::kFp8     ? ", fp8"
          : s.format == KvFormat::kNvfp4 ? ", nvfp4"
                                         : "");
}

TEST_P(Parity, Attention) {
  const std::vector<AttentionSequence> batch = {{1, 1, 1},   {2, 3, 40},  {3, 1, 300}, {4, 70, 70},
                                                {5, 2, 258}, {6, 16, 16}, {7, 5, 521}};
  for (const AttentionShape& shape : kShapes) {
    SCOPED_TRACE(Describe(shape));
    ExpectNear(RunAttention(ops(), shape, batch, 32), RunAttention(RefOps(), shape, batch),
               shape.head_dim, AttentionTolerance(ops()));
  }
}

TEST_P(Parity, AttentionIsTheSameInAnyChunkPageSizeAndThreadCount) {
  const int32_t length = 290;
  for (const AttentionShape& shape : kShapes) {
    SCOPED_TRACE(Describe(shape));
    const std::vector<uint16_t> whole = RunAttention(ops(), shape, {{9, length, length}});
    const int64_t width = int64_t{shape.q_heads} * shape.head_dim;
    for (int32_t page_size : {32, 256})
      EXPECT_EQ(RunAttention(ops(), shape, {{9, length, length}}, page_size), whole);
    for (int threads : {2, 5})
      EXPECT_EQ(RunAttention(ops(), shape, {{9, length, length}}, 16, threads), whole);
    const auto expect_chunk = [&](int32_t end, int32_t chunk, int32_t page_size, int threads) {
      const std::vector<uint16_t> got =
          RunAttention(ops(), shape, {{9, chunk, end}}, page_size, threads);
      EXPECT_TRUE(std::equal(got.begin(), got.end(), whole.begin() + (end - chunk) * width))
          << "chunk of " << chunk << " up to " << end << ", threads " << threads;
    };
    for (int32_t end : {1, 2, 15, 16, 17, 100, 255, 256, 257, 290}) {
      expect_chunk(end, 1, 16, 1);
      expect_chunk(end, 1, 64, 4);
    }
    expect_chunk(200, 200, 16, 1);
    expect_chunk(290, 90, 128, 3);
    expect_chunk(263, 7, 32, 1);
  }
}

TEST_P(Parity, AttentionIsTheSameWithKeysInPairs) {
  if (ops().backend == "cuda") GTEST_SKIP() << "keys of a GPU lie in rows";
  const std::vector<AttentionSequence> batch = {
      {1, 1, 1}, {2, 3, 40}, {3, 1, 600}, {4, 70, 70}, {5, 2, 258}};
  for (const AttentionShape& shape : kShapes) {
    if (shape.format == KvFormat::kNvfp4) continue;  // always in rows
    SCOPED_TRACE(Describe(shape));
    AttentionShape pairs = shape;
    pairs.key_layout = KeyLayout::kPairs;
    for (int threads : {1, 3})
      EXPECT_EQ(RunAttention(ops(), pairs, batch, 32, threads), RunAttention(ops(), shape, batch));
  }
}

TEST_P(Parity, AttentionIsTheSameInAnyBatch) {
  std::vector<AttentionSequence> batch;
  for (uint64_t id = 1; id <= 12; ++id)
    batch.push_back(
        {id, static_cast<int32_t>(id % 3 == 0 ? id : 1), static_cast<int32_t>(id * 47)});
  for (const AttentionShape& shape : kShapes) {
    SCOPED_TRACE(Describe(shape));
    const std::vector<uint16_t> together = RunAttention(ops(), shape, batch, 16, 3);
    auto at = together.begin();
    for (const AttentionSequence& sequence : batch) {
      const std::vector<uint16_t> alone = RunAttention(ops(), shape, {sequence}, 64, 2);
      ASSERT_TRUE(std::equal(alone.begin(), alone.end(), at)) << "sequence " << sequence.id;
      at += static_cast<int64_t>(alone.size());
    }
  }
}

// 256 heads look at two keys: the first holds every E4M3 code, the second is 0; head h asks for
// element h alone, so its first weight is the sigmoid of that code's value.
TEST_P(Parity, AttentionReadsEveryFp8Code) {
  const int32_t dh = 256;
  const std::vector<int32_t> kv_len = {2}, page = {0}, q_start = {0, 1};
  std::vector<uint8_t> k(16 * dh), v(16 * dh);
  std::vector<uint16_t> q(dh * dh), got(dh * dh), expected(dh * dh);
  for (int32_t code = 0; code < dh; ++code) {
    k[code] = (code & 0x7F) == 0x7F ? 0 : static_cast<uint8_t>(code);
    v[code] = k[code];
    q[code * dh + code] = Bf16FromFloat(1.0f);
  }
  for (float scale : {1.0f / 64, 64.0f}) {
    AttentionParams params = {.q = q.data(),
                              .out = expected.data(),
                              .t = 1,
                              .sequences = 1,
                              .q_start = q_start.data(),
                              .kv_len = kv_len.data(),
                              .page_table = page.data(),
                              .max_pages = 1,
                              .q_heads = dh,
                              .scale = scale,
                              .cache = {.k = reinterpret_cast<std::byte*>(k.data()),
                                        .v = reinterpret_cast<std::byte*>(v.data()),
                                        .format = KvFormat::kFp8,
                                        .page_size = 16,
                                        .kv_heads = 1,
                                        .head_dim = dh}};
    RefOps().attention({}, params);
    params.out = got.data();
    ops().attention(DirtyContext(1, ops().attention_workspace(1, 1, dh, dh)), params);
    for (uint16_t& value : expected)  // weights below e^-86 count as 0 on the vector units
      if (std::abs(Bf16ToFloat(value)) < 1e-30f) value &= 0x8000;
    for (uint16_t& value : got)
      if (std::abs(Bf16ToFloat(value)) < 1e-30f) value &= 0x8000;
    ExpectNear(got, expected, 1, {kAttentionTolerance.relative, 0.0f});
  }
}

// The vector units with fused multiply-add agree bit for bit (simd.h).
TEST(ParityAcrossVariants, AttentionIsTheSameOnAvx2AndAvx512) {
  const OpTable* avx2 = VectorOpsTable("avx2");
  const OpTable* avx512 = VectorOpsTable("avx512");
  const OpTable* avx512bf16 = VectorOpsTable("avx512bf16");
  if (avx2 == nullptr || avx512 == nullptr) GTEST_SKIP() << "needs a processor with AVX-512";
  for (const AttentionShape& shape : kShapes) {
    SCOPED_TRACE(Describe(shape));
    const std::vector<AttentionSequence> batch = {{1, 9, 50}, {2, 1, 300}};
    const auto expected = RunAttention(*avx2, shape, batch);
    EXPECT_EQ(RunAttention(*avx512, shape, batch), expected);
    if (avx512bf16 != nullptr) EXPECT_EQ(RunAttention(*avx512bf16, shape, batch), expected);
  }
}

}  // namespace
}  // namespace nibble::kernels
