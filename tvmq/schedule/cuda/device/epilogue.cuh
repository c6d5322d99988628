// What integer products store of their int32 sums: passes/epilogue.py, for neighbouring channels of one row.
#pragma once

namespace tvmq {

struct Operands {
  const int* bias;
  const void* scale;  // int32 shifts, int8 ones beside gains; float32 factors where the result is float32
  const void* multiplier;  // int32; int8 gains
  const short* residual;
  const u8* table;
  void* out;
  u8* copy;
};

TVMQ_DEVICE Operands operands(const void* bias, const void* scale, const void* multiplier, const void* residual,
                              const void* table, void* out, void* copy) {
  return {static_cast<const int*>(bias), scale, multiplier, static_cast<const short*>(residual),
          static_cast<const u8*>(table), out, static_cast<u8*>(copy)};
}

template <int BYTES>
struct alignas(BYTES) Block {
  u8 bytes[BYTES];
};

// Copy COUNT elements, at once where ALIGNED says that they start at a multiple of their size.
template <class T, int COUNT, bool ALIGNED>
TVMQ_DEVICE void copy_values(T* to, const T* from, int most) {
  constexpr int SIZE = COUNT * sizeof(T), STEP = SIZE < 16 ? SIZE : 16;
  if (ALIGNED) {
#pragma unroll
    for (int at = 0; at < SIZE; at += STEP)
      *reinterpret_cast<Block<STEP>*>(reinterpret_cast<u8*>(to) + at) =
          *reinterpret_cast<const Block<STEP>*>(reinterpret_cast<const u8*>(from) + at);
  } else {
#pragma unroll
    for (int i = 0; i < COUNT; ++i)
      if (i < most) to[i] = from[i];
  }
}

// What belongs to COUNT neighbouring channels.
template <int COUNT>
struct Channels {
  alignas(16) int bias[COUNT];
  alignas(16) int scale[COUNT];  // the bits of a float32 factor, or a shift
  alignas(16) int multiplier[COUNT];
};

TVMQ_DEVICE float as_float(int bits) {
  union {
    int from;
    float to;
  } same = {bits};
  return same.to;
}

// OUTPUTS: channels of a row of the result.
template <class Out, int OUTPUTS, int LOW, int HIGH, bool RESIDUAL, bool TABLE, bool FIXED_POINT, bool GAIN,
          int ZERO_POINT, bool COPY, int COPY_SHIFT, int COPY_ZERO_POINT, int COPY_LOW, int COPY_HIGH>
struct Epilogue {
  static constexpr bool FLOAT = sizeof(Out) == 4;
  Operands with;

  // The first channel is a multiple of COUNT; what is read has room for COUNT, even past the last one.
  template <int COUNT>
  TVMQ_DEVICE Channels<COUNT> channels(int channel) const {
    Channels<COUNT> found;
    copy_values<int, COUNT, true>(found.bias, with.bias + channel, COUNT);
    numbers<COUNT>(found.scale, with.scale, channel);
    if (FIXED_POINT || GAIN) numbers<COUNT>(found.multiplier, with.multiplier, channel);
    return found;
  }

  template <int COUNT>
  TVMQ_DEVICE static void numbers(int* to, const void* from, int channel) {
    if constexpr (GAIN) {
      alignas(16) s8 narrow[COUNT];
      copy_values<s8, COUNT, true>(narrow, static_cast<const s8*>(from) + channel, COUNT);
#pragma unroll
      for (int i = 0; i < COUNT; ++i) to[i] = narrow[i];
    } else {
      copy_values<int, COUNT, true>(to, static_cast<const int*>(from) + channel, COUNT);
    }
  }

  // table: the 256 bytes in shared memory.
  template <int COUNT>
  TVMQ_DEVICE void store(s64 row, int channel, const int* sums, const Channels<COUNT>& own, const u8* table) const {
    constexpr bool WHOLE = OUTPUTS % COUNT == 0;
    const int most = OUTPUTS - channel;
    if (most <= 0) return;
    alignas(16) Out values[COUNT];
    alignas(16) u8 copies[COUNT];
    alignas(16) short residual[COUNT];
    const s64 place = row * OUTPUTS + channel;
    if (RESIDUAL) copy_values<short, COUNT, WHOLE>(residual, with.residual + place, most);
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      const int total = (GAIN ? sums[i] * own.multiplier[i] : sums[i]) + own.bias[i];
      if constexpr (FLOAT) {
        values[i] = static_cast<float>(total) * as_float(own.scale[i]);
      } else {
        const int value = finished(total, own, i, RESIDUAL ? residual[i] : 0);
        values[i] = static_cast<Out>(TABLE ? table[value & 255] : value);
        if (COPY) copies[i] = copied(value);
      }
    }
    copy_values<Out, COUNT, WHOLE>(static_cast<Out*>(with.out) + place, values, most);
    if (COPY) copy_values<u8, COUNT, WHOLE>(with.copy + place, copies, most);
  }

  template <int COUNT>
  TVMQ_DEVICE int finished(int total, const Channels<COUNT>& own, int i, int residual) const {
    if constexpr (FIXED_POINT) {
      const s64 product = static_cast<s64>(total) * own.multiplier[i];
      const s64 moved = (product + (1LL << (own.scale[i] - 1))) >> own.scale[i];
      return static_cast<int>(clip(moved + ZERO_POINT + residual, static_cast<s64>(LOW), static_cast<s64>(HIGH)));
    }
    return clip((total >> own.scale[i]) + residual, LOW, HIGH);
  }

  TVMQ_DEVICE u8 copied(int value) const {
    constexpr int HALF = ((1 << COPY_SHIFT) >> 1) + (COPY_ZERO_POINT << COPY_SHIFT);
    return static_cast<u8>(clip((value + HALF) >> COPY_SHIFT, COPY_LOW, COPY_HIGH));
  }

  // Bring the table to shared memory; a barrier comes before the first store.
  TVMQ_DEVICE void load_table(u8* table) const {
    if (TABLE)
      for (int i = threadIdx.x; i < 64; i += blockDim.x)
        reinterpret_cast<u32*>(table)[i] = reinterpret_cast<const u32*>(with.table)[i];
  }
};

}  // namespace tvmq
