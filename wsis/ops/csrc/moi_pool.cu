// MoIPool on CUDA, under PyTorch's stable ABI. Schemas, fake kernels and autograd are in wsis/ops/pooling.py.
//
// A block pools 64 channels of one region. Its warps share the bins; the lanes of a warp are neighbouring channels of a
// channels-last map, so a cell is tested once for 64 channels and read in whole lines. Bins pass through shared memory in
// tiles, so that they are written in whole lines too.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include <cuda_runtime.h>

#include <algorithm>
#include <cassert>
#include <tuple>
#include <type_traits>

#include "moi_pool.h"

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace {

constexpr int kWarp = 32, kWarps = 8, kPerLane = 2, kLanes = kWarp * kPerLane;
constexpr int kTile = 49;  // bins in shared memory at a time: all of 7 x 7
constexpr unsigned kAll = 0xffffffffu;

struct Shape {
  int images, regions, channels, height, width, side;
};

template <typename T>
using Exact = std::conditional_t<std::is_same_v<T, double>, double, float>;  // halves are compared and scaled as floats

// How many of a region's bins hold a cell of it; a warp takes a bin, its lanes the cells.
__device__ int count_filled(const Shape& s, const int32_t* window, const bool* cells) {
  __shared__ int filled;
  if (threadIdx.x == 0) filled = 0;
  __syncthreads();
  const int lane = threadIdx.x % kWarp, bins = s.side * s.side;
  for (int b = threadIdx.x / kWarp; b < bins; b += kWarps) {
    const auto ys = wsis::bin(b / s.side, s.side, window[2], window[4], s.height);
    const auto xs = wsis::bin(b % s.side, s.side, window[1], window[3], s.width);
    const int columns = xs.last - xs.first, count = columns * (ys.last - ys.first);
    bool any = false;
    for (int i = 0; i < count && !any; i += kWarp) {
      const int j = i + lane;
      any = __any_sync(kAll, j < count && cells[(ys.first + j / columns) * s.width + xs.first + j % columns]);
    }
    if (lane == 0 && any) atomicAdd(&filled, 1);
  }
  __syncthreads();
  return filled;
}

template <typename T, bool Keep>
__global__ void __launch_bounds__(kWarp* kWarps)
    pool(const Shape s, const T* __restrict__ maps, const int32_t* __restrict__ windows, const bool* __restrict__ all_cells,
         int64_t compensation, T* __restrict__ pooled, int32_t* __restrict__ argmax, int32_t* __restrict__ all_filled) {
  __shared__ Exact<T> top[kTile][kLanes + 1];  // one more: lanes of a column fall into different banks
  __shared__ int32_t where[Keep ? kTile : 1][kLanes + 1];
  const int64_t region = blockIdx.x, area = int64_t(s.height) * s.width;
  const int first = blockIdx.y * kLanes, bins = s.side * s.side;
  const int32_t* window = windows + 5 * region;
  assert(window[0] >= 0 && window[0] < s.images);
  const bool* cells = all_cells + region * area;
  const T* map = maps + window[0] * area * s.channels + first;
  const int filled = count_filled(s, window, cells);
  if (blockIdx.y == 0 && threadIdx.x == 0) all_filled[region] = filled;
  const auto scale = wsis::factor<Exact<T>>(filled, bins, compensation);
  const int lane = threadIdx.x % kWarp, lanes = min(kLanes, s.channels - first);

  for (int tile = 0; tile < bins; tile += kTile) {
    const int here = min(kTile, bins - tile);
    for (int t = threadIdx.x / kWarp; t < here; t += kWarps) {
      const int b = tile + t;
      const auto ys = wsis::bin(b / s.side, s.side, window[2], window[4], s.height);
      const auto xs = wsis::bin(b % s.side, s.side, window[1], window[3], s.width);
      Exact<T> best[kPerLane];
      int32_t at[kPerLane];
      for (int i = 0; i < kPerLane; ++i) at[i] = -1;
      for (int y = ys.first; y < ys.last; ++y)
        for (int x = xs.first; x < xs.last; ++x) {
          const int cell = y * s.width + x;
          if (!cells[cell]) continue;  // the same for the whole warp
          const T* value = map + int64_t(cell) * s.channels;
#pragma unroll
          for (int i = 0; i < kPerLane; ++i) {
            const int c = lane + i * kWarp;
            if (c >= lanes) continue;
            const auto v = static_cast<Exact<T>>(value[c]);
            if (at[i] < 0 || v > best[i]) best[i] = v, at[i] = cell;
          }
        }
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) {
        top[t][lane + i * kWarp] = at[i] < 0 ? Exact<T>(0) : best[i] * scale;
        if constexpr (Keep) where[t][lane + i * kWarp] = at[i];
      }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < lanes * here; i += kWarp * kWarps) {
      const int c = i / here, t = i % here;
      const int64_t out = (region * s.channels + first + c) * bins + tile + t;
      pooled[out] = static_cast<T>(top[t][c]);
      if constexpr (Keep) argmax[out] = where[t][c];
    }
    __syncthreads();
  }
}

template <typename T>
__global__ void unpool(const Shape s, const T* __restrict__ grad, const int32_t* __restrict__ windows,
                       const int32_t* __restrict__ argmax, const int32_t* __restrict__ filled, int64_t compensation,
                       Exact<T>* __restrict__ out) {
  const int64_t bins = s.side * s.side, area = int64_t(s.height) * s.width, length = s.channels * bins;
  const int64_t total = s.regions * length;
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < total; i += int64_t(gridDim.x) * blockDim.x) {
    const int32_t cell = argmax[i];
    if (cell < 0) continue;
    const int64_t region = i / length, channel = i % length / bins;
    const auto scale = wsis::factor<Exact<T>>(filled[region], int32_t(bins), compensation);
    atomicAdd(out + (windows[5 * region] * int64_t(s.channels) + channel) * area + cell, static_cast<Exact<T>>(grad[i]) * scale);
  }
}

cudaStream_t stream_of(const Tensor& t) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

void check_launch() {
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, "moi_pool: ", cudaGetErrorString(error));
}

// Calls `run` with a value of the C++ type of `t`.
template <typename Run>
void dispatch(const Tensor& t, const Run& run) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return run(float{});
    case ScalarType::Double: return run(double{});
    case ScalarType::Half: return run(Half{});
    case ScalarType::BFloat16: return run(BFloat16{});
    default: STD_TORCH_CHECK(false, "moi_pool: features must be float, double, half or bfloat16");
  }
}

std::tuple<Tensor, Tensor, Tensor> moi_pool(Tensor features, Tensor windows, Tensor cells, int64_t side, int64_t compensation,
                                            bool keep) {
  const Shape s{int(features.size(0)), int(windows.size(0)), int(features.size(1)),
                int(features.size(2)), int(features.size(3)), int(side)};
  windows = torch::stable::contiguous(windows);
  cells = torch::stable::contiguous(cells);
  const Tensor maps = torch::stable::contiguous(torch::stable::transpose(torch::stable::flatten(features, 2, 3), 1, 2));
  Tensor pooled = torch::stable::new_empty(features, {s.regions, s.channels, side, side});
  Tensor argmax = torch::stable::new_empty(windows, {keep ? s.regions : 0, s.channels, side, side});
  Tensor filled = torch::stable::new_empty(windows, {s.regions});
  if (!s.regions || !s.channels) return {pooled, argmax, filled};
  const torch::stable::accelerator::DeviceGuard guard(features.get_device_index());
  const dim3 grid(s.regions, (s.channels + kLanes - 1) / kLanes);
  dispatch(features, [&](auto zero) {
    using T = decltype(zero);
    const auto kernel = keep ? pool<T, true> : pool<T, false>;
    kernel<<<grid, kWarp * kWarps, 0, stream_of(features)>>>(
        s, static_cast<const T*>(maps.const_data_ptr()), static_cast<const int32_t*>(windows.const_data_ptr()),
        static_cast<const bool*>(cells.const_data_ptr()), compensation, static_cast<T*>(pooled.mutable_data_ptr()),
        static_cast<int32_t*>(argmax.mutable_data_ptr()), static_cast<int32_t*>(filled.mutable_data_ptr()));
  });
  check_launch();
  return {pooled, argmax, filled};
}

Tensor moi_pool_backward(Tensor grad, Tensor windows, Tensor argmax, Tensor filled, int64_t images, int64_t height,
                         int64_t width, int64_t compensation) {
  const Shape s{int(images), int(windows.size(0)), int(grad.size(1)), int(height), int(width), int(grad.size(2))};
  const auto type = grad.scalar_type();
  const auto exact = type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;  // sums of halves lose too much
  Tensor out = torch::stable::new_zeros(grad, {images, s.channels, height, width}, exact);
  const int64_t total = grad.numel();
  if (!total) return torch::stable::to(out, type);
  grad = torch::stable::contiguous(grad);
  windows = torch::stable::contiguous(windows);
  argmax = torch::stable::contiguous(argmax);
  filled = torch::stable::contiguous(filled);
  const torch::stable::accelerator::DeviceGuard guard(grad.get_device_index());
  const int threads = 256, blocks = int(std::min<int64_t>((total + threads - 1) / threads, 1 << 16));
  dispatch(grad, [&](auto zero) {
    using T = decltype(zero);
    unpool<T><<<blocks, threads, 0, stream_of(grad)>>>(
        s, static_cast<const T*>(grad.const_data_ptr()), static_cast<const int32_t*>(windows.const_data_ptr()),
        static_cast<const int32_t*>(argmax.const_data_ptr()), static_cast<const int32_t*>(filled.const_data_ptr()), compensation,
        static_cast<Exact<T>*>(out.mutable_data_ptr()));
  });
  check_launch();
  return torch::stable::to(out, type);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(wsis, CUDA, m) {
  m.impl("moi_pool", TORCH_BOX(&moi_pool));
  m.impl("moi_pool_backward", TORCH_BOX(&moi_pool_backward));
}
