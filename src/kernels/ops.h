// The contract between models and backends: one Params struct and one entry of OpTable per op.
//
// Ops are coarse (a whole linear, a whole attention step), so that a backend may fuse inside them.
// ref/ holds the obvious scalar version of each, the oracle of parity_test.cc. All activations are
// BF16 (uint16_t bits) unless said otherwise; strides are in elements; the last dimension is
// contiguous.
//
// Exactness: the result for a token depends on that token's inputs alone, never on the other rows
// of the batch, on the number of rows, on the page size or on the number of threads. Every backend
// fixes its summation orders accordingly.
//
// Sizes: T tokens, B sequences, D hidden, F ffn, Hq/Hk query/kv heads, Dh head dim, V vocabulary,
// M,N,K of a GEMM. Ops never fail: whatever can be wrong is checked when the model loads. Params
// point at memory of the caller.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/thread_pool.h"
#include "tensor/quant_view.h"

namespace nibble::kernels {

// What every op needs besides its Params. The workspace is scratch of the caller, at least as large
// as the op's
// *_workspace entry asks, 64-byte aligned; its content does not outlive the call.
struct OpContext {
  ThreadPool* pool = nullptr;
  std::byte* workspace = nullptr;
  size_t workspace_bytes = 0;
};

// ---- Linear ----

// How a linear sees its activations: fixed when the weight is packed and the same for every M, so
// that tokens do not depend on the batch. kInt8: one scale per 32 values along K.
enum class ActivationFormat : uint8_t { kBf16, kInt8 };

// A weight in the layout that a backend's kernels read. Rows of several stored weights may be
// stacked (q, k and v; gate and up), each with its own tensor scale. Immutable after packing.
class PackedWeight {
 public:
  virtual ~PackedWeight() = default;
  virtual WeightFormat format() const = 0;
  virtual ActivationFormat activations() const = 0;
  virtual int64_t n() const = 0;
  virtual int64_t k() const = 0;
  virtual int64_t bytes() const = 0;  // resident
};

struct PackParams {
  // Stacked along N: equal K, format, column_order and input_multiplier.
  std::span<const QuantView> parts;
  ActivationFormat activations = ActivationFormat::kBf16;
  bool gather_rows = false;  // for embed, too: then without column_order and input_multiplier
  ThreadPool* pool = nullptr;
};

// y (M, N) = x (M, K) Wᵀ + bias. FP32 accumulation. A weight with column_order or input_multiplier
// applies them to x first (tensor/quant_view.h).
struct LinearParams {
  const uint16_t* x = nullptr;  // (M, K) BF16
  int64_t x_stride = 0;
  const PackedWeight* weight = nullptr;  // (N, K)
  const float* bias = nullptr;           // (N) or null
  uint16_t* y = nullptr;                 // (M, N) BF16, or
  float* y_f32 = nullptr;                // (M, N) FP32: exactly one of the two is set
  int64_t y_stride = 0;
  int64_t m = 0;
};

// ---- Embedding, norms, activation ----

// out (T, D) = rows of the table, dequantised and rounded to BF16. Ids are in [0, N). The table is
// packed with gather_rows.
struct EmbedParams {
  const int32_t* ids = nullptr;         // (T)
  const PackedWeight* table = nullptr;  // (V, D)
  uint16_t* out = nullptr;              // (T, D)
  int64_t t = 0;
};

// How the norm's weight enters: Llama rounds the normalised value to BF16 before it multiplies by
// w; Qwen3-Next multiplies by (1 + w) in FP32 and rounds once; gpt-oss multiplies by w in FP32 and
// rounds once.
enum class NormStyle : uint8_t { kRoundThenScale, kScaleOnePlus, kScaleThenRound };

// If delta is set: x += delta (rounded to BF16, stored back). Then out = x / sqrt(mean(x²) + eps),
// scaled. Mean in FP32.
struct RmsNormParams {
  uint16_t* x = nullptr;            // (T, D) residual stream, updated when delta is set
  const uint16_t* delta = nullptr;  // (T, D) or null
  const float* weight = nullptr;    // (D)
  uint16_t* out = nullptr;          // (T, D)
  int64_t t = 0;
  int64_t d = 0;
  float eps = 1e-6f;
  NormStyle style = NormStyle::kRoundThenScale;
};

// x += delta, rounded to BF16.
struct AddParams {
  uint16_t* x = nullptr;            // (T, D)
  const uint16_t* delta = nullptr;  // (T, D)
  int64_t t = 0;
  int64_t d = 0;
};

// out (R, D) = the given rows of x.
struct GatherRowsParams {
  const uint16_t* x = nullptr;    // (T, D)
  const int32_t* rows = nullptr;  // (R), each in [0, T)
  uint16_t* out = nullptr;        // (R, D)
  int64_t r = 0;
  int64_t d = 0;
};

// out (T, F) = silu(gate) * up; silu is rounded to BF16 before the product, as the references do.
struct SwiGluParams {
  const uint16_t* gate_up = nullptr;  // (T, 2F): gate in [0, F), up in [F, 2F)
  uint16_t* out = nullptr;            // (T, F)
  int64_t t = 0;
  int64_t f = 0;
};

// ---- Attention over paged KV ----

enum class KvFormat : uint8_t { kBf16, kFp8 };

// Largest Dh that attention and rope_and_cache take.
inline constexpr int32_t kMaxHeadDim = 1024;

inline int64_t KvElementBytes(KvFormat format) { return format == KvFormat::kBf16 ? 2 : 1; }

// One layer's cache. Page p holds page_size tokens: k and v are (pages, Hk, page_size, Dh). FP8:
// stored = E4M3(x / scale), read = stored * scale.
struct KvLayerView {
  std::byte* k = nullptr;
  std::byte* v = nullptr;
  KvFormat format = KvFormat::kBf16;
  float k_scale = 1.0f;
  float v_scale = 1.0f;
  int32_t page_size = 16;  // a power of two, 16..256
  int32_t kv_heads = 0;    // Hk
  int32_t head_dim = 0;    // Dh
};

// Per-head q/k norm (optional), rotary embedding, and the write of k and v into the cache.
// cos and sin are rounded to BF16 by the caller if the reference does so; products and sums in
// FP32, rounded to BF16 once per product as BF16 tensors do in the references: q' =
// bf16(bf16(q*cos) + bf16(rotate_half(q)*sin)).
struct RopeAndCacheParams {
  const uint16_t* qkv = nullptr;  // (T, (Hq + 2 Hk) * Dh): q heads, k heads, v heads
  int64_t t = 0;
  int32_t q_heads = 0;
  const float* q_norm = nullptr;  // (Dh) or null: RMS norm over the head before rotation
  const float* k_norm = nullptr;  // (Dh) or null
  float eps = 1e-6f;
  NormStyle norm_style = NormStyle::kRoundThenScale;
  const float* cos = nullptr;  // (max positions, rotary_dim / 2), any attention factor included
  const float* sin = nullptr;  // (max positions, rotary_dim / 2)
  int32_t rotary_dim = 0;      // even, <= Dh; half-split pairs (i, i + rotary_dim/2)
  const int32_t* positions = nullptr;  // (T)
  const int64_t* slots = nullptr;      // (T): page * page_size + offset
  KvLayerView cache;
  uint16_t* q_out = nullptr;  // (T, Hq, Dh)
};

// Causal attention of T query tokens, grouped by sequence, over their pages. Query token i of
// sequence b (tokens [q_start[b], q_start[b+1])) sits at position kv_len[b] - (q_start[b+1] - i)
// and sees positions max(0, pos - window + 1)..pos. Scores, softmax and the weighted sum are FP32.
// Keys are visited in blocks of fixed, absolute borders.
struct AttentionParams {
  const uint16_t* q = nullptr;  // (T, Hq, Dh)
  uint16_t* out = nullptr;      // (T, Hq, Dh)
  int64_t t = 0;
  int64_t sequences = 0;                // B
  const int32_t* q_start = nullptr;     // (B + 1)
  const int32_t* kv_len = nullptr;      // (B): tokens in the cache, this step's included
  const int32_t* page_table = nullptr;  // (B, max_pages)
  int64_t max_pages = 0;
  int32_t q_heads = 0;
  float scale = 0.0f;
  int32_t window = 0;            // 0: no window
  const float* sinks = nullptr;  // (Hq) or null: one more logit per head, without a value
  KvLayerView cache;
};

// ---- Sampling ----

struct TokenCount {
  int32_t token;
  int32_t count;  // occurrences in the output so far
  bool in_prompt;
};

struct TokenBias {
  int32_t token;
  float bias;
};

// One row of logits. Order of application: logprobs are taken from the raw logits; then bias,
// banned and disallowed tokens, penalties (repetition, then frequency and presence), temperature,
// top-k, top-p, min-p (each over the distribution left by the step before); then one draw.
//
// Among equal logits the smaller id is the better one, everywhere. top-k keeps exactly k tokens,
// top-p the fewest best ones whose mass reaches top_p, min-p those with at least min_p times the
// best one's probability; the best token always stays. The draw walks the kept tokens in order of
// id and takes the first whose cumulative mass exceeds uniform. A NaN logit counts as -inf, +inf as
// the largest finite value. If bias, bans and mask leave no token, the result is the best raw
// token that the mask allows (of all, if it allows none). Token ids in counts, bias and banned are
// in [0, V).
struct SampleRow {
  float temperature = 1.0f;  // 0: the largest logit, the smallest id on ties
  int32_t top_k = 0;         // 0: off
  float top_p = 1.0f;
  float min_p = 0.0f;
  float repetition_penalty = 1.0f;     // prompt and output tokens
  float presence_penalty = 0.0f;       // output tokens
  float frequency_penalty = 0.0f;      // output tokens
  std::span<const TokenCount> counts;  // of every token that occurred; each once
  std::span<const TokenBias> bias;
  std::span<const int32_t>
      banned;  // logits set to -inf (min_tokens, padding rows of the vocabulary)
  const uint32_t* allowed_mask = nullptr;  // (⌈V/32⌉) bit set: allowed; null: all
  double uniform = 0.0;       // in [0, 1): a pure function of seed, choice index and position
  int32_t top_logprobs = -1;  // -1: none wanted; else the n best beside the sampled token
};

struct SampledToken {
  int32_t token = 0;
  float logprob = 0.0f;  // of the raw logits
  int32_t rank = 0;      // 1 = the best raw token
};

struct SampleParams {
  const float* logits = nullptr;  // (R, V)
  int64_t logits_stride = 0;
  int64_t vocab = 0;                // V
  std::span<const SampleRow> rows;  // (R)
  SampledToken* out = nullptr;      // (R)
  // (R, max_top_logprobs) best raw tokens, best first; null if no row wants them. Places that a row
  // does not want, or has no token above -inf for, hold token -1 and logprob -inf.
  int32_t* top_tokens = nullptr;
  float* top_logprobs = nullptr;
  int64_t max_top_logprobs = 0;
};

// ---- The table ----

// A backend fills what it has. Models name the ops they need; a missing one is an error when the
// model loads.
struct OpTable {
  std::string_view backend;  // "ref", "cpu"
  std::string_view
      variant;  // "avx512", "avx2", "neon", "generic": which kernels were chosen, for `doctor`

  Result<std::unique_ptr<PackedWeight>> (*pack_weight)(const PackParams&) = nullptr;
  size_t (*linear_workspace)(int64_t max_m, int64_t max_k) = nullptr;
  void (*linear)(const OpContext&, const LinearParams&) = nullptr;
  void (*embed)(const OpContext&, const EmbedParams&) = nullptr;
  void (*rms_norm)(const OpContext&, const RmsNormParams&) = nullptr;
  void (*add)(const OpContext&, const AddParams&) = nullptr;
  void (*gather_rows)(const OpContext&, const GatherRowsParams&) = nullptr;
  void (*swiglu)(const OpContext&, const SwiGluParams&) = nullptr;
  void (*rope_and_cache)(const OpContext&, const RopeAndCacheParams&) = nullptr;
  size_t (*attention_workspace)(int threads, int64_t max_t, int32_t q_heads,
                                int32_t head_dim) = nullptr;
  void (*attention)(const OpContext&, const AttentionParams&) = nullptr;
  size_t (*sample_workspace)(int threads, int64_t max_rows, int64_t vocab) = nullptr;
  void (*sample)(const OpContext&, const SampleParams&) = nullptr;
};

// Names of the entries that a backend has not filled ("attention").
std::vector<std::string_view> MissingOps(const OpTable& table);

// The obvious scalar version of every op.
const OpTable& RefOps();

// The fastest kernels that this processor runs, chosen once. `variant` ("", "avx512bf16",
// "avx512", "avx2", "neon", "generic") forces one, for tests and benchmarks; an error when this
// processor or build lacks it.
const OpTable& CpuOps();
Result<const OpTable*> CpuOpsVariant(std::string_view variant);

}  // namespace nibble::kernels
