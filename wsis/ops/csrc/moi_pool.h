// What the kernels of MoIPool (JTSM, eqs. 5, 7 and 8) share.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define WSIS_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define WSIS_HOST_DEVICE inline
#endif

namespace wsis {

template <typename T>
const T* read(const torch::stable::Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

template <typename T>
T* write(const torch::stable::Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

// The box of a region in feature cells, as `windows_of` in wsis/ops/moi_pool.py rounds it.
struct Window {
  int32_t image, x, y, columns, rows;
};

// Without its fraction, and within the whole numbers that a float can tell apart; NaN is the lowest of these.
WSIS_HOST_DEVICE int32_t whole(float value) { return int32_t(fminf(fmaxf(value, -0x1p24f), 0x1p24f)); }

// A corner in cells, halves up.
WSIS_HOST_DEVICE int32_t rounded(float corner, float scale) {
#ifdef __CUDA_ARCH__
  return whole(floorf(__fadd_rn(__fmul_rn(corner, scale), 0.5f)));  // not fused: the reference rounds twice
#else
  return whole(floorf(corner * scale + 0.5f));
#endif
}

WSIS_HOST_DEVICE Window window(const float* box, float scale) {
  const int32_t x = rounded(box[1], scale), y = rounded(box[2], scale);
  const int32_t columns = rounded(box[3], scale) - x + 1, rows = rounded(box[4], scale) - y + 1;
  return {whole(box[0]), x, y, columns < 1 ? 1 : columns, rows < 1 ? 1 : rows};
}

struct Range {
  int32_t first, last;  // half-open
};

// Cells of bin `i` of `bins` along one side, clipped to the map; eq. (5) in whole numbers, so that no rounding adds a cell.
WSIS_HOST_DEVICE Range bin(int32_t i, int32_t bins, int32_t start, int32_t length, int32_t limit) {
  const int64_t from = int64_t(i) * length / bins, to = (int64_t(i + 1) * length + bins - 1) / bins;
  const int64_t first = start + from, last = start + to;
  return {int32_t(first < 0 ? 0 : first > limit ? limit : first), int32_t(last < 0 ? 0 : last > limit ? limit : last)};
}

enum Compensation : int64_t { kNone = 0, kBins = 1, kReleased = 2 };

// psi of eq. (7) for `filled` non-empty bins.
template <typename T>
WSIS_HOST_DEVICE T factor(int32_t filled, int32_t bins, int64_t compensation) {
  if (compensation == kNone) return T(1);
  if (compensation == kReleased) return T(bins) / T(filled + 1);
  return T(bins) / T(filled > 0 ? filled : 1);
}

// Places, cells of a map that hold a maximum, are kept in 16 bits where these reach; -1 is an empty bin.
inline bool is_narrow(int64_t area) { return area <= 1 << 15; }

}  // namespace wsis
