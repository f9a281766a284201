/* nibble's CUDA kernels behind plain C: the W4A16 linear and the mixture of experts, for timing
 * them beside others and for calling them from elsewhere. Example: docs/c-abi.md.
 *
 * Every function but nibble_version, nibble_last_error, nibble_*_workspace, nibble_weight_bytes and
 * the destructors returns a nibble_status; nibble_last_error() then says what was wrong, in words.
 * Nothing throws, and no argument that a function can see ends the process: what it cannot see is
 * whether pointers to device memory are as large as said.
 *
 * Launches go to the caller's stream, allocate nothing, wait for nothing, and may be captured into
 * a CUDA graph. Their kernels load weights while their predecessors on the stream still run, so
 * weights must not change under way.
 *
 * A token's result has the same bits alone and among any number of others.
 *
 * Thread-safety: any thread; nibble_last_error is the calling thread's. One GPU per process.
 */
#ifndef NIBBLE_KERNELS_H
#define NIBBLE_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Of this header. A library serves programs of its own and of smaller versions with the same
 * thousands. */
#define NIBBLE_KERNELS_VERSION 1000

typedef enum nibble_status {
  NIBBLE_OK = 0,
  NIBBLE_INVALID_ARGUMENT = 1, /* a value is wrong */
  NIBBLE_UNSUPPORTED = 2,      /* no GPU, no code for it, or no kernel for such a weight */
  NIBBLE_OUT_OF_MEMORY = 3,
  NIBBLE_FAILED = 4 /* CUDA failed: the GPU can no longer be used by this process */
} nibble_status;

/* NIBBLE_KERNELS_VERSION that the library was built with. */
int32_t nibble_version(void);

/* Of the calling thread's last call that failed; valid until its next one fails. "" if none did. */
const char* nibble_last_error(void);

/* ---- a GPU */

typedef struct nibble_gpu nibble_gpu;

/* NIBBLE_UNSUPPORTED, with the reason, where CUDA cannot be used. */
nibble_status nibble_open(int32_t index, nibble_gpu** gpu);
/* After everything made with it. Null is nothing. */
void nibble_close(nibble_gpu* gpu);
/* "cuda:0 (NVIDIA H200), sm_90a" */
const char* nibble_gpu_name(const nibble_gpu* gpu);

/* ---- weights: packed once, immutable */

typedef struct nibble_weight nibble_weight;

/* Some rows as NVFP4 checkpoints store them, in memory of the host or of the GPU; read before the
 * call returns. */
typedef struct nibble_nvfp4 {
  int64_t rows;
  int64_t columns;    /* a multiple of 16 */
  const void* codes;  /* (rows, columns / 2) bytes: E2M1, the even column in the low bits */
  const void* scales; /* (rows, columns / 16) bytes: E4M3, not negative */
  float scale;        /* of the tensor, a factor: ModelOpt's weight_scale_2, 1 / compressed-tensors'
                         weight_global_scale */
} nibble_nvfp4;

/* Parts of equal width are stacked, each with a scale of its own: q, k and v, or gate and up. */
nibble_status nibble_weight_nvfp4(nibble_gpu* gpu, const nibble_nvfp4* parts, size_t count,
                                  nibble_weight** weight);
/* values: (rows, columns) BF16, in memory of the host or of the GPU. For routers. */
nibble_status nibble_weight_bf16(nibble_gpu* gpu, int64_t rows, int64_t columns, const void* values,
                                 nibble_weight** weight);
/* In memory of the GPU. */
int64_t nibble_weight_bytes(const nibble_weight* weight);
/* When no launch that uses it is under way. Null is nothing. */
void nibble_weight_destroy(nibble_weight* weight);

/* ---- y (tokens, rows) = x (tokens, columns) times the weight transposed, BF16 both, sums in FP32
 */

/* Bytes of device memory, 64-byte aligned, that a launch of up to so many tokens and columns needs.
 */
size_t nibble_linear_workspace(const nibble_gpu* gpu, int64_t tokens, int64_t columns);

/* Strides are in elements. stream: a cudaStream_t or CUstream, or null for the default one. */
nibble_status nibble_linear(nibble_gpu* gpu, const nibble_weight* weight, int64_t tokens,
                            const void* x, int64_t x_stride, void* y, int64_t y_stride,
                            void* workspace, size_t workspace_bytes, void* stream);

/* ---- a mixture of experts: router, choice, experts with SwiGLU, shared expert, weighted sum
 *
 *   y = sum over a token's experts of weight * down(silu(gate x) * (up x))  +  sigmoid(shared_gate
 * x) * shared(x)
 */

typedef struct nibble_moe nibble_moe;

typedef enum nibble_score { NIBBLE_SOFTMAX = 0, NIBBLE_SIGMOID = 1 } nibble_score;

typedef struct nibble_moe_config {
  size_t struct_bytes; /* sizeof(nibble_moe_config) of the program */
  int64_t width;       /* of x and y: D */
  int64_t hidden;      /* of an expert: F */
  int32_t experts;     /* E, at most 1024 */
  int32_t top_k;
  nibble_score score;       /* what the router's logits become */
  int32_t renormalize;      /* nonzero: a token's weights are divided by their sum */
  float routed_scale;       /* the weights' last factor, 1 as a rule */
  const float* choice_bias; /* (E) FP32 on the GPU, added to scores for the choice alone; or null */

  const nibble_weight* router;         /* (E, D) */
  const nibble_weight* const* gate_up; /* E of (2 F, D): rows of gate, then of up */
  const nibble_weight* const* down;    /* E of (D, F) */

  int64_t shared_hidden; /* of the shared expert, 0: there is none and the rest is null */
  const nibble_weight* shared_gate_up; /* (2 shared_hidden, D) */
  const nibble_weight* shared_down;    /* (D, shared_hidden) */
  const nibble_weight* shared_gate;    /* (1, D), or null: the shared expert counts in full */
} nibble_moe_config;

/* Weights may be destroyed before the block is. choice_bias stays the caller's and must outlive it.
 */
nibble_status nibble_moe_create(nibble_gpu* gpu, const nibble_moe_config* config, nibble_moe** moe);
/* As nibble_weight_destroy. */
void nibble_moe_destroy(nibble_moe* moe);

/* As nibble_linear_workspace. */
size_t nibble_moe_workspace(const nibble_moe* moe, int64_t tokens);

/* x and y: (tokens, D) BF16 without gaps. */
nibble_status nibble_moe_run(const nibble_moe* moe, int64_t tokens, const void* x, void* y,
                             void* workspace, size_t workspace_bytes, void* stream);

#ifdef __cplusplus
}
#endif

#endif
