// MoIPool on the CPU, under PyTorch's stable ABI. Schemas, fake kernels and autograd are in wsis/ops/moi_pool.py.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <vector>

#include "moi_pool.h"

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using torch::stable::parallel_for;

namespace {

constexpr int kLanes = 32;     // channels at a time; a block of them of a 40 x 40 map is 205 kB and stays in the second cache
constexpr int64_t kGroup = 64;  // regions that are pooled while a block is there

struct Shape {
  int64_t images, regions, channels, height, width, side;
  int64_t area() const { return height * width; }
  int64_t bins() const { return side * side; }
  int64_t blocks() const { return (channels + kLanes - 1) / kLanes; }
  int64_t lanes(int64_t block) const { return std::min<int64_t>(kLanes, channels - block * kLanes); }
};

template <typename T>
const T* read(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

template <typename T>
T* write(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

// Maps (N,D,HW) <-> blocks of lanes (N,blocks,HW,kLanes), contiguous in the order in which they are read.
template <typename T, bool Pack>
void convert(const Shape& s, std::conditional_t<Pack, const T*, T*> maps, std::vector<T>& packed) {
  parallel_for(0, s.images * s.blocks(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t block = i % s.blocks(), lanes = s.lanes(block);
      auto* plane = maps + (i / s.blocks() * s.channels + block * kLanes) * s.area();
      T* cells = &packed[i * s.area() * kLanes];
      for (int64_t cell = 0; cell < s.area(); ++cell)
        for (int64_t c = 0; c < lanes; ++c)
          if constexpr (Pack) cells[cell * kLanes + c] = plane[c * s.area() + cell];
          else plane[c * s.area() + cell] = cells[cell * kLanes + c];
    }
  });
}

template <typename T>
std::vector<T> pack(const Shape& s, const Tensor& features) {
  std::vector<T> packed(s.images * s.blocks() * s.area() * kLanes);
  convert<T, true>(s, read<T>(features), packed);
  return packed;
}

struct Region {
  int64_t index, image;
  int32_t filled;                    // bins that are not empty
  std::vector<int32_t> list, start;  // cells of bin b, row-major, are list[start[b] .. start[b + 1])
};

// Regions [first, last) with the cells of their bins.
void list_cells(const Shape& s, const Tensor& windows, const Tensor& cells, int64_t first, int64_t last,
                std::vector<Region>& group) {
  group.resize(last - first);
  for (int64_t k = first; k < last; ++k) {
    const int32_t* window = read<int32_t>(windows) + 5 * k;
    const bool* own = read<bool>(cells) + k * s.area();
    Region& region = group[k - first];
    region.index = k, region.image = window[0], region.filled = 0;
    region.list.clear(), region.start.clear();
    for (int32_t row = 0; row < s.side; ++row) {
      const auto ys = wsis::bin(row, int32_t(s.side), window[2], window[4], int32_t(s.height));
      for (int32_t column = 0; column < s.side; ++column) {
        const auto xs = wsis::bin(column, int32_t(s.side), window[1], window[3], int32_t(s.width));
        region.start.push_back(int32_t(region.list.size()));
        for (int32_t y = ys.first; y < ys.last; ++y)
          for (int32_t x = xs.first; x < xs.last; ++x)
            if (own[y * s.width + x]) region.list.push_back(int32_t(y * s.width + x));
        region.filled += int32_t(region.list.size()) > region.start.back();
      }
    }
    region.start.push_back(int32_t(region.list.size()));
  }
}

// The maximum over some cells of a block, and if asked for its cell, the first of equal ones. Local arrays of constant
// length stay in registers; through pointers the compiler leaves the cell's lanes scalar, which is ten times slower.
template <typename T, bool Where>
inline void maximum(const T* block, const int32_t* cells, int32_t count, T* top, int32_t* where) {
  T best[kLanes];
  int32_t at[kLanes];
  for (int c = 0; c < kLanes; ++c) best[c] = block[cells[0] * int64_t(kLanes) + c];
  for (int c = 0; c < kLanes; ++c) at[c] = cells[0];
  for (int32_t i = 1; i < count; ++i) {
    const T* value = block + cells[i] * int64_t(kLanes);
    const int32_t cell = cells[i];
    for (int c = 0; c < kLanes; ++c) {
      const T v = value[c];
      const bool above = v > best[c] || v != v;  // NaN is passed on, as by PyTorch's max_pool2d
      if constexpr (Where) at[c] = above ? cell : at[c];
      best[c] = above ? v : best[c];
    }
  }
  if constexpr (Where)
    for (int c = 0; c < kLanes; ++c) where[c] = at[c];
  else
    for (int c = 0; c < kLanes; ++c) top[c] = best[c];
}

template <typename T>
Tensor pool(const Shape& s, const Tensor& features, const Tensor& windows, const Tensor& cells, int64_t compensation) {
  Tensor pooled = torch::stable::new_empty(features, {s.regions, s.channels, s.side, s.side});
  const std::vector<T> packed = pack<T>(s, features);
  parallel_for(0, s.regions, 1, [&](int64_t begin, int64_t end) {
    std::vector<Region> group;
    std::vector<T> top(s.bins() * kLanes);
    for (int64_t first = begin; first < end; first += kGroup) {
      list_cells(s, windows, cells, first, std::min(first + kGroup, end), group);
      for (int64_t block = 0; block < s.blocks(); ++block)
        for (const Region& region : group) {
          const T* map = &packed[(region.image * s.blocks() + block) * s.area() * kLanes];
          const T scale = wsis::factor<T>(region.filled, int32_t(s.bins()), compensation);
          for (int64_t b = 0; b < s.bins(); ++b) {
            const int32_t count = region.start[b + 1] - region.start[b];
            if (count) maximum<T, false>(map, &region.list[region.start[b]], count, &top[b * kLanes], nullptr);
            else std::fill_n(&top[b * kLanes], kLanes, T(0));
          }
          T* out = write<T>(pooled) + (region.index * s.channels + block * kLanes) * s.bins();
          for (int64_t c = 0; c < s.lanes(block); ++c)
            for (int64_t b = 0; b < s.bins(); ++b) out[c * s.bins() + b] = top[b * kLanes + c] * scale;
        }
    }
  });
  return pooled;
}

// The maxima are computed again: storing their cells would double what the forward pass writes.
template <typename T>
Tensor unpool(const Shape& s, const Tensor& grad, const Tensor& features, const Tensor& windows, const Tensor& cells,
              int64_t compensation) {
  const std::vector<T> packed = pack<T>(s, features);
  std::vector<T> sums(packed.size());
  // A thread owns whole blocks: no two add to the same cell, and sums have one order whatever the number of threads.
  parallel_for(0, s.blocks(), 1, [&](int64_t begin, int64_t end) {
    std::vector<Region> group;
    int32_t where[kLanes];
    for (int64_t first = 0; first < s.regions; first += kGroup) {
      list_cells(s, windows, cells, first, std::min(first + kGroup, s.regions), group);
      for (int64_t block = begin; block < end; ++block)
        for (const Region& region : group) {
          const int64_t map = (region.image * s.blocks() + block) * s.area() * kLanes;
          const T scale = wsis::factor<T>(region.filled, int32_t(s.bins()), compensation);
          const T* in = read<T>(grad) + (region.index * s.channels + block * kLanes) * s.bins();
          const int lanes = int(s.lanes(block)), bins = int(s.bins());
          for (int64_t b = 0; b < s.bins(); ++b) {
            const int32_t count = region.start[b + 1] - region.start[b];
            if (!count) continue;
            maximum<T, true>(&packed[map], &region.list[region.start[b]], count, nullptr, where);
            T* sum = &sums[map];
            for (int c = 0; c < lanes; ++c) sum[where[c] * kLanes + c] += in[c * bins + b] * scale;
          }
        }
    }
  });
  Tensor out = torch::stable::new_empty(features, {s.images, s.channels, s.height, s.width});
  convert<T, false>(s, write<T>(out), sums);
  return out;
}

Shape shape_of(const Tensor& features, const Tensor& windows, int64_t side) {
  const Shape s{features.size(0), windows.size(0), features.size(1), features.size(2), features.size(3), side};
  const int32_t* window = read<int32_t>(windows);
  for (int64_t k = 0; k < s.regions; ++k)
    STD_TORCH_CHECK(window[5 * k] >= 0 && window[5 * k] < s.images, "moi_pool: region ", k, " is of image ", window[5 * k],
                    ", but there are ", s.images);
  return s;
}

// Halves are computed as floats, which is exact: a maximum is one of the values.
bool is_half(const Tensor& t) { return t.scalar_type() == ScalarType::Half || t.scalar_type() == ScalarType::BFloat16; }

Tensor as_float(const Tensor& t) { return torch::stable::to(t, ScalarType::Float); }

Tensor moi_pool(Tensor features, Tensor windows, Tensor cells, int64_t side, int64_t compensation) {
  if (is_half(features))
    return torch::stable::to(moi_pool(as_float(features), windows, cells, side, compensation), features.scalar_type());
  features = torch::stable::contiguous(features);
  windows = torch::stable::contiguous(windows);
  cells = torch::stable::contiguous(cells);
  const auto run = features.scalar_type() == ScalarType::Double ? pool<double> : pool<float>;
  return run(shape_of(features, windows, side), features, windows, cells, compensation);
}

Tensor moi_pool_backward(Tensor grad, Tensor features, Tensor windows, Tensor cells, int64_t compensation) {
  if (is_half(features))
    return torch::stable::to(moi_pool_backward(as_float(grad), as_float(features), windows, cells, compensation),
                             features.scalar_type());
  grad = torch::stable::contiguous(grad);
  features = torch::stable::contiguous(features);
  windows = torch::stable::contiguous(windows);
  cells = torch::stable::contiguous(cells);
  const auto run = features.scalar_type() == ScalarType::Double ? unpool<double> : unpool<float>;
  return run(shape_of(features, windows, grad.size(2)), grad, features, windows, cells, compensation);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(wsis, CPU, m) {
  m.impl("moi_pool", TORCH_BOX(&moi_pool));
  m.impl("moi_pool_backward", TORCH_BOX(&moi_pool_backward));
}
