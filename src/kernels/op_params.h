// The Params of every op: one struct each. What the ops are, and what all of them keep to, is in
// ops.h; this file is apart from it because .cu files need no more, and are read once per target.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "tensor/quant_view.h"

namespace nibble {
class ThreadPool;
class UploadLane;
}  // namespace nibble

namespace nibble::kernels {

// What every op needs besides its Params. The workspace is scratch of the caller on the backend's
// device, at least as large as the op's *_workspace entry asks, 64-byte aligned; its content does
// not outlive the call.
struct OpContext {
  ThreadPool* pool = nullptr;  // of CPU backends
  void* stream = nullptr;      // of the CUDA backend: the device's, ops return before they have run
  std::byte* workspace = nullptr;
  size_t workspace_bytes = 0;
};

// ---- Linear ----

// How a linear sees its activations: fixed when the weight is packed and the same for every M, so
// that tokens do not depend on the batch. The integers share a scale per 32 values along K: of
// kInt8 it is the largest / 127. Of kInt16 it is 2^-13 of the largest's power of two, so that
// values down to 2^-6 of that one keep all their BF16 bits and smaller ones their leading ones.
//
// kRequantized breaks the rule, for prompts on CPUs: few tokens meet the weight as with kInt8, from
// kRequantizedTokens at once on 4-bit weights become int8 with a scale per 128 along K, too, where
// a backend has such kernels. A token's result then depends on how many tokens it comes with.
enum class ActivationFormat : uint8_t { kBf16, kInt8, kInt16, kRequantized };
inline constexpr int64_t kRequantizedTokens = 32;

// "bf16", "int8", "int16", "requantized"
std::string_view ActivationFormatName(ActivationFormat format);

// How linear_fp8 brings x to E4M3.
struct Fp8Activations {
  int64_t group = 0;   // columns per scale, K where a token has one; 0: it does not take the weight
  float scale = 0.0f;  // the checkpoint's, the largest of stacked parts; 0: found in x
};

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
  // The largest activation scale of the stacked parts: what linear_w4a4 needs. 0: it has none.
  virtual float input_scale() const { return 0.0f; }
  virtual Fp8Activations fp8() const { return {}; }
};

struct PackParams {
  // Stacked along N: equal K, format, column_order and input_multiplier.
  std::span<const QuantView> parts;
  ActivationFormat activations = ActivationFormat::kBf16;
  bool gather_rows = false;  // for embed, too: then without column_order and input_multiplier
  bool gate_up = false;      // for LinearParams.activation alone: gate rows, then as many of up
  ThreadPool* pool = nullptr;
  // The calling thread's way to the device; the weight is complete when the lane has finished.
  // Null: when pack_weight returns.
  UploadLane* lane = nullptr;
};

// How the norm's weight enters: Llama rounds the normalised value to BF16 before it multiplies by
// w; Qwen3-Next multiplies by (1 + w) in FP32 and rounds once; gpt-oss multiplies by w in FP32 and
// rounds once.
enum class NormStyle : uint8_t { kRoundThenScale, kScaleOnePlus, kScaleThenRound };

// An RMS norm that an op applies to its input first, with the bits of rms_norm. The input itself
// stays as it is.
struct InputNorm {
  const float* weight = nullptr;  // (width of the input); null: no norm
  float eps = 1e-6f;
  NormStyle style = NormStyle::kRoundThenScale;
};

// What stands between the two linears of a feed-forward block.
enum class ActivationKind : uint8_t {
  kSilu,         // silu(g) * u; silu is rounded to BF16 before the product, as the references do
  kGeluTanh,     // gelu(g) * u with the tanh form, rounded in the same way
  kClampedSilu,  // gpt-oss: g = min(g, limit), u = clamp(u, ±limit): (u + 1) * g * σ(alpha * g)
  kSquaredRelu,  // without a gate: max(x, 0)²; gate_up is (T, F)
};

struct Activation {
  ActivationKind kind = ActivationKind::kSilu;
  float alpha = 1.702f;  // kClampedSilu
  float limit = 7.0f;    // kClampedSilu

  bool gated() const { return kind != ActivationKind::kSquaredRelu; }
  // Width of the linear before it, for F outputs.
  int64_t inputs(int64_t f) const { return gated() ? 2 * f : f; }
};

// How an activation lies that one op writes and one linear alone reads: rows, as everywhere, or
// parts of so many tokens in an order of the backend's own (OpTable.x_layout), which that linear
// reads without a pass over it. The last part is a whole one, whose tokens past M mean nothing.
struct ActivationLayout {
  int32_t part_tokens = 0;  // 0: rows

  bool rows() const { return part_tokens == 0; }
  bool operator==(const ActivationLayout&) const = default;
};
// Of any layout, a divisor of this: for tokens rounded up to it a buffer has room.
inline constexpr int64_t kMostPartTokens = 128;

// y (M, N) = norm(x) (M, K) Wᵀ + bias. FP32 accumulation. A weight with column_order or
// input_multiplier applies them to the normed x first (tensor/quant_view.h). With add,
// y += result instead, both rounded to BF16: how a block adds to the residual stream. With an
// activation, which has a gate, y (M, N / 2) is what the activation op makes of the result in BF16,
// with its bits; the weight is packed with gate_up, and the op needs activated_workspace, too.
struct LinearParams {
  const uint16_t* x = nullptr;  // (M, K) BF16
  int64_t x_stride = 0;
  ActivationLayout x_layout;  // not rows: without a norm, x_stride is not read
  InputNorm norm;
  const PackedWeight* weight = nullptr;  // (N, K)
  const float* bias = nullptr;           // (N) or null
  uint16_t* y = nullptr;                 // (M, N) BF16, or
  float* y_f32 = nullptr;                // (M, N) FP32: exactly one of the two is set
  int64_t y_stride = 0;
  ActivationLayout y_layout;               // not rows: with an activation
  bool add = false;                        // with y alone
  const Activation* activation = nullptr;  // with y alone, not with add, y_stride N / 2; or null
  int64_t m = 0;
};

// ---- Embedding, norms, activation ----

// out (T, D) = rows of the table, dequantised and rounded to BF16, then times scale (Gemma's √D,
// itself a BF16 number) and rounded again. Ids are in [0, N), or -1 - s for the id drawn[s], which
// a sample op before this one wrote. The table is packed with gather_rows.
struct EmbedParams {
  const int32_t* ids = nullptr;         // (T)
  const int32_t* drawn = nullptr;       // (slots); null: no id is negative
  const PackedWeight* table = nullptr;  // (V, D)
  uint16_t* out = nullptr;              // (T, D)
  int64_t t = 0;
  float scale = 1.0f;
};

// Where `drawn` is the host's.
inline int32_t EmbeddedId(const EmbedParams& p, int64_t token) {
  const int32_t id = p.ids[token];
  return id >= 0 ? id : p.drawn[-1 - id];
}

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

// y = x rounded to BF16.
struct RoundParams {
  const float* x = nullptr;  // (n)
  uint16_t* y = nullptr;     // (n)
  int64_t n = 0;
};

// out (R, D) = the given rows of x.
struct GatherRowsParams {
  const uint16_t* x = nullptr;    // (T, D)
  const int32_t* rows = nullptr;  // (R), each in [0, T)
  uint16_t* out = nullptr;        // (R, D)
  int64_t r = 0;
  int64_t d = 0;
};

// out (T, F).
struct ActivationParams {
  const uint16_t* gate_up = nullptr;  // (T, 2F): gate in [0, F), up in [F, 2F)
  uint16_t* out = nullptr;            // (T, F)
  int64_t t = 0;
  int64_t f = 0;
  Activation activation;
};

// x (T, N) *= σ(gate), rounded once: the output gate of an attention.
struct SigmoidGateParams {
  uint16_t* x = nullptr;           // (T, N)
  const uint16_t* gate = nullptr;  // (T, N), rows gate_stride apart
  int64_t gate_stride = 0;
  int64_t t = 0;
  int64_t n = 0;
};

// ---- Mixture of experts ----

enum class RouterScore : uint8_t { kSoftmax, kSigmoid };
enum class GroupScore : uint8_t { kMax, kSumOfTwoBest };

// Which experts a token goes to, and with what weights. Scores are of the FP32 logits; the choice
// is of scores + choice_bias, first among groups, then among the experts of the chosen groups (the
// others cannot be chosen); weights are the scores without bias. Among equals the smaller id wins.
struct Routing {
  int32_t experts = 0;  // E
  int32_t top_k = 0;
  RouterScore score = RouterScore::kSoftmax;
  const float* choice_bias = nullptr;  // (E) or null
  int32_t groups = 1;                  // of E / groups neighbours each
  int32_t top_groups = 1;
  GroupScore group_score = GroupScore::kSumOfTwoBest;
  bool renormalize = true;  // divide by the sum of the chosen weights (+ 1e-20)
  float scale = 1.0f;       // the weights' last factor
  // For benchmarks with made-up weights. Keys set: after its usual choice, which is dropped, token
  // t goes to the experts of ChooseEvenly(even_keys[t], even_salt, E, top_k)
  // (kernels/even_routing.h), each with the weight scale / top_k.
  const uint32_t* even_keys = nullptr;  // (T) or null
  uint32_t even_salt = 0;
};

// What a backend derives once, when the model loads, from the weights of an op that takes many:
// tables of their addresses on the device.
class PreparedWeights {
 public:
  virtual ~PreparedWeights() = default;
};

// One expert: down(activation(gate_up x)). Rows of gate_up as Activation says. Two weights where
// gate and up cannot be stacked (other formats): then gate_up holds the gate rows, up the others.
struct ExpertWeights {
  const PackedWeight* gate_up = nullptr;  // (2F or F, D); null: not held by this rank, adds nothing
  const PackedWeight* up = nullptr;       // (F, D) or null
  const PackedWeight* down = nullptr;     // (D, F)
  const float* gate_up_bias = nullptr;    // (2F) or null
  const float* down_bias = nullptr;       // (D) or null
};

// Hears what goes into the linears of experts, for calibration. Called on the thread that calls the
// op.
struct MoeListener {
  static constexpr int32_t kShared = -1;

  virtual ~MoeListener() = default;
  // x (M, K) BF16 is multiplied by gate_up, or by down, of the expert; kShared: of the shared one.
  // An expert's tokens of one call may come in several pieces. Gone when this returns.
  virtual void OnExpertInput(int32_t expert, bool down, const uint16_t* x, int64_t m,
                             int64_t k) = 0;
};

// A whole block: norm, router, experts, shared expert and sum. For each token
//
//   y = Σ over its experts, by ascending id, of weight * expert(x)
//     + σ(shared_gate x) * shared(x)                              (if there is a shared expert)
//
// Expert outputs are FP32 after down (its input is BF16); the sum is FP32 and rounded once.
// weight_on_input: expert(bf16(weight * x)) without a factor on the output (Llama 4).
// With add, out += y instead, both rounded to BF16.
struct MoeParams {
  const uint16_t* x = nullptr;  // (T, D)
  InputNorm norm;               // of router_x where there is one, else of x
  int64_t t = 0;
  int64_t d = 0;
  // What the router sees, (T, its K), where it is not x: experts in a latent space.
  const uint16_t* router_x = nullptr;
  const PackedWeight* router = nullptr;  // (E, D); logits in FP32
  const float* router_bias = nullptr;    // (E) or null, part of the logits
  Routing routing;
  std::span<const ExpertWeights> experts;  // (E)
  int64_t f = 0;                           // of every expert
  Activation activation;
  bool weight_on_input = false;
  ExpertWeights shared;  // gate_up null: none
  int64_t shared_f = 0;
  const PackedWeight* shared_gate = nullptr;  // (1, D) or null: weight 1
  const PreparedWeights* prepared = nullptr;  // of experts, where the table has prepare_experts
  uint16_t* out = nullptr;                    // (T, D) BF16, or
  float* out_f32 = nullptr;                   // (T, D): exactly one of the two is set
  bool add = false;                           // with out alone
  // x and what goes into down in NVFP4, as linear_w4a4 has it, if all routed experts are here, gate
  // and up stacked, and every weight has an input_scale; then of the shared expert, too, for each
  // weight that has one. With OpTable.moe_w4a4.
  bool w4a4 = false;
  MoeListener* listener = nullptr;  // null but while calibrating
};

struct MoeSizes {
  int64_t t = 0;
  int64_t d = 0;
  int64_t f = 0;         // the larger of expert and shared expert
  int64_t router_d = 0;  // of router_x; 0: none
  int32_t experts = 0;
  int32_t top_k = 0;
  bool w4a4 = false;  // some calls have MoeParams.w4a4
};

// One linear per head: y[t, h] = x[t, h] Wᵀ of head h. For MLA's absorbed projections.
struct HeadLinearParams {
  const uint16_t* x = nullptr;  // token t, head h at t * x_stride + h * x_head_stride: (K)
  int64_t x_stride = 0;
  int64_t x_head_stride = 0;
  std::span<const PackedWeight* const> weights;  // (H): (N, K) each
  const PreparedWeights* prepared = nullptr;     // of weights, where the table has prepare_heads
  uint16_t* y = nullptr;                         // t * y_stride + h * y_head_stride: (N)
  int64_t y_stride = 0;
  int64_t y_head_stride = 0;
  int64_t t = 0;
};

// ---- Attention over paged KV ----

enum class KvFormat : uint8_t { kBf16, kFp8, kNvfp4 };

// Largest Dh that attention and rope_and_cache take.
inline constexpr int32_t kMaxHeadDim = 1024;

// Of BF16 and FP8.
inline int64_t KvElementBytes(KvFormat format) { return format == KvFormat::kBf16 ? 2 : 1; }

// Of k or of v; a multiple of 16 elements.
inline int64_t KvBytes(KvFormat format, int64_t elements) {
  switch (format) {
    case KvFormat::kBf16:
      return 2 * elements;
    case KvFormat::kFp8:
      return elements;
    default:
      return elements / 16 * 9;
  }
}

// How keys lie within a page. kPairs: of every 16 tokens the elements two by two, so that vectors
// of 16 keys are read as they are needed; for the CPU and ref, an even Dh and a v of its own.
enum class KeyLayout : uint8_t {
  kRows,   // (page_size, Dh)
  kPairs,  // (page_size / 16, Dh / 2, 16, 2)
};

// One layer's cache. Page p holds page_size tokens: v is (pages, Hk, page_size, Dh), k too in
// kRows. FP8: stored = E4M3(x / scale), read = stored * scale. NVFP4: kernels/nvfp4_cache.h.
struct KvLayerView {
  std::byte* k = nullptr;
  std::byte* v = nullptr;
  KvFormat format = KvFormat::kBf16;
  KeyLayout key_layout = KeyLayout::kRows;
  float k_scale = 1.0f;
  float v_scale = 1.0f;
  int32_t page_size = 16;  // a power of two, 16..256
  int32_t kv_heads = 0;    // Hk
  int32_t head_dim = 0;    // Dh
};

// Where element d of a key lies in k; row = (page * Hk + head) * page_size + the token's place.
inline int64_t KeyIndex(const KvLayerView& cache, int64_t row, int64_t d) {
  if (cache.key_layout == KeyLayout::kRows) return row * cache.head_dim + d;
  return row / 16 * 16 * cache.head_dim + (d / 2 * 16 + row % 16) * 2 + d % 2;
}

// Which dimensions turn together, d = rotary_dim.
enum class RopePairs : uint8_t {
  kHalves,      // (i, i + d/2)
  kNeighbours,  // (2i, 2i + 1)
};

// Per-head q/k norm (optional), rotary embedding, and the write of k and v into the cache.
// cos and sin are rounded to BF16 by the caller if the reference does so; products and sums in
// FP32, rounded to BF16 once per product as BF16 tensors do in the references: q' =
// bf16(bf16(q*cos) + bf16(rotate_half(q)*sin)).
struct RopeAndCacheParams {
  const uint16_t* qkv = nullptr;  // (T, (Hq + 2 Hk) * Dh): q heads, k heads, v heads
  int64_t qkv_stride = 0;         // between tokens; 0: dense
  int64_t t = 0;
  int32_t q_heads = 0;
  const float* q_norm = nullptr;  // (Dh) or null: RMS norm over the head before rotation
  const float* k_norm = nullptr;  // (Dh) or null
  float eps = 1e-6f;
  NormStyle norm_style = NormStyle::kRoundThenScale;
  bool norm_after_rotation = false;  // Llama 4
  const float* cos = nullptr;  // (rows, rotary_dim / 2), any attention factor included; null: no
                               // rotation
  const float* sin = nullptr;  // (rows, rotary_dim / 2)
  int32_t rotary_dim = 0;      // even, <= Dh: the leading dimensions of a head
  RopePairs pairs = RopePairs::kHalves;
  const int32_t* positions = nullptr;  // (T): rows of cos, sin and q_scale
  const float* q_scale = nullptr;      // (rows) or null: q *= this, last, rounded (Llama 4)
  const int64_t* slots = nullptr;      // (T): page * page_size + offset
  KvLayerView cache;
  uint16_t* q_out = nullptr;  // (T, Hq, Dh)
};

// MLA, before the attention: the latent's norm, the rotation of the shared key, the write of both
// into the cache (one KV head of R + P numbers, k and v the same memory), and the rotation of the
// queries' rope part. Pairs are neighbours; the result lies half-split (even members first).
struct MlaRopeAndCacheParams {
  const uint16_t* kv_a = nullptr;  // (T, R + P): latent, then rope key; rows kv_a_stride apart
  int64_t kv_a_stride = 0;
  const float* kv_norm = nullptr;  // (R)
  float eps = 1e-6f;
  int32_t latent_dim = 0;  // R
  int32_t rope_dim = 0;    // P
  const uint16_t* q =
      nullptr;  // token t, head h at t * q_stride + h * q_head_stride: the rope part
  int64_t q_stride = 0;
  int64_t q_head_stride = 0;
  int32_t q_heads = 0;
  int64_t t = 0;
  RopePairs pairs = RopePairs::kNeighbours;
  const float* cos = nullptr;          // (rows, P / 2)
  const float* sin = nullptr;          // (rows, P / 2)
  const int32_t* positions = nullptr;  // (T)
  const int64_t* slots = nullptr;      // (T)
  KvLayerView cache;                   // kv_heads 1, head_dim R + P, v == k
  uint16_t* q_out = nullptr;           // (T, Hq, R + P): only the last P of each head are written
};

// Causal attention of T query tokens, grouped by sequence, over their pages. Query token i of
// sequence b (tokens [q_start[b], q_start[b+1])) sits at position kv_len[b] - (q_start[b+1] - i)
// and sees positions max(0, pos - window + 1)..pos, and with a chunk only those of its own chunk,
// from ⌊pos / chunk⌋ * chunk on. Scores, softmax and the weighted sum are FP32.
// Keys are visited in blocks of fixed, absolute borders.
//
// A decode step does what stands before and after the attention in the same op, with the bits of
// the ops of their own: `rope` or `mla_rope` is rope_and_cache or mla_rope_and_cache of the same
// tokens, heads and cache, done first; `gate` is sigmoid_gate, done last.
struct AttentionParams {
  const RopeAndCacheParams* rope = nullptr;  // q is not read; q_out is scratch, may stay unwritten
  const MlaRopeAndCacheParams* mla_rope = nullptr;  // its q_out is q
  const uint16_t* gate = nullptr;  // (T, Hq * Dh), rows gate_stride apart; null: no gate
  int64_t gate_stride = 0;
  const uint16_t* q = nullptr;  // (T, Hq, Dh)
  uint16_t* out = nullptr;      // (T, Hq, Dh)
  ActivationLayout out_layout;  // of rows of Hq * Dh columns
  int64_t t = 0;
  int64_t sequences = 0;                // B, with a token each at least
  const int32_t* q_start = nullptr;     // (B + 1)
  const int32_t* kv_len = nullptr;      // (B): tokens in the cache, this step's included
  const int32_t* page_table = nullptr;  // (B, max_pages)
  int64_t max_pages = 0;
  int32_t q_heads = 0;
  float scale = 0.0f;
  int32_t window = 0;            // 0: no window
  int32_t chunk = 0;             // 0: no chunks
  const float* sinks = nullptr;  // (Hq) or null: one more logit per head, without a value
  KvLayerView cache;
};

// ---- Recurrent layers ----

// State that a layer keeps per sequence, whatever its length: sequence b's bytes are at
// base + slots[b] * stride. A sequence whose first token in the step sits at position 0 starts from
// zero; what its slot held does not matter.
struct StateView {
  std::byte* base = nullptr;
  int64_t stride = 0;  // bytes
};

// Which rows of a step belong to which sequence, for recurrent ops: tokens q_start[b]..q_start[b+1]
// are consecutive positions ending at kv_len[b].
struct StateSequences {
  int64_t count = 0;                 // B
  const int32_t* q_start = nullptr;  // (B + 1)
  const int32_t* kv_len = nullptr;   // (B)
  const int32_t* slots = nullptr;    // (B)

  bool starts(int64_t b) const { return kv_len[b] == q_start[b + 1] - q_start[b]; }
};

// Largest Dk of gated_delta_net.
inline constexpr int32_t kMaxDeltaKeyDim = 256;

// Positions of a chunk of gated_delta_net.
inline constexpr int32_t kDeltaChunk = 64;

// Which tokens of a step gated_delta_net takes by whole chunks (OpTable.delta_chunk): of sequence
// b's tokens the first tokens[b], a multiple of kDeltaChunk, the first of them at a multiple of
// kDeltaChunk. The rest are taken one by one. The two forms of the recurrence are equal but for
// rounding, so whoever wants the same bits again fixes the form by a token's position and the
// length of its prompt (docs/kernels.md), never by how a step was cut.
struct DeltaChunks {
  const int32_t* tokens = nullptr;  // (B); null: no chunks
  int64_t sequences = 0;            // that have chunks in this step
  int64_t total = 0;                // the sum of tokens
};

// Gated DeltaNet between its projections (Qwen3-Next, Qwen3.5). Per token: a depthwise causal
// convolution of width W over q, k and v, then silu (FP32 sum, rounded to BF16); q and k divided by
// sqrt(Σ² + 1e-6), q times 1/√Dk; β = σ(b), g = -exp(a_log) * softplus(a + dt_bias); then per value
// head, with state S (Dv, Dk) and key head hv / (Hv / Hk),
//
//   S ← e^g S;  S ← S + β (v - S k) kᵀ;  o = S q
//
// and out = norm_weight * o / sqrt(mean(o²) + eps) * silu(z), all FP32, rounded once. Source: Yang
// et al. 2024, "Gated Delta Networks"; transformers' Qwen3Next.
struct GatedDeltaNetParams {
  const uint16_t* qkv = nullptr;  // (T, C), C = 2 Hk Dk + Hv Dv: q heads, k heads, v heads
  int64_t qkv_stride = 0;
  const uint16_t* z = nullptr;  // (T, Hv * Dv)
  int64_t z_stride = 0;
  const float* b = nullptr;            // (T, Hv)
  const float* a = nullptr;            // (T, Hv)
  int64_t ba_stride = 0;               // of both
  int32_t k_heads = 0;                 // Hk
  int32_t v_heads = 0;                 // Hv, a multiple of Hk
  int32_t k_dim = 0;                   // Dk, at most kMaxDeltaKeyDim
  int32_t v_dim = 0;                   // Dv
  int32_t conv_width = 0;              // W, 2..8
  const float* conv_weight = nullptr;  // (C, W), the last column meets the newest input
  const float* a_log = nullptr;        // (Hv)
  const float* dt_bias = nullptr;      // (Hv)
  const float* norm_weight = nullptr;  // (Dv)
  float eps = 1e-6f;
  bool sigmoid_gate = false;  // σ(z) in place of silu(z)
  int64_t t = 0;
  StateSequences sequences;
  DeltaChunks chunks;
  StateView conv_state;       // (W - 1, C) BF16 inputs, oldest first
  StateView recurrent_state;  // (Hv, Dv, Dk) FP32
  uint16_t* out = nullptr;    // (T, Hv * Dv)
};

// Largest N of mamba2.
inline constexpr int32_t kMaxMamba2StateDim = 256;

// Mamba-2 between its projections (Nemotron-H). Rows of zxbcdt: z (H P), x (H P), B (G N), C (G N),
// dt (H). A depthwise causal convolution of width W with bias over x, B and C, then silu (FP32 sum,
// rounded to BF16); dt' = clamp(softplus(dt + dt_bias), dt_min, dt_max); per head with state S
// (P, N) and group h / (H / G),
//
//   S ← exp(-exp(a_log) dt') S + dt' x Bᵀ;  y = S C + d x
//
// and out = norm_weight * u / sqrt(mean(u² over its group of H P / G) + eps) with u = y * silu(z),
// all FP32, rounded once. Source: Dao and Gu 2024, "Transformers are SSMs"; transformers'
// NemotronH.
struct Mamba2Params {
  const uint16_t* zxbcdt = nullptr;  // (T, 2 H P + 2 G N + H)
  int64_t stride = 0;
  int32_t heads = 0;                   // H
  int32_t head_dim = 0;                // P
  int32_t groups = 0;                  // G, divides H
  int32_t state_dim = 0;               // N, at most kMaxMamba2StateDim
  int32_t conv_width = 0;              // W, 2..8
  const float* conv_weight = nullptr;  // (H P + 2 G N, W)
  const float* conv_bias = nullptr;    // (H P + 2 G N) or null
  const float* a_log = nullptr;        // (H)
  const float* dt_bias = nullptr;      // (H)
  const float* d = nullptr;            // (H)
  const float* norm_weight = nullptr;  // (H P)
  float eps = 1e-5f;
  float dt_min = 0.0f;
  float dt_max = 3.4e38f;
  int64_t t = 0;
  StateSequences sequences;
  StateView conv_state;       // (W - 1, H P + 2 G N) BF16 inputs, oldest first
  StateView recurrent_state;  // (H, P, N) FP32
  uint16_t* out = nullptr;    // (T, H P)
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
// id and takes the first whose cumulative mass exceeds uniform. If bias, bans and mask leave no
// token, the result is the best raw token that the mask allows (of all, if it allows none). Token
// ids in counts, bias and banned are in [0, V). What an edit makes NaN counts as -inf, +inf as the
// largest finite value.
//
// Raw logits are finite or -inf, and one of them is finite. A row of others (a NaN, a +inf, nothing
// but -inf) is `broken`: token and drawn token are 0, rank and logprob too, its best tokens none.
//
// A row with a drawn_slot leaves its token in drawn[drawn_slot], where a later embed finds it
// though the host has not seen it. counts_drawn: what stands there before counts as one more output
// token, which `counts` does not know yet.
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
  double uniform = 0.0;  // in [0, 1): a pure function of seed, choice index and position
  // -1: no log-probabilities are wanted; else the sampled token's and those of the n best.
  int32_t top_logprobs = -1;
  bool wants_hash = false;
  int32_t drawn_slot = -1;  // of SampleParams.drawn; its own, among the rows; -1: none
  bool counts_drawn = false;
};

// logprob and rank are told where the row has top_logprobs >= 0, logits_hash where it wants it, and
// unspecified elsewhere.
struct SampledToken {
  int32_t token = 0;
  float logprob = 0.0f;      // of the raw logits
  int32_t rank = 0;          // 1 = the best raw token
  bool broken = false;       // the raw logits are none: nothing was drawn
  uint64_t logits_hash = 0;  // HashLogits of the raw row (kernels/logits_hash.h)
};

struct SampleParams {
  const float* logits = nullptr;  // (R, V)
  int64_t logits_stride = 0;
  int64_t vocab = 0;                // V
  std::span<const SampleRow> rows;  // (R)
  int32_t* drawn = nullptr;         // (slots) on the device; null: no row has a drawn_slot
  SampledToken* out = nullptr;      // (R)
  // (R, max_top_logprobs) best raw tokens, best first; null if no row wants them. Places that a row
  // does not want, or has no token above -inf for, hold token -1 and logprob -inf.
  int32_t* top_tokens = nullptr;
  float* top_logprobs = nullptr;
  int64_t max_top_logprobs = 0;
  // (R) on the device: the rows' drawn_slot, or null. Launches of rows with a temperature of 0 and
  // nothing beside it but bans of the last tokens read them there, so that a recording of these
  // launches serves later rows of this kind: it tells what any of them may want of SampledToken.
  // All other launches follow from `rows`.
  const int32_t* drawn_slots = nullptr;
};

}  // namespace nibble::kernels
