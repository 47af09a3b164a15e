// CUDA on the CPU, to test what kernels compute: each thread of a block is a fiber, which lets others go on at barriers.
// Blocks run one after another, so neither races between them nor time are seen.
#pragma once
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <functional>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __shared__ static
#undef __restrict__
#define __restrict__
using std::max;
using std::min;

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
inline dim3 blockIdx, blockDim;

namespace emulation {

struct Barrier {  // at which threads give a value each
  unsigned threads = 32, arrived = 0, passed = 0;
  uint64_t given[32], taken[32];
};
struct Fiber {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(256 << 10);
  unsigned thread;
  bool done;
};

inline ucontext_t scheduler;
inline std::deque<Fiber> fibers;
inline Fiber* current;
inline std::function<void()> kernel;
inline Barrier block, warps[32];
inline std::vector<double> shared;  // as much as a launch asks for

inline void leave() { swapcontext(&current->context, &scheduler); }

inline void wait(Barrier& barrier) {
  const unsigned before = barrier.passed;
  if (++barrier.arrived == barrier.threads) {
    std::memcpy(barrier.taken, barrier.given, sizeof barrier.taken);
    barrier.arrived = 0, ++barrier.passed;
  }
  while (barrier.passed == before) leave();
}

// The values of all lanes of a warp.
template <typename T>
std::vector<T> exchange(T mine) {
  Barrier& warp = warps[current->thread / 32];
  std::memcpy(&warp.given[current->thread % 32], &mine, sizeof mine);
  wait(warp);
  std::vector<T> all(32);
  for (int lane = 0; lane < 32; ++lane) std::memcpy(&all[lane], &warp.taken[lane], sizeof mine);
  return all;
}

inline void start() {
  kernel();
  current->done = true;
  leave();
}

inline void run_block(unsigned threads) {
  block = Barrier{threads};
  std::fill_n(warps, 32, Barrier{});
  while (fibers.size() < threads) fibers.emplace_back();
  for (unsigned i = 0; i < threads; ++i) {
    fibers[i].thread = i, fibers[i].done = false;
    getcontext(&fibers[i].context);
    fibers[i].context.uc_stack.ss_sp = fibers[i].stack.data();
    fibers[i].context.uc_stack.ss_size = fibers[i].stack.size();
    makecontext(&fibers[i].context, start, 0);
  }
  for (unsigned left = threads; left;)
    for (unsigned i = threads; i--;) {  // the last one first: nothing comes out right by the order of threads alone
      if (fibers[i].done) continue;
      current = &fibers[i];
      swapcontext(&scheduler, &current->context);
      left -= current->done;
    }
}

struct Thread {
  struct {
    operator unsigned() const { return current->thread; }
  } x;
};
struct DeviceGuard {
  explicit DeviceGuard(int) {}
};

}  // namespace emulation

inline emulation::Thread threadIdx;
inline void __syncthreads() { emulation::wait(emulation::block); }
inline void __syncwarp() { emulation::exchange(0); }
template <typename T>
T __shfl_sync(unsigned, T mine, int from) {
  return emulation::exchange(mine)[from];
}
template <typename T>
unsigned __match_any_sync(unsigned, T mine) {
  unsigned bits = 0, lane = 0;
  for (const T other : emulation::exchange(mine)) bits |= unsigned(other == mine) << lane++;
  return bits;
}
inline unsigned __ballot_sync(unsigned all, int mine) {
  const unsigned same = __match_any_sync(all, int(mine != 0));
  return mine ? same : ~same;
}
inline bool __any_sync(unsigned all, int mine) { return __ballot_sync(all, mine); }
template <typename T>
T atomicAdd(T* to, T value) {
  return std::exchange(*to, *to + value);
}
inline int __ffs(unsigned bits) { return __builtin_ffs(int(bits)); }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

template <typename H>
struct Two {
  H v[2];
};
using __half2 = Two<c10::Half>;
using __nv_bfloat162 = Two<c10::BFloat16>;
template <typename H>
Two<H> __hmax2_nan(Two<H> a, Two<H> b) {
  for (int i = 0; i < 2; ++i)
    if (b.v[i] > a.v[i] || b.v[i] != b.v[i]) a.v[i] = b.v[i];
  return a;
}

using cudaError_t = int;
using cudaStream_t = void*;
constexpr int cudaSuccess = 0, cudaFuncAttributeMaxDynamicSharedMemorySize = 0;
inline const char* cudaGetErrorString(int) { return "too much shared memory"; }
inline int cudaGetLastError() { return cudaSuccess; }
inline int cudaFuncSetAttribute(auto*, int, int bytes) { return bytes > 227 << 10; }
inline int aoti_torch_get_current_cuda_stream(int, void**) { return 0; }

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};
template <typename... P>
int cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(P...), P... arguments) {
  emulation::kernel = [=] { kernel(arguments...); };
  blockDim = config->blockDim;
  for (unsigned z = 0; z < config->gridDim.z; ++z)
    for (unsigned y = 0; y < config->gridDim.y; ++y)
      for (unsigned x = 0; x < config->gridDim.x; ++x) {
        blockIdx = dim3(x, y, z);
        emulation::shared.assign(config->dynamicSmemBytes / sizeof(double) + 1, NAN);
        emulation::run_block(blockDim.x);
      }
  return cudaSuccess;
}
