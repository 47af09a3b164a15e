// MoIPool on the CPU, under PyTorch's stable ABI. Schemas, fake kernels and autograd are in wsis/ops/pooling.py.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "moi_pool.h"

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace {

constexpr int kLanes = 64;  // channels at a time: four registers of AVX-512, and a 7 x 7 tile of them fits the first cache

struct Shape {
  int64_t regions, channels, height, width, bins;
};

// The cells of each bin of a region, row-major: cells of bin b are list[start[b] .. start[b + 1]). Returns non-empty bins.
int32_t list_cells(const Shape& s, const int32_t* window, const bool* cells, int32_t side, std::vector<int32_t>& list,
                   std::vector<int32_t>& start) {
  int32_t filled = 0;
  list.clear();
  start.clear();
  for (int32_t row = 0; row < side; ++row) {
    const auto ys = wsis::bin(row, side, window[2], window[4], int32_t(s.height));
    for (int32_t column = 0; column < side; ++column) {
      const auto xs = wsis::bin(column, side, window[1], window[3], int32_t(s.width));
      start.push_back(int32_t(list.size()));
      for (int32_t y = ys.first; y < ys.last; ++y)
        for (int32_t x = xs.first; x < xs.last; ++x)
          if (cells[y * s.width + x]) list.push_back(int32_t(y * s.width + x));
      filled += int32_t(list.size()) > start.back();
    }
  }
  start.push_back(int32_t(list.size()));
  return filled;
}

// The maximum over some cells for `Lanes` channels, and the cell it is in, the first of equals. Local arrays of constant
// length stay in registers; through pointers the compiler leaves the cell's lanes scalar, which is ten times slower.
template <typename T, bool Keep, int Lanes>
inline void maximum(const T* map, int64_t channels, const int32_t* cells, int32_t count, T* top, int32_t* where) {
  T best[Lanes];
  int32_t at[Lanes];
  for (int c = 0; c < Lanes; ++c) best[c] = map[cells[0] * channels + c];
  for (int c = 0; c < Lanes; ++c) at[c] = cells[0];
  for (int32_t i = 1; i < count; ++i) {
    const T* value = map + cells[i] * channels;
    const int32_t cell = cells[i];
    for (int c = 0; c < Lanes; ++c) {
      const T v = value[c];
      if constexpr (Keep) at[c] = v > best[c] ? cell : at[c];
      best[c] = v > best[c] ? v : best[c];
    }
  }
  for (int c = 0; c < Lanes; ++c) top[c] = best[c];
  if constexpr (Keep)
    for (int c = 0; c < Lanes; ++c) where[c] = at[c];
}

// `Lanes` channels of one region: `map` (H,W,D) of its image -> rows of `pooled` (D,bins) and `argmax` (D,bins).
template <typename T, bool Keep, int Lanes>
void pool_lanes(const Shape& s, const T* map, const std::vector<int32_t>& list, const std::vector<int32_t>& start, T scale,
                std::vector<T>& top, std::vector<int32_t>& where, T* pooled, int32_t* argmax) {
  for (int64_t b = 0; b < s.bins; ++b) {
    T* t = &top[b * Lanes];
    int32_t* w = &where[b * Lanes];
    if (const int32_t count = start[b + 1] - start[b]) {
      maximum<T, Keep, Lanes>(map, s.channels, &list[start[b]], count, t, w);
    } else {
      std::fill(t, t + Lanes, T(0));
      std::fill(w, w + Lanes, -1);
    }
  }
  for (int64_t c = 0; c < Lanes; ++c) {
    for (int64_t b = 0; b < s.bins; ++b) pooled[c * s.bins + b] = top[b * Lanes + c] * scale;
    if constexpr (Keep)
      for (int64_t b = 0; b < s.bins; ++b) argmax[c * s.bins + b] = where[b * Lanes + c];
  }
}

template <typename T, bool Keep>
void pool(const Shape& s, const Tensor& maps, const Tensor& windows, const Tensor& cells, int64_t side, int64_t compensation,
          const Tensor& pooled, const Tensor& argmax, const Tensor& filled) {
  const T* in = static_cast<const T*>(maps.const_data_ptr());
  const auto* window = static_cast<const int32_t*>(windows.const_data_ptr());
  const auto* cell = static_cast<const bool*>(cells.const_data_ptr());
  T* out = static_cast<T*>(pooled.mutable_data_ptr());
  auto* where = static_cast<int32_t*>(argmax.mutable_data_ptr());
  auto* full = static_cast<int32_t*>(filled.mutable_data_ptr());
  const int64_t area = s.height * s.width, length = s.channels * s.bins;
  torch::stable::parallel_for(0, s.regions, 1, [&](int64_t begin, int64_t end) {
    std::vector<int32_t> list, start, at(s.bins * kLanes);
    std::vector<T> top(s.bins * kLanes);
    for (int64_t k = begin; k < end; ++k) {
      const int32_t* w = window + 5 * k;
      full[k] = list_cells(s, w, cell + k * area, int32_t(side), list, start);
      const T scale = wsis::factor<T>(full[k], int32_t(s.bins), compensation);
      const T* map = in + w[0] * area * s.channels;
      const auto lanes = [&]<int Lanes>(int64_t c) {
        const int64_t row = k * length + c * s.bins;
        pool_lanes<T, Keep, Lanes>(s, map + c, list, start, scale, top, at, out + row, Keep ? where + row : nullptr);
        return c + Lanes;
      };
      int64_t c = 0;
      while (c + kLanes <= s.channels) c = lanes.template operator()<kLanes>(c);
      while (c + 8 <= s.channels) c = lanes.template operator()<8>(c);
      while (c < s.channels) c = lanes.template operator()<1>(c);
    }
  });
}

template <typename T>
void unpool(const Shape& s, const Tensor& grad, const Tensor& windows, const Tensor& argmax, const Tensor& filled,
            int64_t compensation, const Tensor& out) {
  const T* in = static_cast<const T*>(grad.const_data_ptr());
  const auto* window = static_cast<const int32_t*>(windows.const_data_ptr());
  const auto* where = static_cast<const int32_t*>(argmax.const_data_ptr());
  const auto* full = static_cast<const int32_t*>(filled.const_data_ptr());
  T* maps = static_cast<T*>(out.mutable_data_ptr());
  const int64_t area = s.height * s.width;
  // A thread owns whole channels: no two add to the same cell, and sums have one order whatever the number of threads.
  torch::stable::parallel_for(0, s.channels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t k = 0; k < s.regions; ++k) {
      const T scale = wsis::factor<T>(full[k], int32_t(s.bins), compensation);
      T* map = maps + window[5 * k] * s.channels * area;
      for (int64_t c = begin; c < end; ++c) {
        const int64_t row = (k * s.channels + c) * s.bins;
        for (int64_t b = 0; b < s.bins; ++b)
          if (where[row + b] >= 0) map[c * area + where[row + b]] += in[row + b] * scale;
      }
    }
  });
}

bool is_half(const Tensor& t) { return t.scalar_type() == ScalarType::Half || t.scalar_type() == ScalarType::BFloat16; }

void check_images(const Tensor& windows, int64_t images) {
  const auto* window = static_cast<const int32_t*>(windows.const_data_ptr());
  for (int64_t k = 0; k < windows.size(0); ++k)
    STD_TORCH_CHECK(window[5 * k] >= 0 && window[5 * k] < images, "moi_pool: region ", k, " is of image ", window[5 * k],
                    ", but there are ", images);
}

std::tuple<Tensor, Tensor, Tensor> moi_pool(Tensor features, Tensor windows, Tensor cells, int64_t side, int64_t compensation,
                                            bool keep) {
  if (is_half(features)) {  // exact: a maximum is one of the values
    const auto type = features.scalar_type();
    auto [pooled, argmax, filled] =
        moi_pool(torch::stable::to(features, ScalarType::Float), windows, cells, side, compensation, keep);
    return {torch::stable::to(pooled, type), argmax, filled};
  }
  const Shape s{windows.size(0), features.size(1), features.size(2), features.size(3), side * side};
  windows = torch::stable::contiguous(windows);
  cells = torch::stable::contiguous(cells);
  check_images(windows, features.size(0));
  const Tensor maps = torch::stable::contiguous(torch::stable::transpose(torch::stable::flatten(features, 2, 3), 1, 2));
  Tensor pooled = torch::stable::new_empty(features, {s.regions, s.channels, side, side});
  Tensor argmax = torch::stable::new_empty(windows, {keep ? s.regions : 0, s.channels, side, side});
  Tensor filled = torch::stable::new_empty(windows, {s.regions});
  const bool is_double = features.scalar_type() == ScalarType::Double;
  const auto run = is_double ? (keep ? pool<double, true> : pool<double, false>) : (keep ? pool<float, true> : pool<float, false>);
  if (s.regions && s.channels) run(s, maps, windows, cells, side, compensation, pooled, argmax, filled);
  return {pooled, argmax, filled};
}

Tensor moi_pool_backward(Tensor grad, Tensor windows, Tensor argmax, Tensor filled, int64_t images, int64_t height,
                         int64_t width, int64_t compensation) {
  if (is_half(grad))
    return torch::stable::to(moi_pool_backward(torch::stable::to(grad, ScalarType::Float), windows, argmax, filled, images,
                                               height, width, compensation),
                             grad.scalar_type());
  const Shape s{windows.size(0), grad.size(1), height, width, grad.size(2) * grad.size(3)};
  Tensor out = torch::stable::new_zeros(grad, {images, s.channels, height, width});
  const auto run = grad.scalar_type() == ScalarType::Double ? unpool<double> : unpool<float>;
  if (s.regions && s.channels)
    run(s, torch::stable::contiguous(grad), torch::stable::contiguous(windows), torch::stable::contiguous(argmax),
        torch::stable::contiguous(filled), compensation, out);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(wsis, CPU, m) {
  m.impl("moi_pool", TORCH_BOX(&moi_pool));
  m.impl("moi_pool_backward", TORCH_BOX(&moi_pool_backward));
}
