// Attention: numerics.attention for one head and WARPS * 16 queries per block; no logit reaches memory. The weights of a
// row need its largest logit first, so q.k is computed twice. Keys pass through shared memory KEYS at a time.
#pragma once

namespace tvmq {

struct AttentionOperands {
  const u8 *q, *k, *v, *table;
  const short *first_bias, *second_bias;
  const u8* mask;
  const int* index;
  u8* out;
};

TVMQ_DEVICE AttentionOperands attention_operands(const void* q, const void* k, const void* v, const void* table,
                                                 const void* first_bias, const void* second_bias, const void* mask,
                                                 const void* index, void* out) {
  return {static_cast<const u8*>(q),    static_cast<const u8*>(k),          static_cast<const u8*>(v),
          static_cast<const u8*>(table), static_cast<const short*>(first_bias), static_cast<const short*>(second_bias),
          static_cast<const u8*>(mask), static_cast<const int*>(index),     static_cast<u8*>(out)};
}

// A bias is [PERIOD, 1 or HEADS, queries, keys]; without one PERIOD is 0. A mask is [1 or batch, 1 or queries, keys].
template <int PERIOD_, int HEADS_>
struct Bias {
  static constexpr int PERIOD = PERIOD_, HEADS = HEADS_;
};

template <bool PRESENT_, bool BATCHES_, bool QUERIES_>
struct Mask {
  static constexpr bool PRESENT = PRESENT_, BATCHES = BATCHES_, QUERIES = QUERIES_;
};

template <int HEADS_, int QUERIES_, int KEYS_, int DIM_, int SCORE_SHIFT_, int NUMERATOR_, int NORM_SHIFT_, int ZERO_POINT_,
          int LOW_, int HIGH_, bool INDEXED_, class First_, class Second_, class Mask_>
struct AttentionShape {
  static constexpr int HEADS = HEADS_, QUERIES = QUERIES_, KEYS = KEYS_, DIM = DIM_, SCORE_SHIFT = SCORE_SHIFT_;
  static constexpr int NUMERATOR = NUMERATOR_, NORM_SHIFT = NORM_SHIFT_, ZERO_POINT = ZERO_POINT_;
  static constexpr int LOW = LOW_, HIGH = HIGH_, WIDTH = HEADS * DIM;
  static constexpr bool INDEXED = INDEXED_;
  typedef First_ First;
  typedef Second_ Second;
  typedef Mask_ Mask;
  // In shared memory: keys of 16-byte chunks, padded to 32 for the products; values by dimension.
  static constexpr int TILE = 64, PADDED = (DIM + 31) / 32 * 32, KEY_PITCH = PADDED + 16, VALUE_PITCH = TILE + 16;
  static constexpr int KEY_SLOT = TILE * KEY_PITCH, STEPS = PADDED / 32;
};

template <class S, int WARPS>
struct AttentionBlock {
  static constexpr int THREADS = 32 * WARPS;
  static constexpr int HIDDEN = -32768, LEAST = -32768 + 128;
  const AttentionOperands& with;
  u8 *keys, *values;  // shared
  const u8* table;    // shared
  int batch, head, lane, query;  // query: of this lane's first row; the second is 8 further on
  u32 q[S::STEPS][4];

  TVMQ_DEVICE s64 token(int count, int number) const {
    const s64 row = static_cast<s64>(batch) * count + min(number, count - 1);
    return S::INDEXED ? with.index[row] : row;
  }

  TVMQ_DEVICE void load_queries() {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const u8* row = with.q + token(S::QUERIES, query + 8 * half) * S::WIDTH + head * S::DIM;
#pragma unroll
      for (int step = 0; step < S::STEPS; ++step)
#pragma unroll
        for (int part = 0; part < 2; ++part) {
          const int at = 32 * step + 16 * part + lane % 4 * 4;
          q[step][half + 2 * part] = at < S::DIM ? *reinterpret_cast<const u32*>(row + at) : 0;
        }
    }
  }

  TVMQ_DEVICE void request_keys(int slot, int first) const {
    constexpr int CHUNKS = S::PADDED / 16;
    for (int i = threadIdx.x; i < S::TILE * CHUNKS; i += THREADS) {
      const int key = i / CHUNKS, at = i % CHUNKS * 16;
      const u8* row = with.k + token(S::KEYS, first + key) * S::WIDTH + head * S::DIM;
      copy_async(keys + slot * S::KEY_SLOT + key * S::KEY_PITCH + at, at < S::DIM ? row + at : row, at < S::DIM);
    }
  }

  // Values change places so that a lane's own weights are what the product wants of it: of 16 keys, bytes 4 t to 4 t + 3
  // are keys 2 t, 2 t + 1, 2 t + 8 and 2 t + 9. Of 16 dimensions, line 8 j + 2 t + e is dimension 4 t + 2 j + e.
  TVMQ_DEVICE void bring_values(int first) const {
    constexpr int QUADS = S::DIM / 4;
    for (int i = threadIdx.x; i < S::TILE / 4 * QUADS; i += THREADS) {
      const int t = i % 4, quad = i / 4 % QUADS, block = i / 4 / QUADS;
      u32 rows[4];
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const int key = first + 16 * block + 2 * t + r % 2 + r / 2 * 8;
        rows[r] = *reinterpret_cast<const u32*>(with.v + token(S::KEYS, key) * S::WIDTH + head * S::DIM + 4 * quad);
      }
      const u32 low02 = __byte_perm(rows[0], rows[1], 0x5140), high02 = __byte_perm(rows[0], rows[1], 0x7362);
      const u32 low13 = __byte_perm(rows[2], rows[3], 0x5140), high13 = __byte_perm(rows[2], rows[3], 0x7362);
      const u32 columns[4] = {__byte_perm(low02, low13, 0x5410), __byte_perm(low02, low13, 0x7632),
                              __byte_perm(high02, high13, 0x5410), __byte_perm(high02, high13, 0x7632)};
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const int line = quad / 4 * 16 + r / 2 * 8 + quad % 4 * 2 + r % 2;
        *reinterpret_cast<u32*>(values + line * S::VALUE_PITCH + 16 * block + 4 * t) = columns[r];
      }
    }
  }

  // The logits of 8 keys, of which this lane has two for each of its two rows; hidden ones count as the least number.
  TVMQ_DEVICE void logits(int slot, int tile, int first, int* found) const {
    found[0] = found[1] = found[2] = found[3] = 0;
    const u8* row = keys + slot * S::KEY_SLOT + (8 * tile + lane % 8) * S::KEY_PITCH;
#pragma unroll
    for (int step = 0; step < S::STEPS; step += 2) {
      u32 b[4];
      load_matrices(b, row + 32 * min(step + lane / 16, S::STEPS - 1) + lane / 8 % 2 * 16);
      mma<true>(found, q[step], b[0], b[1]);
      if (step + 1 < S::STEPS) mma<true>(found, q[step + 1 < S::STEPS ? step + 1 : step], b[2], b[3]);
    }
    const int key = first + 8 * tile + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < 4; ++i) found[i] = finished(found[i], min(query + i / 2 * 8, S::QUERIES - 1), key + i % 2);
  }

  TVMQ_DEVICE int finished(int sum, int row, int key) const {
    int logit = clip(round_shift<S::SCORE_SHIFT>(sum), -32768, 32767);
    if (key >= S::KEYS) return HIDDEN;
    if constexpr (S::First::PERIOD > 0) logit = biased<typename S::First>(logit, with.first_bias, row, key);
    if constexpr (S::Second::PERIOD > 0) logit = biased<typename S::Second>(logit, with.second_bias, row, key);
    if constexpr (S::Mask::PRESENT) {
      const int line = (S::Mask::BATCHES ? batch : 0) * (S::Mask::QUERIES ? S::QUERIES : 1) + (S::Mask::QUERIES ? row : 0);
      if (with.mask[static_cast<s64>(line) * S::KEYS + key] == 0) return HIDDEN;
    }
    return max(logit, LEAST);
  }

  template <class B>
  TVMQ_DEVICE int biased(int logit, const short* bias, int row, int key) const {
    const int plane = batch % B::PERIOD * B::HEADS + (B::HEADS > 1 ? head : 0);
    return clip(logit + bias[(static_cast<s64>(plane) * S::QUERIES + row) * S::KEYS + key], -32768, 32767);
  }

  // The largest logit of each of the two rows.
  TVMQ_DEVICE void tops(int* top) const {
    constexpr int TILES = (S::KEYS + S::TILE - 1) / S::TILE;
    top[0] = top[1] = HIDDEN;
    request_keys(0, 0);
    commit_copies();
    for (int tile = 0; tile < TILES; ++tile) {
      wait_for_copies<0>();
      __syncthreads();
      if (tile + 1 < TILES) request_keys((tile + 1) % 2, (tile + 1) * S::TILE);
      commit_copies();
#pragma unroll
      for (int j = 0; j < S::TILE / 8; ++j) {
        int found[4];
        logits(tile % 2, j, tile * S::TILE, found);
        top[0] = max(top[0], max(found[0], found[1]));
        top[1] = max(top[1], max(found[2], found[3]));
      }
    }
    for (int lanes = 1; lanes < 4; lanes *= 2)
      for (int row = 0; row < 2; ++row) top[row] = max(top[row], __shfl_xor_sync(~0u, top[row], lanes));
    __syncthreads();
  }

  TVMQ_DEVICE u32 weight(int logit, int top, int& total) const {
    const u32 found = logit == HIDDEN ? 0 : table[min(top - logit, 127)];
    total += found;
    return found;
  }

  // Multiply the weights of 32 keys, four tiles from `tile` on, with their values.
  TVMQ_DEVICE void mix(int slot, int tile, int first, const int* top, int* total, int (*mixed)[4]) const {
    u32 a[4] = {0, 0, 0, 0};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      int found[4];
      logits(slot, tile + j, first, found);
#pragma unroll
      for (int i = 0; i < 4; ++i)
        a[i / 2 + j / 2 * 2] |= weight(found[i], top[i / 2], total[i / 2]) << (j % 2 * 16 + i % 2 * 8);
    }
#pragma unroll
    for (int line = 0; line < S::DIM / 8; line += 2) {
      u32 b[4];
      load_matrices(b, values + (8 * line + lane / 16 * 8 + lane % 8) * S::VALUE_PITCH + 8 * tile + lane / 8 % 2 * 16);
      mma<false>(mixed[line], a, b[0], b[1]);
      mma<false>(mixed[line + 1], a, b[2], b[3]);
    }
  }

  TVMQ_DEVICE void store(int* total, int (*mixed)[4]) const {
    for (int lanes = 1; lanes < 4; lanes *= 2)
      for (int row = 0; row < 2; ++row) total[row] += __shfl_xor_sync(~0u, total[row], lanes);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (query + 8 * half >= S::QUERIES) continue;
      const s64 reciprocal = S::NUMERATOR / max(total[half], 1);
      u8* row = with.out + token(S::QUERIES, query + 8 * half) * S::WIDTH + head * S::DIM;
#pragma unroll
      for (int block = 0; block < S::DIM / 16; ++block) {
        u32 word = 0;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const s64 product = mixed[2 * block + i / 2][2 * half + i % 2] * reciprocal;
          const s64 moved = ((product + (1LL << (S::NORM_SHIFT - 1))) >> S::NORM_SHIFT) + S::ZERO_POINT;
          word |= (static_cast<u32>(clip(moved, static_cast<s64>(S::LOW), static_cast<s64>(S::HIGH))) & 255) << (8 * i);
        }
        *reinterpret_cast<u32*>(row + 16 * block + lane % 4 * 4) = word;
      }
    }
  }
};

template <class S, int WARPS>
TVMQ_DEVICE void attention(void* shared, AttentionOperands with) {
  typedef AttentionBlock<S, WARPS> Block;
  alignas(16) __shared__ u8 table[128];
  u8* memory = static_cast<u8*>(shared);
  constexpr int PARTS = (S::QUERIES + 16 * WARPS - 1) / (16 * WARPS);
  const int number = blockIdx.x, lane = threadIdx.x % 32;  // the parts of a head come one after another
  const int first_query = (number % PARTS * WARPS + threadIdx.x / 32) * 16, task = number / PARTS;
  Block block = {with, memory, memory + 2 * S::KEY_SLOT, table, task / S::HEADS, task % S::HEADS, lane,
                 first_query + lane / 4, {}};
  for (int i = threadIdx.x; i < 128; i += Block::THREADS) table[i] = with.table[i];
  block.load_queries();
  int top[2], total[2] = {0, 0}, mixed[S::DIM / 8][4] = {};
  block.tops(top);
  constexpr int TILES = (S::KEYS + S::TILE - 1) / S::TILE;
  block.request_keys(0, 0);
  commit_copies();
  for (int tile = 0; tile < TILES; ++tile) {
    block.bring_values(tile * S::TILE);
    wait_for_copies<0>();
    __syncthreads();
    if (tile + 1 < TILES) block.request_keys((tile + 1) % 2, (tile + 1) * S::TILE);
    commit_copies();
#pragma unroll
    for (int part = 0; part < S::TILE / 8; part += 4) block.mix(tile % 2, part, tile * S::TILE, top, total, mixed);
    __syncthreads();
  }
  block.store(total, mixed);
}

}  // namespace tvmq
