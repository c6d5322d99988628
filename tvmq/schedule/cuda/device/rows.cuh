// Integer layer norm: numerics.layer_norm, one warp to a row. The variance comes from exact sums of x and x * x:
// sum((16 x - mean)^2) = 256 sum(x^2) - 32 mean sum(x) + CHANNELS mean^2 has no rounding.
#pragma once

namespace tvmq {

TVMQ_DEVICE s64 floor_divide(s64 a, s64 b) {
  const s64 quotient = a / b;
  return quotient * b > a ? quotient - 1 : quotient;
}

// numerics.integer_sqrt
TVMQ_DEVICE s64 integer_sqrt(s64 v) {
  int count = 0;
  for (s64 power = 1; count < 26 && v >= power; power *= 4) ++count;
  s64 root = 1LL << count;
  for (int step = 0; step < 5; ++step) root = max(static_cast<s64>(1), (root + v / root) >> 1);
  return root;
}

TVMQ_DEVICE s64 sum_of_warp(s64 value) {
  for (int lanes = 16; lanes > 0; lanes /= 2) value += __shfl_xor_sync(~0u, value, lanes);
  return value;
}

template <class Out_, int ROWS_, int CHANNELS_, int PIECES_, int GAIN_SHIFT_, s64 EPSILON_, int LIMIT_, int LOW_, int HIGH_,
          bool COPY_, int COPY_SHIFT_, int COPY_ZERO_POINT_, int COPY_LOW_, int COPY_HIGH_>
struct Norm {
  typedef Out_ Out;
  static constexpr int ROWS = ROWS_, CHANNELS = CHANNELS_, PIECES = PIECES_, GAIN_SHIFT = GAIN_SHIFT_, LIMIT = LIMIT_;
  static constexpr s64 EPSILON = EPSILON_;
  static constexpr int LOW = LOW_, HIGH = HIGH_, COPY_SHIFT = COPY_SHIFT_, COPY_ZERO_POINT = COPY_ZERO_POINT_;
  static constexpr int COPY_LOW = COPY_LOW_, COPY_HIGH = COPY_HIGH_;
  static constexpr bool COPY = COPY_;
  // Channels that a lane takes together, and that lie together.
  static constexpr int WIDTH = CHANNELS / (PIECES ? PIECES : 1), TOGETHER = WIDTH % 4 == 0 ? 4 : 1;

  // The TOGETHER numbers of a row from channel on.
  static TVMQ_DEVICE void read(const short* x, const int* index, int row, int channel, short* found) {
    const s64 line = PIECES ? index[row * PIECES + channel / WIDTH] : row;
    copy_values<short, TOGETHER, true>(found, x + line * WIDTH + channel % WIDTH, TOGETHER);
  }
};

template <class N>
TVMQ_DEVICE void layer_norm(const void* x_, const void* gain_, const void* offset_, const void* index_, void* out_,
                            void* copy_) {
  const short* x = static_cast<const short*>(x_);
  const int *gain = static_cast<const int*>(gain_), *offset = static_cast<const int*>(offset_);
  const int *index = static_cast<const int*>(index_), lane = threadIdx.x % 32;
  const int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  if (row >= N::ROWS) return;
  s64 sum = 0, squares = 0;
  alignas(8) short read[N::TOGETHER];
  for (int channel = lane * N::TOGETHER; channel < N::CHANNELS; channel += 32 * N::TOGETHER) {
    N::read(x, index, row, channel, read);
#pragma unroll
    for (int i = 0; i < N::TOGETHER; ++i) sum += read[i], squares += read[i] * read[i];
  }
  sum = sum_of_warp(sum), squares = sum_of_warp(squares);
  constexpr s64 C = N::CHANNELS;
  const s64 mean = floor_divide(2 * 16 * sum + C, 2 * C);
  const s64 energy = 256 * squares - 32 * mean * sum + C * mean * mean;
  const s64 reciprocal = (1LL << 40) / integer_sqrt((energy << 12) / C + N::EPSILON);
  for (int channel = lane * N::TOGETHER; channel < N::CHANNELS; channel += 32 * N::TOGETHER) {
    N::read(x, index, row, channel, read);
    alignas(8) typename N::Out values[N::TOGETHER];
    alignas(4) u8 copies[N::TOGETHER];
#pragma unroll
    for (int i = 0; i < N::TOGETHER; ++i) {
      const s64 product = (16 * read[i] - mean) * reciprocal + (1LL << 23);
      const int normal = static_cast<int>(clip(product >> 24, -static_cast<s64>(N::LIMIT), static_cast<s64>(N::LIMIT)));
      const int value = (normal * gain[channel + i] + offset[channel + i]) >> N::GAIN_SHIFT;
      const int clipped = clip(value, N::LOW, N::HIGH);
      values[i] = static_cast<typename N::Out>(clipped);
      if (N::COPY) {
        constexpr int HALF = ((1 << N::COPY_SHIFT) >> 1) + (N::COPY_ZERO_POINT << N::COPY_SHIFT);
        copies[i] = static_cast<u8>(clip((clipped + HALF) >> N::COPY_SHIFT, N::COPY_LOW, N::COPY_HIGH));
      }
    }
    const s64 place = static_cast<s64>(row) * N::CHANNELS + channel;
    copy_values<typename N::Out, N::TOGETHER, true>(static_cast<typename N::Out*>(out_) + place, values, N::TOGETHER);
    if (N::COPY) copy_values<u8, N::TOGETHER, true>(static_cast<u8*>(copy_) + place, copies, N::TOGETHER);
  }
}

}  // namespace tvmq
