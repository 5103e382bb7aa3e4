// y = x Wᵀ + b with W in fp8 (e4m3), scaled by rows or by blocks of 128 × 128. Few rows of x: the
// codes are streamed once and widened in registers, x stays as it is. Many rows: x becomes fp8 too,
// scaled by rows or by 128 neighbours, and cuBLASLt multiplies. Where it cannot: 16-bit weights.
#include <algorithm>

#include "backends/cuda/cublas.h"
#include "backends/cuda/fp8.h"
#include "backends/cuda/linear_quantized.h"
#include "backends/cuda/stream.h"

namespace reft {
namespace {

constexpr int kWarps = 8;
constexpr int kSlice = 64;    // columns that a warp takes at a time
constexpr int kInFlight = 4;  // slices
constexpr int64_t kStreamTokens = 64;
constexpr int64_t kStreamPass = 32;

// As stream_kernel of linear.cu with half the bytes: lane (g, t) holds columns 16t … 16t + 15 of
// rows g and g + 8. Scales of blocks are applied slice by slice, scales of rows at the end.
template <class T, int kTiles, bool kBlocks>
__global__ void __launch_bounds__(kWarps * 32)
    fp8_stream_kernel(StreamArgs a, const uint8_t* w, const float* scales, int64_t scale_stride) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int64_t row0 = blockIdx.x * int64_t{a.gated ? 8 : 16};
  // Rows past the end read the last row; their results are not stored.
  const int64_t first = min(row0 + g, a.n - 1);
  const int64_t second = a.gated ? a.n + first : min(row0 + g + 8, a.n - 1);
  const uint8_t* rows[2] = {w + first * a.k + t * 16, w + second * a.k + t * 16};
  const T* x_rows[kTiles];
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
    x_rows[i] =
        static_cast<const T*>(a.x) + min(int64_t{i * 8 + g}, a.tokens - 1) * a.x_stride + t * 16;
  }
  float d[kTiles][4] = {};
  const int slices = static_cast<int>(a.k / kSlice);
  uint4 codes[kInFlight][2];
  const auto load = [&](int base) {
#pragma unroll
    for (int u = 0; u < kInFlight; ++u) {
      const int64_t at = int64_t{min(base + u * kWarps, slices - 1)} * kSlice;
      codes[u][0] = load_stream(rows[0] + at);
      codes[u][1] = load_stream(rows[1] + at);
    }
  };
  allow_next();
  if (warp < slices) load(warp);
  await_inputs();
  for (int base = warp; base < slices; base += kWarps * kInFlight) {
    if (base != warp) load(base);
#pragma unroll
    for (int u = 0; u < kInFlight; ++u) {
      const int slice = base + u * kWarps;
      if (slice >= slices) break;
      uint32_t pairs[2][8];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        expand_fp8<T>(codes[u][r].x, pairs[r][0], pairs[r][1]);
        expand_fp8<T>(codes[u][r].y, pairs[r][2], pairs[r][3]);
        expand_fp8<T>(codes[u][r].z, pairs[r][4], pairs[r][5]);
        expand_fp8<T>(codes[u][r].w, pairs[r][6], pairs[r][7]);
      }
      float factor[2];
      if constexpr (kBlocks) {
        const int64_t block = int64_t{slice} * kSlice / kFp8Block;
        factor[0] = scales[first / kFp8Block * scale_stride + block];
        factor[1] = scales[second / kFp8Block * scale_stride + block];
      }
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        float own[4] = {};
        float(&sum)[4] = kBlocks ? own : d[i];
        const auto* from = reinterpret_cast<const uint4*>(x_rows[i] + int64_t{slice} * kSlice);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const uint4 b = from[h];
          const uint32_t low[4] = {pairs[0][4 * h], pairs[1][4 * h], pairs[0][4 * h + 1],
                                   pairs[1][4 * h + 1]};
          const uint32_t high[4] = {pairs[0][4 * h + 2], pairs[1][4 * h + 2], pairs[0][4 * h + 3],
                                    pairs[1][4 * h + 3]};
          mma_16816<T>(sum, low, b.x, b.y);
          mma_16816<T>(sum, high, b.z, b.w);
        }
        if constexpr (kBlocks) {
#pragma unroll
          for (int e = 0; e < 4; ++e) d[i][e] += factor[e / 2] * own[e];
        }
      }
    }
  }
  finish_stream<T, kTiles, kWarps>(a, d, row0, [&](int r) {
    if (kBlocks) return 1.0f;
    return scales[a.gated ? (r < 8 ? row0 + r : a.n + row0 + r - 8) : row0 + r];
  });
}

// 16-bit rows of W from row `begin` on.
template <class T>
__global__ void expand_fp8_kernel(T* out, const uint8_t* w, const float* scales,
                                  int64_t scale_stride, int64_t begin, int64_t count, int64_t k) {
  const int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  if (i >= count) return;
  const int64_t row = begin + i / k, column = i % k;
  const float scale =
      scale_stride == 0 ? scales[row] : scales[row / kFp8Block * scale_stride + column / kFp8Block];
  __nv_fp8_e4m3 code;
  code.__x = w[row * k + column];
  out[i] = as<T>(as_float(code) * scale);
}

// Floats between rows of block scales; 0: one scale for each row.
int64_t scale_stride_of(const Weight& weight) {
  return weight.scales.dims() == 2 ? weight.scales.size(1) : 0;
}

bool can_stream(const Tensor& x, const Weight& weight) {
  return x.dtype() != DType::kF32 && weight.in_features % kSlice == 0 && aligned_16(x.raw()) &&
         x.stride(0) % 8 == 0 && aligned_16(weight.data.raw());
}

void launch_stream(Tensor& y, const Tensor& x, const Weight& weight, const Tensor& bias, bool gated,
                   Activation activation) {
  const StreamArgs args = stream_args(y, x, bias, gated, activation);
  const unsigned grid = blocks_for(args.n, gated ? 8 : 16);
  dispatch_half(x.dtype(), "linear (fp8)", [&](auto type) {
    using T = decltype(type);
    const auto run = [&]<int kTiles>() {
      const auto launch = [&](auto kernel) {
        launch_dependent("linear (fp8 stream)", kernel, x.device().index, dim3(grid), kWarps * 32,
                         0, args, ptr<uint8_t>(weight.data), ptr<float>(weight.scales),
                         scale_stride_of(weight));
      };
      weight.scales.dims() == 2 ? launch(&fp8_stream_kernel<T, kTiles, true>)
                                : launch(&fp8_stream_kernel<T, kTiles, false>);
    };
    args.tokens <= 8    ? run.template operator()<1>()
    : args.tokens <= 16 ? run.template operator()<2>()
                        : run.template operator()<4>();
  });
}

// Both operands in fp8. Returns false, having done nothing, where cuBLASLt has no such product.
bool multiply_fp8(Tensor& y, const Tensor& x, const Weight& weight) {
  const int64_t tokens = x.size(0), k = x.size(1);
  if (k % 16 != 0 || weight.out_features % 16 != 0) return false;
  const bool blocks = weight.scales.dims() == 2;
  Tensor codes = Tensor::empty({tokens, k}, DType::kF8E4M3, x.device());
  Tensor scales =
      Tensor::empty(blocks ? Shape{(k + kFp8Block - 1) / kFp8Block, tokens} : Shape{tokens},
                    DType::kF32, x.device());
  if (!cublas_can_fp8(y, codes, weight.data, blocks)) return false;
  quantize_fp8(x, blocks ? kFp8Block : 0, codes, scales);
  return cublas_fp8_linear(y, codes, scales, weight.data, weight.scales);
}

}  // namespace

void prepare_fp8_cuda(Weight& weight) {
  check(weight.dtype == DType::kF8E4M3, "prepare_weight: {} with scales on CUDA",
        dtype_name(weight.dtype));
  if (weight.scales.dims() != 2 || weight.scales.size(1) % 4 == 0) return;
  const Tensor host = weight.scales.to(kCpuDevice);
  const int64_t rows = host.size(0), columns = host.size(1);
  Tensor padded = Tensor::zeros({rows, (columns + 3) / 4 * 4}, DType::kF32);
  for (int64_t r = 0; r < rows; ++r) {
    std::copy_n(host.data<float>() + r * columns, columns,
                padded.data<float>() + r * padded.size(1));
  }
  weight.scales = padded.to(weight.scales.device());
}

bool fp8_gated_linear_cuda(Tensor& y, const Tensor& x, const Weight& weight, const Tensor& bias,
                           Activation activation) {
  if (x.size(0) > kStreamPass || y.size(1) % 8 != 0 || y.dtype() != x.dtype() ||
      !can_stream(x, weight)) {
    return false;
  }
  launch_stream(y, x, weight, bias, true, activation);
  return true;
}

void fp8_linear_cuda(Tensor& y, const Tensor& x, const Weight& weight, const Tensor& bias) {
  const int64_t tokens = x.size(0);
  if (tokens > kStreamPass) {
    // cuBLASLt takes scales of blocks for a multiple of 4 rows only.
    const int64_t whole = weight.scales.dims() == 2 ? tokens / 4 * 4 : tokens;
    Tensor first = y.rows(0, whole), rest = y.rows(whole, tokens);
    if (multiply_fp8(first, x.rows(0, whole), weight)) {
      if (bias.defined()) add_bias_cuda(first, bias);
      if (whole < tokens) fp8_linear_cuda(rest, x.rows(whole, tokens), weight, bias);
      return;
    }
  }
  if (tokens <= kStreamTokens && can_stream(x, weight)) {  // again for every few rows
    for (int64_t begin = 0; begin < tokens; begin += kStreamPass) {
      const int64_t end = std::min(tokens, begin + kStreamPass);
      Tensor rows = y.rows(begin, end);
      launch_stream(rows, x.rows(begin, end), weight, bias, false, Activation::kSilu);
    }
    return;
  }
  expanded_linear_cuda(y, x, weight, bias, [&](Tensor& rows, int64_t begin) {
    dispatch_half(rows.dtype(), "linear (fp8)", [&](auto type) {
      using T = decltype(type);
      expand_fp8_kernel<T><<<blocks_for(rows.numel(), 256), 256, 0, stream_of(rows)>>>(
          ptr<T>(rows), ptr<uint8_t>(weight.data), ptr<float>(weight.scales),
          scale_stride_of(weight), begin, rows.numel(), weight.in_features);
      check_launch("linear (fp8 expand)");
    });
  });
}

}  // namespace reft
