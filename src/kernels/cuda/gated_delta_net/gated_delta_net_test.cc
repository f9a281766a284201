// How near chunks are to exact arithmetic, beside the token-by-token form; and what a prompt costs.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

#include "kernels/cuda/testing/synced_ops.h"
#include "kernels/parity_fixture.h"

namespace nibble::kernels::cuda {
namespace {

// One sequence of a layer, in device memory.
class Prompt {
 public:
  Prompt(int32_t k_heads, int32_t v_heads, int64_t tokens) {
    constexpr int32_t kDim = 128;
    const int64_t values = int64_t{v_heads} * kDim;
    const int64_t channels = 2 * int64_t{k_heads} * kDim + values;
    p_ = {.qkv_stride = channels + values,
          .z_stride = channels + values,
          .ba_stride = 2 * v_heads,
          .k_heads = k_heads,
          .v_heads = v_heads,
          .k_dim = kDim,
          .v_dim = kDim,
          .conv_width = 4,
          .t = tokens};
    p_.qkv = Place(NoiseBf16(1, tokens * p_.qkv_stride, 2.0f));
    p_.z = p_.qkv + channels;
    p_.b = Place(NoiseF32(2, tokens * p_.ba_stride, 3.0f));
    p_.a = p_.b + v_heads;
    p_.conv_weight = Place(NoiseF32(3, channels * 4));
    // From heads that forget at once to heads that keep hundreds of tokens.
    std::vector<float> a_log(v_heads), dt_bias(v_heads);
    for (int32_t h = 0; h < v_heads; ++h) {
      a_log[h] = 2.5f * Noise(4, h);
      dt_bias[h] = 3.0f * Noise(5, h) - 2.0f;
    }
    p_.a_log = Place(a_log);
    p_.dt_bias = Place(dt_bias);
    p_.norm_weight = Place(NoiseF32(6, kDim, 2.0f));
    const auto count = static_cast<int32_t>(tokens);
    p_.sequences = {.count = 1,
                    .q_start = Place(std::vector<int32_t>{0, count}),
                    .kv_len = Place(std::vector<int32_t>{count}),
                    .slots = Place(std::vector<int32_t>{0})};
    chunks_ = {.tokens = Place(std::vector<int32_t>{count / kDeltaChunk * kDeltaChunk}),
               .sequences = 1,
               .total = tokens / kDeltaChunk * kDeltaChunk};
    state_.resize(values * kDim);
    out_.resize(tokens * values);
    p_.conv_state.base = reinterpret_cast<std::byte*>(Place(std::vector<uint16_t>(3 * channels)));
    p_.recurrent_state.base = reinterpret_cast<std::byte*>(Place(state_));
    p_.out = Place(out_);
  }
  ~Prompt() {
    for (void* memory : memory_) cudaFree(memory);
  }

  void Run(const OpTable& ops, bool chunks) {
    GatedDeltaNetParams p = p_;
    if (chunks) p.chunks = chunks_;
    if (workspace_ == nullptr) {
      bytes_ = ops.gated_delta_net_workspace(1, p);
      workspace_ = Place(std::vector<std::byte>(bytes_, std::byte{0xFF}));
    }
    ops.gated_delta_net(
        {.stream = ops.device->stream(), .workspace = workspace_, .workspace_bytes = bytes_}, p);
  }
  void Download(std::vector<float>* out, std::vector<float>* state) {
    cudaDeviceSynchronize();
    cudaMemcpy(out_.data(), p_.out, out_.size() * 2, cudaMemcpyDefault);
    cudaMemcpy(state_.data(), p_.recurrent_state.base, state_.size() * 4, cudaMemcpyDefault);
    *out = Widen(out_);
    *state = state_;
  }
  // The same by the reference, on the host.
  void RunReference(std::vector<float>* out, std::vector<float>* state) const {
    GatedDeltaNetParams p = p_;
    const int64_t channels = 2 * int64_t{p.k_heads} * p.k_dim + int64_t{p.v_heads} * p.v_dim;
    std::vector<std::vector<std::byte>> copies;
    const auto copy = [&]<typename T>(const T** array, int64_t elements) {
      auto& bytes = copies.emplace_back(elements * sizeof(T));
      cudaMemcpy(bytes.data(), *array, bytes.size(), cudaMemcpyDefault);
      *array = reinterpret_cast<const T*>(bytes.data());
    };
    copy(&p.qkv, p.t * p.qkv_stride);
    p.z = p.qkv + channels;
    copy(&p.b, p.t * p.ba_stride);
    p.a = p.b + p.v_heads;
    copy(&p.conv_weight, channels * 4);
    copy(&p.a_log, p.v_heads);
    copy(&p.dt_bias, p.v_heads);
    copy(&p.norm_weight, p.v_dim);
    copy(&p.sequences.q_start, 2);
    copy(&p.sequences.kv_len, 1);
    copy(&p.sequences.slots, 1);
    p.chunks = chunks_;
    copy(&p.chunks.tokens, 1);
    std::vector<uint16_t> window(3 * channels), bits(out_.size());
    state->assign(state_.size(), 0.0f);
    p.conv_state.base = reinterpret_cast<std::byte*>(window.data());
    p.recurrent_state.base = reinterpret_cast<std::byte*>(state->data());
    p.out = bits.data();
    RefOps().gated_delta_net({}, p);
    *out = Widen(bits);
  }

 private:
  template <typename T>
  T* Place(const std::vector<T>& values) {
    void* memory = nullptr;
    EXPECT_EQ(cudaMalloc(&memory, values.size() * sizeof(T)), cudaSuccess);
    cudaMemcpy(memory, values.data(), values.size() * sizeof(T), cudaMemcpyDefault);
    memory_.push_back(memory);
    return static_cast<T*>(memory);
  }

  GatedDeltaNetParams p_;
  DeltaChunks chunks_;
  std::byte* workspace_ = nullptr;
  size_t bytes_ = 0;
  std::vector<void*> memory_;
  std::vector<float> state_;
  std::vector<uint16_t> out_;
};

// sqrt(Σ (got - expected)² / Σ expected²)
double Error(const std::vector<float>& got, const std::vector<float>& expected) {
  double error = 0, all = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    error += std::pow(double{got[i]} - expected[i], 2);
    all += std::pow(expected[i], 2);
  }
  return std::sqrt(error / all);
}

// Outputs are BF16: their rounding is all that shows. States keep 16 bits and more of every sum.
TEST(GatedDeltaNetCuda, ChunksAreNearExactArithmetic) {
  const auto ops = CudaOps();
  if (!ops) GTEST_SKIP() << ops.error().message();
  if ((*ops)->delta_chunk == 1) GTEST_SKIP() << "this GPU takes no chunks";
  Prompt prompt(2, 8, 2048);
  std::vector<float> out, state, step_out, step_state, exact_out, exact_state;
  prompt.RunReference(&exact_out, &exact_state);
  prompt.Run(**ops, false);
  prompt.Download(&step_out, &step_state);
  prompt.Run(**ops, true);
  prompt.Download(&out, &state);
  const double in_out = Error(out, exact_out), in_state = Error(state, exact_state);
  const double step_in_out = Error(step_out, exact_out);
  const double step_in_state = Error(step_state, exact_state);
  std::printf("relative error of outputs: chunks %.3g, steps %.3g; of states: %.3g, %.3g\n", in_out,
              step_in_out, in_state, step_in_state);
  EXPECT_LT(in_out, 2 * step_in_out);
  EXPECT_LT(in_state, 0x1p-13);
}

TEST(GatedDeltaNetCuda, DISABLED_Bench) {
  const auto ops = CudaOps();
  if (!ops) GTEST_SKIP() << ops.error().message();
  cudaDeviceProp device;
  cudaGetDeviceProperties(&device, 0);
  const auto stream = static_cast<cudaStream_t>((*ops)->device->stream());
  for (const int64_t tokens : {2048, 8192, 8191}) {
    Prompt prompt(16, 32, tokens);
    for (const bool chunks : {true, false}) {
      cudaEvent_t begin, end;
      cudaEventCreate(&begin), cudaEventCreate(&end);
      constexpr int kRepeats = 50;
      for (int i = 0; i < 100; ++i) prompt.Run(**ops, chunks);  // until clocks are up
      cudaEventRecord(begin, stream);
      for (int i = 0; i < kRepeats; ++i) prompt.Run(**ops, chunks);
      cudaEventRecord(end, stream);
      cudaEventSynchronize(end);
      float ms = 0;
      cudaEventElapsedTime(&ms, begin, end);
      EXPECT_EQ(cudaGetLastError(), cudaSuccess);
      std::printf("%s: %lld tokens %s: %.3f ms\n", device.name, static_cast<long long>(tokens),
                  chunks ? "in chunks" : "one by one", ms / kRepeats);
    }
  }
}

}  // namespace
}  // namespace nibble::kernels::cuda
