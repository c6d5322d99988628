/* The most multiply-accumulates per second that one core can do: prints one JSON object.

   Twelve independent accumulators hide the latency of the multiply, nothing is loaded in the loop. The best of many
   short runs counts, so that a neighbour who takes the core now and then does not lower the number. */

#include <stdio.h>
#include <time.h>

enum { LOOPS = 500000, RUNS = 60, CHAINS = 12 };
#define PATTERN 0x3f3f3f3f /* four bytes of 63, or a float of 0.75 */

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

#define EACH(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11)
#define ZERO(i) "xorps %%xmm" #i ", %%xmm" #i "\n\t"

/* A function that does LOOPS * CHAINS steps: accumulators in registers 0 to 11, operands in 12 and 13. Assembly, since
   a compiler moves the accumulators to memory or drops them. */
#define KERNEL(NAME, WIDEN, STEP, AFTER)                                                                               \
    static void NAME(void) {                                                                                           \
        long left = LOOPS;                                                                                             \
        __asm__ volatile(EACH(ZERO) "movd %1, %%xmm12\n\t" WIDEN "1:\n\t" EACH(STEP) "dec %0\n\tjnz 1b\n\t" AFTER      \
                         : "+r"(left)                                                                                  \
                         : "r"(PATTERN)                                                                                \
                         : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",       \
                           "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");                                      \
    }
#define WIDEN_512 "vpbroadcastd %%xmm12, %%zmm12\n\tvmovdqa64 %%zmm12, %%zmm13\n\t"
#define WIDEN_256 "vpbroadcastd %%xmm12, %%ymm12\n\tvmovdqa %%ymm12, %%ymm13\n\t"
#define WIDEN_128 "pshufd $0, %%xmm12, %%xmm12\n\tmovdqa %%xmm12, %%xmm13\n\t"

#define VNNI_512(i) "vpdpbusd %%zmm12, %%zmm13, %%zmm" #i "\n\t"
#define VNNI_256(i) "%{vex%} vpdpbusd %%ymm12, %%ymm13, %%ymm" #i "\n\t"
#define MADDUBS(i)                                                                                                     \
    "vpmaddubsw %%ymm12, %%ymm13, %%ymm14\n\tvpmaddwd %%ymm12, %%ymm14, %%ymm14\n\tvpaddd %%ymm14, %%ymm" #i          \
    ", %%ymm" #i "\n\t"
#define MADDWD(i) "movdqa %%xmm12, %%xmm14\n\tpmaddwd %%xmm13, %%xmm14\n\tpaddd %%xmm14, %%xmm" #i "\n\t"
#define FMA_512(i) "vfmadd231ps %%zmm12, %%zmm13, %%zmm" #i "\n\t"
#define FMA_256(i) "vfmadd231ps %%ymm12, %%ymm13, %%ymm" #i "\n\t"
#define MULADD(i) "movaps %%xmm12, %%xmm14\n\tmulps %%xmm13, %%xmm14\n\taddps %%xmm14, %%xmm" #i "\n\t"

KERNEL(vnni_512, WIDEN_512, VNNI_512, "vzeroupper")
KERNEL(vnni_256, WIDEN_256, VNNI_256, "vzeroupper")
KERNEL(maddubs, WIDEN_256, MADDUBS, "vzeroupper")
KERNEL(maddwd, WIDEN_128, MADDWD, "")
KERNEL(fma_512, WIDEN_512, FMA_512, "vzeroupper")
KERNEL(fma_256, WIDEN_256, FMA_256, "vzeroupper")
KERNEL(muladd, WIDEN_128, MULADD, "")

/* macs: multiply-accumulates of one step. Prints how many 10^9 of them a second has. */
static void print(const char *what, const char *name, void (*kernel)(void), int macs) {
    double best = 0;
    for (int run = 0; run < RUNS; run++) {
        double began = now();
        kernel();
        double found = 1e-9 * LOOPS * CHAINS * macs / (now() - began);
        if (found > best) best = found;
    }
    printf("\"%s\": {\"instructions\": \"%s\", \"gmacs\": %.1f}", what, name, best);
}

int main(void) {
    printf("{");
    if (__builtin_cpu_supports("avx512vnni"))
        print("int8", "AVX-512 VNNI", vnni_512, 64);
    else if (__builtin_cpu_supports("avxvnni"))
        print("int8", "AVX-VNNI", vnni_256, 32);
    else if (__builtin_cpu_supports("avx2"))
        print("int8", "AVX2 pmaddubsw", maddubs, 32);
    else
        print("int8", "SSE2 pmaddwd", maddwd, 8);
    printf(", ");
    if (__builtin_cpu_supports("avx512f"))
        print("fp32", "AVX-512 FMA", fma_512, 16);
    else if (__builtin_cpu_supports("fma"))
        print("fp32", "FMA", fma_256, 8);
    else
        print("fp32", "SSE2", muladd, 4);
    printf("}\n");
    return 0;
}
