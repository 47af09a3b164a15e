// CUDA on the CPU, for tests of what kernels compute: a block is a fiber for each thread, and barriers let the others go on.
// Blocks run one after another, so races between them are not seen; nor is time.
#pragma once
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static
#undef __restrict__
#define __restrict__
using std::max;
using std::min;

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};

namespace emulation {

// A barrier of some threads, at which they exchange a value each.
struct Barrier {
  unsigned threads = 32, arrived = 0, passed = 0;
  uint64_t given[32], taken[32];
};
struct Fiber {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(256 << 10);
  unsigned thread = 0;
  bool done = false;
};

inline ucontext_t scheduler;
inline std::vector<std::unique_ptr<Fiber>> fibers;
inline Fiber* current;
inline std::function<void()> body;
inline Barrier block, warps[32];
inline std::vector<double> shared;  // what a launch asks for

inline Barrier& warp() { return warps[current->thread / 32]; }

inline void wait(Barrier& barrier) {
  const unsigned before = barrier.passed;
  if (++barrier.arrived == barrier.threads) {
    std::memcpy(barrier.taken, barrier.given, sizeof barrier.taken);
    barrier.arrived = 0, ++barrier.passed;
  }
  while (barrier.passed == before) swapcontext(&current->context, &scheduler);
}

template <typename T>
const uint64_t* exchange(T value) {
  static_assert(sizeof value <= 8);
  std::memcpy(&warp().given[current->thread % 32], &value, sizeof value);
  wait(warp());
  return warp().taken;
}

template <typename T>
T at(const uint64_t* values, int lane) {
  T value;
  std::memcpy(&value, values + lane, sizeof value);
  return value;
}

inline void start() {
  body();
  current->done = true;
  swapcontext(&current->context, &scheduler);
}

inline void run_block(unsigned count) {
  block = Barrier{count};
  for (auto& each : warps) each = Barrier{};
  while (fibers.size() < count) fibers.push_back(std::make_unique<Fiber>());
  for (unsigned i = 0; i < count; ++i) {
    Fiber& fiber = *fibers[i];
    fiber.thread = i, fiber.done = false;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data(), fiber.context.uc_stack.ss_size = fiber.stack.size();
    makecontext(&fiber.context, start, 0);
  }
  for (bool alive = true; alive;) {
    alive = false;
    for (unsigned i = 0; i < count; ++i) {
      // the last warp first, so that results that hang on the order of warps do not come out right by chance
      Fiber& fiber = *fibers[count - 1 - i];
      if (fiber.done) continue;
      alive = true, current = &fiber;
      swapcontext(&scheduler, &fiber.context);
    }
  }
}

struct DeviceGuard {
  explicit DeviceGuard(int) {}
};

struct Thread {
  struct X {
    operator unsigned() const { return current->thread; }
  } x;
};

}  // namespace emulation

inline emulation::Thread threadIdx;
inline dim3 blockIdx, blockDim;

inline void __syncthreads() { emulation::wait(emulation::block); }
inline void __syncwarp() { emulation::wait(emulation::warp()); }

inline unsigned __ballot_sync(unsigned, bool mine) {
  const uint64_t* all = emulation::exchange<uint64_t>(mine);
  unsigned bits = 0;
  for (int lane = 0; lane < 32; ++lane) bits |= unsigned(all[lane]) << lane;
  return bits;
}
inline bool __any_sync(unsigned mask, bool mine) { return __ballot_sync(mask, mine); }
inline unsigned __match_any_sync(unsigned, int mine) {
  const uint64_t* all = emulation::exchange(mine);
  unsigned bits = 0;
  for (int lane = 0; lane < 32; ++lane) bits |= unsigned(emulation::at<int>(all, lane) == mine) << lane;
  return bits;
}
template <typename T>
T __shfl_sync(unsigned, T mine, int from) {
  return emulation::at<T>(emulation::exchange(mine), from);
}
template <typename T>
T atomicAdd(T* to, T value) {
  return std::exchange(*to, *to + value);
}
inline int __ffs(unsigned bits) { return __builtin_ffs(int(bits)); }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

template <typename H>
struct Two {
  H a, b;
};
using __half2 = Two<c10::Half>;
using __nv_bfloat162 = Two<c10::BFloat16>;
template <typename H>
Two<H> __hmax2_nan(Two<H> a, Two<H> b) {
  const auto one = [](float x, float y) { return H(y > x || y != y ? y : x); };
  return {one(a.a, b.a), one(a.b, b.b)};
}

using cudaError_t = int;
using cudaStream_t = void*;
constexpr int cudaSuccess = 0, cudaFuncAttributeMaxDynamicSharedMemorySize = 0;
inline const char* cudaGetErrorString(int) { return "too much shared memory"; }
inline int cudaGetLastError() { return cudaSuccess; }
inline int aoti_torch_get_current_cuda_stream(int, void**) { return 0; }
template <typename F>
int cudaFuncSetAttribute(F*, int, int bytes) {
  return bytes > 227 << 10;
}

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

template <typename... P>
int cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(P...), P... arguments) {
  const dim3 grid = config->gridDim;
  blockDim = config->blockDim;
  emulation::body = [=] { kernel(arguments...); };
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = dim3(x, y, z);
        emulation::shared.assign(config->dynamicSmemBytes / sizeof(double) + 1, NAN);
        emulation::run_block(config->blockDim.x);
      }
  return cudaSuccess;
}
