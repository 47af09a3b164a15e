// MoIPool on the CPU, under PyTorch's stable ABI. Schemas, fake kernels and autograd are in wsis/ops/moi_pool.py.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <tuple>
#include <type_traits>
#include <vector>

#include "moi_pool.h"

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using wsis::read;
using wsis::write;
using torch::stable::parallel_for;

namespace {

constexpr int kLanes = 32;     // channels at a time; a block of them of a 40 x 40 map is 205 kB and stays in the second cache
constexpr int64_t kGroup = 64;  // regions that are pooled while a block is there

struct Shape {
  int64_t images, regions, channels, height, width, rows, columns;
  int64_t area() const { return height * width; }
  int64_t bins() const { return rows * columns; }
  int64_t blocks() const { return (channels + kLanes - 1) / kLanes; }
  int64_t lanes(int64_t block) const { return std::min<int64_t>(kLanes, channels - block * kLanes); }
};

// Maps (N,D,HW) as blocks of lanes (N,blocks,HW,kLanes), contiguous in the order in which they are read.
template <typename T>
std::vector<T> pack(const Shape& s, const Tensor& features) {
  std::vector<T> packed(s.images * s.blocks() * s.area() * kLanes);
  parallel_for(0, s.images * s.blocks(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t block = i % s.blocks(), lanes = s.lanes(block);
      const T* plane = read<T>(features) + (i / s.blocks() * s.channels + block * kLanes) * s.area();
      T* cells = &packed[i * s.area() * kLanes];
      for (int64_t cell = 0; cell < s.area(); ++cell)
        for (int64_t c = 0; c < lanes; ++c) cells[cell * kLanes + c] = plane[c * s.area() + cell];
    }
  });
  return packed;
}

void check_images(const Shape& s, const float* boxes) {
  for (int64_t k = 0; k < s.regions; ++k) {
    const int32_t image = wsis::whole(boxes[5 * k]);
    STD_TORCH_CHECK(image >= 0 && image < s.images, "moi_pool: region ", k, " is of image ", image, ", but there are ",
                    s.images);
  }
}

struct Region {
  int64_t index, image;
  int32_t filled;                    // bins that are not empty
  std::vector<int32_t> list, start;  // cells of bin b, row-major, are list[start[b] .. start[b + 1])
};

// Regions [first, last) with the cells of their bins.
void list_cells(const Shape& s, const float* boxes, float scale, const bool* cells, int64_t first, int64_t last,
                std::vector<Region>& group) {
  group.resize(last - first);
  for (int64_t k = first; k < last; ++k) {
    const wsis::Window window = wsis::window(boxes + 5 * k, scale);
    const bool* own = cells + k * s.area();
    Region& region = group[k - first];
    region.index = k, region.image = window.image, region.filled = 0;
    region.list.clear(), region.start.clear();
    for (int32_t row = 0; row < s.rows; ++row) {
      const auto ys = wsis::bin(row, int32_t(s.rows), window.y, window.rows, int32_t(s.height));
      for (int32_t column = 0; column < s.columns; ++column) {
        const auto xs = wsis::bin(column, int32_t(s.columns), window.x, window.columns, int32_t(s.width));
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
  for (int c = 0; c < kLanes; ++c) top[c] = best[c];
  if constexpr (Where)
    for (int c = 0; c < kLanes; ++c) where[c] = at[c];
}

template <typename T, typename Place>  // Place is void if places are not kept
void pool(const Shape& s, const Tensor& features, const float* boxes, float box_scale, const bool* cells, int64_t compensation,
          T* pooled, Place* places, T* factors) {
  constexpr bool kKeep = !std::is_void_v<Place>;
  const std::vector<T> packed = pack<T>(s, features);
  parallel_for(0, s.regions, 1, [&](int64_t begin, int64_t end) {
    std::vector<Region> group;
    std::vector<T> top(s.bins() * kLanes);
    std::vector<int32_t> where(kKeep ? s.bins() * kLanes : 0);
    for (int64_t first = begin; first < end; first += kGroup) {
      list_cells(s, boxes, box_scale, cells, first, std::min(first + kGroup, end), group);
      for (const Region& region : group)
        factors[region.index] = wsis::factor<T>(region.filled, int32_t(s.bins()), compensation);
      for (int64_t block = 0; block < s.blocks(); ++block)
        for (const Region& region : group) {
          const T* map = &packed[(region.image * s.blocks() + block) * s.area() * kLanes];
          for (int64_t b = 0; b < s.bins(); ++b) {
            const int32_t count = region.start[b + 1] - region.start[b];
            int32_t* at = kKeep ? &where[b * kLanes] : nullptr;
            if (count) maximum<T, kKeep>(map, &region.list[region.start[b]], count, &top[b * kLanes], at);
            else std::fill_n(&top[b * kLanes], kLanes, T(0)), std::fill_n(at, kKeep ? kLanes : 0, -1);
          }
          const int64_t out = (region.index * s.channels + block * kLanes) * s.bins();
          for (int64_t c = 0; c < s.lanes(block); ++c)
            for (int64_t b = 0; b < s.bins(); ++b) {
              pooled[out + c * s.bins() + b] = top[b * kLanes + c] * factors[region.index];
              if constexpr (kKeep) places[out + c * s.bins() + b] = Place(where[b * kLanes + c]);
            }
        }
    }
  });
}

template <typename T, typename Place>
void unpool(const Shape& s, const T* grad, const Place* places, const T* factors, const float* boxes, T* maps) {
  // A thread owns whole channels: no two add to the same cell, and sums have one order whatever the number of threads.
  parallel_for(0, s.channels, kLanes, [&](int64_t begin, int64_t end) {
    for (int64_t first = begin; first < end; first += kLanes)  // maps of so many stay in the second cache
      for (int64_t k = 0; k < s.regions; ++k)
        for (int64_t channel = first; channel < std::min(first + kLanes, end); ++channel) {
          T* map = maps + (wsis::whole(boxes[5 * k]) * s.channels + channel) * s.area();
          const int64_t in = (k * s.channels + channel) * s.bins();
          for (int64_t i = in; i < in + s.bins(); ++i)
            if (places[i] >= 0) map[places[i]] += grad[i] * factors[k];
        }
  });
}

// Halves are computed as floats, which is exact: a maximum is one of the values.
bool is_half(const Tensor& t) { return t.scalar_type() == ScalarType::Half || t.scalar_type() == ScalarType::BFloat16; }

Tensor as_float(const Tensor& t) { return torch::stable::to(t, ScalarType::Float); }

std::tuple<Tensor, Tensor, Tensor> moi_pool(Tensor features, Tensor boxes, Tensor cells, int64_t rows, int64_t columns,
                                            double scale, int64_t compensation, bool keep) {
  if (is_half(features)) {
    const auto [pooled, places, factors] =
        moi_pool(as_float(features), boxes, cells, rows, columns, scale, compensation, keep);
    return {torch::stable::to(pooled, features.scalar_type()), places, factors};
  }
  const Shape s{features.size(0), boxes.size(0), features.size(1), features.size(2), features.size(3), rows, columns};
  features = torch::stable::contiguous(features);
  boxes = torch::stable::contiguous(boxes);
  cells = torch::stable::contiguous(cells);
  check_images(s, read<float>(boxes));
  const bool narrow = wsis::is_narrow(s.area());
  const ScalarType place = narrow ? ScalarType::Short : ScalarType::Int;
  const Tensor pooled = torch::stable::new_empty(features, {s.regions, s.channels, rows, columns});
  const Tensor places = keep ? torch::stable::new_empty(features, {s.regions, s.channels, rows, columns}, place)
                             : torch::stable::new_empty(features, {0}, place);
  const Tensor factors = torch::stable::new_empty(features, {s.regions});
  const auto run = [&](auto zero, auto* kept) {
    using T = decltype(zero);
    pool(s, features, read<float>(boxes), float(scale), read<bool>(cells), compensation, write<T>(pooled), kept,
         write<T>(factors));
  };
  const auto choose = [&](auto zero) {
    if (!keep) run(zero, static_cast<void*>(nullptr));
    else if (narrow) run(zero, write<int16_t>(places));
    else run(zero, write<int32_t>(places));
  };
  if (features.scalar_type() == ScalarType::Double) choose(double{});
  else choose(float{});
  return {pooled, places, factors};
}

Tensor moi_pool_backward(Tensor grad, Tensor places, Tensor factors, Tensor boxes, int64_t images, int64_t height,
                         int64_t width) {
  if (is_half(grad))
    return torch::stable::to(moi_pool_backward(as_float(grad), places, factors, boxes, images, height, width),
                             grad.scalar_type());
  STD_TORCH_CHECK(places.numel() == grad.numel(), "moi_pool: places were not kept, or are of other gradients");
  const Shape s{images, grad.size(0), grad.size(1), height, width, grad.size(2), grad.size(3)};
  grad = torch::stable::contiguous(grad);
  places = torch::stable::contiguous(places);
  boxes = torch::stable::contiguous(boxes);
  check_images(s, read<float>(boxes));
  const Tensor maps = torch::stable::new_zeros(grad, {s.images, s.channels, s.height, s.width});
  const auto run = [&](auto zero, const auto* where) {
    using T = decltype(zero);
    unpool(s, read<T>(grad), where, read<T>(factors), read<float>(boxes), write<T>(maps));
  };
  const auto choose = [&](auto zero) {
    if (wsis::is_narrow(s.area())) run(zero, read<int16_t>(places));
    else run(zero, read<int32_t>(places));
  };
  if (grad.scalar_type() == ScalarType::Double) choose(double{});
  else choose(float{});
  return maps;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(wsis, CPU, m) {
  m.impl("moi_pool", TORCH_BOX(&moi_pool));
  m.impl("moi_pool_backward", TORCH_BOX(&moi_pool_backward));
}
