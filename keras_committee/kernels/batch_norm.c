/* Batch normalization in training, with the sum before it and the activation behind it, for TensorFlow on a CPU.

   These operations are bound by memory. TensorFlow has a kernel each for the sum, the normalization, the gradient of the
   activation, that of the normalization and the sum of gradients, and so reads and writes each tensor more often. The
   gradient computes the activation's input again instead of reading it.

   A tensor is (rows, channels) in memory, channels last. It is processed in chunks, which do not depend on the number of
   threads, so neither do the results. Sums over rows are float32 inside a chunk and float64 over the chunks.

   The interface is TensorFlow's C API, tensorflow/c/kernels.h and tensorflow/c/ops.h. */

#define _GNU_SOURCE
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define QUICK_GELU_SLOPE 1.702f /* y = x * sigmoid(1.702 x); Hendrycks and Gimpel 2016, arXiv:1606.08415 */

/* ops.h uses these names as C++ does, without `struct`. */
typedef struct TF_DimensionHandle TF_DimensionHandle;
typedef struct TF_OpDefinitionBuilder TF_OpDefinitionBuilder;
typedef struct TF_ShapeHandle TF_ShapeHandle;
typedef struct TF_ShapeInferenceContext TF_ShapeInferenceContext;

#include "tensorflow/c/kernels.h"
#include "tensorflow/c/ops.h"
#include "tensorflow/c/tf_status.h"
#include "tensorflow/c/tf_tensor.h"

enum { VECTOR = 16, MIN_PERIOD = 64, CHUNK = 32768, CHUNKS_PER_THREAD = 4, MAX_THREADS = 64, MAX_RANK = 8 };

typedef uint16_t bfloat16;

static inline float load_float(float value) { return value; }
static inline float store_float(float value) { return value; }

static inline float load_bfloat16(bfloat16 value) {
  uint32_t bits = (uint32_t)value << 16;
  float result;
  memcpy(&result, &bits, sizeof result);
  return result;
}

static inline bfloat16 store_bfloat16(float value) { /* rounds to the nearest even number */
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  bits += 0x7fffu + ((bits >> 16) & 1u);
  return value != value ? 0x7fc0u : (bfloat16)(bits >> 16);
}

static inline float sigmoid(float x) {
  /* exp(-x) = 2^n 2^f, f in [-0.5, 0.5]: the compiler makes SIMD code of it, unlike of a call of expf. Each coefficient
     is ln(2)^k / k!; the relative error is below 3e-7. A NaN counts as 2^-126. */
  const float exponent = x * -1.44269504f;
  const float above = exponent > -126.0f ? exponent : -126.0f, limited = exponent < 126.0f ? above : 126.0f;
  const float whole = rintf(limited), f = limited - whole;
  const float fraction = 1.0f + f * (0.693147181f + f * (0.240226507f + f * (0.0555041087f + f * (0.00961812911f +
                         f * (0.00133335581f + f * 0.000154035304f)))));
  const uint32_t bits = (uint32_t)((int32_t)whole + 127) << 23;
  float power;
  memcpy(&power, &bits, sizeof power);
  return 1.0f / (1.0f + power * fraction);
}

/* Activations, and what they make of the gradient that comes from behind them. `lowest` is 0 for the ReLU and -inf for
   none. */
static inline float activate_clipped(float x, float lowest) { return x < lowest ? lowest : x; /* NaN stays NaN */ }
static inline float gradient_clipped(float x, float upstream, float lowest) { return x > lowest ? upstream : 0.0f; }
static inline float activate_quick_gelu(float x, float lowest) { return x * sigmoid(QUICK_GELU_SLOPE * x); }
static inline float gradient_quick_gelu(float x, float upstream, float lowest) {
  const float s = sigmoid(QUICK_GELU_SLOPE * x);
  return upstream * (s + QUICK_GELU_SLOPE * x * s * (1.0f - s));
}

/* A pass over all elements. A period is a whole number of rows and of SIMD vectors; a vector has one value for each of
   its elements, so that the inner loops need no index of the channel. */
typedef struct {
  const void *input, *addend, *upstream, *upstream_sum; /* the last two are gradients */
  void *sum, *output;
  int64_t elements, period;
  const float *mean, *scale, *offset; /* vectors: y = scale * (x - mean) + offset */
  const float *slope, *constant;      /* vectors: the gradient of x is scale * d + slope * (x - mean) + constant */
  float *partial_sums;                /* (chunks, 2, period) */
  float lowest;
} Pass;

static inline float normalized(float x, float mean, float scale, float offset) { return (x - mean) * scale + offset; }

/* Elements of a chunk, a whole number of periods. */
static inline int64_t chunk_size(const Pass *pass) {
  return CHUNK > pass->period ? CHUNK / pass->period * pass->period : pass->period;
}

/* Runs `body` for each element of chunk `chunk`; `i` is its index and `p` its place in the period. */
#define FOR_EACH_ELEMENT(body)                                                                   \
  const int64_t period = pass->period, step = chunk_size(pass), begin = chunk * step;            \
  const int64_t stop = begin + step < pass->elements ? begin + step : pass->elements;            \
  for (int64_t row = begin; row < stop; row += period) {                                         \
    const int64_t width = stop - row < period ? stop - row : period;                             \
    _Pragma("GCC ivdep") for (int64_t p = 0; p < width; ++p) {                                   \
      const int64_t i = row + p;                                                                 \
      body                                                                                       \
    }                                                                                            \
  }

#define DEFINE_MOMENTS(T)                                                                                            \
  /* Sums of x - mean and of its square; writes x = input + addend if there is an addend. */                         \
  static void moments_##T(const Pass *pass, int64_t chunk) {                                                         \
    const T *restrict input = pass->input, *restrict addend = pass->addend;                                          \
    T *restrict sum = pass->sum;                                                                                     \
    const float *restrict mean = pass->mean;                                                                         \
    float *restrict first = pass->partial_sums + chunk * 2 * pass->period, *restrict second = first + pass->period;  \
    if (addend) {                                                                                                    \
      FOR_EACH_ELEMENT({                                                                                             \
        const T stored = store_##T(load_##T(input[i]) + load_##T(addend[i]));                                        \
        const float difference = load_##T(stored) - mean[p];                                                         \
        sum[i] = stored;                                                                                             \
        first[p] += difference;                                                                                      \
        second[p] += difference * difference;                                                                        \
      })                                                                                                             \
    } else {                                                                                                         \
      FOR_EACH_ELEMENT({                                                                                             \
        const float difference = load_##T(input[i]) - mean[p];                                                       \
        first[p] += difference;                                                                                      \
        second[p] += difference * difference;                                                                        \
      })                                                                                                             \
    }                                                                                                                \
  }

#define DEFINE_PASSES(activation, T)                                                                                 \
  static void normalize_##activation##_##T(const Pass *pass, int64_t chunk) {                                        \
    const T *restrict input = pass->input;                                                                           \
    T *restrict output = pass->output;                                                                               \
    const float *restrict mean = pass->mean, *restrict scale = pass->scale, *restrict offset = pass->offset;         \
    const float lowest = pass->lowest;                                                                               \
    FOR_EACH_ELEMENT({                                                                                               \
      const float value = normalized(load_##T(input[i]), mean[p], scale[p], offset[p]);                              \
      output[i] = store_##T(activate_##activation(value, lowest));                                                   \
    })                                                                                                               \
  }                                                                                                                  \
  /* Sums of d and of d * (x - mean), where d is the gradient in front of the activation. */                         \
  static void gradient_sums_##activation##_##T(const Pass *pass, int64_t chunk) {                                    \
    const T *restrict input = pass->input, *restrict upstream = pass->upstream;                                      \
    const float *restrict mean = pass->mean, *restrict scale = pass->scale, *restrict offset = pass->offset;         \
    float *restrict first = pass->partial_sums + chunk * 2 * pass->period, *restrict second = first + pass->period;  \
    const float lowest = pass->lowest;                                                                               \
    FOR_EACH_ELEMENT({                                                                                               \
      const float x = load_##T(input[i]);                                                                            \
      const float y = normalized(x, mean[p], scale[p], offset[p]);                                                   \
      const float d = gradient_##activation(y, load_##T(upstream[i]), lowest);                                       \
      first[p] += d;                                                                                                 \
      second[p] += d * (x - mean[p]);                                                                                \
    })                                                                                                               \
  }                                                                                                                  \
  static void input_gradient_##activation##_##T(const Pass *pass, int64_t chunk) {                                   \
    const T *restrict input = pass->input, *upstream = pass->upstream, *upstream_sum = pass->upstream_sum;           \
    T *output = pass->output; /* may be the memory of `upstream` */                                                  \
    const float *restrict mean = pass->mean, *restrict scale = pass->scale, *restrict offset = pass->offset;         \
    const float *restrict slope = pass->slope, *restrict constant = pass->constant;                                  \
    const float lowest = pass->lowest;                                                                               \
    if (upstream_sum) {                                                                                              \
      FOR_EACH_ELEMENT({                                                                                             \
        const float x = load_##T(input[i]);                                                                          \
        const float y = normalized(x, mean[p], scale[p], offset[p]);                                                 \
        const float d = gradient_##activation(y, load_##T(upstream[i]), lowest);                                     \
        const float gradient = scale[p] * d + (slope[p] * (x - mean[p]) + constant[p]);                              \
        output[i] = store_##T(gradient + load_##T(upstream_sum[i]));                                                 \
      })                                                                                                             \
    } else {                                                                                                         \
      FOR_EACH_ELEMENT({                                                                                             \
        const float x = load_##T(input[i]);                                                                          \
        const float y = normalized(x, mean[p], scale[p], offset[p]);                                                 \
        const float d = gradient_##activation(y, load_##T(upstream[i]), lowest);                                     \
        output[i] = store_##T(scale[p] * d + (slope[p] * (x - mean[p]) + constant[p]));                              \
      })                                                                                                             \
    }                                                                                                                \
  }

DEFINE_MOMENTS(float)
DEFINE_MOMENTS(bfloat16)
DEFINE_PASSES(clipped, float)
DEFINE_PASSES(clipped, bfloat16)
DEFINE_PASSES(quick_gelu, float)
DEFINE_PASSES(quick_gelu, bfloat16)

typedef void (*ChunkFunction)(const Pass *, int64_t chunk);

typedef struct {
  ChunkFunction run;
  const Pass *pass;
  int64_t begin, end;
} Share;

static void *run_share(void *argument) {
  const Share *share = argument;
  for (int64_t chunk = share->begin; chunk < share->end; ++chunk) share->run(share->pass, chunk);
  return NULL;
}

static int64_t num_chunks(const Pass *pass) {
  return (pass->elements + chunk_size(pass) - 1) / chunk_size(pass);
}

/* Runs all chunks on the cores that this process may use. Threads are created for each call: that takes 20 us, a pass over
   four chunks 100 us or more. */
static void run_chunks(ChunkFunction run, const Pass *pass) {
  const int64_t chunks = num_chunks(pass);
  cpu_set_t cores;
  int64_t threads = sched_getaffinity(0, sizeof cores, &cores) ? 1 : CPU_COUNT(&cores);
  if (threads > chunks / CHUNKS_PER_THREAD) threads = chunks / CHUNKS_PER_THREAD;
  if (threads > MAX_THREADS) threads = MAX_THREADS;
  if (threads < 1) threads = 1;
  Share shares[MAX_THREADS];
  pthread_t ids[MAX_THREADS];
  bool started[MAX_THREADS];
  for (int64_t t = threads - 1; t >= 0; --t) {
    shares[t] = (Share){run, pass, t * chunks / threads, (t + 1) * chunks / threads};
    started[t] = t > 0 && !pthread_create(&ids[t], NULL, run_share, &shares[t]);
    if (!started[t]) run_share(&shares[t]);
  }
  for (int64_t t = 1; t < threads; ++t)
    if (started[t]) pthread_join(ids[t], NULL);
}

/* Adds up the partial sums of all chunks: float64 (channels,) each. */
static void add_partial_sums(const Pass *pass, int64_t channels, double *first, double *second) {
  const int64_t chunks = num_chunks(pass), period = pass->period;
  memset(first, 0, channels * sizeof *first);
  memset(second, 0, channels * sizeof *second);
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const float *values = pass->partial_sums + chunk * 2 * period;
    for (int64_t begin = 0; begin < period; begin += channels)
      for (int64_t c = 0; c < channels; ++c) {
        first[c] += values[begin + c];
        second[c] += values[period + begin + c];
      }
  }
}

static int64_t period_of(int64_t channels) {
  int64_t period = channels > 0 ? channels : 1; /* the call fails without channels */
  while (period % VECTOR) period += channels > 0 ? channels : 1;
  return period * ((MIN_PERIOD + period - 1) / period);
}

/* Passes of one activation, by whether the tensors are bfloat16. */
typedef struct {
  const char *name;
  float lowest;
  ChunkFunction normalize[2], gradient_sums[2], input_gradient[2];
} Activation;

#define PASS_OF(name, activation) {name##_##activation##_float, name##_##activation##_bfloat16}
#define PASSES(activation) \
  PASS_OF(normalize, activation), PASS_OF(gradient_sums, activation), PASS_OF(input_gradient, activation)

static const Activation activations[] = {{"linear", -INFINITY, PASSES(clipped)},
                                         {"relu", 0.0f, PASSES(clipped)},
                                         {"quick_gelu", 0.0f, PASSES(quick_gelu)}};
enum { NUM_ACTIVATIONS = sizeof activations / sizeof *activations, MAX_NAME = 16 };

typedef struct {
  float epsilon;
  const Activation *activation;
} Attributes;

enum { MAX_TENSORS = 8 };

/* The tensors of one call; missing ones are NULL. */
typedef struct {
  TF_OpKernelContext *context;
  TF_Status *status;
  TF_Tensor *inputs[MAX_TENSORS], *outputs[MAX_TENSORS];
  int num_inputs, num_outputs;
} Call;

static void begin_call(Call *call, TF_OpKernelContext *context) {
  memset(call, 0, sizeof *call);
  call->context = context;
  call->status = TF_NewStatus();
  call->num_inputs = TF_NumInputs(context);
  for (int i = 0; i < call->num_inputs; ++i) TF_GetInput(context, i, &call->inputs[i], call->status);
}

static void end_call(Call *call) {
  if (TF_GetCode(call->status) != TF_OK) TF_OpKernelContext_Failure(call->context, call->status);
  for (int i = 0; i < MAX_TENSORS; ++i) {
    if (call->inputs[i]) TF_DeleteTensor(call->inputs[i]);
    if (call->outputs[i]) TF_DeleteTensor(call->outputs[i]);
  }
  TF_DeleteStatus(call->status);
}

/* Fails the call unless inputs `first` to `last` have as many elements as input `like`. */
static void require_equal_sizes(Call *call, int first, int last, int like) {
  for (int i = first; i <= last && TF_GetCode(call->status) == TF_OK; ++i)
    if (TF_TensorElementCount(call->inputs[i]) != TF_TensorElementCount(call->inputs[like]))
      TF_SetStatus(call->status, TF_INVALID_ARGUMENT, "The sizes of the inputs of a batch normalization differ.");
}

/* Fails the call unless input `x` has channels, as many as the vector `scale` has elements. */
static void require_channels(Call *call, int x, int scale) {
  const int rank = TF_NumDims(call->inputs[x]);
  const int64_t channels = TF_TensorElementCount(call->inputs[scale]);
  if (TF_GetCode(call->status) != TF_OK) return;
  if (rank < 1 || rank > MAX_RANK || channels < 1 || TF_Dim(call->inputs[x], rank - 1) != channels)
    TF_SetStatus(call->status, TF_INVALID_ARGUMENT, "The channels of the inputs of a batch normalization differ.");
}

/* Returns the memory of a new output in the shape of input `like`, or of that input itself if nobody else reads it. */
static void *output_like(Call *call, int like, bool reuse) {
  if (TF_GetCode(call->status) != TF_OK) return NULL;
  TF_Tensor *tensor = call->inputs[like];
  int64_t shape[MAX_RANK];
  const int rank = TF_NumDims(tensor), index = call->num_outputs++;
  for (int axis = 0; axis < rank; ++axis) shape[axis] = TF_Dim(tensor, axis);
  TF_Tensor *output =
      reuse ? TF_ForwardInputOrAllocateOutput(call->context, &like, 1, index, shape, rank, NULL, call->status)
            : TF_AllocateOutput(call->context, index, TF_TensorType(tensor), shape, rank, TF_TensorByteSize(tensor),
                                call->status);
  call->outputs[index] = output;
  return output ? TF_TensorData(output) : NULL;
}

static void repeat(const float *values, int64_t channels, int64_t period, float *result) {
  for (int64_t begin = 0; begin < period; begin += channels)
    memcpy(result + begin, values, channels * sizeof *values);
}

/* Memory of a call: vectors of one period and float64 sums of the channels. */
typedef struct {
  float *mean, *scale, *offset, *slope, *constant, *channel;
  double *first, *second;
} Vectors;

static bool allocate(Vectors *vectors, Pass *pass, int64_t channels) {
  const int64_t period = pass->period;
  float *memory = calloc(5 * period + channels, sizeof *memory);
  double *sums = calloc(2 * channels, sizeof *sums);
  const int64_t chunks = num_chunks(pass) > 0 ? num_chunks(pass) : 1; /* the first one exists without any rows, too */
  pass->partial_sums = calloc(chunks * 2 * period, sizeof *memory);
  *vectors = (Vectors){memory,              memory + period,     memory + 2 * period, memory + 3 * period,
                       memory + 4 * period, memory + 5 * period, sums,                sums + channels};
  return memory && sums && pass->partial_sums;
}

static void release(Vectors *vectors, Pass *pass) {
  free(vectors->mean);
  free(vectors->first);
  free(pass->partial_sums);
}

/* Outputs: the sum of x and each addend (none or one), y, mean and biased variance over the rows. */
static void compute_forward(void *kernel, TF_OpKernelContext *context) {
  const Attributes *attributes = kernel;
  Call call;
  begin_call(&call, context);
  const bool has_addend = call.num_inputs == 4;
  const int first_vector = has_addend ? 2 : 1;
  if (has_addend) require_equal_sizes(&call, 1, 1, 0);
  require_equal_sizes(&call, first_vector + 1, first_vector + 1, first_vector);
  require_channels(&call, 0, first_vector);
  TF_Tensor *x = call.inputs[0], *scale = call.inputs[first_vector], *offset = call.inputs[first_vector + 1];
  const bool half = TF_TensorType(x) == TF_BFLOAT16;
  const int64_t channels = TF_TensorElementCount(scale), elements = TF_TensorElementCount(x);
  void *sum = has_addend ? output_like(&call, 0, false) : NULL, *y = output_like(&call, 0, false);
  float *mean = output_like(&call, first_vector, false), *variance = output_like(&call, first_vector, false);
  Pass pass = {.input = TF_TensorData(x), .addend = has_addend ? TF_TensorData(call.inputs[1]) : NULL, .sum = sum,
               .output = y, .elements = elements, .period = period_of(channels), .lowest = attributes->activation->lowest};
  Vectors vectors = {0};
  if (TF_GetCode(call.status) == TF_OK && !allocate(&vectors, &pass, channels))
    TF_SetStatus(call.status, TF_RESOURCE_EXHAUSTED, "No memory for the sums of a batch normalization.");
  if (TF_GetCode(call.status) == TF_OK) {
    const double rows = (double)elements / channels;
    const ChunkFunction moments = half ? moments_bfloat16 : moments_float;
    pass.mean = vectors.mean; /* zero: the mean of the first chunk, by which all elements are shifted */
    moments(&pass, 0);
    Pass first_chunk = pass;
    first_chunk.elements = elements < chunk_size(&pass) ? elements : chunk_size(&pass);
    add_partial_sums(&first_chunk, channels, vectors.first, vectors.second);
    for (int64_t c = 0; c < channels; ++c)
      vectors.channel[c] = vectors.first[c] / ((double)first_chunk.elements / channels);
    repeat(vectors.channel, channels, pass.period, vectors.mean);
    memset(pass.partial_sums, 0, 2 * pass.period * sizeof *pass.partial_sums);
    run_chunks(moments, &pass);
    add_partial_sums(&pass, channels, vectors.first, vectors.second);
    for (int64_t c = 0; c < channels; ++c) {
      const double shifted_mean = vectors.first[c] / rows;
      const double difference = vectors.second[c] / rows - shifted_mean * shifted_mean;
      mean[c] = vectors.channel[c] + shifted_mean;
      variance[c] = difference < 0.0 ? 0.0 : difference;
      vectors.channel[c] = ((float *)TF_TensorData(scale))[c] / sqrt((double)variance[c] + attributes->epsilon);
    }
    repeat(mean, channels, pass.period, vectors.mean);
    repeat(vectors.channel, channels, pass.period, vectors.scale);
    repeat(TF_TensorData(offset), channels, pass.period, vectors.offset);
    pass.scale = vectors.scale;
    pass.offset = vectors.offset;
    if (sum) pass.input = sum;
    run_chunks(attributes->activation->normalize[half], &pass);
  }
  release(&vectors, &pass);
  end_call(&call);
}

/* Inputs: gradient of y, x, scale, offset, mean, variance, and the gradients of the sum (none or one). Outputs: the
   gradients of x, scale and offset. */
static void compute_gradient(void *kernel, TF_OpKernelContext *context) {
  const Attributes *attributes = kernel;
  Call call;
  begin_call(&call, context);
  require_equal_sizes(&call, 3, 5, 2);
  require_equal_sizes(&call, 1, 1, 0);
  require_equal_sizes(&call, 6, call.num_inputs - 1, 0);
  require_channels(&call, 0, 2);
  const bool half = TF_TensorType(call.inputs[0]) == TF_BFLOAT16;
  const int64_t channels = TF_TensorElementCount(call.inputs[2]), elements = TF_TensorElementCount(call.inputs[0]);
  void *input_gradient = output_like(&call, 0, true);
  float *scale_gradient = output_like(&call, 2, false), *offset_gradient = output_like(&call, 2, false);
  Pass pass = {.input = TF_TensorData(call.inputs[1]), .upstream = TF_TensorData(call.inputs[0]),
               .upstream_sum = call.num_inputs == 7 ? TF_TensorData(call.inputs[6]) : NULL,
               .output = input_gradient, .elements = elements, .period = period_of(channels),
               .lowest = attributes->activation->lowest};
  Vectors vectors = {0};
  if (TF_GetCode(call.status) == TF_OK && !allocate(&vectors, &pass, channels))
    TF_SetStatus(call.status, TF_RESOURCE_EXHAUSTED, "No memory for the sums of a batch normalization.");
  if (TF_GetCode(call.status) == TF_OK) {
    const float *scale = TF_TensorData(call.inputs[2]), *variance = TF_TensorData(call.inputs[5]);
    const double rows = (double)elements / channels;
    for (int64_t c = 0; c < channels; ++c)
      vectors.channel[c] = scale[c] / sqrt((double)variance[c] + attributes->epsilon);
    repeat(vectors.channel, channels, pass.period, vectors.scale);
    repeat(TF_TensorData(call.inputs[3]), channels, pass.period, vectors.offset);
    repeat(TF_TensorData(call.inputs[4]), channels, pass.period, vectors.mean);
    pass.mean = vectors.mean;
    pass.scale = vectors.scale;
    pass.offset = vectors.offset;
    run_chunks(attributes->activation->gradient_sums[half], &pass);
    add_partial_sums(&pass, channels, vectors.first, vectors.second);
    for (int64_t c = 0; c < channels; ++c) {
      const double inverse_variance = 1.0 / ((double)variance[c] + attributes->epsilon);
      offset_gradient[c] = vectors.first[c];
      scale_gradient[c] = vectors.second[c] * sqrt(inverse_variance);
      vectors.slope[c] = -vectors.scale[c] * vectors.second[c] * inverse_variance / rows;
      vectors.constant[c] = -vectors.scale[c] * vectors.first[c] / rows;
    }
    memcpy(vectors.channel, vectors.slope, channels * sizeof(float));
    repeat(vectors.channel, channels, pass.period, vectors.slope);
    memcpy(vectors.channel, vectors.constant, channels * sizeof(float));
    repeat(vectors.channel, channels, pass.period, vectors.constant);
    pass.slope = vectors.slope;
    pass.constant = vectors.constant;
    run_chunks(attributes->activation->input_gradient[half], &pass);
  }
  release(&vectors, &pass);
  end_call(&call);
}

static void *create_kernel(TF_OpKernelConstruction *construction) {
  Attributes *attributes = calloc(1, sizeof *attributes);
  TF_Status *status = TF_NewStatus();
  char name[MAX_NAME] = {0};
  int64_t addends = 0;
  TF_OpKernelConstruction_GetAttrFloat(construction, "epsilon", &attributes->epsilon, status);
  if (TF_GetCode(status) == TF_OK)
    TF_OpKernelConstruction_GetAttrString(construction, "activation", name, MAX_NAME - 1, status);
  for (int i = 0; i < NUM_ACTIVATIONS; ++i) /* TensorFlow permits no other name */
    if (!strcmp(name, activations[i].name)) attributes->activation = &activations[i];
  if (TF_GetCode(status) == TF_OK) TF_OpKernelConstruction_GetAttrInt64(construction, "N", &addends, status);
  if (addends > 1) TF_SetStatus(status, TF_INVALID_ARGUMENT, "A batch normalization adds up at most two tensors.");
  if (TF_GetCode(status) != TF_OK) TF_OpKernelConstruction_Failure(construction, status);
  TF_DeleteStatus(status);
  return attributes;
}

static void delete_kernel(void *kernel) { free(kernel); }

static void set_output_like(TF_ShapeInferenceContext *context, int output, int input, TF_Status *status) {
  TF_ShapeHandle *shape = TF_NewShapeHandle();
  TF_ShapeInferenceContextGetInput(context, input, shape, status);
  if (TF_GetCode(status) == TF_OK) TF_ShapeInferenceContextSetOutput(context, output, shape, status);
  TF_DeleteShapeHandle(shape);
}

static void infer_forward_shapes(TF_ShapeInferenceContext *context, TF_Status *status) {
  const int addends = TF_ShapeInferenceContextNumInputs(context) == 4, outputs = addends + 3;
  for (int output = 0; output < outputs && TF_GetCode(status) == TF_OK; ++output)
    set_output_like(context, output, output <= addends ? 0 : addends + 1, status);
}

static void infer_gradient_shapes(TF_ShapeInferenceContext *context, TF_Status *status) {
  for (int output = 0; output < 3 && TF_GetCode(status) == TF_OK; ++output)
    set_output_like(context, output, output ? 2 : 0, status);
}

static void register_operation(const char *name, const char *const *inputs, const char *const *outputs,
                               void (*infer_shapes)(TF_ShapeInferenceContext *, TF_Status *),
                               void (*compute)(void *, TF_OpKernelContext *)) {
  TF_Status *status = TF_NewStatus();
  TF_OpDefinitionBuilder *operation = TF_NewOpDefinitionBuilder(name);
  for (; *inputs; ++inputs) TF_OpDefinitionBuilderAddInput(operation, *inputs);
  for (; *outputs; ++outputs) TF_OpDefinitionBuilderAddOutput(operation, *outputs);
  TF_OpDefinitionBuilderAddAttr(operation, "T: {bfloat16, float}");
  TF_OpDefinitionBuilderAddAttr(operation, "N: int >= 0");
  TF_OpDefinitionBuilderAddAttr(operation, "epsilon: float");
  TF_OpDefinitionBuilderAddAttr(operation, "activation: {'linear', 'relu', 'quick_gelu'}");
  TF_OpDefinitionBuilderSetShapeInferenceFunction(operation, infer_shapes);
  TF_RegisterOpDefinition(operation, status);
  const TF_DataType types[] = {TF_FLOAT, TF_BFLOAT16};
  for (int i = 0; i < 2 && TF_GetCode(status) == TF_OK; ++i) {
    TF_KernelBuilder *builder = TF_NewKernelBuilder(name, "CPU", create_kernel, compute, delete_kernel);
    TF_KernelBuilder_TypeConstraint(builder, "T", types[i], status);
    TF_RegisterKernelBuilder(name, builder, status);
  }
  TF_DeleteStatus(status);
}

__attribute__((constructor)) static void register_operations(void) {
  register_operation("KerasCommitteeBatchNorm",
                     (const char *[]){"x: T", "addends: N * T", "scale: float", "offset: float", NULL},
                     (const char *[]){"sums: N * T", "y: T", "mean: float", "variance: float", NULL},
                     infer_forward_shapes, compute_forward);
  register_operation("KerasCommitteeBatchNormGrad",
                     (const char *[]){"y_gradient: T", "x: T", "scale: float", "offset: float", "mean: float",
                                      "variance: float", "sum_gradients: N * T", NULL},
                     (const char *[]){"x_gradient: T", "scale_gradient: float", "offset_gradient: float", NULL},
                     infer_gradient_shapes, compute_gradient);
}
