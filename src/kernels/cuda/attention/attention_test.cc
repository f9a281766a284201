// Attention on the GPU at the sizes of models: long contexts against ref, and the exactness law bit
// by bit across borders of leaves, blocks and groups, whatever the batch, chunk and page size.
// DISABLED_Bench*: times of a recorded chain of launches over cold caches.
#include "kernels/cuda/attention/attention.h"

#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <string_view>

#include "kernels/linear_fixture.h"
#include "kernels/parity_fixture.h"

namespace nibble::kernels {
namespace {

struct NamedShape {
  const char* name;
  AttentionShape shape;
};

const NamedShape kModels[] = {
    {"Qwen3-30B-A3B, FP8",
     {.q_heads = 32, .kv_heads = 4, .head_dim = 128, .format = KvFormat::kFp8}},
    {"Llama-70B", {.q_heads = 64, .kv_heads = 8, .head_dim = 128}},
    {"Qwen3-30B-A3B", {.q_heads = 32, .kv_heads = 4, .head_dim = 128}},
    {"Qwen3-Next, FP8", {.q_heads = 16, .kv_heads = 2, .head_dim = 256, .format = KvFormat::kFp8}},
    {"Qwen3-Next", {.q_heads = 16, .kv_heads = 2, .head_dim = 256}},
    {"Qwen3-30B-A3B, NVFP4",
     {.q_heads = 32, .kv_heads = 4, .head_dim = 128, .format = KvFormat::kNvfp4}},
    {"Qwen3-Next, NVFP4",
     {.q_heads = 16, .kv_heads = 2, .head_dim = 256, .format = KvFormat::kNvfp4}},
    {"gpt-oss", {.q_heads = 64, .kv_heads = 8, .head_dim = 64, .window = 128, .sinks = true}},
    {"gpt-oss, NVFP4",
     {.q_heads = 16,
      .kv_heads = 2,
      .head_dim = 64,
      .window = 128,
      .sinks = true,
      .format = KvFormat::kNvfp4}},
    {"Llama 4", {.q_heads = 10, .kv_heads = 2, .head_dim = 128, .chunk = 1024}},
    {"MHA", {.q_heads = 4, .kv_heads = 4, .head_dim = 96}},
    {"MLA", {.q_heads = 32, .kv_heads = 1, .head_dim = 576, .keys_are_values = true}},
    {"MLA, NVFP4",
     {.q_heads = 16,
      .kv_heads = 1,
      .head_dim = 576,
      .format = KvFormat::kNvfp4,
      .keys_are_values = true}},
    {"MLA, FP8",
     {.q_heads = 16,
      .kv_heads = 1,
      .head_dim = 576,
      .format = KvFormat::kFp8,
      .keys_are_values = true}},
    {"widest", {.q_heads = 2, .kv_heads = 1, .head_dim = 1024}},
};

// NIBBLE_BENCH=model: that one alone.
bool IsWanted(const NamedShape& model) {
  const char* wanted = std::getenv("NIBBLE_BENCH");
  return wanted == nullptr || std::string_view(model.name) == wanted;
}

class CudaAttention : public testing::Test {
 protected:
  void SetUp() override {
    if (cuda::SyncedOps() == nullptr) GTEST_SKIP() << "needs a GPU";
  }
  const OpTable& ops() const { return *cuda::SyncedOps(); }
};

TEST_F(CudaAttention, LongContextsAreRefs) {
  for (const NamedShape& model : kModels) {
    if (!IsWanted(model)) continue;
    SCOPED_TRACE(model.name);
    const std::vector<AttentionSequence> batch = {{1, 1, 5000}, {2, 2, 4097}, {3, 1, 2049}};
    ExpectNear(RunAttention(ops(), model.shape, batch, 64),
               RunAttention(RefOps(), model.shape, batch, 64), model.shape.head_dim,
               AttentionTolerance(ops()));
  }
}

// What a BF16 cache of the same numbers gives, bit for bit: as decode steps, drafts and prompts.
TEST_F(CudaAttention, Nvfp4IsBf16OfWhatItHolds) {
  for (const NamedShape& model : kModels) {
    if (model.shape.format != KvFormat::kNvfp4) continue;
    AttentionShape decoded = model.shape;
    decoded.format = KvFormat::kBf16;
    decoded.rounded_to_nvfp4 = true;
    for (const std::vector<AttentionSequence>& batch :
         {std::vector<AttentionSequence>{{9, 1, 2100}},
          {{9, 3, 700}, {5, 1, 33}},
          {{9, 150, 700}}}) {
      SCOPED_TRACE(testing::Message() << model.name << ", " << batch[0].q_len << " tokens");
      EXPECT_EQ(RunAttention(ops(), model.shape, batch, 32),
                RunAttention(ops(), decoded, batch, 32));
    }
  }
}

// Eight heads are too few for the kernel of latent attention: the split kernel computes them.
TEST_F(CudaAttention, LatentHasTheBitsOfTheSplitKernel) {
  for (const NamedShape& model : kModels) {
    if (!model.shape.keys_are_values) continue;
    for (const int32_t window : {0, 1100}) {
      SCOPED_TRACE(testing::Message() << model.name << ", window " << window);
      AttentionShape many = model.shape;
      many.window = window;
      AttentionShape few = many;
      few.q_heads = 8;
      const std::vector<AttentionSequence> batch = {{9, 1, 9000}, {5, 2, 300}, {3, 1, 64}};
      const std::vector<uint16_t> got = RunAttention(ops(), many, batch, 32);
      const std::vector<uint16_t> expected = RunAttention(ops(), few, batch, 32);
      const int64_t width = int64_t{many.q_heads} * many.head_dim, first = int64_t{8} * 576;
      for (int64_t t = 0; t < 4; ++t)
        EXPECT_TRUE(std::equal(expected.begin() + t * first, expected.begin() + (t + 1) * first,
                               got.begin() + t * width))
            << "token " << t;
    }
  }
}

// The last tokens of a prompt, computed in one piece, in pieces, one by one, and in a batch.
TEST_F(CudaAttention, BitsDependOnTheOwnHistoryAlone) {
  for (const NamedShape& model : kModels) {
    if (!IsWanted(model)) continue;
    for (int32_t length : {64, 129, 1030, 2100, 4200}) {
      SCOPED_TRACE(testing::Message() << model.name << ", " << length << " keys");
      const int32_t tokens = std::min(length, 150);
      const int64_t width = int64_t{model.shape.q_heads} * model.shape.head_dim;
      const std::vector<uint16_t> whole =
          RunAttention(ops(), model.shape, {{9, tokens, length}}, 16);
      const auto expect = [&](int32_t count, int32_t end, int32_t page_size) {
        const std::vector<uint16_t> got =
            RunAttention(ops(), model.shape, {{9, count, end}}, page_size);
        EXPECT_TRUE(std::equal(got.begin(), got.end(),
                               whole.begin() + (end - count - (length - tokens)) * width))
            << count << " tokens up to " << end;
      };
      for (int32_t end : {length, length - 5, length - 6, length - 40}) expect(1, end, 64);
      expect(3, length - 1, 256);
      expect(8, length - 2, 32);
      expect(50, length, 128);
      std::vector<AttentionSequence> batch;
      for (uint64_t id = 1; id <= 64; ++id) batch.push_back({id, 1, static_cast<int32_t>(id * 3)});
      batch[5] = {9, 4, length - 7};
      batch[30] = {9, 1, length};
      const std::vector<uint16_t> together = RunAttention(ops(), model.shape, batch, 16);
      EXPECT_TRUE(std::equal(together.begin() + 5 * width, together.begin() + 9 * width,
                             whole.begin() + (tokens - 11) * width));
      EXPECT_TRUE(std::equal(together.begin() + 33 * width, together.begin() + 34 * width,
                             whole.end() - width));
    }
  }
}

// ---- Times ----

class DeviceBytes {
 public:
  explicit DeviceBytes(size_t bytes) { EXPECT_EQ(cudaMalloc(&data_, bytes), cudaSuccess) << bytes; }
  ~DeviceBytes() { cudaFree(data_); }
  DeviceBytes(const DeviceBytes&) = delete;
  DeviceBytes& operator=(const DeviceBytes&) = delete;
  template <typename T>
  T* As() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
};

// Milliseconds of the fastest of several launches of what `record` puts on the stream.
template <typename Record>
float TimeOf(cudaStream_t stream, const Record& record, int repeats = 5) {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  cudaEvent_t begin = nullptr, end = nullptr;
  cudaEventCreate(&begin);
  cudaEventCreate(&end);
  cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
  record();
  cudaStreamEndCapture(stream, &graph);
  cudaGraphInstantiate(&executable, graph, 0);
  float fastest = INFINITY;
  float warm_up = 0;
  for (int i = 0; i < repeats || warm_up < 25.0f; ++i) {
    cudaEventRecord(begin, stream);
    cudaGraphLaunch(executable, stream);
    cudaEventRecord(end, stream);
    cudaEventSynchronize(end);
    float milliseconds = 0;
    cudaEventElapsedTime(&milliseconds, begin, end);
    fastest = std::min(fastest, milliseconds);
    warm_up += milliseconds;
  }
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  return fastest;
}

// Made once per shape.
const Stored& WeightOf(int64_t n, int64_t k) {
  static std::map<std::pair<int64_t, int64_t>, Stored> weights;
  auto at = weights.find({n, k});
  if (at == weights.end())
    at = weights.emplace(std::pair(n, k), MakeWeight(WeightFormat::kNvfp4, n, k, 1, 3e-4f)).first;
  return at->second;
}

struct Timing {
  double microseconds;  // of one op in a chain of them
  double linears;       // of the two linears of a layer in a chain of them
  double added;         // by the op between the two
  double bytes;         // of keys and values that it reads
  double flops;
};

// What a decode step does in the same op.
enum class Around { kNothing, kRotation, kRotationAndGate };

// `batch` sequences of kv_len keys, q_len of them queries, over caches of as many layers as keep
// the second-level cache cold. max_context: what the page table has room for.
Timing TimeAttention(const AttentionShape& shape, int64_t batch, int32_t q_len, int32_t kv_len,
                     int32_t max_context, Around around = Around::kNothing,
                     int64_t hidden_size = 0) {
  const OpTable& ops = *cuda::synced::Table();
  const auto stream = static_cast<cudaStream_t>(ops.device->stream());
  const int32_t page_size = 64;
  const int64_t pages_of_one = (kv_len + page_size - 1) / page_size;
  const int64_t max_pages = max_context / page_size;
  const bool is_latent = shape.keys_are_values;
  const int64_t layer_bytes =
      KvBytes(shape.format, batch * pages_of_one * page_size * shape.kv_heads * shape.head_dim);
  const int64_t layers = std::clamp<int64_t>((400 << 20) / (2 * layer_bytes), 2, 48);
  const int64_t tokens = batch * q_len;
  DeviceBytes k(layers * layer_bytes), v(layers * layer_bytes);
  std::vector<uint32_t> noise(std::min<int64_t>(layer_bytes, 16 << 20) / 4);
  for (size_t i = 0; i < noise.size(); ++i)
    noise[i] = static_cast<uint32_t>(i * 2654435761u) & 0x3f3f3f3fu;
  for (int64_t at = 0; at < layers * layer_bytes; at += static_cast<int64_t>(noise.size()) * 4) {
    const int64_t bytes = std::min<int64_t>(layers * layer_bytes - at, noise.size() * 4);
    cudaMemcpy(k.As<char>() + at, noise.data(), bytes, cudaMemcpyDefault);
    cudaMemcpy(v.As<char>() + at, noise.data(), bytes, cudaMemcpyDefault);
  }
  const int64_t width = int64_t{shape.q_heads} * shape.head_dim;
  const int64_t stride = 2 * width + 2 * int64_t{shape.kv_heads} * shape.head_dim;
  const std::vector<uint16_t> q_host = NoiseBf16(1, tokens * stride);
  DeviceBytes q(tokens * stride * 2), q_turned(tokens * width * 2), out(tokens * width * 2);
  cudaMemcpy(q.As<char>(), q_host.data(), tokens * stride * 2, cudaMemcpyDefault);
  std::vector<int32_t> q_start = {0}, kv_lens, table(batch * max_pages);
  for (int64_t b = 0; b < batch; ++b) {
    q_start.push_back(q_start.back() + q_len);
    kv_lens.push_back(kv_len);
    for (int64_t i = 0; i < pages_of_one; ++i)
      table[b * max_pages + i] = static_cast<int32_t>((i * batch + b));
  }
  DeviceBytes indices((q_start.size() + kv_lens.size() + table.size()) * 4 + 64);
  auto* q_start_device = indices.As<int32_t>();
  int32_t* kv_len_device = q_start_device + q_start.size();
  int32_t* table_device = kv_len_device + kv_lens.size();
  cudaMemcpy(q_start_device, q_start.data(), q_start.size() * 4, cudaMemcpyDefault);
  cudaMemcpy(kv_len_device, kv_lens.data(), kv_lens.size() * 4, cudaMemcpyDefault);
  cudaMemcpy(table_device, table.data(), table.size() * 4, cudaMemcpyDefault);
  const int32_t half = shape.head_dim / 2;
  const std::vector<float> angles = NoiseF32(2, 2 * half);  // and norms
  const std::vector<int32_t> positions(tokens, 0);
  std::vector<int64_t> slots;
  for (int64_t b = 0; b < tokens; ++b)
    slots.push_back(int64_t{table[b / q_len * max_pages + (kv_len - 1) / page_size]} * page_size +
                    (kv_len - 1) % page_size);
  DeviceBytes cos(angles.size() * 4), positions_device(tokens * 4), slots_device(tokens * 8);
  cudaMemcpy(cos.As<char>(), angles.data(), angles.size() * 4, cudaMemcpyDefault);
  cudaMemcpy(positions_device.As<char>(), positions.data(), tokens * 4, cudaMemcpyDefault);
  cudaMemcpy(slots_device.As<char>(), slots.data(), tokens * 8, cudaMemcpyDefault);
  const size_t workspace_bytes = ops.attention_workspace(1, tokens, shape.q_heads, shape.head_dim);
  DeviceBytes workspace(workspace_bytes + 64);
  cudaDeviceSynchronize();
  const OpContext context = {
      .stream = stream, .workspace = workspace.As<std::byte>(), .workspace_bytes = workspace_bytes};
  // The projections before and after, cold as well.
  const int64_t o_width = hidden_size > 0 ? width : 0;
  std::vector<std::unique_ptr<PackedWeight>> projections, outputs;
  DeviceBytes hidden(tokens * hidden_size * 2 + 64);
  cudaMemset(hidden.As<char>(), 0, tokens * hidden_size * 2);
  if (hidden_size > 0) {
    const Stored& projection = WeightOf(stride, hidden_size);
    const Stored& output = WeightOf(hidden_size, o_width);
    const int64_t copies =
        std::min<int64_t>(layers, (100 << 20) / (hidden_size * (stride + o_width) / 2) + 1);
    for (int64_t i = 0; i < copies; ++i) {
      projections.push_back(std::move(*ops.pack_weight({.parts = {&projection.view, 1}})));
      outputs.push_back(std::move(*ops.pack_weight({.parts = {&output.view, 1}})));
    }
  }
  const std::vector<float> norm_host(hidden_size + 8, 1.0f);
  DeviceBytes norm(norm_host.size() * 4);
  cudaMemcpy(norm.As<char>(), norm_host.data(), norm_host.size() * 4, cudaMemcpyDefault);
  const size_t linear_bytes =
      hidden_size > 0 ? ops.linear_workspace(tokens, std::max(hidden_size, o_width)) : 0;
  DeviceBytes linear_workspace(linear_bytes + 64);
  const auto multiply = [&](const std::vector<std::unique_ptr<PackedWeight>>& weights,
                            int64_t layer, const uint16_t* x, int64_t k, uint16_t* y, int64_t n,
                            bool begins) {
    if (hidden_size == 0) return;
    const OpContext its_context = {.stream = stream,
                                   .workspace = linear_workspace.As<std::byte>(),
                                   .workspace_bytes = linear_bytes};
    ops.linear(its_context, {.x = x,
                             .x_stride = k,
                             .norm = {.weight = begins ? norm.As<float>() : nullptr},
                             .weight = weights[layer % weights.size()].get(),
                             .y = y,
                             .y_stride = n,
                             .add = !begins,
                             .m = tokens});
  };
  const auto record = [&](bool with_linears, bool with_attention) {
    for (int64_t layer = 0; layer < layers; ++layer) {
      if (with_linears)
        multiply(projections, layer, hidden.As<uint16_t>(), hidden_size, q.As<uint16_t>(), stride,
                 true);
      const KvLayerView cache = {.k = k.As<std::byte>() + layer * layer_bytes,
                                 .v = (is_latent ? k : v).As<std::byte>() + layer * layer_bytes,
                                 .format = shape.format,
                                 .page_size = page_size,
                                 .kv_heads = shape.kv_heads,
                                 .head_dim = shape.head_dim};
      const RopeAndCacheParams rope = {.qkv = q.As<uint16_t>(),
                                       .qkv_stride = stride,
                                       .t = tokens,
                                       .q_heads = shape.q_heads,
                                       .q_norm = cos.As<float>(),
                                       .k_norm = cos.As<float>(),
                                       .cos = cos.As<float>(),
                                       .sin = cos.As<float>(),
                                       .rotary_dim = shape.head_dim,
                                       .positions = positions_device.As<int32_t>(),
                                       .slots = slots_device.As<int64_t>(),
                                       .cache = cache,
                                       .q_out = q_turned.As<uint16_t>()};
      if (with_attention)
        ops.attention(
            context, {.rope = around == Around::kNothing ? nullptr : &rope,
                      .gate = around == Around::kRotationAndGate ? q.As<uint16_t>() + stride - width
                                                                 : nullptr,
                      .gate_stride = stride,
                      .q = q.As<uint16_t>(),
                      .out = out.As<uint16_t>(),
                      .t = tokens,
                      .sequences = batch,
                      .q_start = q_start_device,
                      .kv_len = kv_len_device,
                      .page_table = table_device,
                      .max_pages = max_pages,
                      .q_heads = shape.q_heads,
                      .scale = 0.05f,
                      .window = shape.window,
                      .cache = cache});
      if (with_linears)
        multiply(outputs, layer, out.As<uint16_t>(), width, hidden.As<uint16_t>(), hidden_size,
                 false);
    }
  };
  const float milliseconds = TimeOf(stream, [&] { record(false, true); });
  float all = milliseconds, linears = 0;
  if (hidden_size > 0) {
    all = TimeOf(stream, [&] { record(true, true); });
    linears = TimeOf(stream, [&] { record(true, false); });
  }
  const double pairs = static_cast<double>(batch) * q_len * (kv_len - (q_len - 1) / 2.0);
  return {milliseconds * 1000.0 / static_cast<double>(layers),
          linears * 1000.0 / static_cast<double>(layers),
          (all - linears) * 1000.0 / static_cast<double>(layers),
          (is_latent ? 1.0 : 2.0) * static_cast<double>(layer_bytes) * kv_len /
              static_cast<double>(pages_of_one * page_size),
          4.0 * pairs * shape.q_heads * shape.head_dim};
}

void PrintDevice() {
  std::setvbuf(stdout, nullptr, _IOLBF, BUFSIZ);
  cudaDeviceProp properties;
  cudaGetDeviceProperties(&properties, 0);
  const OpTable& ops = *cuda::synced::Table();
  std::printf("%s, %d SMs, reads %.0f GB/s\n", properties.name, properties.multiProcessorCount,
              ops.read_bandwidth == nullptr ? 0.0 : ops.read_bandwidth() / 1e9);
}

// A layer's attention between its two linears: rotation, write, attention and, for Qwen3-Next, the
// gate.
TEST_F(CudaAttention, DISABLED_BenchDecode) {
  PrintDevice();
  for (const NamedShape& model : kModels) {
    const AttentionShape& shape = model.shape;
    if (shape.head_dim > 256 || !IsWanted(model)) continue;
    const int64_t hidden = std::string_view(model.name).starts_with("Llama-70B") ? 8192 : 2048;
    const Around around = shape.head_dim == 256 ? Around::kRotationAndGate : Around::kRotation;
    for (int64_t batch : {1, 8, 64}) {
      for (int32_t context : {1024, 4096, 32768, 131072}) {
        if (batch > 1 && context > 32768) continue;
        if (batch * context * shape.kv_heads * shape.head_dim > int64_t{64} * 4 * 32768 * 128)
          continue;
        if (const char* most = std::getenv("NIBBLE_BENCH_KEYS"))
          if (batch * context > std::atoll(most)) continue;
        const Timing t = TimeAttention(shape, batch, 1, context, context, around, hidden);
        std::printf("%-20s batch %2d, %6d keys: adds %7.2f us to %6.2f, alone %7.2f, %5.0f GB/s\n",
                    model.name, static_cast<int>(batch), context, t.added, t.linears,
                    t.microseconds, t.bytes / t.microseconds / 1e3);
      }
    }
  }
}

TEST_F(CudaAttention, DISABLED_BenchLatent) {
  PrintDevice();
  for (NamedShape model : kModels) {
    if (model.shape.head_dim != 576 || !IsWanted(model)) continue;
    model.shape.q_heads = 128;
    for (int64_t batch : {1, 8, 64}) {
      for (int32_t context : {1024, 8192, 32768}) {
        if (batch * context > 8 * 32768) continue;
        const Timing t = TimeAttention(model.shape, batch, 1, context, context);
        std::printf("%-20s batch %2d, %6d keys: %8.2f us, %6.0f GB/s\n", model.name,
                    static_cast<int>(batch), context, t.microseconds,
                    t.bytes / t.microseconds / 1e3);
      }
    }
  }
}

TEST_F(CudaAttention, DISABLED_BenchPrefill) {
  PrintDevice();
  for (int i = 0; i < 7; ++i) {
    const NamedShape& model = kModels[i];
    if (!IsWanted(model)) continue;
    for (int32_t length : {2048, 8192}) {
      const Timing t = TimeAttention(model.shape, 1, length, length, length);
      std::printf("%-20s prompt of %5d: %9.1f us %6.1f TFLOP/s\n", model.name, length,
                  t.microseconds, t.flops / t.microseconds / 1e6);
    }
  }
}

}  // namespace
}  // namespace nibble::kernels
