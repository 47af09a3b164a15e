// MoIPool on CUDA, under PyTorch's stable ABI. Schemas, fake kernels and autograd are in wsis/ops/moi_pool.py.
//
// A block takes 64 channels of one region. Its warps share the bins; the lanes of a warp are neighbouring channels of a
// channels-last map, so a cell is tested once for 64 channels and read in whole lines. Bins pass through shared memory in
// tiles, so that pooled values are written, and gradients read, in whole lines too. The backward pass computes the
// maxima again: storing their cells would double what the forward pass writes.
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
#include <cmath>
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

// Counts the non-empty bins of each region; a warp takes a bin, its lanes the cells.
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

// The maxima of one bin for a lane's channels, and their cells, -1 where the bin is empty; the first of equals.
template <typename T>
__device__ void maximum(const Shape& s, const int32_t* window, const bool* cells, const T* map, int b, int lane, int lanes,
                        Exact<T>* best, int32_t* at) {
  const auto ys = wsis::bin(b / s.side, s.side, window[2], window[4], s.height);
  const auto xs = wsis::bin(b % s.side, s.side, window[1], window[3], s.width);
#pragma unroll
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
        if (at[i] < 0 || v > best[i] || v != v) best[i] = v, at[i] = cell;
      }
    }
}

// Forward: `values` (K,D,bins) is written. Backward: it is the gradient, which is added to `sums` (N,HW,D).
template <typename T, bool Backward>
__global__ void __launch_bounds__(kWarp* kWarps)
    pool(const Shape s, const T* __restrict__ maps, const int32_t* __restrict__ windows, const bool* __restrict__ all_cells,
         int64_t compensation, std::conditional_t<Backward, const T, T>* __restrict__ values, Exact<T>* __restrict__ sums) {
  __shared__ Exact<T> tile[kTile][kLanes + 1];  // one more: lanes of a column fall into different banks
  const int64_t region = blockIdx.x, area = int64_t(s.height) * s.width;
  const int first = blockIdx.y * kLanes, bins = s.side * s.side;
  const int32_t* window = windows + 5 * region;
  // A failed assertion on the device would end every later call of the process: a region of an image that is not there
  // is NaN, and has no gradient.
  if (window[0] < 0 || window[0] >= s.images) {
    if constexpr (!Backward)
      for (int i = threadIdx.x; i < min(kLanes, s.channels - first) * bins; i += kWarp * kWarps)
        values[(region * s.channels + first) * bins + i] = static_cast<T>(NAN);
    return;
  }
  const bool* cells = all_cells + region * area;
  const int64_t map = window[0] * area * s.channels + first;
  const auto scale = wsis::factor<Exact<T>>(count_filled(s, window, cells), bins, compensation);
  const int lane = threadIdx.x % kWarp, lanes = min(kLanes, s.channels - first);
  const int64_t row = (region * s.channels + first) * bins;

  for (int begin = 0; begin < bins; begin += kTile) {
    const int here = min(kTile, bins - begin);
    const auto exchange = [&](auto&& act) {
      for (int i = threadIdx.x; i < lanes * here; i += kWarp * kWarps) act(row + i / here * bins + begin + i % here, i % here, i / here);
      __syncthreads();
    };
    if constexpr (Backward) exchange([&](int64_t at, int t, int c) { tile[t][c] = static_cast<Exact<T>>(values[at]); });
    for (int t = threadIdx.x / kWarp; t < here; t += kWarps) {
      Exact<T> best[kPerLane];
      int32_t at[kPerLane];
      maximum(s, window, cells, maps + map, begin + t, lane, lanes, best, at);
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) {
        const int c = lane + i * kWarp;
        if constexpr (!Backward) tile[t][c] = at[i] < 0 ? Exact<T>(0) : best[i] * scale;
        else if (at[i] >= 0) atomicAdd(sums + map + int64_t(at[i]) * s.channels + c, tile[t][c] * scale);
      }
    }
    __syncthreads();
    if constexpr (!Backward) exchange([&](int64_t at, int t, int c) { values[at] = static_cast<T>(tile[t][c]); });
  }
}

cudaStream_t stream_of(const Tensor& t) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

// Calls `call` with a value of the C++ type of `t`.
template <typename Call>
void dispatch(const Tensor& t, const Call& call) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return call(float{});
    case ScalarType::Double: return call(double{});
    case ScalarType::Half: return call(Half{});
    case ScalarType::BFloat16: return call(BFloat16{});
    default: STD_TORCH_CHECK(false, "moi_pool: features must be float, double, half or bfloat16");
  }
}

// (N,D,H,W) <-> (N,HW,D)
Tensor channels_last(const Tensor& maps) {
  return torch::stable::contiguous(torch::stable::transpose(torch::stable::flatten(maps, 2, 3), 1, 2));
}

Tensor channels_first(const Tensor& maps, const Shape& s) {
  return torch::stable::view(torch::stable::contiguous(torch::stable::transpose(maps, 1, 2)),
                             {s.images, s.channels, s.height, s.width});
}

template <bool Backward>
void run(const Shape& s, const Tensor& features, const Tensor& windows, const Tensor& cells, int64_t compensation,
         const Tensor& values, void* sums) {
  if (!s.regions || !s.channels) return;
  const torch::stable::accelerator::DeviceGuard guard(features.get_device_index());
  const Tensor maps = channels_last(features), places = torch::stable::contiguous(windows), own = torch::stable::contiguous(cells);
  const dim3 grid(s.regions, (s.channels + kLanes - 1) / kLanes);
  dispatch(features, [&](auto zero) {
    using T = decltype(zero);
    pool<T, Backward><<<grid, kWarp * kWarps, 0, stream_of(features)>>>(
        s, static_cast<const T*>(maps.const_data_ptr()), static_cast<const int32_t*>(places.const_data_ptr()),
        static_cast<const bool*>(own.const_data_ptr()), compensation, static_cast<T*>(values.mutable_data_ptr()),
        static_cast<Exact<T>*>(sums));
  });
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, "moi_pool: ", cudaGetErrorString(error));
}

Shape shape_of(const Tensor& features, const Tensor& windows, int64_t side) {
  return {int(features.size(0)), int(windows.size(0)), int(features.size(1)), int(features.size(2)), int(features.size(3)),
          int(side)};
}

Tensor moi_pool(Tensor features, Tensor windows, Tensor cells, int64_t side, int64_t compensation) {
  const Shape s = shape_of(features, windows, side);
  Tensor pooled = torch::stable::new_empty(features, {s.regions, s.channels, side, side});
  run<false>(s, features, windows, cells, compensation, pooled, nullptr);
  return pooled;
}

Tensor moi_pool_backward(Tensor grad, Tensor features, Tensor windows, Tensor cells, int64_t compensation) {
  const Shape s = shape_of(features, windows, grad.size(2));
  const bool is_double = features.scalar_type() == ScalarType::Double;
  Tensor sums = torch::stable::new_zeros(features, {s.images, int64_t(s.height) * s.width, s.channels},
                                         is_double ? ScalarType::Double : ScalarType::Float);  // sums of halves lose too much
  run<true>(s, features, windows, cells, compensation, torch::stable::contiguous(grad), sums.mutable_data_ptr());
  return torch::stable::to(channels_first(sums, s), features.scalar_type());
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(wsis, CUDA, m) {
  m.impl("moi_pool", TORCH_BOX(&moi_pool));
  m.impl("moi_pool_backward", TORCH_BOX(&moi_pool_backward));
}
