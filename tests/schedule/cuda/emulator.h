// One GPU on a CPU: the threads of a block are fibers that change at barriers and at what a warp does together, and
// instructions are what PTX defines. Blocks and threads come in the order of gpu_order: what a GPU leaves open, no result
// may hang on. Compiled with -fsanitize=alignment, which traps. For tests of bits, not of speed.
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

#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
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

// 0: blocks shuffled; 1: the same backwards, and of a block the last thread first. Of any two, either is first in one.
extern "C" inline int gpu_order = 0;

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
inline unsigned char* shared;  // what a block asks for: it ends where nothing may be read or written
inline unsigned count;  // threads of a block

// The thread whose turn comes after one of first ... end - 1.
inline unsigned following(unsigned thread, unsigned first, unsigned end) {
  if (gpu_order == 1) return thread == first ? end - 1 : thread - 1;
  return thread + 1 == end ? first : thread + 1;
}

inline void turn_to(unsigned next) { current = next, thread = {next % block_size.x, next / block_size.x % block_size.y, 0}; }

inline void enter() {
  kernel(arguments);
  fibers[current].done = true;
  const unsigned before = current;
  unsigned next = current;
  do next = following(next, 0, count);
  while (fibers[next].done && next != before);
  void* dead;
  if (next == before) gpu_change(&dead, main_stack);
  turn_to(next);
  gpu_change(&fibers[before].stack_pointer, fibers[next].stack_pointer);
}

// Let another thread of first ... end - 1 run that is not done.
inline void pass(unsigned first, unsigned end) {
  const unsigned before = current;
  unsigned next = current;
  do next = following(next, first, end);
  while (fibers[next].done);
  if (next == before) return;
  turn_to(next);
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
inline int exchanged[1024];

// Give words of this lane; return when all lanes of its warp have given theirs of the same exchange.
inline const Exchange& exchange(const unsigned long long* words, int number) {
  const unsigned warp = current / 32, lane = current % 32, first = warp * 32, last = min(first + 32, count);
  if (last - first != 32) std::fprintf(stderr, "gpu: a warp of %u lanes\n", last - first), std::abort();
  int& turn = exchanged[current];
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

// Copies to shared memory arrive only when they are waited for: a kernel that forgets to finds what was there before.
struct Copy {
  unsigned char* to;
  unsigned char bytes[16];
};
inline std::vector<std::vector<Copy>> pending[1024];  // of each thread: groups, of which the last is open

inline void run_block() {
  for (unsigned i = 0; i < count; ++i) {
    void** top = reinterpret_cast<void**>(fibers[i].stack + STACK) - 2;
    *top = reinterpret_cast<void*>(&enter);  // where the first change returns to, six registers below
    fibers[i] = {top - 6, fibers[i].stack, false, 0};
    pending[i].clear();
  }
  turn_to(gpu_order == 1 ? count - 1 : 0);
  gpu_change(&main_stack, fibers[current].stack_pointer);
}

// The blocks of a grid in another order than their numbers'.
inline std::vector<unsigned> order_of_blocks(unsigned blocks) {
  std::vector<unsigned> order(blocks);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), std::mt19937(7));
  if (gpu_order == 1) std::reverse(order.begin(), order.end());
  return order;
}

inline void run_blocks(unsigned shared_bytes) {
  const size_t room = 256 << 10, page = 4096;
  static unsigned char* const memory = static_cast<unsigned char*>(
      mmap(nullptr, room + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  mprotect(memory + room, page, PROT_NONE);
  const unsigned kept = (shared_bytes + 15) / 16 * 16;
  shared = memory + room - kept;
  for (unsigned number : order_of_blocks(grid_size.x * grid_size.y * grid_size.z)) {
    block = {number % grid_size.x, number / grid_size.x % grid_size.y, number / grid_size.x / grid_size.y};
    std::memset(shared, 0xA5, kept);
    run_block();
  }
}

inline sigjmp_buf outside;
inline void trapped(int signal) { siglongjmp(outside, signal); }

// Run every block of a launch, one after another; return CUDA's error.
inline int launch(void (*function)(void**), void** given, uint3 grid, uint3 threads, unsigned shared_bytes) {
  enum { INVALID_CONFIGURATION = 9, ILLEGAL_ADDRESS = 700, MISALIGNED_ADDRESS = 716 };
  count = threads.x * threads.y * threads.z;
  if (count > 1024 || grid.y > 65535 || grid.z > 65535 || shared_bytes > 227 << 10) return INVALID_CONFIGURATION;
  kernel = function, arguments = given, grid_size = grid, block_size = threads;
  while (fibers.size() < count) fibers.push_back({nullptr, static_cast<char*>(std::aligned_alloc(64, STACK)), true, 0});
  std::memset(exchanges, 0, sizeof exchanges), std::memset(exchanged, 0, sizeof exchanged);
  const int signals[] = {SIGSEGV, SIGBUS, SIGILL};
  static struct sigaction before[3], trap;
  trap.sa_handler = trapped;
  for (int i = 0; i < 3; ++i) sigaction(signals[i], &trap, &before[i]);
  const int signal = sigsetjmp(outside, 1);
  if (!signal) run_blocks(shared_bytes);
  for (int i = 0; i < 3; ++i) sigaction(signals[i], &before[i], nullptr);
  return !signal ? 0 : signal == SIGILL ? MISALIGNED_ADDRESS : ILLEGAL_ADDRESS;
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

inline int nibble_of(u64 word, int i, bool is_signed) {
  const int value = static_cast<int>(word >> 4 * i & 15);
  return is_signed && value > 7 ? value - 16 : value;
}

#if __CUDA_ARCH__ >= 750 && __CUDA_ARCH__ < 900
template <bool SIGNED>
void mma4(int* d, const u32* a, u32 b0, u32 b1) {
  const unsigned long long words[6] = {a[0], a[1], a[2], a[3], b0, b1};
  const gpu::Exchange& all = gpu::exchange(words, 6);
  const int lane = gpu::current % 32, row = lane / 4 * 4, column = lane % 4 * 8;
  for (int k = 0; k < 64; ++k)
    for (int i = 0; i < 4; ++i) {
      const u64 left = all.values[row + k % 32 / 8][i / 2 + k / 32 * 2];
      const u64 right = all.values[column + 4 * (i % 2) + k % 32 / 8][4 + k / 32];
      d[i] += nibble_of(left, k % 8, SIGNED) * nibble_of(right, k % 8, true);
    }
}
#endif

inline void load_matrices(u32* found, const u8* row) {
  const unsigned long long place = reinterpret_cast<unsigned long long>(row);
  if (place % 16) std::fprintf(stderr, "gpu: ldmatrix of an address that is no multiple of 16\n"), std::abort();
  const gpu::Exchange& all = gpu::exchange(&place, 1);
  const int lane = gpu::current % 32;
  for (int i = 0; i < 4; ++i)
    std::memcpy(&found[i], reinterpret_cast<const u8*>(all.values[8 * i + lane / 4][0]) + lane % 4 * 4, 4);
}

inline void load_transposed(u32* found, const u8* row) {
  const unsigned long long place = reinterpret_cast<unsigned long long>(row);
  if (place % 16) std::fprintf(stderr, "gpu: ldmatrix of an address that is no multiple of 16\n"), std::abort();
  const gpu::Exchange& all = gpu::exchange(&place, 1);
  const int lane = gpu::current % 32;
  for (int i = 0; i < 4; ++i)
    for (int e = 0; e < 2; ++e) {
      const u8* line = reinterpret_cast<const u8*>(all.values[8 * i + lane % 4 * 2 + e][0]);
      std::memcpy(reinterpret_cast<u8*>(&found[i]) + 2 * e, line + lane / 4 * 2, 2);
    }
}

inline void copy_async(u8* to, const u8* from, bool exists) {
  if (reinterpret_cast<u64>(to) % 16 || (exists && reinterpret_cast<u64>(from) % 16))
    std::fprintf(stderr, "gpu: cp.async of an address that is no multiple of 16\n"), std::abort();
  gpu::Copy copy = {to, {}};
  if (exists) std::memcpy(copy.bytes, from, 16);
  auto& groups = gpu::pending[gpu::current];
  if (groups.empty()) groups.emplace_back();
  groups.back().push_back(copy);
#if __CUDA_ARCH__ < 800
  std::memcpy(to, copy.bytes, 16);
#endif
}

inline void commit_copies() { gpu::pending[gpu::current].emplace_back(); }

template <int LEFT>
void wait_for_copies() {
  auto& groups = gpu::pending[gpu::current];
  while (groups.size() > LEFT + 1) {
    for (const gpu::Copy& copy : groups.front()) std::memcpy(copy.to, copy.bytes, 16);
    groups.erase(groups.begin());
  }
}

}  // namespace tvmq
