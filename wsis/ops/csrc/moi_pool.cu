// MoIPool on CUDA, under PyTorch's stable ABI. Schemas, fake kernels and autograd are in wsis/ops/moi_pool.py.
//
// Forward, a block takes one region and the channels that 32 lanes read of a cell at 16 bytes each; its warps share the bins.
// What decides the way of a warp, the cells of a bin that are the region's, is then the same for all of its lanes: they find
// these cells together, 32 at a time, and list them, so that loads wait for nothing and four of them are under way at once.
// Results pass through shared memory, to be written in whole lines.
//
// Backward, a block owns the gradient of one channel of one image, and its warps are given the places of the maxima, a lane
// a bin. No two threads add to the same sum, so that sums have one order and need no atomics where they fit in shared memory.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
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
using wsis::read;
using wsis::write;

namespace {

constexpr int kWarp = 32, kWarps = 7;
constexpr int kSlots = 4;   // cells that a lane reads at a time
constexpr int kTile = 49;   // bins in shared memory at a time: all of 7 x 7
constexpr int kAhead = 8;   // regions whose gradients a lane reads at a time
constexpr int kMaps = 4, kMapBytes = 64 << 10;  // maps of sums in a block's shared memory, and their bytes, at most
constexpr unsigned kAll = 0xffffffffu;

struct Shape {
  int images, regions, channels, height, width, rows, columns;
  Shape(int64_t n, int64_t k, int64_t d, int64_t h, int64_t w, int64_t r, int64_t c)
      : images(n), regions(k), channels(d), height(h), width(w), rows(r), columns(c) {
    STD_TORCH_CHECK(std::max({k, d, h * w, r * c}) < 1 << 30, "moi_pool: 2^30 regions, channels, cells or bins, or more");
  }
  __host__ __device__ int area() const { return height * width; }
  __host__ __device__ int bins() const { return rows * columns; }
};

template <typename T>
using Exact = std::conditional_t<std::is_same_v<T, double>, double, float>;  // halves are scaled and summed as floats

template <typename T, int N>
struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Pack {
  T v[N];
};
template <typename T>
constexpr int kPer = 16 / sizeof(T);  // neighbouring channels of a cell, which a lane reads at once
template <typename T>
constexpr int kLanes = kWarp * kPer<T>;
template <typename T>
using Values = Pack<T, kPer<T>>;

// Features with channels next to each other. If `wide`, 16 bytes may be read at once.
struct Maps {
  const char* data;
  int64_t image;  // bytes between images
  unsigned cell;  // and between cells
  bool wide;
};

// The larger one; NaN is passed on.
template <typename T> __device__ T larger(T a, T b) { return b > a || b != b ? b : a; }
template <> __device__ __half2 larger(__half2 a, __half2 b) { return __hmax2_nan(a, b); }
template <> __device__ __nv_bfloat162 larger(__nv_bfloat162 a, __nv_bfloat162 b) { return __hmax2_nan(a, b); }
template <> __device__ float larger(float a, float b) {
#if __CUDA_ARCH__ >= 800
  asm("max.NaN.f32 %0, %0, %1;" : "+f"(a) : "f"(b));
  return a;
#else
  return b > a || b != b ? b : a;
#endif
}

template <typename T> struct WordOf { using type = T; };
template <> struct WordOf<Half> { using type = __half2; };
template <> struct WordOf<BFloat16> { using type = __nv_bfloat162; };

// The largest values so far of a lane's channels and, if places are kept, their cells; the first of equals.
template <typename T, bool Keep>
struct Top {
  using Word = typename WordOf<T>::type;
  Values<T> best;
  __device__ void start(int) {
#pragma unroll
    for (T& b : best.v) b = static_cast<T>(-INFINITY);
  }
  __device__ void take(const Values<T>& values, int) {
#pragma unroll
    for (int i = 0; i < int(sizeof(values) / sizeof(Word)); ++i) {
      Word& b = reinterpret_cast<Word*>(&best)[i];
      b = larger(b, reinterpret_cast<const Word*>(&values)[i]);
    }
  }
  __device__ T value(int i) const { return best.v[i]; }
};

template <typename T>
struct Top<T, true> {
  Exact<T> best[kPer<T>];
  int at[kPer<T>];
  __device__ void start(int cell) {
#pragma unroll
    for (int i = 0; i < kPer<T>; ++i) best[i] = -INFINITY, at[i] = cell;
  }
  __device__ void take(const Values<T>& values, int cell) {
#pragma unroll
    for (int i = 0; i < kPer<T>; ++i) {
      const auto v = static_cast<Exact<T>>(values.v[i]);
      const bool above = v > best[i] || v != v;
      best[i] = above ? v : best[i], at[i] = above ? cell : at[i];
    }
  }
  __device__ T value(int i) const { return static_cast<T>(best[i]); }
};

struct Bin {
  int first;  // cell
  unsigned columns, count;
};
using Slots = Pack<int, kSlots>;

// The maxima over `found` listed cells and those before.
template <typename T, bool Keep>
__device__ void take(const Maps& maps, const char* map, int channels, const Slots* list, int found, Top<T, Keep>& top) {
  const auto at = [&](int cell) { return reinterpret_cast<const T*>(map + uint64_t(unsigned(cell)) * maps.cell); };
  if (maps.wide) {
#pragma unroll 1
    for (int j = 0; j < found; j += kSlots) {
      Slots next = list[j / kSlots];
      Values<T> values[kSlots];
#pragma unroll
      for (int k = 1; k < kSlots; ++k)
        if (j + k >= found) next.v[k] = next.v[k - 1];  // a maximum may see a cell twice
#pragma unroll
      for (int k = 0; k < kSlots; ++k) values[k] = *reinterpret_cast<const Values<T>*>(at(next.v[k]));
#pragma unroll
      for (int k = 0; k < kSlots; ++k) top.take(values[k], next.v[k]);
    }
  } else {
#pragma unroll 1
    for (int j = 0; j < found; ++j) {
      const int cell = list[j / kSlots].v[j % kSlots];
      Values<T> values;
#pragma unroll
      for (int c = 0; c < kPer<T>; ++c) values.v[c] = at(cell)[min(c, channels - 1)];
      top.take(values, cell);
    }
  }
}

template <typename T, typename Place>  // Place is void if places are not kept
__global__ void __launch_bounds__(kWarp* kWarps, sizeof(T) == 2 ? 4 : 5)
    pool(const Shape s, const Maps maps, const float* __restrict__ boxes, float box_scale, const bool* __restrict__ all_cells,
         int64_t compensation, T* __restrict__ pooled, Place* __restrict__ places, Exact<T>* __restrict__ factors) {
  constexpr bool kKeep = !std::is_void_v<Place>;
  extern __shared__ Pack<double, 2> shared[];
  __shared__ int filled;
  __shared__ Bin bins[kTile];
  __shared__ Slots lists[kWarps][kWarp / kSlots + 1];
  // (kTile,kWarp + 1), and as many places if they are kept; one more: lanes of a column fall into different banks
  auto* tile = reinterpret_cast<Values<T>*>(shared);
  using Places = Pack<std::conditional_t<kKeep, Place, char>, kPer<T>>;
  auto* tile_places = reinterpret_cast<Places*>(tile + kTile * (kWarp + 1));

  const int64_t region = blockIdx.x;
  const int first = blockIdx.y * kLanes<T>, lanes = min(kLanes<T>, s.channels - first);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t out = (region * s.channels + first) * s.bins();
  const wsis::Window window = wsis::window(boxes + 5 * region, box_scale);
  // A failed assertion on the device would end every later call of the process: a region of an image that is not there
  // is NaN, and has no gradient.
  if (window.image < 0 || window.image >= s.images) {
    for (int i = threadIdx.x; i < lanes * s.bins(); i += kWarp * kWarps) {
      pooled[out + i] = static_cast<T>(NAN);
      if constexpr (kKeep) places[out + i] = -1;
    }
    if (first == 0 && threadIdx.x == 0) factors[region] = 1;
    return;
  }
  const bool* cells = all_cells + region * s.area();
  const int own = first + lane * kPer<T> < s.channels ? first + lane * kPer<T> : 0;  // lanes without channels read along
  const char* map = maps.data + window.image * maps.image + own * sizeof(T);
  Slots* list = lists[warp];
  if (threadIdx.x == 0) filled = 0;

  // The factor hangs on all bins: if these are several tiles, all are first gone through without features.
  for (int pass = s.bins() > kTile ? 0 : 1; pass < 2; ++pass)
    for (int begin = 0; begin < s.bins(); begin += kTile) {
      const int here = min(kTile, s.bins() - begin);
      for (int t = threadIdx.x; t < here; t += kWarp * kWarps) {
        const auto ys = wsis::bin((begin + t) / s.columns, s.rows, window.y, window.rows, s.height);
        const auto xs = wsis::bin((begin + t) % s.columns, s.columns, window.x, window.columns, s.width);
        const unsigned columns = xs.last - xs.first;
        bins[t] = {ys.first * s.width + xs.first, columns, columns * (ys.last - ys.first)};
      }
      __syncthreads();
      int mine = 0;  // bins that are not empty
      for (int t = warp; t < here; t += kWarps) {
        const Bin bin = bins[t];
        Top<T, kKeep> top;
        bool any = false;
        for (unsigned i = lane; i - lane < bin.count && !(any && pass == 0); i += kWarp) {
          const int cell = bin.first + int(i / bin.columns) * s.width + int(i % bin.columns);
          const unsigned which = __ballot_sync(kAll, i < bin.count && cells[cell]);  // lanes' cells that are the region's
          if (!which) continue;
          const int rank = __popc(which & ((1u << lane) - 1));
          __syncwarp();  // the last list has been read
          if (which >> lane & 1) list[rank / kSlots].v[rank % kSlots] = cell;
          __syncwarp();
          if (!any) top.start(list[0].v[0]), any = true;
          if (pass == 1) take(maps, map, s.channels - own, list, __popc(which), top);
        }
        mine += any;
        Values<T> largest;
        Places where;
#pragma unroll
        for (int c = 0; c < kPer<T>; ++c) {
          largest.v[c] = any ? top.value(c) : static_cast<T>(0.f);
          if constexpr (kKeep) where.v[c] = static_cast<Place>(any ? top.at[c] : -1);
        }
        tile[t * (kWarp + 1) + lane] = largest;
        if constexpr (kKeep) tile_places[t * (kWarp + 1) + lane] = where;
      }
      if (lane == 0 && (pass == 0 || s.bins() <= kTile)) atomicAdd(&filled, mine);
      __syncthreads();
      if (pass == 0) continue;
      const auto scale = wsis::factor<Exact<T>>(filled, s.bins(), compensation);
      if (begin == 0 && first == 0 && threadIdx.x == 0) factors[region] = scale;
      for (int c = warp; c < lanes; c += kWarps)
        for (int t = lane; t < here; t += kWarp) {
          const int64_t to = out + int64_t(c) * s.bins() + begin + t;
          const int from = t * (kWarp + 1) + c / kPer<T>;
          pooled[to] = static_cast<T>(static_cast<Exact<T>>(tile[from].v[c % kPer<T>]) * scale);
          if constexpr (kKeep) places[to] = tile_places[from].v[c % kPer<T>];
        }
      __syncthreads();
    }
}

// The sum of the values of lanes of the same place, in the lowest of these, which is told so; in the order of lanes.
template <typename E>
__device__ bool sum_of_equals(int place, E& value) {
  const int lane = threadIdx.x % kWarp;
  const unsigned same = __match_any_sync(kAll, place);
  const bool lowest = place >= 0 && __ffs(same) - 1 == lane;
  const E own = value;
  for (unsigned rest = lowest ? same & (same - 1) : 0; __any_sync(kAll, rest); rest &= rest - 1) {
    const E other = __shfl_sync(kAll, own, rest ? __ffs(rest) - 1 : lane);
    if (rest) value += other;
  }
  return lowest;
}

// Every warp of a block adds up a part of the regions, in a map of its own in shared memory; or the only warp of a block, in
// `far` (N,D,HW), which is 0, if a map is too large for that.
template <typename T, typename Place>
__global__ void __launch_bounds__(kWarp* kMaps)
    unpool(const Shape s, const T* __restrict__ grad, const Place* __restrict__ places, const Exact<T>* __restrict__ factors,
           const float* __restrict__ boxes, T* __restrict__ out, Exact<T>* __restrict__ far) {
  extern __shared__ Pack<double, 2> shared[];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  const int area = s.area(), bins = s.bins();
  const int64_t channel = blockIdx.x, plane = (int64_t(blockIdx.y) * s.channels + channel) * area;
  auto* maps = reinterpret_cast<Exact<T>*>(shared);
  Exact<T>* near = maps + int64_t(warp) * area;
  if (!far)
    for (int i = lane; i < area; i += kWarp) near[i] = 0;
  for (int first = warp * kWarp; first < s.regions; first += warps * kWarp) {
    const int k = first + lane;
    unsigned here = __ballot_sync(kAll, k < s.regions && wsis::whole(boxes[5 * int64_t(k)]) == int(blockIdx.y));
    while (here) {
      int region[kAhead];
      Exact<T> scale[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        region[i] = here ? first + __ffs(here) - 1 : -1;
        scale[i] = here ? factors[region[i]] : 0;
        here &= here - 1;
      }
      for (int b = lane; b - lane < bins; b += kWarp) {
        Place place[kAhead];
        T value[kAhead];
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
          const bool there = region[i] >= 0 && b < bins;
          const int64_t at = (int64_t(region[i]) * s.channels + channel) * bins + b;
          place[i] = there ? places[at] : static_cast<Place>(-1);
          value[i] = there ? grad[at] : static_cast<T>(0.f);
        }
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
          Exact<T> sum = static_cast<Exact<T>>(value[i]) * scale[i];
          if (sum_of_equals(place[i], sum)) {
            if (far) atomicAdd(far + plane + place[i], sum);  // only not to wait for the sum: no other warp adds to it
            else near[place[i]] += sum;
          }
          __syncwarp();
        }
      }
    }
  }
  __syncthreads();
  if (far) return;
  for (int i = threadIdx.x; i < area; i += blockDim.x) {
    Exact<T> sum = 0;
    for (int w = 0; w < warps; ++w) sum += maps[int64_t(w) * area + i];
    out[plane + i] = static_cast<T>(sum);
  }
}

// (N,D,HW) to (N,HW,padded), the channels that are not there 0.
template <typename T>
__global__ void channels_last(const Shape s, const T* __restrict__ in, T* __restrict__ out, int padded) {
  __shared__ T tile[kWarp][kWarp + 1];
  const int64_t image = blockIdx.z, area = s.area(), cell = int64_t(blockIdx.x) * kWarp;
  const int channel = blockIdx.y * kWarp, x = threadIdx.x % kWarp, y0 = threadIdx.x / kWarp;
  for (int y = y0; y < kWarp; y += kWarps)
    tile[y][x] = channel + y < s.channels && cell + x < area ? in[(image * s.channels + channel + y) * area + cell + x] : T(0);
  __syncthreads();
  for (int y = y0; y < kWarp; y += kWarps)
    if (cell + y < area && channel + x < padded) out[(image * area + cell + y) * padded + channel + x] = tile[x][y];
}

void check(cudaError_t error) {
  if (error != cudaSuccess) cudaGetLastError();  // else whoever asks next would be told
  STD_TORCH_CHECK(error == cudaSuccess, "moi_pool: ", cudaGetErrorString(error));
}

// Runs a kernel on the current stream of a tensor's device.
template <typename... P, typename... A>
void launch(void (*kernel)(P...), dim3 grid, int threads, size_t shared, const Tensor& on, const A&... arguments) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(on.get_device_index(), &stream));
  if (shared > 48 << 10) check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared)));
  cudaLaunchConfig_t config{};
  config.gridDim = grid, config.blockDim = dim3(threads), config.dynamicSmemBytes = shared;
  config.stream = static_cast<cudaStream_t>(stream);
  check(cudaLaunchKernelEx(&config, kernel, P(arguments)...));
}

// Calls `call` with a value of the C++ type of features.
template <typename Call>
void dispatch(ScalarType type, const Call& call) {
  switch (type) {
    case ScalarType::Float: return call(float{});
    case ScalarType::Double: return call(double{});
    case ScalarType::Half: return call(Half{});
    case ScalarType::BFloat16: return call(BFloat16{});
    default: STD_TORCH_CHECK(false, "moi_pool: features must be float, double, half or bfloat16");
  }
}

ScalarType exact(ScalarType type) { return type == ScalarType::Double ? type : ScalarType::Float; }

// Features as they lie, if channels are next to each other and cells evenly spaced; else those of a copy, which `own` keeps.
template <typename T>
Maps maps_of(const Shape& s, const Tensor& features, Tensor& own) {
  const int64_t image = features.stride(0) * sizeof(T), row = features.stride(2) * sizeof(T);
  const int64_t cell = s.width > 1 ? features.stride(3) * sizeof(T) : row;
  const auto* data = static_cast<const char*>(features.const_data_ptr());
  if ((s.channels == 1 || features.stride(1) == 1) && (s.height == 1 || row == s.width * cell) && cell <= UINT32_MAX)
    return {data, image, unsigned(cell), (reinterpret_cast<uintptr_t>(data) | image | cell | s.channels * sizeof(T)) % 16 == 0};
  const int padded = (s.channels + kPer<T> - 1) / kPer<T> * kPer<T>;
  const Tensor planes = torch::stable::contiguous(features);
  own = torch::stable::new_empty(features, {s.images, int64_t(s.area()), padded});
  launch(channels_last<T>, dim3((s.area() + kWarp - 1) / kWarp, (padded + kWarp - 1) / kWarp, s.images), kWarp * kWarps, 0,
         features, s, read<T>(planes), write<T>(own), padded);
  const unsigned pitch = padded * sizeof(T);
  return {static_cast<const char*>(own.const_data_ptr()), int64_t(s.area()) * pitch, pitch, true};
}

std::tuple<Tensor, Tensor, Tensor> moi_pool(Tensor features, Tensor boxes, Tensor cells, int64_t rows, int64_t columns,
                                            double scale, int64_t compensation, bool keep) {
  const Shape s(features.size(0), boxes.size(0), features.size(1), features.size(2), features.size(3), rows, columns);
  const bool narrow = wsis::is_narrow(s.area());
  const Tensor pooled = torch::stable::new_empty(features, {s.regions, s.channels, rows, columns});
  const ScalarType place = narrow ? ScalarType::Short : ScalarType::Int;
  const Tensor places = keep ? torch::stable::new_empty(features, {s.regions, s.channels, rows, columns}, place)
                             : torch::stable::new_empty(features, {0}, place);
  const Tensor factors = torch::stable::new_empty(features, {s.regions}, exact(features.scalar_type()));
  if (!s.regions) return {pooled, places, factors};
  const torch::stable::accelerator::DeviceGuard guard(features.get_device_index());
  const Tensor floats = torch::stable::contiguous(boxes), own = torch::stable::contiguous(cells);
  dispatch(features.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    Tensor copy;
    const Maps maps = s.area() && s.images && s.channels ? maps_of<T>(s, features, copy) : Maps{};
    const auto run = [&](auto kernel, int width, auto* kept) {
      const size_t shared = kTile * (kWarp + 1) * kPer<T> * (sizeof(T) + width);
      const dim3 grid(s.regions, std::max((s.channels + kLanes<T> - 1) / kLanes<T>, 1));
      launch(kernel, grid, kWarp * kWarps, shared, features, s, maps, read<float>(floats), float(scale), read<bool>(own),
             compensation, write<T>(pooled), kept, write<Exact<T>>(factors));
    };
    if (!keep) run(pool<T, void>, 0, static_cast<void*>(nullptr));
    else if (narrow) run(pool<T, int16_t>, 2, write<int16_t>(places));
    else run(pool<T, int32_t>, 4, write<int32_t>(places));
  });
  return {pooled, places, factors};
}

Tensor moi_pool_backward(Tensor grad, Tensor places, Tensor factors, Tensor boxes, int64_t images, int64_t height,
                         int64_t width) {
  STD_TORCH_CHECK(places.numel() == grad.numel(), "moi_pool: places were not kept, or are of other gradients");
  const Shape s(images, grad.size(0), grad.size(1), height, width, grad.size(2), grad.size(3));
  const ScalarType type = grad.scalar_type();
  const int64_t bytes = int64_t(s.area()) * (type == ScalarType::Double ? 8 : 4);  // of a map of sums
  const bool fits = bytes <= kMapBytes;
  // where sums do not fit, they are added up in the result, or if that is of halves in floats
  const Tensor out = fits ? torch::stable::new_empty(grad, {images, s.channels, height, width})
                          : torch::stable::new_zeros(grad, {images, s.channels, height, width}, exact(type));
  if (!out.numel()) return torch::stable::to(out, type);
  const torch::stable::accelerator::DeviceGuard guard(grad.get_device_index());
  grad = torch::stable::contiguous(grad), places = torch::stable::contiguous(places), boxes = torch::stable::contiguous(boxes);
  const int64_t parts = std::max((s.regions + kWarp - 1) / kWarp, 1);
  const int maps = fits ? int(std::min({int64_t(kMaps), kMapBytes / bytes, parts})) : 1;
  dispatch(type, [&](auto zero) {
    using T = decltype(zero);
    const auto run = [&](auto kernel, auto* where) {
      launch(kernel, dim3(s.channels, s.images), kWarp * maps, fits ? maps * bytes : 0, grad, s, read<T>(grad), where,
             read<Exact<T>>(factors), read<float>(boxes), fits ? write<T>(out) : nullptr,
             fits ? nullptr : write<Exact<T>>(out));
    };
    if (wsis::is_narrow(s.area())) run(unpool<T, int16_t>, read<int16_t>(places));
    else run(unpool<T, int32_t>, read<int32_t>(places));
  });
  return fits ? out : torch::stable::to(out, type);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(wsis, CUDA, m) {
  m.impl("moi_pool", TORCH_BOX(&moi_pool));
  m.impl("moi_pool_backward", TORCH_BOX(&moi_pool_backward));
}
