// One GPU on a CPU: the threads of a block are fibers that change at barriers and at what a warp does together, and
// instructions are what PTX defines. For tests of bits, not of speed.
#pragma once
#define TVMQ_EMULATED 1
#ifndef __CUDA_ARCH__
#define __CUDA_ARCH__ 800
#endif
#define TVMQ_ASYNC (__CUDA_ARCH__ >= 800)
#define TVMQ_DEVICE inline
#define __device__
#define __global__
#define __forceinline__
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __restrict__
#define __shared__ static  // one block runs at a time

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

using std::max;
using std::min;

struct uint3 {
  unsigned x, y, z;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct uint2 {
  unsigned x, y;
};
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

namespace gpu {

struct Fiber {
  void* stack_pointer;
  char* stack;
  bool done;
  int barrier;  // how many barriers it has passed
};

constexpr size_t STACK = 256 << 10;
extern "C" void gpu_change(void** from, void* to);
asm(R"(
.text
.type gpu_change, @function
gpu_change:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");

inline uint3 thread, block, block_size, grid_size;
inline std::vector<Fiber> fibers;
inline void* main_stack;
inline unsigned current;
inline void (*kernel)(void**);
inline void** arguments;
alignas(64) inline unsigned char shared[256 << 10];
inline unsigned count;

inline void enter() {
  kernel(arguments);
  fibers[current].done = true;
  for (;;) {  // whose turn is it? Any thread that is not done; else back to main.
    unsigned next = current;
    for (unsigned step = 1; step <= count; ++step) {
      next = (current + step) % count;
      if (!fibers[next].done) break;
    }
    void* dead;
    if (fibers[next].done) {
      gpu_change(&dead, main_stack);
    } else {
      unsigned before = current;
      current = next, thread = {next % block_size.x, next / block_size.x % block_size.y, 0};
      gpu_change(&fibers[before].stack_pointer, fibers[next].stack_pointer);
    }
  }
}

// Let another thread run that is not done; `only` narrows it to a warp.
inline void pass(unsigned first, unsigned last) {
  unsigned before = current, next = current;
  do {
    next = next + 1 == last ? first : next + 1;
  } while (fibers[next].done);
  if (next == before) return;
  current = next, thread = {next % block_size.x, next / block_size.x % block_size.y, 0};
  gpu_change(&fibers[before].stack_pointer, fibers[next].stack_pointer);
}

inline void barrier() {
  const int mine = ++fibers[current].barrier;
  for (;;) {
    bool all = true;
    for (unsigned i = 0; i < count; ++i) all = all && (fibers[i].done || fibers[i].barrier >= mine);
    if (all) return;
    pass(0, count);
  }
}

// What the lanes of each warp give one another. Three slots: a lane may be one exchange ahead of another.
struct Exchange {
  unsigned long long values[32][6];
  int given[32];
};
inline Exchange exchanges[32][3];

// Give words of this lane; return when all lanes of its warp have given theirs of the same exchange.
inline const Exchange& exchange(const unsigned long long* words, int number) {
  const unsigned warp = current / 32, lane = current % 32, first = warp * 32, last = min(first + 32, count);
  static int passed[1024];
  if (last - first != 32) std::fprintf(stderr, "gpu: a warp of %u lanes\n", last - first), std::abort();
  int& turn = passed[current];
  Exchange& own = exchanges[warp][turn % 3];
  std::memcpy(own.values[lane], words, number * sizeof(*words));
  own.given[lane] = ++turn;
  for (;;) {
    bool all = true;
    for (unsigned i = 0; i < 32; ++i) {
      const bool here = own.given[i] >= turn;
      if (!here && fibers[first + i].done) std::fprintf(stderr, "gpu: a lane left before its warp met\n"), std::abort();
      all = all && here;
    }
    if (all) return own;
    pass(first, last);
  }
}

// Run every block of a launch, one after another.
inline void launch(void (*function)(void**), void** given, uint3 grid, uint3 threads) {
  kernel = function, arguments = given, grid_size = grid, block_size = threads;
  count = threads.x * threads.y * threads.z;
  while (fibers.size() < count) fibers.push_back({nullptr, static_cast<char*>(std::aligned_alloc(64, STACK)), true, 0});
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        block = {x, y, z};
        std::memset(shared, 0xA5, sizeof shared);
        for (unsigned i = 0; i < count; ++i) {
          void** top = reinterpret_cast<void**>(fibers[i].stack + STACK) - 2;
          *top = reinterpret_cast<void*>(&enter);  // where the first change returns to, six registers below
          fibers[i] = {top - 6, fibers[i].stack, false, 0};
        }
        current = 0, thread = {0, 0, 0};
        gpu_change(&main_stack, fibers[0].stack_pointer);
      }
}

}  // namespace gpu

#define threadIdx (gpu::thread)
#define blockIdx (gpu::block)
#define blockDim (gpu::block_size)
#define gridDim (gpu::grid_size)

inline void __syncthreads() { gpu::barrier(); }
inline void __syncwarp() {
  unsigned long long none = 0;
  gpu::exchange(&none, 1);
}

template <class T>
T __shfl_sync(unsigned, T value, int lane) {
  unsigned long long word = 0;
  std::memcpy(&word, &value, sizeof value);
  word = gpu::exchange(&word, 1).values[lane & 31][0];
  std::memcpy(&value, &word, sizeof value);
  return value;
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
  return __shfl_sync(mask, value, static_cast<int>(gpu::current % 32) ^ lanes);
}

inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const unsigned long long both = a | static_cast<unsigned long long>(b) << 32;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) result |= static_cast<unsigned>(both >> (selector >> 4 * i & 7) * 8 & 255) << 8 * i;
  return result;
}

namespace tvmq {

typedef unsigned char u8;
typedef signed char s8;
typedef unsigned int u32;
typedef long long s64;
typedef unsigned long long u64;

inline int byte_of(u32 word, int i, bool is_signed) {
  const u8 byte = static_cast<u8>(word >> 8 * i);
  return is_signed ? static_cast<s8>(byte) : byte;
}

template <bool SIGNED>
int dot4(u32 a, u32 b, int c) {
  for (int i = 0; i < 4; ++i) c += byte_of(a, i, SIGNED) * byte_of(b, i, true);
  return c;
}

template <bool SIGNED>
void mma(int* d, const u32* a, u32 b0, u32 b1) {
  const unsigned long long words[6] = {a[0], a[1], a[2], a[3], b0, b1};
  const gpu::Exchange& all = gpu::exchange(words, 6);
  const int lane = gpu::current % 32, row = lane / 4 * 4, column = lane % 4 * 8;
  for (int k = 0; k < 4; ++k)
    for (int e = 0; e < 2; ++e) {
      const auto& left = all.values[row + k];
      const auto& right = all.values[column + 4 * e + k];
      for (int half = 0; half < 2; ++half) {
        int& sum = d[2 * half + e];
        sum = dot4<SIGNED>(static_cast<u32>(left[half]), static_cast<u32>(right[4]), sum);
        sum = dot4<SIGNED>(static_cast<u32>(left[half + 2]), static_cast<u32>(right[5]), sum);
      }
    }
}

inline void load_matrices(u32* found, const u8* row) {
  const unsigned long long place = reinterpret_cast<unsigned long long>(row);
  if (place % 16) std::fprintf(stderr, "gpu: ldmatrix of an address that is no multiple of 16\n"), std::abort();
  const gpu::Exchange& all = gpu::exchange(&place, 1);
  const int lane = gpu::current % 32;
  for (int i = 0; i < 4; ++i)
    std::memcpy(&found[i], reinterpret_cast<const u8*>(all.values[8 * i + lane / 4][0]) + lane % 4 * 4, 4);
}

// Copies arrive only when they are waited for: a kernel that forgets to finds what was there before.
struct Copy {
  u8* to;
  u8 bytes[16];
};
inline std::vector<std::vector<Copy>> pending[1024];

inline void copy_async(u8* to, const u8* from, bool exists) {
  if (reinterpret_cast<u64>(to) % 16 || (exists && reinterpret_cast<u64>(from) % 16))
    std::fprintf(stderr, "gpu: cp.async of an address that is no multiple of 16\n"), std::abort();
  Copy copy = {to, {}};
  if (exists) std::memcpy(copy.bytes, from, 16);
  auto& groups = pending[gpu::current];
  if (groups.empty()) groups.emplace_back();
  groups.back().push_back(copy);
#if __CUDA_ARCH__ < 800
  std::memcpy(to, copy.bytes, 16);
#endif
}

inline void commit_copies() { pending[gpu::current].emplace_back(); }

template <int LEFT>
void wait_for_copies() {
  auto& groups = pending[gpu::current];  // the last one is open
  while (groups.size() > LEFT + 1) {
    for (const Copy& copy : groups.front()) std::memcpy(copy.to, copy.bytes, 16);
    groups.erase(groups.begin());
  }
}

}  // namespace tvmq
