// Attention: numerics.attention for one head and WARPS * 16 queries per block; no logit reaches memory. The weights of a
// row need its largest logit first, so q.k is computed twice: forwards through the keys, then backwards with the values,
// since the last keys are still in shared memory then. They pass through it TILE at a time, in two slots.
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
  // In shared memory: keys padded to 32 bytes for the products. Eight neighbouring rows begin in different banks.
  static constexpr int TILE = DIM > 128 ? 32 : 64, TILES = (KEYS + TILE - 1) / TILE;
  static constexpr int PADDED = (DIM + 31) / 32 * 32, KEY_PITCH = PADDED + 16, VALUE_PITCH = (DIM / 16 | 1) * 16;
  static constexpr int KEY_SLOT = TILE * KEY_PITCH, VALUE_SLOT = TILE * VALUE_PITCH, STEPS = PADDED / 32;
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

  TVMQ_DEVICE void request_keys(int tile) const {
    constexpr int CHUNKS = S::PADDED / 16;
    for (int i = threadIdx.x; i < S::TILE * CHUNKS; i += THREADS) {
      const int key = i / CHUNKS, at = i % CHUNKS * 16;
      if (tile * S::TILE + key >= S::KEYS) break;
      const u8* row = with.k + token(S::KEYS, tile * S::TILE + key) * S::WIDTH + head * S::DIM;
      copy_async(keys + tile % 2 * S::KEY_SLOT + key * S::KEY_PITCH + at, at < S::DIM ? row + at : row, at < S::DIM);
    }
  }

  TVMQ_DEVICE void request_values(int tile) const {
    constexpr int CHUNKS = S::DIM / 16;
    for (int i = threadIdx.x; i < S::TILE * CHUNKS; i += THREADS) {
      const int key = i / CHUNKS, at = i % CHUNKS * 16;
      if (tile * S::TILE + key >= S::KEYS) break;
      const u8* row = with.v + token(S::KEYS, tile * S::TILE + key) * S::WIDTH + head * S::DIM;
      copy_async(values + tile % 2 * S::VALUE_SLOT + key * S::VALUE_PITCH + at, row + at, true);
    }
  }

  // The logits of keys 8 j to 8 j + 7 of a tile, of which this lane has two for each of its two rows; hidden ones count as
  // the least number.
  TVMQ_DEVICE void logits(int tile, int j, int* found) const {
    found[0] = found[1] = found[2] = found[3] = 0;
    const u8* row = keys + tile % 2 * S::KEY_SLOT + (8 * j + lane % 8) * S::KEY_PITCH;
#pragma unroll
    for (int step = 0; step < S::STEPS; step += 2) {
      u32 b[4];
      load_matrices(b, row + 32 * min(step + lane / 16, S::STEPS - 1) + lane / 8 % 2 * 16);
      mma<true>(found, q[step], b[0], b[1]);
      if (step + 1 < S::STEPS) mma<true>(found, q[step + 1 < S::STEPS ? step + 1 : step], b[2], b[3]);
    }
    const int key = tile * S::TILE + 8 * j + lane % 4 * 2;
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

  // Whether any of the keys 8 j to 8 j + 7 of a tile exists.
  static TVMQ_DEVICE bool exist(int tile, int j) { return S::KEYS % S::TILE == 0 || tile * S::TILE + 8 * j < S::KEYS; }

  // The largest logit of each of the two rows. The last values are on their way then.
  TVMQ_DEVICE void tops(int* top) const {
    top[0] = top[1] = HIDDEN;
    request_keys(0);
    commit_copies();
    for (int tile = 0; tile < S::TILES; ++tile) {
      wait_for_copies<0>();
      __syncthreads();
      if (tile + 1 < S::TILES) request_keys(tile + 1);
      if (tile + 1 == S::TILES) request_values(tile);
      commit_copies();
#pragma unroll
      for (int j = 0; j < S::TILE / 8; ++j) {
        if (!exist(tile, j)) break;
        int found[4];
        logits(tile, j, found);
        top[0] = max(top[0], max(found[0], found[1]));
        top[1] = max(top[1], max(found[2], found[3]));
      }
    }
    for (int lanes = 1; lanes < 4; lanes *= 2)
      for (int row = 0; row < 2; ++row) top[row] = max(top[row], __shfl_xor_sync(~0u, top[row], lanes));
  }

  TVMQ_DEVICE u32 weight(int logit, int top, int& total) const {
    const u32 found = logit == HIDDEN ? 0 : table[min(top - logit, 127)];
    total += found;
    return found;
  }

  // Multiply the weights of keys 8 j to 8 j + 31 of a tile with their values. Of 16 keys, bytes 4 t to 4 t + 3 of the
  // product's depth are keys 2 t, 2 t + 1, 2 t + 8 and 2 t + 9: those whose weights lane t has. Of 16 dimensions the
  // even ones are columns of one product, the odd ones of the other.
  TVMQ_DEVICE void mix(int tile, int j, const int* top, int* total, int (*mixed)[4]) const {
    u32 a[4] = {0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (!exist(tile, j + i)) break;
      int found[4];
      logits(tile, j + i, found);
#pragma unroll
      for (int e = 0; e < 4; ++e)
        a[e / 2 + i / 2 * 2] |= weight(found[e], top[e / 2], total[e / 2]) << (i % 2 * 16 + e % 2 * 8);
    }
    const u8* row = values + tile % 2 * S::VALUE_SLOT + (8 * j + lane) * S::VALUE_PITCH;
#pragma unroll
    for (int block = 0; block < S::DIM / 16; ++block) {
      u32 b[4];
      load_transposed(b, row + 16 * block);
      mma<false>(mixed[2 * block], a, __byte_perm(b[0], b[1], 0x6420), __byte_perm(b[2], b[3], 0x6420));
      mma<false>(mixed[2 * block + 1], a, __byte_perm(b[0], b[1], 0x7531), __byte_perm(b[2], b[3], 0x7531));
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
          const s64 product = mixed[2 * block + i % 2][2 * half + i / 2] * reciprocal;
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
  for (int tile = S::TILES - 1; tile >= 0; --tile) {
    wait_for_copies<0>();
    __syncthreads();
    if (tile > 0) block.request_values(tile - 1);
    if (tile > 0 && tile + 1 < S::TILES) block.request_keys(tile - 1);  // the last two are there
    commit_copies();
#pragma unroll
    for (int part = 0; part < S::TILE / 8; part += 4) {
      if (!Block::exist(tile, part)) break;
      block.mix(tile, part, top, total, mixed);
    }
  }
  block.store(total, mixed);
}

}  // namespace tvmq
