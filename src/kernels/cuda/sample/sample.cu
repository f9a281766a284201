#include "kernels/cuda/sample/sample.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "base/check.h"
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

// Pinned memory of the host that uploads pass through, a few areas in turn: one is filled anew only
// when the kernels have fetched what it held. Made at a device's first call. Errors surface through
// Device::failure(): after one that stays, waiting ends at once and nothing runs any more.
class UploadAreas {
 public:
  // An area of at least so many bytes; null where the host's memory cannot be pinned.
  std::byte* Next(int64_t bytes) {
    if (bytes_ < bytes && !Make(bytes)) return nullptr;
    turn_ = (turn_ + 1) % kAreas;
    cudaEventSynchronize(fetched_[turn_]);
    return areas_[turn_];
  }
  // After the launches that fetch it.
  void Fetched(cudaStream_t stream) { cudaEventRecord(fetched_[turn_], stream); }

 private:
  static constexpr int kAreas = 4;

  bool Make(int64_t bytes) {
    bytes_ = 0;
    for (int i = 0; i < kAreas; ++i) {
      if (fetched_[i] == nullptr &&
          cudaEventCreateWithFlags(&fetched_[i], cudaEventDisableTiming) != cudaSuccess)
        return false;
      cudaEventSynchronize(fetched_[i]);
      cudaFreeHost(std::exchange(areas_[i], nullptr));
      void* memory = nullptr;
      if (cudaHostAlloc(&memory, static_cast<size_t>(bytes), cudaHostAllocMapped) != cudaSuccess)
        return false;
      areas_[i] = static_cast<std::byte*>(memory);
    }
    bytes_ = bytes;
    return true;
  }

  std::byte* areas_[kAreas] = {};
  cudaEvent_t fetched_[kAreas] = {};
  int64_t bytes_ = 0;
  int turn_ = 0;
};

constexpr int kMaxDevices = 64;

UploadAreas& AreasOfCurrentDevice() {
  static UploadAreas areas[kMaxDevices];
  int index = 0;
  cudaGetDevice(&index);
  NIBBLE_CHECK(index < kMaxDevices, "sampling on GPU {}", index);
  return areas[index];
}

void LaunchGroup(const Group& g, const PackedGroup& packed, cudaStream_t stream) {
  const auto chunks = static_cast<unsigned>(g.chunks);
  const dim3 rows(chunks, static_cast<unsigned>(g.rows));
  const dim3 searches(chunks, static_cast<unsigned>(g.searches));
  constexpr int64_t kFetched = int64_t{kThreads} * 16;
  LaunchPdl(FetchKernel, static_cast<unsigned>((g.upload_bytes + kFetched - 1) / kFetched),
            kThreads, 0, stream, g);
  LaunchPdl(SurveyKernel, rows, kSurveyThreads, 0, stream, g);
  if (packed.histogram) LaunchPdl(HistogramKernel, searches, kThreads, 0, stream, g);
  LaunchPdl(CollectKernel, searches, kThreads, 0, stream, g);
  LaunchPdl(ChooseKernel, static_cast<unsigned>(g.rows + g.searches), kChooseThreads, 0, stream, g);
  if (g.row_table != nullptr) LaunchPdl(RankKernel, rows, kThreads, 0, stream, g);
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
  const auto total = static_cast<int64_t>(p.rows.size());
  const int64_t max_top = p.top_tokens != nullptr ? p.max_top_logprobs : 0;
  std::fill_n(p.top_tokens, total * max_top, -1);
  std::fill_n(p.top_logprobs, total * max_top, -std::numeric_limits<float>::infinity());
  UploadAreas& areas = AreasOfCurrentDevice();
  size_t bytes = 0;
  const Workspace w = Arrange(context.workspace, std::min(total, kMaxGroup), p.vocab, &bytes);
  for (int64_t first = 0; first < total;) {
    PackedGroup packed = FormGroup(p.rows.subspan(first), p.vocab, max_top, w.uploaded_bytes);
    std::byte* upload = nullptr;
    const bool uploads = !packed.plain;
    if (uploads) {
      upload = areas.Next(w.uploaded_bytes);
      if (upload == nullptr) return;
      Pack(p.rows.subspan(first, packed.rows), p.vocab, max_top, upload, &packed);
    }
    Group group = {.logits = p.logits + first * p.logits_stride,
                   .stride = p.logits_stride,
                   .vocab = static_cast<int32_t>(p.vocab),
                   .chunks = static_cast<int32_t>(Chunks(p.vocab)),
                   .rows = packed.rows,
                   .searches = packed.searches,
                   .end = packed.end,
                   .uploads = upload,
                   .upload_bytes = packed.bytes,
                   .row_table = uploads ? reinterpret_cast<const Row*>(w.uploaded) : nullptr,
                   .search_table = reinterpret_cast<const Search*>(w.uploaded + packed.searches_at),
                   .edits = w.uploaded + packed.edits_at,
                   .w = w,
                   .results = p.out + first,
                   .top_tokens = max_top > 0 ? p.top_tokens + first * max_top : nullptr,
                   .top_logprobs = max_top > 0 ? p.top_logprobs + first * max_top : nullptr,
                   .drawn = p.drawn,
                   .drawn_slots = uploads || p.drawn_slots == nullptr ? nullptr
                                                                      : p.drawn_slots + first};
    for (int32_t r = 0; r < packed.rows; ++r) group.drawn_slot[r] = p.rows[first + r].drawn_slot;
    LaunchGroup(group, packed, StreamOf(context));
    if (uploads) areas.Fetched(StreamOf(context));
    first += packed.rows;
  }
}

}  // namespace nibble::kernels::cuda
