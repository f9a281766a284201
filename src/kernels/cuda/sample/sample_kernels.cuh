// The kernels of sampling, in the order in which they run (sample.h).
#pragma once

#include "kernels/cuda/ptx/load.cuh"
#include "kernels/cuda/ptx/pdl.cuh"
#include "kernels/cuda/sample/kernels.cuh"
#include "kernels/logits_hash.h"

namespace nibble::kernels::cuda::sampling {

inline constexpr int kThreads = 256;
inline constexpr int kPerThread = static_cast<int>(kChunk) / kThreads;
// A step of greedy rows waits for the survey: few tokens of a thread, and so little code.
inline constexpr int kSurveyThreads = 512;
inline constexpr int kSurveyTokens = static_cast<int>(kChunk) / kSurveyThreads;
inline constexpr int kChooseThreads = 512;

// Token i of this thread in chunk c: neighbouring threads have neighbouring tokens.
template <int kCtaThreads = kThreads>
__device__ __forceinline__ int TokenAt(int chunk, int i) {
  return chunk * static_cast<int>(kChunk) + i * kCtaThreads + static_cast<int>(threadIdx.x);
}

// A logit, or -inf from `end` on.
__device__ __forceinline__ float LogitBefore(const float* logits, int token, int end) {
  const float logit = ptx::LoadHere(logits + (token < end ? token : 0));
  return token < end ? Clean(logit) : -INFINITY;
}

// ---- Upload ----

// The host wrote these bytes before the launch: they cross the bus while the predecessor runs.
__global__ void __launch_bounds__(kThreads) FetchKernel(Group g) {
  const int64_t at = int64_t{blockIdx.x} * kThreads + threadIdx.x;  // of 16 bytes
  const bool exists = at * 16 < g.upload_bytes;
  uint4 bytes = {};
  if (exists) bytes = reinterpret_cast<const uint4*>(g.uploads)[at];
  ptx::WaitForPredecessor();
  ptx::LaunchSuccessor();
  if (exists) reinterpret_cast<uint4*>(g.w.uploaded)[at] = bytes;
}

// ---- Survey ----

// The best of this thread's values, the first among equals, as a rank key; `keeps` says which
// count.
template <typename Keeps>
__device__ __forceinline__ uint64_t BestOfThread(const float (&values)[kSurveyTokens], int chunk,
                                                 Keeps keeps) {
  float best = 0.0f;
  int at = -1;
#pragma unroll
  for (int i = 0; i < kSurveyTokens; ++i) {
    if (!keeps(i) || (at >= 0 && values[i] <= best)) continue;
    best = values[i];
    at = i;
  }
  return at < 0 ? kNone : RankKey(best, TokenAt<kSurveyThreads>(chunk, at));
}

// Biases, bans and penalties of the tokens in [first, first + kChunk).
// drawn: as Group's.
__device__ __forceinline__ void ApplyEdits(const Row& row, const std::byte* edits,
                                           const int32_t* drawn, int first, float* processed) {
  const auto in_chunk = [&](int token) { return token >= first && token < first + kChunk; };
  const auto* biases = reinterpret_cast<const BiasEdit*>(edits + row.bias_at);
  for (int i = static_cast<int>(threadIdx.x); i < row.biases; i += kSurveyThreads) {
    const int token = biases[i].token;
    if (!in_chunk(token) || (i > 0 && biases[i - 1].token == token)) continue;
    float logit = processed[token];
    for (int j = i; j < row.biases && biases[j].token == token; ++j) logit += biases[j].bias;
    processed[token] = logit;
  }
  __syncthreads();
  const auto* banned = reinterpret_cast<const int32_t*>(edits + row.banned_at);
  for (int i = static_cast<int>(threadIdx.x); i < row.banned; i += kSurveyThreads)
    if (in_chunk(banned[i])) processed[banned[i]] = -INFINITY;
  __syncthreads();
  const auto penalize = [&](int token, int count) {
    float logit = processed[token];
    logit = logit > 0 ? logit / row.repetition_penalty : logit * row.repetition_penalty;
    if (count > 0)
      logit -= row.frequency_penalty * static_cast<float>(count) + row.presence_penalty;
    processed[token] = logit;
  };
  const int unseen = row.unseen >= 0 ? drawn[row.unseen] : -1;
  bool listed = false;
  const auto* counts = reinterpret_cast<const CountEdit*>(edits + row.counts_at);
  for (int i = static_cast<int>(threadIdx.x); i < row.counts; i += kSurveyThreads) {
    const CountEdit seen = counts[i];
    const bool again = seen.token == unseen;
    listed = listed || again;
    if (in_chunk(seen.token)) penalize(seen.token, seen.count + (again ? 1 : 0));
  }
  const bool anywhere = __syncthreads_or(listed) != 0;
  if (threadIdx.x == 0 && unseen >= 0 && !anywhere && in_chunk(unseen)) penalize(unseen, 1);
  __syncthreads();
}

// What later kernels add to starts at zero.
__device__ __forceinline__ void ClearSums(const Group& g) {
  const int stride = static_cast<int>(gridDim.x * gridDim.y) * kSurveyThreads;
  const int self =
      static_cast<int>((blockIdx.y * gridDim.x + blockIdx.x) * kSurveyThreads + threadIdx.x);
  for (int i = self; i < g.searches * kBuckets; i += stride) {
    g.w.histogram_mass[i] = 0;
    g.w.histogram_count[i] = 0;
  }
  for (int i = self; i < g.searches; i += stride) g.w.listed[i] = 0;
  for (int i = self; i < g.rows; i += stride) {
    g.w.better[i] = 0;
    g.w.ranked_chunks[i] = 0;
  }
}

__global__ void __launch_bounds__(kSurveyThreads) SurveyKernel(Group g) {
  __shared__ uint64_t keys[kWarp], best_keys[kWarp], hashes[kWarp];
  __shared__ float sums[kWarp];
  ptx::WaitForPredecessor();
  ptx::LaunchSuccessor();
  const int chunk = static_cast<int>(blockIdx.x), r = static_cast<int>(blockIdx.y);
  const float* logits = g.logits + r * g.stride;
  float values[kSurveyTokens];
  uint64_t hash = 0;
  bool broken = false;
#pragma unroll
  for (int i = 0; i < kSurveyTokens; ++i) {
    const int token = TokenAt<kSurveyThreads>(chunk, i);
    const bool exists = token < g.vocab;
    const float raw = ptx::LoadHere(logits + (exists ? token : 0));
    broken = broken || !(raw <= FLT_MAX);
    values[i] = exists ? raw + 0.0f : -INFINITY;
    if (exists) hash += LogitHashTerm(__float_as_uint(raw), static_cast<uint32_t>(token));
  }
  ClearSums(g);

  const auto finite = [&](int i) { return values[i] > -INFINITY; };
  const Row* row = g.row_table != nullptr ? &g.row_table[r] : nullptr;
  const int end = row != nullptr ? row->end : g.end;
  const bool changed = row != nullptr && row->changed != 0;
  const auto before_end = [&](int i) {
    return finite(i) && TokenAt<kSurveyThreads>(chunk, i) < end;
  };
  // The best of all and of those before `end` with one barrier, the sums with another.
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const auto of_warps = [&](const auto* shared, auto identity) {
    return lane < kSurveyThreads / kWarp ? shared[lane] : identity;
  };
  ChunkSurvey survey = {};
  const uint64_t own = MinOf().OverWarp(broken ? kBroken : BestOfThread(values, chunk, finite));
  uint64_t own_before = own;
  if (end != g.vocab && !changed)
    own_before = MinOf().OverWarp(broken ? kBroken : BestOfThread(values, chunk, before_end));
  hash = SumOf().OverWarp(hash);
  if (lane == 0) keys[warp] = own, best_keys[warp] = own_before, hashes[warp] = hash;
  __syncthreads();
  survey.best_raw = MinOf().OverWarp(of_warps(keys, kNone));
  const float largest = LogitOf(survey.best_raw);
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kSurveyTokens; ++i)
    if (finite(i)) sum += __expf(values[i] - largest);
  sum = SumOf().OverWarp(sum);
  if (lane == 0) sums[warp] = sum;
  __syncthreads();
  if (warp == 0) {
    survey.best = MinOf().OverWarp(of_warps(best_keys, kNone));
    survey.hash_sum = SumOf().OverWarp(of_warps(hashes, uint64_t{0}));
    survey.raw_sum = SumOf().OverWarp(of_warps(sums, 0.0f));
  }
  survey.best_allowed = kNone;
  if (changed) {
    float* processed = g.w.processed + int64_t{r} * g.vocab;
    const auto* mask = reinterpret_cast<const uint32_t*>(g.edits + row->mask_at);
    uint32_t allowed = 0;  // bit i: token i of this thread
#pragma unroll
    for (int i = 0; i < kSurveyTokens; ++i) {
      const int token = TokenAt<kSurveyThreads>(chunk, i);
      if (token >= g.vocab) continue;
      const bool stays = row->mask_at < 0 || ((mask[token / 32] >> (token % 32)) & 1u) != 0;
      allowed |= static_cast<uint32_t>(stays) << i;
      processed[token] = stays ? values[i] : -INFINITY;
    }
    if (row->mask_at >= 0) {
      const uint64_t best =
          BestOfThread(values, chunk, [&](int i) { return ((allowed >> i) & 1u) != 0; });
      survey.best_allowed = Reduce(best, kNone, MinOf(), keys);
    }
    __syncthreads();
    ApplyEdits(*row, g.edits, g.drawn, chunk * static_cast<int>(kChunk), processed);
#pragma unroll
    for (int i = 0; i < kSurveyTokens; ++i)
      values[i] = LogitBefore(processed, TokenAt<kSurveyThreads>(chunk, i), end);
    const uint64_t best = broken ? kBroken : BestOfThread(values, chunk, before_end);
    survey.best = Reduce(best, kNone, MinOf(), keys);
  }
  if (threadIdx.x == 0) g.w.surveys[r * g.chunks + chunk] = survey;
}

// ---- Searches ----

// The tokens that a search looks at, and how it sees them.
class Sight {
 public:
  // Whole warps call it.
  __device__ Sight(const Group& g, const Search& search)
      : end_(search.end), inverse_(search.inverse_temperature) {
    const bool raw = search.lists_best != 0;
    logits_ = !raw && search.changed != 0 ? g.w.processed + int64_t{search.row} * g.vocab
                                          : g.logits + search.row * g.stride;
    const uint64_t key = BestOfChunks(g.w.surveys + search.row * g.chunks, g.chunks,
                                      raw ? &ChunkSurvey::best_raw : &ChunkSurvey::best);
    empty_ = !IsToken(key);
    best_ = LogitOf(key);
  }

  __device__ bool empty() const { return empty_; }
  __device__ float Logit(int token) const { return LogitBefore(logits_, token, end_); }
  __device__ float NatsOf(float logit) const { return Nats(logit, best_, inverse_); }
  __device__ float Weight(float logit) const { return expf(-NatsOf(logit)); }
  __device__ uint64_t Mass(float logit) const { return MassOf(Weight(logit)); }
  __device__ int Bucket(float logit) const { return BucketOf(NatsOf(logit)); }
  __device__ int end() const { return end_; }

 private:
  const float* logits_;
  int end_;
  float inverse_;
  float best_;
  bool empty_;
};

constexpr int kLowBits = 20;  // of a mass: sums of a chunk's low and high parts fit 32 bits

__global__ void __launch_bounds__(kThreads) HistogramKernel(Group g) {
  __shared__ uint32_t counts[kBuckets], low[kBuckets], high[kBuckets];
  for (int b = static_cast<int>(threadIdx.x); b < kBuckets; b += kThreads)
    counts[b] = low[b] = high[b] = 0;
  __syncthreads();
  ptx::WaitForPredecessor();
  ptx::LaunchSuccessor();
  const int chunk = static_cast<int>(blockIdx.x), s = static_cast<int>(blockIdx.y);
  const Search search = g.search_table[s];
  const bool limits_mass = search.limits_mass();
  if (search.top_k == 0 && !limits_mass) return;
  const Sight sight(g, search);
  if (sight.empty()) return;
  float logits[kPerThread];
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) logits[i] = sight.Logit(TokenAt(chunk, i));
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const float logit = logits[i];
    if (logit == -INFINITY) continue;
    const int bucket = sight.Bucket(logit);
    if (search.top_k > 0) atomicAdd(&counts[bucket], 1u);
    if (limits_mass) {
      const uint64_t mass = sight.Mass(logit);
      atomicAdd(&low[bucket], static_cast<uint32_t>(mass) & ((1u << kLowBits) - 1));
      atomicAdd(&high[bucket], static_cast<uint32_t>(mass >> kLowBits));
    }
  }
  __syncthreads();
  for (int b = static_cast<int>(threadIdx.x); b < kBuckets; b += kThreads) {
    const uint64_t mass = (uint64_t{high[b]} << kLowBits) + low[b];
    if (counts[b] != 0)
      atomicAdd(&g.w.histogram_count[s * kBuckets + b], static_cast<int32_t>(counts[b]));
    if (mass != 0)
      atomicAdd(reinterpret_cast<unsigned long long*>(&g.w.histogram_mass[s * kBuckets + b]), mass);
  }
}

// Of a mass, the part that top-p wants; at least 1, for the best token.
__device__ __forceinline__ uint64_t WantedMass(float top_p, uint64_t mass) {
  const double wanted = ceil(static_cast<double>(top_p) * static_cast<double>(mass));
  return wanted < 1.0 ? 1 : static_cast<uint64_t>(wanted);
}

// From the histogram; every thread of the CTA gets it.
__device__ __forceinline__ Bounds FindBounds(const Group& g, int s, const Search& search) {
  constexpr int kOwn = kBuckets / kThreads;
  __shared__ Bounds bounds;
  __shared__ uint64_t k_mass_most;  // with all of k_bucket
  __shared__ uint64_t sums[kWarp];
  __shared__ int int_sums[kWarp];
  const int own = static_cast<int>(threadIdx.x) * kOwn;
  int counts[kOwn];
  uint64_t masses[kOwn];
  int count = 0;
  uint64_t mass = 0;
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    counts[i] = search.top_k > 0 ? g.w.histogram_count[s * kBuckets + own + i] : 0;
    masses[i] = search.limits_mass() ? g.w.histogram_mass[s * kBuckets + own + i] : 0;
    count += counts[i];
    mass += masses[i];
  }
  const int count_before = SumBefore(count, int_sums);
  const uint64_t mass_before = SumBefore(mass, sums);
  const uint64_t total = Reduce(mass, uint64_t{0}, SumOf(), sums);
  if (threadIdx.x == 0) {
    bounds = {
        .k_bucket = kBuckets, .first = kBuckets, .last = -1, .k_mass = total, .total_mass = total};
    k_mass_most = total;
  }
  __syncthreads();
  const int total_count = Reduce(count, 0, SumOf(), int_sums);
  if (search.top_k > 0 && search.top_k < total_count && count_before < search.top_k &&
      count_before + count >= search.top_k) {
    int n = count_before;
    uint64_t m = mass_before;
    bool found = false;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      if (!found && n + counts[i] >= search.top_k) {
        found = true;
        bounds.k_bucket = own + i;
        bounds.k_before = n;
        bounds.k_mass = m;
        k_mass_most = m + masses[i];
      }
      n += counts[i];
      m += masses[i];
    }
  }
  __syncthreads();
  if (search.limits_mass()) {
    const auto find = [&](uint64_t wanted, auto use) {
      if (!(mass_before < wanted && mass_before + mass >= wanted)) return;
      uint64_t m = mass_before;
      bool found = false;
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        if (!found && m + masses[i] >= wanted) {
          found = true;
          use(own + i, m);
        }
        m += masses[i];
      }
    };
    find(WantedMass(search.top_p, bounds.k_mass), [&](int bucket, uint64_t before) {
      bounds.first = bucket;
      bounds.first_mass = before;
    });
    find(WantedMass(search.top_p, k_mass_most),
         [&](int bucket, uint64_t) { bounds.last = bucket; });
  } else if (search.lists_best != 0 && threadIdx.x == 0) {
    bounds.first = 0;
    bounds.last = min(bounds.k_bucket, kBuckets - 1);
  }
  __syncthreads();
  return bounds;
}

__device__ __forceinline__ bool IsListed(const Bounds& bounds, int bucket) {
  return (bucket >= bounds.first && bucket <= bounds.last) || bucket == bounds.k_bucket;
}

__global__ void __launch_bounds__(kThreads) CollectKernel(Group g) {
  __shared__ uint64_t keys[kWarp];
  ptx::WaitForPredecessor();
  ptx::LaunchSuccessor();
  const int chunk = static_cast<int>(blockIdx.x), s = static_cast<int>(blockIdx.y);
  const Search search = g.search_table[s];
  const Sight sight(g, search);
  if (sight.empty()) return;
  float logits[kPerThread];
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) logits[i] = sight.Logit(TokenAt(chunk, i));
  Bounds bounds = {.k_bucket = kBuckets, .first = kBuckets, .last = -1};
  if (search.top_k > 0 || search.limits_mass()) bounds = FindBounds(g, s, search);
  if (chunk == 0 && threadIdx.x == 0) g.w.bounds[s] = bounds;

  const int surely_kept = min(bounds.first, bounds.k_bucket);  // buckets before it
  uint64_t mass = 0;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int token = TokenAt(chunk, i);
    const float logit = logits[i];
    if (logit == -INFINITY) continue;
    const int bucket = sight.Bucket(logit);
    if (bucket < surely_kept) {
      const float weight = sight.Weight(logit);
      if (weight >= search.min_p) mass += MassOf(weight);
    } else if (IsListed(bounds, bucket)) {
      const int at = atomicAdd(&g.w.listed[s], 1);
      if (at < kMaxListed) g.w.list[s * kMaxListed + at] = token;
    }
  }
  mass = Reduce(mass, uint64_t{0}, SumOf(), keys);
  if (threadIdx.x == 0) g.w.chunk_mass[s * g.chunks + chunk] = mass;
}

// ---- Choice ----

// Arrays of a CTA of kChooseThreads.
struct ChooseShared {
  uint64_t keys[kMaxListed];
  uint64_t chunk_mass[kMaxChunks];
  uint64_t reduce[kWarp];
  int reduce_int[kWarp];
  int chunk;
  uint64_t rest;
  int token;
  int gathered;
  int drawn_slot;  // of the row, thread 0's
};

constexpr int kListedPerThread = kMaxListed / kChooseThreads;

// Long lists: the key of the token at which `measure`, summed from the best token on, reaches
// `wanted`. Bit by bit, each with a pass over the row.
template <typename Measure>
__device__ __noinline__ uint64_t CrossingKey(const Sight& sight, uint64_t wanted, Measure measure,
                                             uint64_t* shared) {
  uint64_t key = 0;
  for (int bit = 63; bit >= 0; --bit) {
    if (bit < 32 && (int64_t{1} << bit) > sight.end()) continue;
    const uint64_t trial = key | (uint64_t{1} << bit);
    uint64_t sum = 0;
    for (int token = static_cast<int>(threadIdx.x); token < sight.end(); token += kChooseThreads) {
      const float logit = sight.Logit(token);
      if (logit > -INFINITY && RankKey(logit, token) < trial) sum += measure(logit);
    }
    if (Reduce(sum, uint64_t{0}, SumOf(), shared) < wanted) key = trial;
  }
  return key;
}

__device__ __forceinline__ uint64_t CutOfRow(const Sight& sight, const Search& search,
                                             const Bounds& bounds, ChooseShared& shared) {
  uint64_t cut = kNone, mass = bounds.total_mass;
  const auto mass_of = [&](float logit) { return sight.Mass(logit); };
  if (bounds.k_bucket < kBuckets) {
    cut = CrossingKey(
        sight, static_cast<uint64_t>(search.top_k), [](float) { return uint64_t{1}; },
        shared.reduce);
    uint64_t sum = 0;
    for (int token = static_cast<int>(threadIdx.x); token < sight.end(); token += kChooseThreads) {
      const float logit = sight.Logit(token);
      if (logit > -INFINITY && RankKey(logit, token) <= cut) sum += sight.Mass(logit);
    }
    mass = Reduce(sum, uint64_t{0}, SumOf(), shared.reduce);
  }
  if (!search.limits_mass()) return cut;
  const uint64_t wanted = WantedMass(search.top_p, mass);
  return MinOf()(cut, CrossingKey(sight, wanted, mass_of, shared.reduce));
}

// shared.keys[0, n) in ascending order, the best token first; what follows up to a power of two is
// kNone. Bitonic.
__device__ __forceinline__ void SortKeys(int n, ChooseShared& shared) {
  int size = 1;
  while (size < n) size *= 2;
  for (int i = n + static_cast<int>(threadIdx.x); i < size; i += kChooseThreads)
    shared.keys[i] = kNone;
  __syncthreads();
  for (int run = 2; run <= size; run *= 2) {
    for (int apart = run / 2; apart > 0; apart /= 2) {
      for (int i = static_cast<int>(threadIdx.x); i < size / 2; i += kChooseThreads) {
        const int low = 2 * i - (i & (apart - 1)), high = low + apart;
        const uint64_t a = shared.keys[low], b = shared.keys[high];
        const bool ascending = (low & run) == 0;
        if ((a > b) == ascending) {
          shared.keys[low] = b;
          shared.keys[high] = a;
        }
      }
      __syncthreads();
    }
  }
}

// The listed tokens' keys to shared memory, sorted.
__device__ __forceinline__ void LoadList(const Group& g, int s, int n, const Sight& sight,
                                         ChooseShared& shared) {
  for (int i = static_cast<int>(threadIdx.x); i < n; i += kChooseThreads) {
    const int token = g.w.list[s * kMaxListed + i];
    shared.keys[i] = RankKey(sight.Logit(token), token);
  }
  SortKeys(n, shared);
}

// The key of the worst token that top-k and top-p keep, from the sorted list.
__device__ __forceinline__ uint64_t CutOfList(const Sight& sight, const Search& search,
                                              const Bounds& bounds, int n, ChooseShared& shared) {
  const int first = static_cast<int>(threadIdx.x) * kListedPerThread;
  int buckets[kListedPerThread];
  uint64_t masses[kListedPerThread];
  int before_k = 0;  // listed tokens before k_bucket
#pragma unroll
  for (int e = 0; e < kListedPerThread; ++e) {
    const bool exists = first + e < n;
    const float logit = exists ? LogitOf(shared.keys[first + e]) : 0.0f;
    buckets[e] = exists ? sight.Bucket(logit) : kBuckets + 1;
    masses[e] = exists ? sight.Mass(logit) : 0;
    before_k += buckets[e] < bounds.k_bucket;
  }
  before_k = Reduce(before_k, 0, SumOf(), shared.reduce_int);
  const auto within_k = [&](int e) {
    return buckets[e] < bounds.k_bucket ||
           (buckets[e] == bounds.k_bucket &&
            bounds.k_before + (first + e - before_k) < search.top_k);
  };
  uint64_t k_mass = 0, listed_mass = 0;  // of k_bucket; of [first, last]
#pragma unroll
  for (int e = 0; e < kListedPerThread; ++e) {
    if (buckets[e] == bounds.k_bucket && within_k(e)) k_mass += masses[e];
    if (buckets[e] < bounds.first || buckets[e] > bounds.last) masses[e] = 0;
    listed_mass += masses[e];
  }
  const uint64_t mass = bounds.k_mass + Reduce(k_mass, uint64_t{0}, SumOf(), shared.reduce);
  const uint64_t wanted = WantedMass(search.top_p, mass);
  uint64_t reached = bounds.first_mass + SumBefore(listed_mass, shared.reduce);
  int kept = 0;  // tokens of the list up to the worst kept one
#pragma unroll
  for (int e = 0; e < kListedPerThread; ++e) {
    const bool in_reach = !search.limits_mass() || (buckets[e] >= bounds.first &&
                                                    buckets[e] <= bounds.last && reached < wanted);
    if (first + e < n && in_reach && within_k(e)) kept = first + e + 1;
    reached += masses[e];
  }
  kept = Reduce(kept, 0, MaxOf(), shared.reduce_int);
  return kept > 0 ? shared.keys[kept - 1] : 0;
}

// Draws from what the search keeps; -1 if that is nothing.
__device__ __forceinline__ int Draw(const Group& g, int s, const Search& search, const Sight& sight,
                                    ChooseShared& shared) {
  const Bounds bounds = g.w.bounds[s];
  const bool limited = bounds.k_bucket < kBuckets || bounds.last >= bounds.first;
  const int n = limited ? g.w.listed[s] : 0;
  const bool fits = n <= kMaxListed;
  for (int c = static_cast<int>(threadIdx.x); c < g.chunks; c += kChooseThreads)
    shared.chunk_mass[c] = fits ? g.w.chunk_mass[s * g.chunks + c] : 0;
  uint64_t cut = kNone;
  if (limited && fits) {
    LoadList(g, s, n, sight, shared);
    cut = CutOfList(sight, search, bounds, n, shared);
  } else if (limited) {
    cut = CutOfRow(sight, search, bounds, shared);
  }
  const auto kept_mass = [&](float logit, int token) -> uint64_t {
    if (logit == -INFINITY || RankKey(logit, token) > cut) return 0;
    const float weight = sight.Weight(logit);
    return weight >= search.min_p ? MassOf(weight) : 0;
  };
  const auto add = [&](float logit, int token) {
    const uint64_t mass = kept_mass(logit, token);
    if (mass != 0)
      atomicAdd(reinterpret_cast<unsigned long long*>(&shared.chunk_mass[token / kChunk]), mass);
  };
  __syncthreads();
  if (fits) {
    for (int i = static_cast<int>(threadIdx.x); i < n; i += kChooseThreads)
      add(LogitOf(shared.keys[i]), TokenOf(shared.keys[i]));
  } else {
    for (int token = static_cast<int>(threadIdx.x); token < sight.end(); token += kChooseThreads)
      add(sight.Logit(token), token);
  }
  __syncthreads();

  // The chunk, then the token, whose cumulative mass is the first beyond the target.
  const int self = static_cast<int>(threadIdx.x);
  const uint64_t own = self < g.chunks ? shared.chunk_mass[self] : 0;
  const uint64_t total = Reduce(own, uint64_t{0}, SumOf(), shared.reduce);
  if (total == 0) return -1;
  const uint64_t target =
      MinOf()(static_cast<uint64_t>(search.uniform * static_cast<double>(total)), total - 1);
  const uint64_t before = SumBefore(own, shared.reduce);
  if (before <= target && target < before + own) {
    shared.chunk = self;
    shared.rest = target - before;
  }
  __syncthreads();
  constexpr int kOwn = static_cast<int>(kChunk) / kChooseThreads;
  const int first = shared.chunk * static_cast<int>(kChunk) + self * kOwn;
  float logits[kOwn];
#pragma unroll
  for (int i = 0; i < kOwn; ++i) logits[i] = sight.Logit(first + i);
  uint64_t masses[kOwn], sum = 0;
#pragma unroll
  for (int i = 0; i < kOwn; ++i) sum += masses[i] = kept_mass(logits[i], first + i);
  uint64_t reached = SumBefore(sum, shared.reduce);
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    if (reached <= shared.rest && shared.rest < reached + masses[i]) shared.token = first + i;
    reached += masses[i];
  }
  __syncthreads();
  return shared.token;
}

// The raw logits' normaliser, and their hash before it is mixed.
struct RawScale {
  float largest;
  float log_sum;
  uint64_t hash_sum;

  __device__ float Logprob(float logit) const { return (logit - largest) - log_sum; }
};

// Every warp works it out for itself, in the same order.
__device__ __forceinline__ RawScale ScaleOfRow(const Group& g, int r, uint64_t best_raw) {
  const float largest = LogitOf(best_raw);
  float sum = 0.0f;
  uint64_t hash = 0;
  for (int c = static_cast<int>(threadIdx.x) % kWarp; c < g.chunks; c += kWarp) {
    const ChunkSurvey& survey = g.w.surveys[r * g.chunks + c];
    hash += survey.hash_sum;
    if (survey.best_raw != kNone) sum += survey.raw_sum * expf(LogitOf(survey.best_raw) - largest);
  }
  return {largest, logf(SumOf().OverWarp(sum)), SumOf().OverWarp(hash)};
}

__device__ __forceinline__ int Choose(const Group& g, int r, uint64_t best_raw, uint64_t best,
                                      ChooseShared& shared) {
  if (best == kNone) {  // every token is ruled out
    const uint64_t allowed =
        BestOfChunks(g.w.surveys + r * g.chunks, g.chunks, &ChunkSurvey::best_allowed);
    return TokenOf(allowed != kNone ? allowed : best_raw);
  }
  const int s = g.row_table != nullptr ? g.row_table[r].search : -1;
  if (s < 0) return TokenOf(best);
  const Search search = g.search_table[s];
  const Sight sight(g, search);
  const int drawn = Draw(g, s, search, sight, shared);
  return drawn >= 0 ? drawn : TokenOf(best);
}

// Raw tokens of the row that are better than the given one.
__device__ __forceinline__ int BetterInRow(const Group& g, int r, int token, ChooseShared& shared) {
  const float* logits = g.logits + r * g.stride;
  const uint64_t key = RankKey(Clean(logits[token]), token);
  int better = 0;
  for (int i = static_cast<int>(threadIdx.x); i < g.vocab; i += kChooseThreads)
    better += RankKey(Clean(logits[i]), i) < key;
  return Reduce(better, 0, SumOf(), shared.reduce_int);
}

// The chosen token's result. Where it is not the best raw one RankKernel follows; but not for rows
// that take the best token before the vocabulary's padding, which hardly ever differ.
__device__ __forceinline__ void ChooseOfRow(const Group& g, int r, ChooseShared& shared) {
  const auto [best_raw, best] = BestOfRow(g.w.surveys + r * g.chunks, g.chunks);
  const bool broken = !IsToken(best_raw);
  const int token = broken ? 0 : Choose(g, r, best_raw, best, shared);
  const RawScale scale = ScaleOfRow(g, r, best_raw);
  const bool is_best = !broken && token == TokenOf(best_raw);
  int rank = 1;
  if (!broken && !is_best && g.row_table == nullptr) rank += BetterInRow(g, r, token, shared);
  if (threadIdx.x != 0) return;
  const float logit = is_best || broken ? LogitOf(best_raw) : g.logits[r * g.stride + token];
  g.results[r] = {.token = token,
                  .logprob = broken ? 0.0f : scale.Logprob(logit),
                  .rank = broken ? 0 : rank,
                  .broken = broken,
                  .logits_hash = FinishLogitsHash(scale.hash_sum)};
  if (shared.drawn_slot >= 0) g.drawn[shared.drawn_slot] = token;
  g.w.chosen[r] = broken || is_best ? -1 : token;
}

// The best raw tokens, in order.
__device__ __forceinline__ void ListBest(const Group& g, int s, ChooseShared& shared) {
  const Search search = g.search_table[s];
  if (search.lists_best == 0) return;
  const Sight sight(g, search);
  if (sight.empty()) return;
  int n = g.w.listed[s];
  if (n <= kMaxListed) {
    LoadList(g, s, n, sight, shared);
  } else {
    const uint64_t worst = CrossingKey(
        sight, static_cast<uint64_t>(search.top_k), [](float) { return uint64_t{1}; },
        shared.reduce);
    if (threadIdx.x == 0) shared.gathered = 0;
    __syncthreads();
    for (int token = static_cast<int>(threadIdx.x); token < sight.end(); token += kChooseThreads) {
      const float logit = sight.Logit(token);
      const uint64_t key = RankKey(logit, token);
      if (logit > -INFINITY && key <= worst) shared.keys[atomicAdd(&shared.gathered, 1)] = key;
    }
    __syncthreads();
    n = shared.gathered;
    SortKeys(n, shared);
  }
  const uint64_t best_raw =
      BestOfChunks(g.w.surveys + search.row * g.chunks, g.chunks, &ChunkSurvey::best_raw);
  const RawScale scale = ScaleOfRow(g, search.row, best_raw);
  for (int i = static_cast<int>(threadIdx.x); i < min(n, search.top_k); i += kChooseThreads) {
    g.top_tokens[search.top_at + i] = TokenOf(shared.keys[i]);
    g.top_logprobs[search.top_at + i] = scale.Logprob(LogitOf(shared.keys[i]));
  }
}

// CTAs [0, R) choose tokens, the next S list the best ones.
__global__ void __launch_bounds__(kChooseThreads) ChooseKernel(Group g) {
  __shared__ ChooseShared shared;
  const int at = static_cast<int>(blockIdx.x);
  if (threadIdx.x == 0 && at < g.rows)
    shared.drawn_slot = g.drawn_slots != nullptr ? g.drawn_slots[at] : g.drawn_slot[at];
  ptx::WaitForPredecessor();
  ptx::LaunchSuccessor();
  if (at < g.rows) {
    ChooseOfRow(g, at, shared);
  } else {
    ListBest(g, at - g.rows, shared);
  }
}

__global__ void __launch_bounds__(kThreads) RankKernel(Group g) {
  __shared__ int counts[kWarp];
  ptx::WaitForPredecessor();
  ptx::LaunchSuccessor();
  const int chunk = static_cast<int>(blockIdx.x), r = static_cast<int>(blockIdx.y);
  const int chosen = g.w.chosen[r];
  if (chosen < 0) return;
  const float* logits = g.logits + r * g.stride;
  const uint64_t key = RankKey(Clean(logits[chosen]), chosen);
  float values[kPerThread];
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) values[i] = LogitBefore(logits, TokenAt(chunk, i), g.vocab);
  int better = 0;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int token = TokenAt(chunk, i);
    better += token < g.vocab && RankKey(values[i], token) < key;
  }
  better = Reduce(better, 0, SumOf(), counts);
  if (threadIdx.x != 0) return;
  atomicAdd(&g.w.better[r], better);
  __threadfence();
  if (atomicAdd(&g.w.ranked_chunks[r], 1) + 1 < g.chunks) return;
  __threadfence();
  g.results[r].rank = 1 + atomicAdd(&g.w.better[r], 0);
}

}  // namespace nibble::kernels::cuda::sampling
