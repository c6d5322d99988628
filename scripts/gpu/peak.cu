// The most int8 multiply-accumulates that a GPU does: every warp multiplies what it holds, again and again, and nothing
// comes from memory. `warps` by the widest instruction of one warp, `groups` by those of four together (sm_90a only).
#define REPEATS 16

__device__ unsigned noise(unsigned x) {
  x = (x ^ 61) ^ (x >> 16), x *= 9, x ^= x >> 4, x *= 0x27d4eb2d;
  return x ^ (x >> 15);
}

#if __CUDA_ARCH__ >= 800
#define WARP_MACS (16 * 8 * 32)
#elif __CUDA_ARCH__ >= 750
#define WARP_MACS (8 * 8 * 16)
#else
#define WARP_MACS (32 * 4)
#endif

// Multiply-accumulates of a warp in one round.
extern "C" __device__ unsigned macs_of_warps = WARP_MACS * REPEATS;

extern "C" __global__ void warps(int* out, int rounds) {
  const unsigned lane = threadIdx.x + blockIdx.x * blockDim.x;
  unsigned a[4] = {noise(lane), noise(lane + 1), noise(lane + 2), noise(lane + 3)}, b[2] = {noise(~lane), noise(lane ^ 5)};
  int d[REPEATS][4] = {};
#pragma unroll 1
  for (int round = 0; round < rounds; ++round) {
#pragma unroll
    for (int i = 0; i < REPEATS; ++i) {
#if __CUDA_ARCH__ >= 800
      asm volatile(
          "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
          : "+r"(d[i][0]), "+r"(d[i][1]), "+r"(d[i][2]), "+r"(d[i][3])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#elif __CUDA_ARCH__ >= 750
      asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.u8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};"
                   : "+r"(d[i][0]), "+r"(d[i][1])
                   : "r"(a[0]), "r"(b[0]));
#else
      asm volatile("dp4a.u32.s32 %0, %1, %2, %0;" : "+r"(d[i][0]) : "r"(a[0]), "r"(b[0]));
#endif
    }
  }
  int total = 0;
  for (int i = 0; i < REPEATS; ++i) total += d[i][0] + d[i][1] + d[i][2] + d[i][3];
  out[lane] = total;
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define GROUP_ROWS 64
#define GROUP_COLUMNS 256
#define GROUP_DEPTH 32
#define GROUP_REPEATS 8

// Four warps in one round.
extern "C" __device__ unsigned macs_of_groups = GROUP_ROWS * GROUP_COLUMNS * GROUP_DEPTH * GROUP_REPEATS;

#define FOUR(n) "+r"(d[n]), "+r"(d[n + 1]), "+r"(d[n + 2]), "+r"(d[n + 3])
#define SIXTEEN(n) FOUR(n), FOUR(n + 4), FOUR(n + 8), FOUR(n + 12)
#define ALL SIXTEEN(0), SIXTEEN(16), SIXTEEN(32), SIXTEEN(48), SIXTEEN(64), SIXTEEN(80), SIXTEEN(96), SIXTEEN(112)

// Where a tile of 8 x 16 byte blocks, each in one piece, lies in shared memory: two blocks side by side, then the next rows.
__device__ unsigned long long tile_at(const unsigned char* place) {
  const unsigned long long address = __cvta_generic_to_shared(place), beside = 128, below = 256;
  return (address >> 4 & 0x3fff) | beside >> 4 << 16 | below >> 4 << 32;
}

extern "C" __global__ void __launch_bounds__(128, 3) groups(int* out, int rounds) {
  __shared__ alignas(128) unsigned char a[GROUP_ROWS * GROUP_DEPTH], b[GROUP_COLUMNS * GROUP_DEPTH];
  for (unsigned i = threadIdx.x; i < sizeof(a) / 4; i += 128) reinterpret_cast<unsigned*>(a)[i] = noise(i + blockIdx.x);
  for (unsigned i = threadIdx.x; i < sizeof(b) / 4; i += 128) reinterpret_cast<unsigned*>(b)[i] = noise(~i);
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
  const unsigned long long rows = tile_at(a), columns = tile_at(b);
  int d[128] = {};
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll 1
  for (int round = 0; round < rounds; ++round) {
#pragma unroll
    for (int i = 0; i < GROUP_REPEATS; ++i)
      asm volatile(
          "{ .reg .pred add; setp.eq.u32 add, 0, 0; wgmma.mma_async.sync.aligned.m64n256k32.s32.u8.s8 {"
          "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,"
          "%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,"
          "%57,%58,%59,%60,%61,%62,%63,%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,"
          "%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,"
          "%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127}, "
          "%128, %129, add; }"
          : ALL
          : "l"(rows), "l"(columns));
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
  }
  int total = 0;
  for (int i = 0; i < 128; ++i) total += d[i];
  out[threadIdx.x + blockIdx.x * blockDim.x] = total;
}
#endif
