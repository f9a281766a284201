// Gated DeltaNet of every CPU variant against ref, within tolerance.h; and that a token's bits and
// the states do not depend on batch, chunk or threads.
#include "kernels/parity_fixture.h"

namespace nibble::kernels {
namespace {

class DeltaNetParity : public testing::TestWithParam<const OpTable*> {
 protected:
  const OpTable& ops() const { return *GetParam(); }
};

INSTANTIATE_TEST_SUITE_P(Cpu, DeltaNetParity, testing::ValuesIn(TestedTables()),
                         [](const auto& info) { return std::string(info.param->variant); });

struct DeltaShape {
  int32_t k_heads = 2;
  int32_t v_heads = 4;
  int32_t k_dim = 32;
  int32_t v_dim = 32;
  int32_t conv_width = 4;
  bool sigmoid_gate = false;
  int64_t pad = 4;  // of rows; multiples of 4 leave them as aligned as models' are

  int64_t channels() const { return 2 * int64_t{k_heads} * k_dim + values(); }
  int64_t values() const { return int64_t{v_heads} * v_dim; }
  int64_t window() const { return (conv_width - 1) * channels(); }
  int64_t state() const { return values() * k_dim; }
};

// A sequence whose inputs depend on its id and on positions alone. `done` tokens lie behind it.
struct DeltaSequence {
  uint64_t id = 0;
  int64_t done = 0;
  std::vector<uint16_t> window;  // (W - 1, C)
  std::vector<float> state;      // (Hv, Dv, Dk)
  std::vector<uint16_t> out;     // of all tokens so far
  int64_t prompt = 0;            // tokens whose whole chunks are taken as such

  // Of the next `count` tokens.
  int64_t Chunked(int64_t count) const {
    const int64_t end = std::min(prompt, done + count) / kDeltaChunk * kDeltaChunk;
    EXPECT_TRUE(done >= prompt / kDeltaChunk * kDeltaChunk || done % kDeltaChunk == 0);
    return std::max<int64_t>(0, end - done);
  }

  // As if `done` tokens had been there.
  static DeltaSequence At(const DeltaShape& shape, uint64_t id, int64_t done) {
    return {.id = id,
            .done = done,
            .window = NoiseBf16(id + 100, shape.window(), 2.0f),
            .state = NoiseF32(id + 200, shape.state(), 0.3f)};
  }
};

// The next counts[i] tokens of each sequence as one step; slots in reverse order, rows padded.
void Step(const OpTable& ops, const DeltaShape& shape, const std::vector<DeltaSequence*>& sequences,
          const std::vector<int64_t>& counts, int threads = 1) {
  const int64_t qkv_stride = shape.channels() + shape.pad, z_stride = shape.values() + shape.pad;
  const int64_t ba_stride = 2 * shape.v_heads + shape.pad;
  std::vector<uint16_t> qkv, z;
  std::vector<float> ba;
  std::vector<int32_t> q_start = {0}, kv_len, slots, chunked;
  DeltaChunks chunks;
  const auto batch = static_cast<int64_t>(sequences.size());
  for (int64_t b = 0; b < batch; ++b) {
    const DeltaSequence& s = *sequences[b];
    for (int64_t position = s.done; position < s.done + counts[b]; ++position) {
      const auto at = [&](int64_t i) { return position * 100003 + i; };
      // NaN behind a row.
      const auto value = [&](int64_t i, int64_t stride, int kind, float scale) {
        return i < stride - shape.pad ? scale * Noise(s.id * 4 + kind, at(i)) : NAN;
      };
      for (int64_t i = 0; i < qkv_stride; ++i)
        qkv.push_back(Bf16FromFloat(value(i, qkv_stride, 1, 2)));
      for (int64_t i = 0; i < z_stride; ++i) z.push_back(Bf16FromFloat(value(i, z_stride, 2, 3)));
      for (int64_t i = 0; i < ba_stride; ++i) ba.push_back(value(i, ba_stride, 3, 3));
    }
    q_start.push_back(q_start.back() + static_cast<int32_t>(counts[b]));
    kv_len.push_back(static_cast<int32_t>(s.done + counts[b]));
    slots.push_back(static_cast<int32_t>(batch - 1 - b));
    chunked.push_back(static_cast<int32_t>(s.Chunked(counts[b])));
    chunks.sequences += chunked.back() > 0 ? 1 : 0;
    chunks.total += chunked.back();
  }
  if (chunks.total > 0) chunks.tokens = chunked.data();
  // NaN unless written, and behind every sequence's.
  const int64_t window_bytes = (shape.window() * 2 + 127) / 64 * 64;
  const int64_t state_bytes = shape.state() * 4, state_stride = state_bytes + 64;
  std::vector<std::byte> windows(batch * window_bytes, std::byte{0xFF});
  std::vector<std::byte> states(batch * state_stride, std::byte{0xFF});
  const auto window_of = [&](int64_t b) { return windows.data() + slots[b] * window_bytes; };
  const auto state_of = [&](int64_t b) { return states.data() + slots[b] * state_stride; };
  for (int64_t b = 0; b < batch; ++b) {
    if (sequences[b]->done == 0) continue;
    std::memcpy(window_of(b), sequences[b]->window.data(), shape.window() * 2);
    std::memcpy(state_of(b), sequences[b]->state.data(), state_bytes);
  }

  const std::vector<float> conv = NoiseF32(11, shape.channels() * shape.conv_width);
  const std::vector<float> a_log = NoiseF32(12, shape.v_heads, 2.0f);
  const std::vector<float> dt_bias = NoiseF32(13, shape.v_heads, 2.0f);
  const std::vector<float> norm = NoiseF32(14, shape.v_dim, 2.0f);
  std::vector<uint16_t> out(q_start.back() * shape.values());
  const GatedDeltaNetParams params = {
      .qkv = qkv.data(),
      .qkv_stride = qkv_stride,
      .z = z.data(),
      .z_stride = z_stride,
      .b = ba.data(),
      .a = ba.data() + shape.v_heads,
      .ba_stride = ba_stride,
      .k_heads = shape.k_heads,
      .v_heads = shape.v_heads,
      .k_dim = shape.k_dim,
      .v_dim = shape.v_dim,
      .conv_width = shape.conv_width,
      .conv_weight = conv.data(),
      .a_log = a_log.data(),
      .dt_bias = dt_bias.data(),
      .norm_weight = norm.data(),
      .sigmoid_gate = shape.sigmoid_gate,
      .t = q_start.back(),
      .sequences = {.count = batch,
                    .q_start = q_start.data(),
                    .kv_len = kv_len.data(),
                    .slots = slots.data()},
      .chunks = chunks,
      .conv_state = {.base = windows.data(), .stride = window_bytes},
      .recurrent_state = {.base = states.data(), .stride = state_stride},
      .out = out.data()};
  ops.gated_delta_net(DirtyContext(threads, ops.gated_delta_net_workspace(threads, params)),
                      params);

  for (int64_t b = 0; b < batch; ++b) {
    DeltaSequence& s = *sequences[b];
    s.out.insert(s.out.end(), out.begin() + q_start[b] * shape.values(),
                 out.begin() + q_start[b + 1] * shape.values());
    s.done += counts[b];
    s.window.resize(shape.window());
    s.state.resize(shape.state());
    std::memcpy(s.window.data(), window_of(b), shape.window() * 2);
    std::memcpy(s.state.data(), state_of(b), state_bytes);
  }
}

void ExpectSame(const DeltaSequence& a, const DeltaSequence& b) {
  EXPECT_EQ(a.out, b.out);
  EXPECT_EQ(a.window, b.window);
  EXPECT_EQ(a.state, b.state);
}

const DeltaShape kShapes[] = {
    {},
    {.k_heads = 1, .v_heads = 3, .k_dim = 24, .v_dim = 40, .pad = 3},
    {.k_heads = 2, .v_heads = 2, .k_dim = 128, .v_dim = 128, .sigmoid_gate = true},
    {.k_heads = 1, .v_heads = 2, .k_dim = 16, .v_dim = 48, .conv_width = 2},
    {.k_heads = 1, .v_heads = 1, .k_dim = 100, .v_dim = 17, .conv_width = 8},
    {.k_heads = 1, .v_heads = 1, .k_dim = 250, .v_dim = 5},
    {.k_heads = 1, .v_heads = 3, .k_dim = 128, .v_dim = 128},
    {.k_heads = 1, .v_heads = 3, .k_dim = 128, .v_dim = 128, .pad = 3},
    {.k_heads = 1, .v_heads = 4, .k_dim = 128, .v_dim = 128},
    {.k_heads = 1, .v_heads = 2, .k_dim = 256, .v_dim = 64, .pad = 0},
    {.k_heads = 2, .v_heads = 4, .k_dim = 60, .v_dim = 34, .pad = 2},
    {.k_heads = 1, .v_heads = 12, .k_dim = 32, .v_dim = 64},
    {.k_heads = 4, .v_heads = 4, .k_dim = 16, .v_dim = 16, .conv_width = 3},
};

TEST_P(DeltaNetParity, MatchesTheReference) {
  for (const DeltaShape& shape : kShapes) {
    SCOPED_TRACE(testing::Message() << "Dk " << shape.k_dim << ", Dv " << shape.v_dim);
    DeltaSequence fresh = {.id = 1}, late = DeltaSequence::At(shape, 2, 7);
    DeltaSequence fresh_ref = fresh, late_ref = late;
    for (const std::vector<int64_t>& counts :
         std::vector<std::vector<int64_t>>{{37, 2}, {1, 1}, {3, 20}}) {
      Step(ops(), shape, {&fresh, &late}, counts);
      Step(RefOps(), shape, {&fresh_ref, &late_ref}, counts);
    }
    EXPECT_EQ(fresh.window, fresh_ref.window);
    EXPECT_EQ(late.window, late_ref.window);
    ExpectNear(fresh.out, fresh_ref.out, shape.v_dim, kGatedDeltaNetTolerance);
    ExpectNear(late.out, late_ref.out, shape.v_dim, kGatedDeltaNetTolerance);
    ExpectNear(fresh.state, fresh_ref.state, shape.k_dim * shape.v_dim, kGatedDeltaNetTolerance);
    ExpectNear(late.state, late_ref.state, shape.k_dim * shape.v_dim, kGatedDeltaNetTolerance);
  }
}

TEST_P(DeltaNetParity, ChunksDoNotMatter) {
  for (const DeltaShape& shape : kShapes) {
    DeltaSequence whole = {.id = 3};
    Step(ops(), shape, {&whole}, {45});
    for (const int64_t chunk : {1, 2, 3, 16, 17}) {
      SCOPED_TRACE(testing::Message() << "Dk " << shape.k_dim << ", chunk " << chunk);
      DeltaSequence pieces = {.id = 3};
      while (pieces.done < 45)
        Step(ops(), shape, {&pieces}, {std::min<int64_t>(chunk, 45 - pieces.done)});
      ExpectSame(whole, pieces);
    }
  }
}

// As in Qwen3-Next.
TEST_P(DeltaNetParity, MatchesTheReferenceAtFullSize) {
  const DeltaShape shape = {.k_heads = 16, .v_heads = 32, .k_dim = 128, .v_dim = 128, .pad = 0};
  DeltaSequence got = {.id = 1}, expected = got;
  for (const int64_t count : {9, 1}) {
    Step(ops(), shape, {&got}, {count});
    Step(RefOps(), shape, {&expected}, {count});
  }
  EXPECT_EQ(got.window, expected.window);
  ExpectNear(got.out, expected.out, shape.v_dim, kGatedDeltaNetTolerance);
  ExpectNear(got.state, expected.state, shape.k_dim * shape.v_dim, kGatedDeltaNetTolerance);
}

// Longer than what a backend may take through its workspace at once.
TEST_P(DeltaNetParity, CutsOfLongPromptsDoNotMatter) {
  const DeltaShape shape = {.k_heads = 1, .v_heads = 2, .k_dim = 16, .v_dim = 16};
  DeltaSequence whole = {.id = 3}, pieces = whole, other = {.id = 4};
  Step(ops(), shape, {&whole}, {4200});
  Step(ops(), shape, {&other, &pieces}, {1023, 1025});
  Step(ops(), shape, {&pieces, &other}, {2047, 2});
  Step(ops(), shape, {&pieces}, {1128});
  ExpectSame(whole, pieces);
}

TEST_P(DeltaNetParity, BatchAndThreadsDoNotMatter) {
  const DeltaShape shape = {.k_heads = 3, .v_heads = 6, .k_dim = 48, .v_dim = 20};
  DeltaSequence alone = DeltaSequence::At(shape, 5, 11);
  DeltaSequence watched = alone, first = {.id = 6}, last = DeltaSequence::At(shape, 7, 1);
  Step(ops(), shape, {&alone}, {20});
  Step(ops(), shape, {&alone}, {1});
  Step(ops(), shape, {&first, &watched, &last}, {4, 20, 1}, 3);
  Step(ops(), shape, {&last, &watched}, {2, 1}, 2);
  ExpectSame(alone, watched);
}

// Decoding at sizes where a backend may divide its work otherwise than for one sequence.
TEST_P(DeltaNetParity, ALargeBatchDoesNotMatter) {
  const DeltaShape shape = {.k_heads = 8, .v_heads = 16, .k_dim = 128, .v_dim = 128};
  std::vector<DeltaSequence> batch;
  for (uint64_t id = 20; id < 28; ++id)
    batch.push_back(DeltaSequence::At(shape, id, static_cast<int64_t>(id)));
  std::vector<DeltaSequence> alone = batch;
  std::vector<DeltaSequence*> together;
  for (DeltaSequence& s : batch) together.push_back(&s);
  Step(ops(), shape, together, std::vector<int64_t>(batch.size(), 1));
  for (size_t i = 0; i < batch.size(); ++i) {
    Step(ops(), shape, {&alone[i]}, {1});
    ExpectSame(alone[i], batch[i]);
  }
}

// Prompts by chunks, tails and generated tokens one by one.
TEST_P(DeltaNetParity, ChunksMatchTheReference) {
  for (const DeltaShape& shape : kShapes) {
    SCOPED_TRACE(testing::Message() << "Dk " << shape.k_dim << ", Dv " << shape.v_dim);
    DeltaSequence fresh = {.id = 1, .prompt = 150}, late = DeltaSequence::At(shape, 2, 64);
    late.prompt = 192;
    DeltaSequence other = DeltaSequence::At(shape, 3, 5);
    std::vector<DeltaSequence> expected = {fresh, late, other};
    for (const std::vector<int64_t>& counts :
         std::vector<std::vector<int64_t>>{{64, 128, 1}, {86, 1, 3}, {1, 1, 1}}) {
      Step(ops(), shape, {&other, &fresh, &late}, {counts[2], counts[0], counts[1]});
      Step(RefOps(), shape, {&expected[0], &expected[1], &expected[2]}, counts);
    }
    const DeltaSequence* got[] = {&fresh, &late, &other};
    for (size_t i = 0; i < expected.size(); ++i) {
      EXPECT_EQ(got[i]->window, expected[i].window);
      ExpectNear(got[i]->out, expected[i].out, shape.v_dim, kGatedDeltaNetTolerance);
      ExpectNear(got[i]->state, expected[i].state, shape.k_dim * shape.v_dim,
                 kGatedDeltaNetTolerance);
    }
  }
}

// Wherever a prompt is cut between chunks, and whatever runs beside it.
TEST_P(DeltaNetParity, CutsBetweenChunksDoNotMatter) {
  const DeltaShape shapes[] = {{.k_heads = 1, .v_heads = 2, .k_dim = 32, .v_dim = 48},
                               {.k_heads = 1, .v_heads = 3, .k_dim = 128, .v_dim = 128}};
  for (const DeltaShape& shape : shapes) {
    SCOPED_TRACE(testing::Message() << "Dk " << shape.k_dim);
    DeltaSequence whole = {.id = 3, .prompt = 400}, pieces = whole, beside = whole;
    Step(ops(), shape, {&whole}, {400});
    for (const int64_t count : {64, 192, 128, 9, 7}) Step(ops(), shape, {&pieces}, {count});
    DeltaSequence first = {.id = 4, .prompt = 70}, last = DeltaSequence::At(shape, 5, 3);
    Step(ops(), shape, {&first, &beside, &last}, {64, 128, 1}, 2);
    Step(ops(), shape, {&last, &beside, &first}, {0, 270, 6}, 3);
    Step(ops(), shape, {&last, &beside}, {1, 2}, 3);
    for (int i = 0; i < 3; ++i) Step(ops(), shape, {&whole}, {1});
    for (const int64_t count : {1, 2}) Step(ops(), shape, {&pieces}, {count});
    Step(ops(), shape, {&first, &beside}, {1, 3});
    ExpectSame(whole, pieces);
    ExpectSame(whole, beside);
  }
}

// Longer than what a backend may take through its workspace at once.
TEST_P(DeltaNetParity, CutsOfLongChunkedPromptsDoNotMatter) {
  const DeltaShape shape = {.k_heads = 1, .v_heads = 2, .k_dim = 16, .v_dim = 16};
  DeltaSequence whole = {.id = 3, .prompt = 4500}, pieces = whole, other = {.id = 4};
  Step(ops(), shape, {&whole}, {4500});
  Step(ops(), shape, {&other, &pieces}, {1023, 1024});
  Step(ops(), shape, {&pieces, &other}, {2048, 2});
  Step(ops(), shape, {&pieces}, {1428});
  ExpectSame(whole, pieces);
}

// A sequence without tokens in the step keeps its state.
TEST_P(DeltaNetParity, AnEmptySequenceIsLeftAlone) {
  const DeltaShape shape;
  DeltaSequence idle = DeltaSequence::At(shape, 8, 5), busy = {.id = 9};
  const DeltaSequence before = idle;
  Step(ops(), shape, {&idle, &busy}, {0, 3});
  ExpectSame(before, idle);
}

}  // namespace
}  // namespace nibble::kernels
