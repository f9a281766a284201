#include "kernels/cuda/sample/sample.h"

#include <algorithm>
#include <limits>

#include "base/check.h"
#include "device/device.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/sample/packing.h"
#include "kernels/cuda/sample/sample_kernels.cuh"

namespace nibble::kernels::cuda {
namespace {

using namespace sampling;

// Hands out 256-byte aligned arrays; with a null base it counts.
class Arranger {
 public:
  explicit Arranger(std::byte* base) : base_(base) {}
  template <typename T>
  T* Take(int64_t n) {
    const size_t at = bytes_;
    bytes_ += (static_cast<size_t>(n) * sizeof(T) + 255) / 256 * 256;
    return base_ != nullptr ? reinterpret_cast<T*>(base_ + at) : nullptr;
  }
  size_t bytes() const { return bytes_; }

 private:
  std::byte* base_;
  size_t bytes_ = 0;
};

Workspace Arrange(std::byte* base, int64_t rows, int64_t vocab, size_t* bytes) {
  const int64_t chunks = Chunks(vocab), searches = 2 * rows;
  Arranger arrange(base);
  Workspace w;
  w.processed = arrange.Take<float>(rows * vocab);
  w.surveys = arrange.Take<ChunkSurvey>(rows * chunks);
  w.histogram_mass = arrange.Take<uint64_t>(searches * kBuckets);
  w.histogram_count = arrange.Take<int32_t>(searches * kBuckets);
  w.chunk_mass = arrange.Take<uint64_t>(searches * chunks);
  w.bounds = arrange.Take<Bounds>(searches);
  w.listed = arrange.Take<int32_t>(searches);
  w.list = arrange.Take<int32_t>(searches * kMaxListed);
  w.chosen = arrange.Take<int32_t>(rows);
  w.better = arrange.Take<int32_t>(rows);
  w.ranked_chunks = arrange.Take<int32_t>(rows);
  w.uploaded_bytes = MaxUploadBytes(vocab);
  w.uploaded = arrange.Take<std::byte>(w.uploaded_bytes);
  *bytes = arrange.bytes();
  return w;
}

// Pinned memory of the host, made at a device's first call: what is uploaded, and what the kernels
// write back. Free again when Sample returns.
struct Staging {
  std::byte* upload = nullptr;
  int64_t upload_bytes = 0;
  Result* results = nullptr;
  int32_t* top_tokens = nullptr;
  float* top_logprobs = nullptr;

  void Reserve(int64_t bytes) {
    if (results == nullptr) {
      results = Pinned<Result>(kMaxGroup);
      top_tokens = Pinned<int32_t>(kResultTops);
      top_logprobs = Pinned<float>(kResultTops);
    }
    if (upload_bytes >= bytes) return;
    cudaFreeHost(upload);
    upload = Pinned<std::byte>(bytes);
    upload_bytes = bytes;
  }

 private:
  template <typename T>
  static T* Pinned(int64_t n) {
    void* memory = nullptr;
    const cudaError_t error =
        cudaHostAlloc(&memory, static_cast<size_t>(n) * sizeof(T), cudaHostAllocMapped);
    NIBBLE_CHECK(error == cudaSuccess, "cannot pin {} bytes of the host's memory for sampling: {}",
                 n * static_cast<int64_t>(sizeof(T)), cudaGetErrorString(error));
    return static_cast<T*>(memory);
  }
};

constexpr int kMaxDevices = 64;

int CurrentIndex() {
  int index = 0;
  cudaGetDevice(&index);
  return index;
}

void LaunchGroup(const Group& g, const PackedGroup& packed, cudaStream_t stream) {
  const auto chunks = static_cast<unsigned>(g.chunks);
  const dim3 rows(chunks, static_cast<unsigned>(g.rows));
  const dim3 searches(chunks, static_cast<unsigned>(g.searches));
  constexpr int64_t kFetched = int64_t{kThreads} * 16;
  LaunchPdl(FetchKernel, static_cast<unsigned>((g.upload_bytes + kFetched - 1) / kFetched),
            kThreads, 0, stream, g);
  LaunchPdl(SurveyKernel, rows, kThreads, 0, stream, g);
  if (packed.histogram) LaunchPdl(HistogramKernel, searches, kThreads, 0, stream, g);
  LaunchPdl(CollectKernel, searches, kThreads, 0, stream, g);
  LaunchPdl(ChooseKernel, static_cast<unsigned>(g.rows + g.searches), kChooseThreads, 0, stream, g);
  if (g.row_table != nullptr) LaunchPdl(RankKernel, rows, kThreads, 0, stream, g);
}

// The results of rows [first, first + packed.rows) to the caller.
void HandOver(const SampleParams& p, int64_t first, const PackedGroup& packed,
              const Staging& staging) {
  int64_t top_at = 0;
  for (int64_t r = 0; r < packed.rows; ++r) {
    const Result& result = staging.results[r];
    p.out[first + r] = {result.token, result.logprob, result.rank};
    if (p.top_tokens == nullptr) continue;
    const int64_t wanted =
        std::clamp<int64_t>(p.rows[first + r].top_logprobs, 0, p.max_top_logprobs);
    int32_t* tokens = p.top_tokens + (first + r) * p.max_top_logprobs;
    float* logprobs = p.top_logprobs + (first + r) * p.max_top_logprobs;
    std::fill_n(tokens, p.max_top_logprobs, -1);
    std::fill_n(logprobs, p.max_top_logprobs, -std::numeric_limits<float>::infinity());
    std::copy_n(staging.top_tokens + top_at, wanted, tokens);
    std::copy_n(staging.top_logprobs + top_at, wanted, logprobs);
    top_at += wanted;
  }
}

}  // namespace

size_t SampleWorkspace(int /*threads*/, int64_t max_rows, int64_t vocab) {
  size_t bytes = 0;
  Arrange(nullptr, std::min(max_rows, kMaxGroup), vocab, &bytes);
  return bytes;
}

void Sample(const OpContext& context, const SampleParams& p) {
  NIBBLE_CHECK(Chunks(p.vocab) <= kMaxChunks, "a vocabulary of {}; at most {}", p.vocab,
               kMaxChunks * kChunk);
  static Staging stagings[kMaxDevices];
  const int index = CurrentIndex();
  const auto device = CudaDevice(index);
  NIBBLE_CHECK(device && index < kMaxDevices, "sampling on GPU {}", index);
  Staging& staging = stagings[index];
  staging.Reserve(MaxUploadBytes(p.vocab));

  const auto total = static_cast<int64_t>(p.rows.size());
  const int64_t max_top = p.top_tokens != nullptr ? p.max_top_logprobs : 0;
  size_t bytes = 0;
  const Workspace w = Arrange(context.workspace, std::min(total, kMaxGroup), p.vocab, &bytes);
  for (int64_t first = 0; first < total;) {
    const PackedGroup packed =
        Pack(p.rows.subspan(first), p.vocab, max_top, staging.upload, w.uploaded_bytes);
    std::fill_n(staging.top_tokens, packed.tops, -1);
    std::fill_n(staging.top_logprobs, packed.tops, -std::numeric_limits<float>::infinity());
    const bool uploads = packed.bytes > 0;
    const Group group = {
        .logits = p.logits + first * p.logits_stride,
        .stride = p.logits_stride,
        .vocab = static_cast<int32_t>(p.vocab),
        .chunks = static_cast<int32_t>(Chunks(p.vocab)),
        .rows = packed.rows,
        .searches = packed.searches,
        .end = packed.end,
        .uploads = staging.upload,
        .upload_bytes = packed.bytes,
        .row_table = uploads ? reinterpret_cast<const Row*>(w.uploaded) : nullptr,
        .search_table = reinterpret_cast<const Search*>(w.uploaded + packed.searches_at),
        .edits = w.uploaded + packed.edits_at,
        .w = w,
        .results = staging.results,
        .top_tokens = staging.top_tokens,
        .top_logprobs = staging.top_logprobs};
    LaunchGroup(group, packed, StreamOf(context));
    (*device)->Synchronize();
    HandOver(p, first, packed, staging);
    first += packed.rows;
  }
}

}  // namespace nibble::kernels::cuda
