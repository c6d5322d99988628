// Where the rows of a product come from. A product sees chunks of 16 bytes: chunk (row, k) is bytes k to k + 15 of what
// that row multiplies with the weights.
#pragma once

namespace tvmq {

// The 8 bytes from place on, of which only those from `low` on and before `high` may be read; the others are any.
// ALIGNED: place is a multiple of 4. Whole words are read that hold one of these bytes.
template <bool ALIGNED>
TVMQ_DEVICE void words_of(const u8* place, int low, int high, u32* words) {
  const int shift = ALIGNED ? 0 : static_cast<int>(reinterpret_cast<u64>(place) % 4);
  const int from = max(low, 0), to = min(high, 8);
  u32 found[3];
#pragma unroll
  for (int i = 0; i < (ALIGNED ? 2 : 3); ++i) {
    const int begin = 4 * i - shift;
    const bool wanted = from < to && begin < to && begin + 4 > from;
    found[i] = wanted ? *reinterpret_cast<const u32*>(place + begin) : 0;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) words[i] = ALIGNED ? found[i] : __byte_perm(found[i], found[i + 1], 0x3210 + 0x1111 * shift);
}

// All bits of the bytes of a word from `first` on.
TVMQ_DEVICE u32 bytes_from(int first) { return static_cast<u32>(0xFFFFFFFFull << 8 * clip(first, 0, 4)); }

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

  // Bytes k to k + 7, where the chunks are not WHOLE; any past the last input.
  TVMQ_DEVICE void eight(const Row& row, int k, u32* words) const {
    words_of<INPUTS % 4 == 0>(row.first + k, 0, INPUTS - k, words);
  }
};

// The windows of a convolution over x [BATCH, HEIGHT, WIDTH, CHANNELS]; of a group's INPUTS channels from `first` on.
// k counts rows of the window, then columns, then channels. Bytes of a window that lie together are a run; where chunks
// are not WHOLE each run takes a multiple of 8, so that 8 bytes of a chunk are of one run.
template <int BATCH, int HEIGHT, int WIDTH, int CHANNELS, int INPUTS, int WINDOW_ROWS, int WINDOW_COLUMNS, int STRIDE_ROWS,
          int STRIDE_COLUMNS, int TOP, int LEFT, int DILATION_ROWS, int DILATION_COLUMNS, int OUT_ROWS, int OUT_COLUMNS,
          int PAD_VALUE>
struct Windows {
  static constexpr bool WHOLE = INPUTS % 16 == 0 && CHANNELS % 16 == 0;
  static constexpr int PAD = PAD_VALUE;
  static constexpr int DEPTH = WINDOW_ROWS * WINDOW_COLUMNS * INPUTS;
  static constexpr bool BY_ROWS = INPUTS == CHANNELS && DILATION_COLUMNS == 1;  // a row of the window is a run, else a tap
  static constexpr int ACROSS = BY_ROWS ? 1 : WINDOW_COLUMNS, RUN = BY_ROWS ? WINDOW_COLUMNS * CHANNELS : INPUTS;
  static constexpr int PITCH = (RUN + 7) / 8 * 8, RUNS = WINDOW_ROWS * ACROSS;
  static constexpr bool PADDED = TOP > 0 || LEFT > 0 ||
                                 (OUT_ROWS - 1) * STRIDE_ROWS + (WINDOW_ROWS - 1) * DILATION_ROWS - TOP >= HEIGHT ||
                                 (OUT_COLUMNS - 1) * STRIDE_COLUMNS + (WINDOW_COLUMNS - 1) * DILATION_COLUMNS - LEFT >= WIDTH;
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

  // Bytes k to k + 7, where the chunks are not WHOLE; any past the end of a run.
  TVMQ_DEVICE void eight(const Row& row, int k, u32* words) const {
    const int run = k / PITCH, at = k % PITCH, y = row.y + run / ACROSS * DILATION_ROWS;
    const int start = (row.x + run % ACROSS * DILATION_COLUMNS) * CHANNELS + at;  // in the line of the image
    const bool inside = run < RUNS && static_cast<u32>(y) < HEIGHT;
    const int low = -start, high = inside ? min(WIDTH * CHANNELS - start, RUN - at) : -8;
    words_of<CHANNELS % 4 == 0 && INPUTS % 4 == 0>(row.image + y * WIDTH * CHANNELS + start, low, high, words);
    if (!PADDED) return;
    constexpr u32 PADS = (PAD & 255) * 0x01010101u;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const u32 kept = bytes_from(low - 4 * i) & ~bytes_from(high - 4 * i);
      words[i] = (words[i] & kept) | (PADS & ~kept);
    }
  }
};

// The 16 bytes of a chunk, wherever they lie.
template <class Source>
TVMQ_DEVICE uint4 chunk(const Source& source, const typename Source::Row& row, int k) {
  if constexpr (Source::WHOLE) {
    const u8* place = source.place(row, k);
    constexpr u32 PADS = (Source::PAD & 255) * 0x01010101u;
    return place ? *reinterpret_cast<const uint4*>(place) : make_uint4(PADS, PADS, PADS, PADS);
  } else {
    u32 words[4];
    source.eight(row, k, words);
    source.eight(row, k + 8, words + 2);
    return make_uint4(words[0], words[1], words[2], words[3]);
  }
}

}  // namespace tvmq
