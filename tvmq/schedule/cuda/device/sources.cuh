// Where the rows of a product come from. A product sees chunks of 16 bytes: chunk (row, k) is bytes k to k + 15 of what
// that row multiplies with the weights.
#pragma once

namespace tvmq {

// The rows of a matrix [ROWS, INPUTS], as they lie. Past the last input the weights are zeros.
template <int ROWS, int INPUTS>
struct Rows {
  static constexpr bool WHOLE = INPUTS % 16 == 0;  // every chunk lies together, at a multiple of 16
  static constexpr int PAD = 0;
  struct Row {
    const u8* first;
  };
  const u8* x;

  TVMQ_DEVICE Row row(int index) const { return {x + static_cast<s64>(min(index, ROWS - 1)) * INPUTS}; }

  // Where the chunk lies, null for padding.
  TVMQ_DEVICE const u8* place(const Row& row, int k) const { return row.first + min(k, INPUTS - 16); }

  TVMQ_DEVICE u8 byte(const Row& row, int k) const { return k < INPUTS ? row.first[k] : 0; }
};

// The windows of a convolution over x [BATCH, HEIGHT, WIDTH, CHANNELS]; of a group's INPUTS channels from `first` on.
// k counts rows of the window, then columns, then channels.
template <int BATCH, int HEIGHT, int WIDTH, int CHANNELS, int INPUTS, int WINDOW_ROWS, int WINDOW_COLUMNS, int STRIDE_ROWS,
          int STRIDE_COLUMNS, int TOP, int LEFT, int DILATION_ROWS, int DILATION_COLUMNS, int OUT_ROWS, int OUT_COLUMNS,
          int PAD_VALUE>
struct Windows {
  static constexpr bool WHOLE = INPUTS % 16 == 0 && CHANNELS % 16 == 0;
  static constexpr int PAD = PAD_VALUE;
  static constexpr int DEPTH = WINDOW_ROWS * WINDOW_COLUMNS * INPUTS;
  struct Row {
    const u8* image;
    int y, x;
  };
  const u8* x;
  int first;

  TVMQ_DEVICE Row row(int index) const {
    const int pixel = min(index, BATCH * OUT_ROWS * OUT_COLUMNS - 1);
    const int line = pixel / OUT_COLUMNS, image = line / OUT_ROWS;
    return {x + static_cast<s64>(image) * HEIGHT * WIDTH * CHANNELS + first, line % OUT_ROWS * STRIDE_ROWS - TOP,
            pixel % OUT_COLUMNS * STRIDE_COLUMNS - LEFT};
  }

  TVMQ_DEVICE const u8* place(const Row& row, int k) const {
    const int at = min(k, DEPTH - 1), tap = at / INPUTS;
    const int y = row.y + tap / WINDOW_COLUMNS * DILATION_ROWS, x = row.x + tap % WINDOW_COLUMNS * DILATION_COLUMNS;
    const bool inside = static_cast<u32>(y) < HEIGHT && static_cast<u32>(x) < WIDTH;
    return inside ? row.image + (y * WIDTH + x) * CHANNELS + at % INPUTS / 16 * 16 : nullptr;
  }

  TVMQ_DEVICE u8 byte(const Row& row, int k) const {
    const int tap = k / INPUTS;
    const int y = row.y + tap / WINDOW_COLUMNS * DILATION_ROWS, x = row.x + tap % WINDOW_COLUMNS * DILATION_COLUMNS;
    const bool inside = static_cast<u32>(y) < HEIGHT && static_cast<u32>(x) < WIDTH;
    return k >= DEPTH ? 0 : inside ? row.image[(y * WIDTH + x) * CHANNELS + k % INPUTS] : static_cast<u8>(PAD);
  }
};

// The 16 bytes of a chunk, wherever they lie.
template <class Source>
TVMQ_DEVICE uint4 chunk(const Source& source, const typename Source::Row& row, int k) {
  alignas(16) u32 words[4];
  if constexpr (Source::WHOLE) {
    const u8* place = source.place(row, k);
    constexpr u32 PADS = (Source::PAD & 255) * 0x01010101u;
    return place ? *reinterpret_cast<const uint4*>(place) : make_uint4(PADS, PADS, PADS, PADS);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    words[i] = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) words[i] |= static_cast<u32>(source.byte(row, k + 4 * i + j)) << (8 * j);
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

}  // namespace tvmq
