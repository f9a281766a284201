/* A program in plain C that uses the library as others do: arguments that must be refused and,
 * where there is a GPU, results beside sums in double precision. Exit 0 when all is as it should
 * be, 77 when there was no GPU to ask. */
#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "capi/nibble_kernels.h"

static int failures = 0;

static void expect(int condition, const char* what, int line) {
  if (condition) return;
  fprintf(stderr, "line %d: %s (%s)\n", line, what, nibble_last_error());
  ++failures;
}
#define EXPECT(condition) expect((condition) ? 1 : 0, #condition, __LINE__)
#define EXPECT_REFUSED(call, word)                                                              \
  expect((call) == NIBBLE_INVALID_ARGUMENT && strstr(nibble_last_error(), word) != NULL, #call, \
         __LINE__)

/* ---- memory of the GPU, through the driver that every machine with a GPU has */

typedef unsigned long long device_address;
static int (*allocate)(device_address*, size_t);
static int (*to_device)(device_address, const void*, size_t);
static int (*to_host)(void*, device_address, size_t);
static int (*wait_for_all)(void);

static void* symbol(const char* name) {
  static void* driver = NULL;
  if (driver == NULL) driver = dlopen("libcuda.so.1", RTLD_NOW);
  return driver == NULL ? NULL : dlsym(driver, name);
}

static int find_driver(void) {
  *(void**)&allocate = symbol("cuMemAlloc_v2");
  *(void**)&to_device = symbol("cuMemcpyHtoD_v2");
  *(void**)&to_host = symbol("cuMemcpyDtoH_v2");
  *(void**)&wait_for_all = symbol("cuCtxSynchronize");
  return allocate != NULL && to_device != NULL && to_host != NULL && wait_for_all != NULL;
}

static void* device_copy(const void* from, size_t bytes) {
  device_address address = 0;
  EXPECT(allocate(&address, bytes) == 0);
  if (from != NULL) EXPECT(to_device(address, from, bytes) == 0);
  return (void*)(size_t)address;
}

/* ---- numbers */

static uint32_t random_state = 1;
static uint32_t random_bits(void) {
  return (random_state = random_state * 1664525u + 1013904223u) >> 8;
}

static float from_bf16(uint16_t bits) {
  const uint32_t wide = (uint32_t)bits << 16;
  float value;
  memcpy(&value, &wide, sizeof value);
  return value;
}
static uint16_t to_bf16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return (uint16_t)((bits + 0x7FFFu + (bits >> 16 & 1)) >> 16);
}
static double e2m1(int code) {
  static const double values[8] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
  return code & 8 ? -values[code & 7] : values[code & 7];
}
static double e4m3(int code) {
  const int exponent = code >> 3, mantissa = code & 7;
  return exponent == 0 ? ldexp(mantissa, -9) : ldexp(8 + mantissa, exponent - 10);
}

static uint16_t* random_bf16(int64_t count, float spread) {
  uint16_t* values = malloc((size_t)count * 2);
  for (int64_t i = 0; i < count; ++i)
    values[i] = to_bf16(spread * ((float)(random_bits() % 2001) / 1000.0f - 1.0f));
  return values;
}

/* A stored weight and what it means, (rows, columns). */
typedef struct {
  int64_t rows, columns;
  uint8_t *codes, *scales;
  float scale;
  double* values;
} stored;

static stored make_nvfp4(int64_t rows, int64_t columns) {
  stored w = {rows,
              columns,
              malloc((size_t)(rows * columns / 2)),
              malloc((size_t)(rows * columns / 16)),
              0.2f / (float)sqrt((double)columns),
              malloc((size_t)(rows * columns) * sizeof(double))};
  for (int64_t i = 0; i < rows * columns / 2; ++i) w.codes[i] = (uint8_t)random_bits();
  for (int64_t i = 0; i < rows * columns / 16; ++i)
    w.scales[i] = (uint8_t)(0x34 + random_bits() % 12);
  for (int64_t i = 0; i < rows * columns; ++i)
    w.values[i] =
        e2m1(w.codes[i / 2] >> (i % 2 * 4) & 15) * e4m3(w.scales[i / 16]) * (double)w.scale;
  return w;
}

static nibble_nvfp4 part_of(const stored* w) {
  const nibble_nvfp4 part = {w->rows, w->columns, w->codes, w->scales, w->scale};
  return part;
}

static nibble_weight* pack(nibble_gpu* gpu, const stored* w) {
  const nibble_nvfp4 part = part_of(w);
  nibble_weight* weight = NULL;
  EXPECT(nibble_weight_nvfp4(gpu, &part, 1, &weight) == NIBBLE_OK);
  return weight;
}

static double dot(const stored* w, int64_t row, const double* x) {
  double sum = 0;
  for (int64_t i = 0; i < w->columns; ++i) sum += w->values[row * w->columns + i] * x[i];
  return sum;
}

static double sigmoid(double x) { return 1.0 / (1.0 + exp(-x)); }

/* down(silu(gate x) * (up x)), added to y with a weight. */
static void add_expert(const stored* gate_up, const stored* down, const double* x, double weight,
                       double* y) {
  const int64_t hidden = down->columns;
  double* h = malloc((size_t)hidden * sizeof(double));
  for (int64_t i = 0; i < hidden; ++i) {
    const double gate = dot(gate_up, i, x);
    h[i] = gate * sigmoid(gate) * dot(gate_up, hidden + i, x);
  }
  for (int64_t row = 0; row < down->rows; ++row) y[row] += weight * dot(down, row, h);
  free(h);
}

/* ---- what needs no GPU */

static void check_refusals(void) {
  EXPECT(nibble_version() == NIBBLE_KERNELS_VERSION);
  nibble_gpu* gpu = NULL;
  EXPECT_REFUSED(nibble_open(0, NULL), "gpu is null");
  EXPECT(nibble_open(1000, &gpu) == NIBBLE_UNSUPPORTED && gpu == NULL);
  EXPECT(nibble_last_error()[0] != '\0');
  nibble_weight* weight = NULL;
  EXPECT_REFUSED(nibble_weight_nvfp4(NULL, NULL, 0, &weight), "gpu is null");
  EXPECT_REFUSED(nibble_weight_bf16(NULL, 1, 1, NULL, NULL), "weight is null");
  EXPECT_REFUSED(nibble_linear(NULL, NULL, 1, NULL, 1, NULL, 1, NULL, 0, NULL), "gpu is null");
  EXPECT_REFUSED(nibble_moe_run(NULL, 1, NULL, NULL, NULL, 0, NULL), "moe is null");
  nibble_moe* moe = NULL;
  EXPECT_REFUSED(nibble_moe_create(NULL, NULL, &moe), "gpu is null");
  EXPECT(nibble_linear_workspace(NULL, 1, 16) == 0);
  EXPECT(nibble_moe_workspace(NULL, 1) == 0);
  EXPECT(nibble_weight_bytes(NULL) == 0);
  nibble_weight_destroy(NULL);
  nibble_moe_destroy(NULL);
  nibble_close(NULL);
}

/* ---- what needs one */

static void check_weight_refusals(nibble_gpu* gpu) {
  stored w = make_nvfp4(16, 64);
  nibble_nvfp4 part = part_of(&w);
  nibble_weight* weight = NULL;
  part.columns = 60;
  EXPECT_REFUSED(nibble_weight_nvfp4(gpu, &part, 1, &weight), "60");
  part = part_of(&w);
  part.rows = -1;
  EXPECT_REFUSED(nibble_weight_nvfp4(gpu, &part, 1, &weight), "rows is -1");
  part = part_of(&w);
  part.codes = NULL;
  EXPECT_REFUSED(nibble_weight_nvfp4(gpu, &part, 1, &weight), "codes is null");
  part = part_of(&w);
  w.scales[5] = 0x80 | 0x38;
  EXPECT_REFUSED(nibble_weight_nvfp4(gpu, &part, 1, &weight), "row 1");
  EXPECT_REFUSED(nibble_weight_nvfp4(gpu, &part, 0, &weight), "count is 0");
  EXPECT(weight == NULL);
}

/* Every token count has the bits of one token alone, and those are near the sum. */
static void check_linear(nibble_gpu* gpu) {
  enum { kTokens = 200, kColumns = 320 };
  const stored top = make_nvfp4(96, kColumns), bottom = make_nvfp4(40, kColumns);
  const int64_t rows = top.rows + bottom.rows;
  nibble_nvfp4 parts[2] = {part_of(&top), part_of(&bottom)};
  parts[1].codes = device_copy(bottom.codes, (size_t)(bottom.rows * kColumns / 2));
  nibble_weight* weight = NULL;
  EXPECT(nibble_weight_nvfp4(gpu, parts, 2, &weight) == NIBBLE_OK);
  if (weight == NULL) return;
  EXPECT(nibble_weight_bytes(weight) >= rows * kColumns * 9 / 16);

  uint16_t* x = random_bf16(kTokens * kColumns, 1.0f);
  void* device_x = device_copy(x, kTokens * kColumns * 2);
  const size_t y_bytes = (size_t)(kTokens * rows) * 2;
  void* device_y = device_copy(NULL, y_bytes);
  const size_t workspace_bytes = nibble_linear_workspace(gpu, kTokens, kColumns);
  void* workspace = device_copy(NULL, workspace_bytes);
  uint16_t *y = malloc(y_bytes), *first = malloc(y_bytes);
  static const int64_t counts[] = {1, 3, 8, 20, 64, kTokens};
  for (size_t i = 0; i < sizeof counts / sizeof counts[0]; ++i) {
    EXPECT(nibble_linear(gpu, weight, counts[i], device_x, kColumns, device_y, rows, workspace,
                         workspace_bytes, NULL) == NIBBLE_OK);
    EXPECT(wait_for_all() == 0 &&
           to_host(y, (device_address)(size_t)device_y, (size_t)(counts[i] * rows) * 2) == 0);
    if (i == 0) memcpy(first, y, (size_t)rows * 2);
    EXPECT(memcmp(first, y, (size_t)rows * 2) == 0);
  }
  double exact[kColumns];
  for (int64_t token = 0; token < kTokens; ++token) {
    for (int i = 0; i < kColumns; ++i) exact[i] = (double)from_bf16(x[token * kColumns + i]);
    for (int64_t row = 0; row < rows; ++row) {
      const double wanted =
          row < top.rows ? dot(&top, row, exact) : dot(&bottom, row - top.rows, exact);
      if (fabs((double)from_bf16(y[token * rows + row]) - wanted) > 0.004 * fabs(wanted) + 1e-4) {
        EXPECT(!"a sum is far from the exact one");
        return;
      }
    }
  }

  EXPECT_REFUSED(nibble_linear(gpu, weight, 0, device_x, kColumns, device_y, rows, workspace,
                               workspace_bytes, NULL),
                 "tokens is 0");
  EXPECT_REFUSED(
      nibble_linear(gpu, weight, 1, device_x, 1, device_y, rows, workspace, workspace_bytes, NULL),
      "x_stride is 1");
  EXPECT_REFUSED(
      nibble_linear(gpu, weight, 1, device_x, kColumns, device_y, rows, workspace, 1, NULL),
      "workspace");
  nibble_weight_destroy(weight);
}

static void check_moe(nibble_gpu* gpu, int shared) {
  enum { kExperts = 6, kTopK = 2, kWidth = 256, kHidden = 128, kTokens = 70 };
  stored gate_up[kExperts + 1], down[kExperts + 1];
  nibble_weight *packed_gate_up[kExperts + 1], *packed_down[kExperts + 1];
  for (int e = 0; e <= kExperts; ++e) {
    gate_up[e] = make_nvfp4(2 * kHidden, kWidth);
    down[e] = make_nvfp4(kWidth, kHidden);
    packed_gate_up[e] = pack(gpu, &gate_up[e]);
    packed_down[e] = pack(gpu, &down[e]);
  }
  uint16_t* router = random_bf16(kExperts * kWidth, 0.3f);
  uint16_t* shared_gate = random_bf16(kWidth, 0.1f);
  nibble_weight *packed_router = NULL, *packed_gate = NULL;
  EXPECT(nibble_weight_bf16(gpu, kExperts, kWidth, router, &packed_router) == NIBBLE_OK);
  EXPECT(nibble_weight_bf16(gpu, 1, kWidth, shared_gate, &packed_gate) == NIBBLE_OK);
  nibble_moe_config config = {.struct_bytes = sizeof config,
                              .width = kWidth,
                              .hidden = kHidden,
                              .experts = kExperts,
                              .top_k = kTopK,
                              .score = NIBBLE_SOFTMAX,
                              .renormalize = 1,
                              .routed_scale = 1.0f,
                              .router = packed_router,
                              .gate_up = (const nibble_weight* const*)packed_gate_up,
                              .down = (const nibble_weight* const*)packed_down};
  if (shared) {
    config.shared_hidden = kHidden;
    config.shared_gate_up = packed_gate_up[kExperts];
    config.shared_down = packed_down[kExperts];
    config.shared_gate = packed_gate;
  }
  nibble_moe* moe = NULL;
  nibble_moe_config wrong = config;
  wrong.struct_bytes = 8;
  EXPECT_REFUSED(nibble_moe_create(gpu, &wrong, &moe), "struct_bytes is 8");
  wrong = config;
  wrong.top_k = kExperts + 1;
  EXPECT_REFUSED(nibble_moe_create(gpu, &wrong, &moe), "top_k is 7");
  wrong = config;
  wrong.hidden = 2 * kHidden;
  EXPECT_REFUSED(nibble_moe_create(gpu, &wrong, &moe), "gate_up of expert 0 is 256 x 256");
  EXPECT(nibble_moe_create(gpu, &config, &moe) == NIBBLE_OK);
  if (moe == NULL) return;
  for (int e = 0; e <= kExperts; ++e) {
    nibble_weight_destroy(packed_gate_up[e]);
    nibble_weight_destroy(packed_down[e]);
  }

  uint16_t* x = random_bf16(kTokens * kWidth, 1.0f);
  void* device_x = device_copy(x, kTokens * kWidth * 2);
  void* device_y = device_copy(NULL, kTokens * kWidth * 2);
  const size_t workspace_bytes = nibble_moe_workspace(moe, kTokens);
  void* workspace = device_copy(NULL, workspace_bytes);
  uint16_t *y = malloc(kTokens * kWidth * 2), *first = malloc(kWidth * 2);
  static const int64_t counts[] = {1, 4, kTokens};
  for (size_t i = 0; i < sizeof counts / sizeof counts[0]; ++i) {
    EXPECT(nibble_moe_run(moe, counts[i], device_x, device_y, workspace, workspace_bytes, NULL) ==
           NIBBLE_OK);
    EXPECT(wait_for_all() == 0 &&
           to_host(y, (device_address)(size_t)device_y, (size_t)counts[i] * kWidth * 2) == 0);
    if (i == 0) memcpy(first, y, kWidth * 2);
    EXPECT(memcmp(first, y, kWidth * 2) == 0);
  }
  for (int64_t token = 0; token < kTokens; ++token) {
    double exact[kWidth], wanted[kWidth] = {0}, logits[kExperts], gate = 0, largest = 0;
    for (int i = 0; i < kWidth; ++i) exact[i] = (double)from_bf16(x[token * kWidth + i]);
    for (int e = 0; e < kExperts; ++e) {
      logits[e] = 0;
      for (int i = 0; i < kWidth; ++i)
        logits[e] += exact[i] * (double)from_bf16(router[e * kWidth + i]);
    }
    int best = 0, second = -1;
    for (int e = 1; e < kExperts; ++e)
      if (logits[e] > logits[best]) best = e;
    for (int e = 0; e < kExperts; ++e)
      if (e != best && (second < 0 || logits[e] > logits[second])) second = e;
    const double weight = sigmoid(logits[best] - logits[second]);
    add_expert(&gate_up[best], &down[best], exact, weight, wanted);
    add_expert(&gate_up[second], &down[second], exact, 1 - weight, wanted);
    for (int i = 0; i < kWidth; ++i) gate += exact[i] * (double)from_bf16(shared_gate[i]);
    if (shared) add_expert(&gate_up[kExperts], &down[kExperts], exact, sigmoid(gate), wanted);
    for (int i = 0; i < kWidth; ++i) largest = fmax(largest, fabs(wanted[i]));
    for (int i = 0; i < kWidth; ++i) {
      /* Activations between the linears are BF16. */
      if (fabs((double)from_bf16(y[token * kWidth + i]) - wanted[i]) > 0.02 * largest) {
        EXPECT(!"an output of the experts is far from the exact one");
        return;
      }
    }
  }
  nibble_moe_destroy(moe);
  nibble_weight_destroy(packed_router);
  nibble_weight_destroy(packed_gate);
}

int main(void) {
  check_refusals();
  nibble_gpu* gpu = NULL;
  const nibble_status status = nibble_open(0, &gpu);
  if (status != NIBBLE_OK) {
    printf("errors are as they should be; no GPU: %s\n", nibble_last_error());
    return failures > 0 ? 1 : 77;
  }
  nibble_gpu* other = NULL;
  EXPECT(nibble_open(1, &other) == NIBBLE_UNSUPPORTED);
  printf("%s\n", nibble_gpu_name(gpu));
  EXPECT(find_driver());
  if (failures == 0) {
    check_weight_refusals(gpu);
    check_linear(gpu);
    check_moe(gpu, 0);
    check_moe(gpu, 1);
  }
  nibble_close(gpu);
  printf("%d failures\n", failures);
  return failures > 0 ? 1 : 0;
}
