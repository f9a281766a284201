// attention with `rope` and `gate`: what it writes and returns has the bits of rope_and_cache,
// attention and sigmoid_gate in turn, on every backend, and a sequence's do not depend on the
// batch.
#include "kernels/linear_fixture.h"
#include "kernels/parity_fixture.h"

namespace nibble::kernels {
namespace {

struct StepCase {
  const char* name = "";
  AttentionShape shape;
  int32_t rotary_dim = 0;
  bool norm = false;
  NormStyle norm_style = NormStyle::kRoundThenScale;
  bool norm_after_rotation = false;
  RopePairs pairs = RopePairs::kHalves;
  bool scale_q = false;
  bool gate = false;
};

const StepCase kCases[] = {
    {"Llama", {.q_heads = 8, .kv_heads = 2, .head_dim = 128}, 128},
    {"Qwen3", {.q_heads = 16, .kv_heads = 2, .head_dim = 128}, 128, true},
    {"Qwen3, FP8",
     {.q_heads = 16, .kv_heads = 2, .head_dim = 128, .format = KvFormat::kFp8},
     128,
     true},
    {.name = "Qwen3-Next, FP8",
     .shape = {.q_heads = 16, .kv_heads = 2, .head_dim = 256, .format = KvFormat::kFp8},
     .rotary_dim = 64,
     .norm = true,
     .norm_style = NormStyle::kScaleOnePlus,
     .gate = true},
    {.name = "Qwen3-Next",
     .shape = {.q_heads = 8, .kv_heads = 1, .head_dim = 256},
     .rotary_dim = 64,
     .norm = true,
     .norm_style = NormStyle::kScaleOnePlus,
     .gate = true},
    {"gpt-oss", {.q_heads = 16, .kv_heads = 2, .head_dim = 64, .window = 128, .sinks = true}, 64},
    {"gpt-oss, FP8",
     {.q_heads = 16, .kv_heads = 2, .head_dim = 64, .sinks = true, .format = KvFormat::kFp8},
     64},
    {.name = "Llama 4",
     .shape = {.q_heads = 10, .kv_heads = 2, .head_dim = 128, .chunk = 1024},
     .rotary_dim = 128,
     .norm = true,
     .norm_after_rotation = true,
     .pairs = RopePairs::kNeighbours,
     .scale_q = true},
    {"no positions", {.q_heads = 4, .kv_heads = 1, .head_dim = 128}},
    {"16 heads to one", {.q_heads = 16, .kv_heads = 1, .head_dim = 128}, 128, true},
    {"24 heads to one, FP8",
     {.q_heads = 24, .kv_heads = 1, .head_dim = 64, .format = KvFormat::kFp8},
     32},
    {"odd head", {.q_heads = 6, .kv_heads = 2, .head_dim = 40}, 24, true},
    {"one head each", {.q_heads = 3, .kv_heads = 3, .head_dim = 64}, 6},
    {"Qwen3, NVFP4",
     {.q_heads = 16, .kv_heads = 2, .head_dim = 128, .format = KvFormat::kNvfp4},
     128,
     true},
    {.name = "Qwen3-Next, NVFP4",
     .shape = {.q_heads = 8, .kv_heads = 1, .head_dim = 256, .format = KvFormat::kNvfp4},
     .rotary_dim = 64,
     .gate = true},
    {"gpt-oss, NVFP4",
     {.q_heads = 16,
      .kv_heads = 2,
      .head_dim = 64,
      .window = 128,
      .sinks = true,
      .format = KvFormat::kNvfp4},
     64},
    {"wide", {.q_heads = 2, .kv_heads = 1, .head_dim = 512, .format = KvFormat::kFp8}, 256, true},
};

struct StepResult {
  std::vector<uint16_t> out;
  std::vector<std::byte> k;
  std::vector<std::byte> v;
};

// The last q_len tokens of every sequence as one step over pages in which all earlier keys lie and
// all else is NaN. `fused`: one op, whose output lies in `layout`.
StepResult RunStep(const OpTable& ops, const StepCase& c,
                   const std::vector<AttentionSequence>& sequences, bool fused,
                   int32_t page_size = 16, int threads = 1, ActivationLayout layout = {}) {
  const AttentionShape& shape = c.shape;
  const int64_t dh = shape.head_dim, count = static_cast<int64_t>(sequences.size());
  const int64_t q_width = shape.q_heads * dh, kv_width = shape.kv_heads * dh;
  const int64_t stride = q_width + 2 * kv_width + (c.gate ? q_width : 0);
  int64_t tokens = 0, max_pages = 0, max_positions = 0;
  for (const AttentionSequence& s : sequences) {
    tokens += s.q_len;
    max_pages = std::max<int64_t>(max_pages, (s.kv_len + page_size - 1) / page_size);
    max_positions = std::max<int64_t>(max_positions, s.kv_len);
  }
  const int64_t bytes = KvBytes(shape.format, max_pages * count * shape.kv_heads * page_size * dh);
  // Room for whole parts of any layout.
  const int64_t room = (tokens + kMostPartTokens - 1) / kMostPartTokens * kMostPartTokens;
  StepResult result = {std::vector<uint16_t>((layout.rows() ? tokens : room) * q_width),
                       std::vector<std::byte>(bytes, std::byte{0xFF}),
                       std::vector<std::byte>(bytes, std::byte{0xFF})};
  const KvLayerView cache = {.k = result.k.data(),
                             .v = result.v.data(),
                             .format = shape.format,
                             .key_layout = shape.key_layout,
                             .k_scale = shape.format == KvFormat::kFp8 ? 0.03f : 1.0f,
                             .v_scale = shape.format == KvFormat::kFp8 ? 0.02f : 1.0f,
                             .page_size = page_size,
                             .kv_heads = shape.kv_heads,
                             .head_dim = shape.head_dim};
  std::vector<uint16_t> qkv;
  std::vector<int32_t> q_start = {0}, kv_len, positions, table(max_pages * count);
  std::vector<int64_t> slots;
  for (int64_t b = 0; b < count; ++b) {
    const AttentionSequence& s = sequences[b];
    for (int64_t i = 0; i < max_pages; ++i)
      table[b * max_pages + i] = static_cast<int32_t>(i * count + (b + i) % count);
    const auto slot_of = [&](int64_t position) {
      return table[b * max_pages + position / page_size] * int64_t{page_size} +
             position % page_size;
    };
    const int32_t old_keys = s.kv_len - s.q_len;
    for (int64_t position = 0; position < old_keys; ++position) {
      for (int64_t h = 0; h < shape.kv_heads; ++h) {
        const int64_t slot = slot_of(position);
        const int64_t row = (slot / page_size * shape.kv_heads + h) * page_size + slot % page_size;
        StoreCacheRow(cache, row, s.id, position, h);
      }
    }
    for (int32_t position = old_keys; position < s.kv_len; ++position) {
      const std::vector<uint16_t> row = NoiseBf16(s.id * 1000003 + position, stride, 2.0f);
      qkv.insert(qkv.end(), row.begin(), row.end());
      positions.push_back(position);
      slots.push_back(slot_of(position));
    }
    q_start.push_back(q_start.back() + s.q_len);
    kv_len.push_back(s.kv_len);
  }
  const std::vector<float> q_norm = NoiseF32(2, dh, 2.0f), k_norm = NoiseF32(3, dh, 2.0f);
  const int64_t half = c.rotary_dim / 2;
  const std::vector<float> cos = NoiseF32(4, max_positions * half + 1);
  const std::vector<float> sin = NoiseF32(5, max_positions * half + 1);
  const std::vector<float> q_scale = NoiseF32(6, max_positions, 2.0f);
  const std::vector<float> sinks = NoiseF32(11, shape.q_heads, 2.0f);
  std::vector<uint16_t> q(tokens * q_width);
  const RopeAndCacheParams rope = {.qkv = qkv.data(),
                                   .qkv_stride = stride,
                                   .t = tokens,
                                   .q_heads = shape.q_heads,
                                   .q_norm = c.norm ? q_norm.data() : nullptr,
                                   .k_norm = c.norm ? k_norm.data() : nullptr,
                                   .norm_style = c.norm_style,
                                   .norm_after_rotation = c.norm_after_rotation,
                                   .cos = half > 0 ? cos.data() : nullptr,
                                   .sin = half > 0 ? sin.data() : nullptr,
                                   .rotary_dim = c.rotary_dim,
                                   .pairs = c.pairs,
                                   .positions = positions.data(),
                                   .q_scale = c.scale_q ? q_scale.data() : nullptr,
                                   .slots = slots.data(),
                                   .cache = cache,
                                   .q_out = q.data()};
  const uint16_t* gate = c.gate ? qkv.data() + stride - q_width : nullptr;
  const DirtyContext context(
      threads, ops.attention_workspace(threads, tokens, shape.q_heads, shape.head_dim));
  AttentionParams attention = {.rope = &rope,
                               .gate = gate,
                               .gate_stride = stride,
                               .out = result.out.data(),
                               .out_layout = layout,
                               .t = tokens,
                               .sequences = count,
                               .q_start = q_start.data(),
                               .kv_len = kv_len.data(),
                               .page_table = table.data(),
                               .max_pages = max_pages,
                               .q_heads = shape.q_heads,
                               .scale = 1.0f / std::sqrt(static_cast<float>(dh)),
                               .window = shape.window,
                               .chunk = shape.chunk,
                               .sinks = shape.sinks ? sinks.data() : nullptr,
                               .cache = cache};
  if (!fused) {
    ops.rope_and_cache(context, rope);
    attention.rope = nullptr;
    attention.q = q.data();
    attention.gate = nullptr;
  }
  ops.attention(context, attention);
  if (!fused && gate != nullptr) {
    ops.sigmoid_gate(
        context,
        {.x = result.out.data(), .gate = gate, .gate_stride = stride, .t = tokens, .n = q_width});
  }
  return result;
}

class AttentionStepParity : public testing::TestWithParam<const OpTable*> {
 protected:
  const OpTable& ops() const { return *GetParam(); }
};

void ExpectSameBits(const OpTable& ops, const StepCase& c,
                    const std::vector<AttentionSequence>& batch, int32_t page_size) {
  const StepResult fused = RunStep(ops, c, batch, true, page_size);
  const StepResult apart = RunStep(ops, c, batch, false, page_size);
  EXPECT_EQ(fused.out, apart.out);
  EXPECT_EQ(fused.k, apart.k);
  EXPECT_EQ(fused.v, apart.v);
}

TEST_P(AttentionStepParity, HasTheBitsOfTheOpsOfItsOwn) {
  for (const StepCase& c : kCases) {
    for (int32_t length : {1, 2, 16, 64, 65, 129, 256, 257, 600}) {
      SCOPED_TRACE(testing::Message() << c.name << ", " << length << " keys");
      ExpectSameBits(ops(), c, {{3, 1, length}}, 16);
    }
    if (ops().backend == "cuda") {
      for (int32_t length : {1030, 2300, 5000}) {
        SCOPED_TRACE(testing::Message() << c.name << ", " << length << " keys");
        ExpectSameBits(ops(), c, {{3, 1, length}}, 64);
        ExpectSameBits(ops(), c, {{4, 1, 900}, {3, 1, length}, {5, 1, 300}}, 16);
      }
      SCOPED_TRACE(testing::Message() << c.name << ", many sequences");
      std::vector<AttentionSequence> many;
      for (uint64_t id = 1; id <= 150; ++id) many.push_back({id, 1, static_cast<int32_t>(id * 5)});
      ExpectSameBits(ops(), c, many, 16);
    }
    SCOPED_TRACE(c.name);
    ExpectSameBits(ops(), c, {{1, 1, 1}, {2, 1, 77}, {3, 1, 300}, {4, 1, 513}, {5, 1, 64}}, 64);
    ExpectSameBits(ops(), c, {{1, 3, 40}, {2, 1, 300}, {3, 2, 2}}, 32);
  }
}

TEST_P(AttentionStepParity, IsRefs) {
  const std::vector<AttentionSequence> batch = {{1, 1, 1}, {2, 1, 77}, {3, 1, 300}, {4, 1, 513}};
  for (const StepCase& c : kCases) {
    if (c.norm) continue;  // another rounding of q and k
    SCOPED_TRACE(c.name);
    const StepResult got = RunStep(ops(), c, batch, true, 16, 3);
    const StepResult expected = RunStep(RefOps(), c, batch, true);
    EXPECT_EQ(got.k, expected.k);
    EXPECT_EQ(got.v, expected.v);
    ExpectNear(got.out, expected.out, c.shape.head_dim, AttentionTolerance(ops()));
  }
}

// Keys (rows, Dh) of a cache in pairs.
std::vector<std::byte> InRows(const std::vector<std::byte>& k, const AttentionShape& shape) {
  const KvLayerView cache = {.key_layout = KeyLayout::kPairs, .head_dim = shape.head_dim};
  const int64_t bytes = KvElementBytes(shape.format);
  std::vector<std::byte> rows(k.size());
  for (int64_t i = 0; i < static_cast<int64_t>(k.size()) / bytes; ++i) {
    const int64_t at = KeyIndex(cache, i / shape.head_dim, i % shape.head_dim);
    std::memcpy(&rows[i * bytes], &k[at * bytes], bytes);
  }
  return rows;
}

TEST_P(AttentionStepParity, IsTheSameWithKeysInPairs) {
  if (ops().backend == "cuda") GTEST_SKIP() << "keys of a GPU lie in rows";
  const std::vector<AttentionSequence> batch = {{1, 3, 40}, {2, 1, 300}, {3, 2, 2}, {4, 1, 513}};
  for (StepCase c : kCases) {
    if (c.shape.format == KvFormat::kNvfp4) continue;  // always in rows
    SCOPED_TRACE(c.name);
    for (const OpTable* table : {&ops(), &RefOps()}) {
      c.shape.key_layout = KeyLayout::kRows;
      const StepResult rows = RunStep(*table, c, batch, true, 32);
      c.shape.key_layout = KeyLayout::kPairs;
      const StepResult pairs = RunStep(*table, c, batch, true, 32, 2);
      EXPECT_EQ(pairs.out, rows.out);
      EXPECT_EQ(pairs.v, rows.v);
      EXPECT_EQ(InRows(pairs.k, c.shape), rows.k);
    }
  }
}

TEST_P(AttentionStepParity, IsTheSameInAnyBatch) {
  std::vector<AttentionSequence> batch;
  for (uint64_t id = 1; id <= 40; ++id) batch.push_back({id, 1, static_cast<int32_t>(id * 17)});
  for (const StepCase& c : kCases) {
    SCOPED_TRACE(c.name);
    const std::vector<uint16_t> together = RunStep(ops(), c, batch, true, 32, 2).out;
    const int64_t width = int64_t{c.shape.q_heads} * c.shape.head_dim;
    for (size_t i = 0; i < batch.size(); i += 13) {
      const std::vector<uint16_t> alone = RunStep(ops(), c, {batch[i]}, true, 16).out;
      EXPECT_TRUE(std::equal(alone.begin(), alone.end(), together.begin() + i * width))
          << "sequence " << i;
    }
  }
}

// A linear makes the same of what is laid out for it as of rows.
TEST_P(AttentionStepParity, MayLayOutItsOutput) {
  if (ops().x_layout == nullptr) GTEST_SKIP() << "rows alone";
  ThreadPool pool(2);
  for (const StepCase& c : kCases) {
    const int64_t width = int64_t{c.shape.q_heads} * c.shape.head_dim;
    if (width % 64 != 0) continue;
    const int64_t n = (int64_t{16} << 20) / width;
    const Stored stored = MakeWeight(WeightFormat::kNvfp4, n, width, 1, 0.003f);
    const auto weight = std::move(*ops().pack_weight({.parts = {&stored.view, 1}, .pool = &pool}));
    // A token of each sequence, and several of some.
    for (const auto& [count, q_len] : {std::pair<int, int>{64, 1}, {37, 1}, {20, 3}}) {
      SCOPED_TRACE(testing::Message() << c.name << ", " << count << " sequences of " << q_len);
      std::vector<AttentionSequence> batch;
      for (int id = 1; id <= count; ++id)
        batch.push_back({static_cast<uint64_t>(id), id % 4 == 0 ? q_len : 1, id * 5});
      int64_t m = 0;
      for (const AttentionSequence& sequence : batch) m += sequence.q_len;
      const ActivationLayout layout = ops().x_layout(*weight, m);
      ASSERT_FALSE(layout.rows());
      const auto product = [&](ActivationLayout x_layout) {
        const StepResult step = RunStep(ops(), c, batch, true, 16, 1, x_layout);
        std::vector<uint16_t> y(m * n);
        ops().linear(DirtyContext(1, ops().linear_workspace(m, width)), {.x = step.out.data(),
                                                                         .x_stride = width,
                                                                         .x_layout = x_layout,
                                                                         .weight = weight.get(),
                                                                         .y = y.data(),
                                                                         .y_stride = n,
                                                                         .m = m});
        return y;
      };
      ASSERT_EQ(product(layout), product({}));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Tables, AttentionStepParity, testing::ValuesIn(TestedTables()),
                         [](const auto& info) { return std::string(info.param->variant); });

}  // namespace
}  // namespace nibble::kernels
