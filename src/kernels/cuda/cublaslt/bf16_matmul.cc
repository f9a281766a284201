// The yardstick of long prompts: BF16 matrices by cuBLASLt, where a toolkit's is installed. Opened
// while a benchmark runs, never linked: the product does without it.
#include <cuda_runtime.h>
#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "kernels/benchmark_ops.h"

namespace nibble::kernels {
namespace {

// What cublasLt.h of CUDA 12 and 13 declares, as far as it is used here.
using Handle = void*;
constexpr int kCompute32F = 68;        // CUBLAS_COMPUTE_32F
constexpr int kTransposeA = 3;         // CUBLASLT_MATMUL_DESC_TRANSA
constexpr int32_t kTransposed = 1;     // CUBLAS_OP_T
constexpr int kMaxWorkspaceBytes = 1;  // CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES
struct Algorithm {
  uint64_t data[8];
};
struct Heuristic {
  Algorithm algorithm;
  size_t workspace_bytes;
  int state;
  float waves;
  int reserved[4];
};

class CublasLt {
 public:
  int (*create)(Handle*);
  int (*destroy)(Handle);
  int (*create_matmul)(Handle*, int, int);
  int (*destroy_matmul)(Handle);
  int (*set_matmul)(Handle, int, const void*, size_t);
  int (*create_layout)(Handle*, int, uint64_t, uint64_t, int64_t);
  int (*destroy_layout)(Handle);
  int (*create_preference)(Handle*);
  int (*destroy_preference)(Handle);
  int (*set_preference)(Handle, int, const void*, size_t);
  int (*choose)(Handle, Handle, Handle, Handle, Handle, Handle, Handle, int, Heuristic*, int*);
  int (*matmul)(Handle, Handle, const void*, const void*, Handle, const void*, Handle, const void*,
                const void*, Handle, void*, Handle, const Algorithm*, void*, size_t, cudaStream_t);

  // Null where there is none.
  static const CublasLt* Open() {
    static const CublasLt* const library = []() -> const CublasLt* {
      static CublasLt functions;
      void* file = nullptr;
      for (const char* name :
           {"libcublasLt.so.13", "libcublasLt.so.12", "/usr/local/cuda/lib64/libcublasLt.so"}) {
        file = ::dlopen(name, RTLD_NOW | RTLD_LOCAL);
        if (file != nullptr) break;
      }
      return file != nullptr && functions.Load(file) ? &functions : nullptr;
    }();
    return library;
  }

 private:
  bool Load(void* file) {
    bool all = true;
    const auto load = [&](auto& function, const char* name) {
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(::dlsym(file, name));
      all = all && function != nullptr;
    };
    load(create, "cublasLtCreate");
    load(destroy, "cublasLtDestroy");
    load(create_matmul, "cublasLtMatmulDescCreate");
    load(destroy_matmul, "cublasLtMatmulDescDestroy");
    load(set_matmul, "cublasLtMatmulDescSetAttribute");
    load(create_layout, "cublasLtMatrixLayoutCreate");
    load(destroy_layout, "cublasLtMatrixLayoutDestroy");
    load(create_preference, "cublasLtMatmulPreferenceCreate");
    load(destroy_preference, "cublasLtMatmulPreferenceDestroy");
    load(set_preference, "cublasLtMatmulPreferenceSetAttribute");
    load(choose, "cublasLtMatmulAlgoGetHeuristic");
    load(matmul, "cublasLtMatmul");
    return all;
  }
};

constexpr int kAlgorithms = 8;
constexpr int kLaunches = 4;
constexpr int kRuns = 4;
constexpr size_t kWorkspaceBytes = size_t{64} << 20;

// Memory of one product, y (M, N) = x (M, K) * weight (N, K) transposed.
struct Operands {
  void* x = nullptr;
  void* weight = nullptr;
  void* y = nullptr;
  void* workspace = nullptr;
  bool complete = false;

  Operands(int64_t m, int64_t n, int64_t k) {
    complete = Make(&x, m * k) && Make(&weight, n * k) && Make(&y, m * n) &&
               cudaMalloc(&workspace, kWorkspaceBytes) == cudaSuccess;
    if (!complete) cudaGetLastError();
  }
  ~Operands() {
    for (void* memory : {x, weight, y, workspace}) cudaFree(memory);
  }
  Operands(const Operands&) = delete;
  Operands& operator=(const Operands&) = delete;

 private:
  // Values of all sizes: products of zeros take less power, and thus less time.
  static bool Make(void** memory, int64_t values) {
    if (cudaMalloc(memory, static_cast<size_t>(values) * 2) != cudaSuccess) return false;
    std::vector<uint16_t> piece(size_t{1} << 20);
    uint32_t state = 0x9E3779B9u;
    for (uint16_t& value : piece) {
      state = state * 1664525u + 1013904223u;
      value = static_cast<uint16_t>(0x3F00u + (state >> 16 & 0x80FFu));
    }
    for (int64_t at = 0; at < values; at += static_cast<int64_t>(piece.size())) {
      const int64_t count = std::min<int64_t>(values - at, static_cast<int64_t>(piece.size()));
      cudaMemcpy(static_cast<uint16_t*>(*memory) + at, piece.data(), static_cast<size_t>(count) * 2,
                 cudaMemcpyHostToDevice);
    }
    return true;
  }
};

}  // namespace

double CudaBf16MatmulSeconds(int64_t m, int64_t n, int64_t k) {
  const CublasLt* const blas = CublasLt::Open();
  if (blas == nullptr) return 0;
  const Operands operands(m, n, k);
  if (!operands.complete) return 0;
  cudaStream_t stream;
  cudaEvent_t begin, end;
  cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  cudaEventCreate(&begin);
  cudaEventCreate(&end);
  Handle handle = nullptr, matmul = nullptr, preference = nullptr;
  std::array<Handle, 3> layouts = {};  // weight (K, N), x (K, M), y (N, M), columns contiguous
  blas->create(&handle);
  blas->create_matmul(&matmul, kCompute32F, CUDA_R_32F);
  blas->set_matmul(matmul, kTransposeA, &kTransposed, sizeof(kTransposed));
  blas->create_layout(&layouts[0], CUDA_R_16BF, static_cast<uint64_t>(k), static_cast<uint64_t>(n),
                      k);
  blas->create_layout(&layouts[1], CUDA_R_16BF, static_cast<uint64_t>(k), static_cast<uint64_t>(m),
                      k);
  blas->create_layout(&layouts[2], CUDA_R_16BF, static_cast<uint64_t>(n), static_cast<uint64_t>(m),
                      n);
  blas->create_preference(&preference);
  blas->set_preference(preference, kMaxWorkspaceBytes, &kWorkspaceBytes, sizeof(kWorkspaceBytes));
  std::array<Heuristic, kAlgorithms> found = {};
  int count = 0;
  blas->choose(handle, matmul, layouts[0], layouts[1], layouts[2], layouts[2], preference,
               kAlgorithms, found.data(), &count);
  const float one = 1.0f, zero = 0.0f;
  float best = 0;
  for (int i = 0; i < count; ++i) {
    for (int run = 0; run < kRuns; ++run) {
      bool runs = true;
      cudaEventRecord(begin, stream);
      for (int launch = 0; launch < kLaunches; ++launch)
        runs = runs &&
               blas->matmul(handle, matmul, &one, operands.weight, layouts[0], operands.x,
                            layouts[1], &zero, operands.y, layouts[2], operands.y, layouts[2],
                            &found[i].algorithm, operands.workspace, kWorkspaceBytes, stream) == 0;
      cudaEventRecord(end, stream);
      cudaEventSynchronize(end);
      float milliseconds = 0;
      if (!runs || cudaEventElapsedTime(&milliseconds, begin, end) != cudaSuccess) break;
      if (run > 0 && (best == 0 || milliseconds < best)) best = milliseconds;
    }
  }
  blas->destroy_preference(preference);
  for (Handle layout : layouts) blas->destroy_layout(layout);
  blas->destroy_matmul(matmul);
  blas->destroy(handle);
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  cudaStreamDestroy(stream);
  return best * 1e-3 / kLaunches;
}

}  // namespace nibble::kernels
