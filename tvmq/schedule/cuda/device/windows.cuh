// What passes windows over channels one by one: depthwise convolutions and pools; a thread has neighbouring channels of
// one pixel.
#pragma once

namespace tvmq {

template <int BATCH_, int HEIGHT_, int WIDTH_, int CHANNELS_, int WINDOW_ROWS_, int WINDOW_COLUMNS_, int STRIDE_ROWS_,
          int STRIDE_COLUMNS_, int TOP_, int LEFT_, int DILATION_ROWS_, int DILATION_COLUMNS_, int OUT_ROWS_,
          int OUT_COLUMNS_>
struct Planes {
  static constexpr int BATCH = BATCH_, HEIGHT = HEIGHT_, WIDTH = WIDTH_, CHANNELS = CHANNELS_;
  static constexpr int WINDOW_ROWS = WINDOW_ROWS_, WINDOW_COLUMNS = WINDOW_COLUMNS_, STRIDE_ROWS = STRIDE_ROWS_;
  static constexpr int STRIDE_COLUMNS = STRIDE_COLUMNS_, TOP = TOP_, LEFT = LEFT_, DILATION_ROWS = DILATION_ROWS_;
  static constexpr int DILATION_COLUMNS = DILATION_COLUMNS_, OUT_ROWS = OUT_ROWS_, OUT_COLUMNS = OUT_COLUMNS_;
  static constexpr int PIXELS = BATCH * OUT_ROWS * OUT_COLUMNS;

  // Where the input under tap (down, across) of a pixel's window begins; -1 in the padding.
  static TVMQ_DEVICE s64 under(int pixel, int down, int across) {
    const int line = pixel / OUT_COLUMNS, y = line % OUT_ROWS * STRIDE_ROWS - TOP + down * DILATION_ROWS;
    const int x = pixel % OUT_COLUMNS * STRIDE_COLUMNS - LEFT + across * DILATION_COLUMNS;
    const bool inside = static_cast<u32>(y) < HEIGHT && static_cast<u32>(x) < WIDTH;
    return inside ? ((static_cast<s64>(line / OUT_ROWS) * HEIGHT + y) * WIDTH + x) * CHANNELS : -1;
  }
};

// weight int8 [taps, channels padded to 4].
template <class P, bool SIGNED, int PAD_VALUE, class Finish>
TVMQ_DEVICE void depthwise(const void* x, const void* weight, Operands operands) {
  constexpr int QUADS = (P::CHANNELS + 3) / 4;
  constexpr u32 PADS = (PAD_VALUE & 255) * 0x01010101u;
  alignas(16) __shared__ u8 table[256];
  const Finish finish = {operands};
  finish.load_table(table);
  __syncthreads();
  const s64 index = static_cast<s64>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int pixel = static_cast<int>(index / QUADS), channel = static_cast<int>(index % QUADS) * 4;
  if (pixel >= P::PIXELS) return;
  int sums[4] = {0, 0, 0, 0};
#pragma unroll
  for (int down = 0; down < P::WINDOW_ROWS; ++down)
#pragma unroll
    for (int across = 0; across < P::WINDOW_COLUMNS; ++across) {
      const s64 under = P::under(pixel, down, across);
      u32 seen = PADS;
      if (under >= 0) {
        const u8* place = static_cast<const u8*>(x) + under + channel;
        if (P::CHANNELS % 4 == 0) {
          seen = *reinterpret_cast<const u32*>(place);
        } else {
          seen = 0;
          for (int i = 0; i < 4; ++i)
            if (channel + i < P::CHANNELS) seen |= static_cast<u32>(place[i]) << (8 * i);
        }
      }
      const u32 weights = static_cast<const u32*>(weight)[(down * P::WINDOW_COLUMNS + across) * QUADS + channel / 4];
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[i] = dot4<SIGNED>(seen & (255u << (8 * i)), weights, sums[i]);
    }
  finish.template store<4>(pixel, channel, sums, finish.template channels<4>(channel), table);
}

template <class P, class In>
TVMQ_DEVICE void max_pool(const void* x, void* out, int lowest) {
  const s64 index = static_cast<s64>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int pixel = static_cast<int>(index / P::CHANNELS), channel = static_cast<int>(index % P::CHANNELS);
  if (pixel >= P::PIXELS) return;
  int largest = lowest;
  for (int down = 0; down < P::WINDOW_ROWS; ++down)
    for (int across = 0; across < P::WINDOW_COLUMNS; ++across) {
      const s64 under = P::under(pixel, down, across);
      if (under >= 0) largest = max(largest, static_cast<int>(static_cast<const In*>(x)[under + channel]));
    }
  static_cast<In*>(out)[index] = static_cast<In>(largest);
}

template <class P, class In, class Out, int ZERO_POINT, int MULTIPLIER, int SHIFT, int OUT_ZERO_POINT, int LOW, int HIGH>
TVMQ_DEVICE void mean_pool(const void* x, void* out) {
  const s64 index = static_cast<s64>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int pixel = static_cast<int>(index / P::CHANNELS), channel = static_cast<int>(index % P::CHANNELS);
  if (pixel >= P::PIXELS) return;
  int sum = 0;
  for (int down = 0; down < P::WINDOW_ROWS; ++down)
    for (int across = 0; across < P::WINDOW_COLUMNS; ++across) {
      const s64 under = P::under(pixel, down, across);
      if (under >= 0) sum += static_cast<int>(static_cast<const In*>(x)[under + channel]) - ZERO_POINT;
    }
  const s64 moved = ((static_cast<s64>(sum) * MULTIPLIER + (1LL << (SHIFT - 1))) >> SHIFT) + OUT_ZERO_POINT;
  static_cast<Out*>(out)[index] = static_cast<Out>(clip(moved, static_cast<s64>(LOW), static_cast<s64>(HIGH)));
}

}  // namespace tvmq
