// What kernels ask of a warp: products, moves between memories. Where an architecture lacks an instruction the
// same function is made of older ones. tests/schedule/cuda/emulator.h defines these for CPUs, by their PTX definition.
#pragma once

namespace tvmq {

typedef unsigned char u8;
typedef signed char s8;
typedef unsigned int u32;
typedef long long s64;
typedef unsigned long long u64;

#ifndef TVMQ_EMULATED
#define TVMQ_DEVICE __device__ __forceinline__

// c + the dot product of four bytes of a, unsigned unless SIGNED, with four signed bytes of b.
template <bool SIGNED>
TVMQ_DEVICE int dot4(u32 a, u32 b, int c) {
  int d;
  if (SIGNED) {
    asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  } else {
    asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  }
  return d;
}

#if __CUDA_ARCH__ >= 800

// d += a b: 16 x 32 bytes times 32 x 8, laid out as PTX lays out mma.m16n8k32.
template <bool SIGNED>
TVMQ_DEVICE void mma(int* d, const u32* a, u32 b0, u32 b1) {
  if (SIGNED) {
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

#if __CUDA_ARCH__ < 900

// d += a b: 16 x 64 numbers of 4 bits times 64 x 8, laid out as PTX lays out mma.m16n8k64; those of b are signed.
template <bool SIGNED>
TVMQ_DEVICE void mma4(int* d, const u32* a, u32 b0, u32 b1) {
  if (SIGNED) {
    asm volatile(
        "mma.sync.aligned.m16n8k64.row.col.s32.s4.s4.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k64.row.col.s32.u4.s4.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

#endif

#elif __CUDA_ARCH__ >= 750

template <bool SIGNED>
TVMQ_DEVICE void mma_8x8x32(int* d, u32 a, u32 b) {
  if (SIGNED) {
    asm volatile("mma.sync.aligned.m8n8k32.row.col.s32.s4.s4.s32 {%0,%1}, {%2}, {%3}, {%0,%1};"
                 : "+r"(d[0]), "+r"(d[1])
                 : "r"(a), "r"(b));
  } else {
    asm volatile("mma.sync.aligned.m8n8k32.row.col.s32.u4.s4.s32 {%0,%1}, {%2}, {%3}, {%0,%1};"
                 : "+r"(d[0]), "+r"(d[1])
                 : "r"(a), "r"(b));
  }
}

template <bool SIGNED>
TVMQ_DEVICE void mma4(int* d, const u32* a, u32 b0, u32 b1) {
  mma_8x8x32<SIGNED>(d, a[0], b0);
  mma_8x8x32<SIGNED>(d + 2, a[1], b0);
  mma_8x8x32<SIGNED>(d, a[2], b1);
  mma_8x8x32<SIGNED>(d + 2, a[3], b1);
}

template <bool SIGNED>
TVMQ_DEVICE void mma_8x8x16(int* d, u32 a, u32 b) {
  if (SIGNED) {
    asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};"
                 : "+r"(d[0]), "+r"(d[1])
                 : "r"(a), "r"(b));
  } else {
    asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.u8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};"
                 : "+r"(d[0]), "+r"(d[1])
                 : "r"(a), "r"(b));
  }
}

template <bool SIGNED>
TVMQ_DEVICE void mma(int* d, const u32* a, u32 b0, u32 b1) {
  mma_8x8x16<SIGNED>(d, a[0], b0);
  mma_8x8x16<SIGNED>(d + 2, a[1], b0);
  mma_8x8x16<SIGNED>(d, a[2], b1);
  mma_8x8x16<SIGNED>(d + 2, a[3], b1);
}

#else

// Every lane fetches the rows of a and the columns of b that its four sums need.
template <bool SIGNED>
TVMQ_DEVICE void mma(int* d, const u32* a, u32 b0, u32 b1) {
  int lane = threadIdx.x % 32, row = lane / 4 * 4, column = lane % 4 * 8;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    u32 rows[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) rows[i] = __shfl_sync(~0u, a[i], row + k);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      u32 low = __shfl_sync(~0u, b0, column + 4 * i + k), high = __shfl_sync(~0u, b1, column + 4 * i + k);
      d[i] = dot4<SIGNED>(rows[2], high, dot4<SIGNED>(rows[0], low, d[i]));
      d[2 + i] = dot4<SIGNED>(rows[3], high, dot4<SIGNED>(rows[1], low, d[2 + i]));
    }
  }
}

#endif

#if __CUDA_ARCH__ >= 750

// Four 8 x 16 bytes from shared memory; lane 8 i + r says where row r of the i-th lies.
TVMQ_DEVICE void load_matrices(u32* found, const u8* row) {
  u32 address = static_cast<u32>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(found[0]), "=r"(found[1]), "=r"(found[2]), "=r"(found[3])
               : "r"(address)
               : "memory");
}

// The same with pairs of bytes transposed: a lane has pair lane / 4 of rows 2 t and 2 t + 1, t = lane % 4.
TVMQ_DEVICE void load_transposed(u32* found, const u8* row) {
  u32 address = static_cast<u32>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(found[0]), "=r"(found[1]), "=r"(found[2]), "=r"(found[3])
               : "r"(address)
               : "memory");
}

#else

TVMQ_DEVICE void load_matrices(u32* found, const u8* row) {
  int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    u64 place = __shfl_sync(~0u, reinterpret_cast<u64>(row), 8 * i + lane / 4);
    found[i] = reinterpret_cast<const u32*>(place)[lane % 4];
  }
}

TVMQ_DEVICE void load_transposed(u32* found, const u8* row) {
  int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    u64 first = __shfl_sync(~0u, reinterpret_cast<u64>(row), 8 * i + lane % 4 * 2);
    u64 second = __shfl_sync(~0u, reinterpret_cast<u64>(row), 8 * i + lane % 4 * 2 + 1);
    u32 low = reinterpret_cast<const unsigned short*>(first)[lane / 4];
    found[i] = low | static_cast<u32>(reinterpret_cast<const unsigned short*>(second)[lane / 4]) << 16;
  }
}

#endif

#if __CUDA_ARCH__ >= 800
#define TVMQ_ASYNC 1

// Start to copy 16 bytes to shared memory; zeros where there is no source.
TVMQ_DEVICE void copy_async(u8* to, const u8* from, bool exists) {
  u32 address = static_cast<u32>(__cvta_generic_to_shared(to));
  int bytes = exists ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(bytes) : "memory");
}

TVMQ_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Wait until at most LEFT of the committed groups are under way.
template <int LEFT>
TVMQ_DEVICE void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

#else
#define TVMQ_ASYNC 0

TVMQ_DEVICE void copy_async(u8* to, const u8* from, bool exists) {
  *reinterpret_cast<uint4*>(to) = exists ? *reinterpret_cast<const uint4*>(from) : make_uint4(0, 0, 0, 0);
}

TVMQ_DEVICE void commit_copies() {}

template <int LEFT>
TVMQ_DEVICE void wait_for_copies() {}

#endif
#endif  // TVMQ_EMULATED

// The bits of a where the mask has ones, else those of b: one instruction.
TVMQ_DEVICE u32 merged(u32 a, u32 b, u32 mask) { return (a & mask) | (b & ~mask); }

TVMQ_DEVICE int clip(int x, int low, int high) { return min(max(x, low), high); }

TVMQ_DEVICE s64 clip(s64 x, s64 low, s64 high) { return x < low ? low : x > high ? high : x; }

// floor(x / 2^shift + 1/2), shift of any sign.
template <int SHIFT>
TVMQ_DEVICE int round_shift(int x) {
  return SHIFT > 0 ? (x + (1 << (SHIFT > 0 ? SHIFT - 1 : 0))) >> (SHIFT > 0 ? SHIFT : 0)
                   : static_cast<int>(static_cast<u32>(x) << (SHIFT > 0 ? 0 : -SHIFT));
}

}  // namespace tvmq
