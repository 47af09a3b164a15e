// What the kernels of MoIPool (JTSM, eqs. 5, 7 and 8) share. A window is (image, x, y, width, height) in feature cells.
#pragma once
#include <cstdint>

#ifdef __CUDACC__
#define WSIS_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define WSIS_HOST_DEVICE inline
#endif

namespace wsis {

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

}  // namespace wsis
