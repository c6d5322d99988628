// A tile of a product, by tensor cores or dot products of four bytes: sums stay in registers, both operands pass through shared memory in STAGES slots.
// Rows of a slot are chunks of 16 bytes in an order that lets eight lanes read eight rows without meeting in a bank.
#pragma once

namespace tvmq {

// WEIGHT_BITS: 8, or 4: a byte holds the highest four bits of two weights, see packing.py.
template <int ROWS_, int COLUMNS_, int DEPTH_, int WARP_ROWS_, int WARP_COLUMNS_, int STAGES_, int WEIGHT_BITS_>
struct Tile {
  static constexpr int ROWS = ROWS_, COLUMNS = COLUMNS_, DEPTH = DEPTH_, STAGES = STAGES_, WEIGHT_BITS = WEIGHT_BITS_;
  static constexpr int WARP_ROWS = WARP_ROWS_, WARP_COLUMNS = WARP_COLUMNS_;
  static constexpr int THREADS = ROWS / WARP_ROWS * (COLUMNS / WARP_COLUMNS) * 32;
  static constexpr int A_CHUNKS = DEPTH / 16, B_CHUNKS = DEPTH * WEIGHT_BITS / 128;
  static constexpr int A_STEP = THREADS / A_CHUNKS, B_STEP = THREADS / B_CHUNKS;  // rows that all threads bring at once
  static constexpr int A_LOADS = (ROWS + A_STEP - 1) / A_STEP, B_LOADS = (COLUMNS + B_STEP - 1) / B_STEP;
  static constexpr int A_BYTES = ROWS * DEPTH, SLOT = A_BYTES + COLUMNS * B_CHUNKS * 16;
  static constexpr int M = WARP_ROWS / 16, N = WARP_COLUMNS / 8;
  static constexpr int PARTS = 8 / WEIGHT_BITS;  // of the sums: tensor cores that take 4 bits do so of x, too
};

template <int CHUNKS>
TVMQ_DEVICE int place_of(int row, int chunk) {
  return (row * CHUNKS + (chunk ^ row / (8 / CHUNKS) % CHUNKS)) * 16;
}

// Lines of a group's packed weights.
TVMQ_DEVICE int padded_outputs(int outputs) { return (outputs + 31) / 32 * 32; }

// What a thread brings to shared memory. Its chunks are neighbours in neither operand: one column of chunks, many rows.
template <class T, class Source>
struct Supply {
  const Source& source;
  const u8* weight;  // [outputs, depth], both padded: outputs to 32, depth to 64
  u8* shared;
  int depth, pitch;  // pitch: bytes of a line of weights
  int a_chunk, a_first, b_chunk, b_first;
  typename Source::Row rows[T::A_LOADS];
  const u8* lines[T::B_LOADS];
  uint4 a[T::A_LOADS], b[T::B_LOADS];  // on their way, where copies are not asynchronous

  TVMQ_DEVICE Supply(const Source& source, const u8* weight, u8* shared, int row, int column, int outputs, int depth)
      : source(source), weight(weight), shared(shared), depth(depth), pitch(depth * T::WEIGHT_BITS / 8) {
    a_chunk = threadIdx.x % T::A_CHUNKS, a_first = threadIdx.x / T::A_CHUNKS;
    b_chunk = threadIdx.x % T::B_CHUNKS, b_first = threadIdx.x / T::B_CHUNKS;
#pragma unroll
    for (int i = 0; i < T::A_LOADS; ++i) rows[i] = source.row(row + a_first + i * T::A_STEP);
#pragma unroll
    for (int i = 0; i < T::B_LOADS; ++i)
      lines[i] = weight + static_cast<s64>(min(column + b_first + i * T::B_STEP, padded_outputs(outputs) - 1)) * pitch;
  }

  TVMQ_DEVICE u8* a_place(int slot, int i) const {
    return shared + slot * T::SLOT + place_of<T::A_CHUNKS>(a_first + i * T::A_STEP, a_chunk);
  }

  TVMQ_DEVICE u8* b_place(int slot, int i) const {
    return shared + slot * T::SLOT + T::A_BYTES + place_of<T::B_CHUNKS>(b_first + i * T::B_STEP, b_chunk);
  }

  // Start to bring the step of the depth that begins at k.
  TVMQ_DEVICE void request(int slot, int k) {
#pragma unroll
    for (int i = 0; i < T::A_LOADS; ++i) {
      if (T::ROWS % T::A_STEP && a_first + i * T::A_STEP >= T::ROWS) break;
      if constexpr (TVMQ_ASYNC && Source::WHOLE) {
        const u8* place = source.place(rows[i], k + a_chunk * 16);
        if (Source::PAD == 0 || place) {
          copy_async(a_place(slot, i), place ? place : weight, place != nullptr);
        } else {
          constexpr u32 PADS = (Source::PAD & 255) * 0x01010101u;
          *reinterpret_cast<uint4*>(a_place(slot, i)) = make_uint4(PADS, PADS, PADS, PADS);
        }
      } else {
        a[i] = chunk(source, rows[i], k + a_chunk * 16);
      }
    }
    const int at = k * T::WEIGHT_BITS / 8 + b_chunk * 16;
    const bool exists = at < pitch;
#pragma unroll
    for (int i = 0; i < T::B_LOADS; ++i) {
      if (T::COLUMNS % T::B_STEP && b_first + i * T::B_STEP >= T::COLUMNS) break;
      if constexpr (TVMQ_ASYNC) {
        copy_async(b_place(slot, i), exists ? lines[i] + at : weight, exists);
      } else {
        b[i] = exists ? *reinterpret_cast<const uint4*>(lines[i] + at) : make_uint4(0, 0, 0, 0);
      }
    }
  }

  // Put what copies nobody makes asynchronously where request(slot, ...) meant it to be.
  TVMQ_DEVICE void deliver(int slot) {
    if constexpr (!(TVMQ_ASYNC && Source::WHOLE)) {
#pragma unroll
      for (int i = 0; i < T::A_LOADS; ++i) {
        if (T::ROWS % T::A_STEP && a_first + i * T::A_STEP >= T::ROWS) break;
        *reinterpret_cast<uint4*>(a_place(slot, i)) = a[i];
      }
    }
    if constexpr (!TVMQ_ASYNC) {
#pragma unroll
      for (int i = 0; i < T::B_LOADS; ++i) {
        if (T::COLUMNS % T::B_STEP && b_first + i * T::B_STEP >= T::COLUMNS) break;
        *reinterpret_cast<uint4*>(b_place(slot, i)) = b[i];
      }
    }
  }
};

template <class T>
using Sums = int[T::M][T::N][4];

#if __CUDA_ARCH__ >= 750
// Two chunks of the weights of columns 8 j to 8 j + 7 of a warp, for each j; two of them share a b.
template <class T>
TVMQ_DEVICE void load_columns(u32 (&b)[T::N / 2][4], const u8* weights, int column, int k) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int j = 0; j < T::N / 2; ++j) {
    const int at = column + 16 * j + lane / 16 * 8 + lane % 8;
    load_matrices(b[j], weights + place_of<T::B_CHUNKS>(at, 2 * k + lane / 8 % 2));
  }
}
#endif

// Multiply one slot into the sums of a warp, whose rows and columns begin at row and column of the tile. Sum
// [i][j][2 h + e] of a lane is of row 16 i + 8 h + lane / 4, column 8 j + lane % 4 * 2 + e.
#if __CUDA_ARCH__ >= 750
template <class T, bool SIGNED>
TVMQ_DEVICE void multiply(const u8* slot, int row, int column, Sums<T>& sums) {
  const int lane = threadIdx.x % 32;
  const u8* weights = slot + T::A_BYTES;
#pragma unroll
  for (int k = 0; k < T::DEPTH / 32; ++k) {
    u32 a[T::M][4], b[T::N / 2][4];  // b: of two tiles of 8 columns
#pragma unroll
    for (int i = 0; i < T::M; ++i)
      load_matrices(a[i], slot + place_of<T::A_CHUNKS>(row + 16 * i + lane % 16, 2 * k + lane / 16));
    load_columns<T>(b, weights, column, k);
#pragma unroll
    for (int i = 0; i < T::M; ++i)
#pragma unroll
      for (int j = 0; j < T::N; ++j) mma<SIGNED>(sums[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
  }
}
#else
template <class T, bool SIGNED>
TVMQ_DEVICE void multiply(const u8* slot, int row, int column, Sums<T>& sums) {
  const int lane = threadIdx.x % 32;
  const u8* weights = slot + T::A_BYTES;
#pragma unroll 1
  for (int k = 0; k < T::A_CHUNKS; ++k) {
    uint4 b[T::N][2];
#pragma unroll
    for (int j = 0; j < T::N; ++j)
#pragma unroll
      for (int e = 0; e < 2; ++e)
        b[j][e] = *reinterpret_cast<const uint4*>(weights + place_of<T::B_CHUNKS>(column + 8 * j + lane % 4 * 2 + e, k));
#pragma unroll
    for (int i = 0; i < 2 * T::M; ++i) {
      const uint4 a = *reinterpret_cast<const uint4*>(slot + place_of<T::A_CHUNKS>(row + 8 * i + lane / 4, k));
#pragma unroll
      for (int j = 0; j < T::N; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          int& sum = sums[i / 2][j][i % 2 * 2 + e];
          sum = dot4<SIGNED>(a.x, b[j][e].x, dot4<SIGNED>(a.y, b[j][e].y, sum));
          sum = dot4<SIGNED>(a.z, b[j][e].z, dot4<SIGNED>(a.w, b[j][e].w, sum));
        }
    }
  }
}
#endif

// The same of weights of 4 bits. Those of x are taken apart, the lower and the higher four bits: sums[0] and sums[1].
// What is number 2 i of a register comes from a byte of one chunk, number 2 i + 1 from one of the next, as in the weights.
template <class T, bool SIGNED>
TVMQ_DEVICE void multiply4(const u8* slot, int row, int column, Sums<T> (&sums)[T::PARTS]);

#if __CUDA_ARCH__ >= 750 && __CUDA_ARCH__ < 900
template <class T, bool SIGNED>
TVMQ_DEVICE void multiply4(const u8* slot, int row, int column, Sums<T> (&sums)[T::PARTS]) {
  constexpr u32 LOWER = 0x0F0F0F0Fu;
  const int lane = threadIdx.x % 32;
  const u8* weights = slot + T::A_BYTES;
#pragma unroll
  for (int k = 0; k < T::DEPTH / 64; ++k) {
    u32 low[T::M][4], high[T::M][4], b[T::N / 2][4];
#pragma unroll
    for (int i = 0; i < T::M; ++i)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        u32 a[4];
        const int chunk = 4 * k + 2 * half + lane / 16;
        load_matrices(a, slot + place_of<T::A_CHUNKS>(row + 16 * i + lane % 16, chunk));
#pragma unroll
        for (int line = 0; line < 2; ++line) {
          low[i][2 * half + line] = merged(a[line], a[2 + line] << 4, LOWER);
          high[i][2 * half + line] = merged(a[line] >> 4, a[2 + line], LOWER);
        }
      }
    load_columns<T>(b, weights, column, k);
#pragma unroll
    for (int i = 0; i < T::M; ++i)
#pragma unroll
      for (int j = 0; j < T::N; ++j) {
        const u32 first = b[j / 2][j % 2 * 2], second = b[j / 2][j % 2 * 2 + 1];
        mma4<false>(sums[0][i][j], low[i], first, second);
        mma4<SIGNED>(sums[1][i][j], high[i], first, second);
      }
  }
}
#endif

// Add up the tile that supply brings, into the sums of a warp whose first row and column in it these are.
template <class T, bool SIGNED, class Source>
TVMQ_DEVICE void sum_up(Supply<T, Source>& supply, int row, int column, Sums<T> (&sums)[T::PARTS]) {
  const int steps = (supply.depth + T::DEPTH - 1) / T::DEPTH;
#pragma unroll
  for (int stage = 0; stage < T::STAGES - 1; ++stage) {
    if (stage < steps) {
      supply.request(stage, stage * T::DEPTH);
      supply.deliver(stage);
    }
    commit_copies();
  }
  for (int step = 0; step < steps; ++step) {
    wait_for_copies<T::STAGES - 2>();
    __syncthreads();
    const int next = step + T::STAGES - 1, slot = next % T::STAGES;
    if (next < steps) supply.request(slot, next * T::DEPTH);
    commit_copies();
    const u8* ready = supply.shared + step % T::STAGES * T::SLOT;
    if constexpr (T::WEIGHT_BITS == 4) {
      multiply4<T, SIGNED>(ready, row, column, sums);
    } else {
      multiply<T, SIGNED>(ready, row, column, sums[0]);
    }
    if (next < steps) supply.deliver(slot);
  }
}

// A sum of all its parts: of x, whose higher four bits count 16 times, and of weights that are the higher bits of bytes.
template <class T>
TVMQ_DEVICE int whole(const Sums<T> (&sums)[T::PARTS], int i, int j, int e) {
  if constexpr (T::PARTS == 1) return sums[0][i][j][e];
  return static_cast<int>(static_cast<u32>(sums[0][i][j][e]) * 16 + static_cast<u32>(sums[T::PARTS - 1][i][j][e]) * 256);
}

// Finish and store the sums of a warp whose first row and column in the product of a group these are. The group has
// `outputs` columns, the first is channel first_output of the result. Past the last one begin those of the next group.
template <class T, class Finish>
TVMQ_DEVICE void store_sums(const Finish& finish, const u8* table, int row, int column, int rows, int outputs,
                            int first_output, const Sums<T> (&sums)[T::PARTS]) {
  const int lane = threadIdx.x % 32;
  // The weights are packed so that four neighbouring columns of products hold 8 neighbouring channels of a thread.
#pragma unroll
  for (int j = 0; j < T::N; j += 4) {
    const int channel = column + 8 * j + lane % 4 * 8;
    if (channel >= outputs) continue;
    const auto own = finish.template channels<8>(first_output + channel);
#pragma unroll
    for (int i = 0; i < T::M; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int at = row + 16 * i + 8 * half + lane / 4;
        int values[8];
#pragma unroll
        for (int tile = 0; tile < 4; ++tile) {
          values[2 * tile] = whole<T>(sums, i, j + tile, 2 * half);
          values[2 * tile + 1] = whole<T>(sums, i, j + tile, 2 * half + 1);
        }
        if (at < rows) finish.template store<8>(at, first_output + channel, values, own, table);
      }
    }
  }
}

// Which tile of which group a block computes. A group's tiles go in bands of 8 tiles of rows, each through all columns
// before the next: blocks that run at once read few rows and few columns, which the cache then has.
template <class T, int ROWS, int OUTPUTS>
struct Position {
  static constexpr int BAND = 8, DOWN = (ROWS + T::ROWS - 1) / T::ROWS, ACROSS = (OUTPUTS + T::COLUMNS - 1) / T::COLUMNS;
  static constexpr int LAST = (DOWN - 1) % BAND + 1;  // tiles of rows in the last band
  int row, column, group;

  TVMQ_DEVICE explicit Position(int block) {
    const int tile = block % (DOWN * ACROSS), band = tile / (BAND * ACROSS), at = tile % (BAND * ACROSS);
    const bool last = band == (DOWN - 1) / BAND;
    row = (band * BAND + (last ? at % LAST : at % BAND)) * T::ROWS;
    column = (last ? at / LAST : at / BAND) * T::COLUMNS, group = block / (DOWN * ACROSS);
  }
};

// One tile of a group whose product is [ROWS, OUTPUTS]; see store_sums.
template <class T, bool SIGNED, int ROWS, int OUTPUTS, int DEPTH, class Source, class Finish>
TVMQ_DEVICE void product_tile(const Source& source, const u8* weight, const Finish& finish, void* shared,
                              Position<T, ROWS, OUTPUTS> at) {
  alignas(16) __shared__ u8 table[256];
  Supply<T, Source> supply(source, weight, static_cast<u8*>(shared), at.row, at.column, OUTPUTS, DEPTH);
  const int warp = threadIdx.x / 32;
  const int row = warp % (T::ROWS / T::WARP_ROWS) * T::WARP_ROWS;
  const int column = warp / (T::ROWS / T::WARP_ROWS) * T::WARP_COLUMNS;
  Sums<T> sums[T::PARTS] = {};
  finish.load_table(table);
  sum_up<T, SIGNED>(supply, row, column, sums);
  store_sums<T>(finish, table, at.row + row, at.column + column, ROWS, OUTPUTS, at.group * OUTPUTS, sums);
}

// linear: x [ROWS, INPUTS] times weight [OUTPUTS padded to 32, DEPTH], packed; a block computes one tile.
template <class T, bool SIGNED, int ROWS, int INPUTS, int OUTPUTS, int DEPTH, class Finish>
TVMQ_DEVICE void linear(const void* x, const void* weight, void* shared, Operands operands) {
  const Position<T, ROWS, OUTPUTS> at(blockIdx.x);
  const Rows<ROWS, INPUTS> source = {static_cast<const u8*>(x)};
  product_tile<T, SIGNED, ROWS, OUTPUTS, DEPTH>(source, static_cast<const u8*>(weight), Finish{operands}, shared, at);
}

// conv2d: each group has INPUTS channels and OUTPUTS outputs of its own, which take whole 32s in the weights.
template <class T, bool SIGNED, class Source, int PIXELS, int INPUTS, int OUTPUTS, int DEPTH, class Finish>
TVMQ_DEVICE void conv2d(const void* x, const void* weight, void* shared, Operands operands) {
  const Position<T, PIXELS, OUTPUTS> at(blockIdx.x);
  const Source source = {static_cast<const u8*>(x), at.group * INPUTS};
  constexpr int PITCH = DEPTH * T::WEIGHT_BITS / 8;
  const u8* own = static_cast<const u8*>(weight) + static_cast<s64>(at.group) * padded_outputs(OUTPUTS) * PITCH;
  product_tile<T, SIGNED, PIXELS, OUTPUTS, DEPTH>(source, own, Finish{operands}, shared, at);
}

}  // namespace tvmq
