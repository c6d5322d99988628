/* How fast one core reads from each cache and from memory, and its clock: prints one JSON object.

   Usage: memory L2_BYTES L3_BYTES. The best of many short runs counts, so that a neighbour who takes the core now and
   then does not lower the numbers. */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { RUNS = 40, LINE = 64, STEPS = 400000 };
#define LEAST_BYTES (64l << 20) /* read in one run, over and over where the array is small */

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

typedef float vector __attribute__((vector_size(64), aligned(64)));

/* Reads the array front to back with eight independent sums, so that no addition waits for another. */
__attribute__((noinline)) static float sum(const vector *data, long count, long times) {
    vector s[8] = {0};
    for (long t = 0; t < times; t++) {
        for (long i = 0; i + 8 <= count; i += 8)
            for (int k = 0; k < 8; k++) s[k] += data[i + k];
        __asm__ volatile("" ::: "memory"); /* the next round reads it again */
    }
    float found = 0;
    for (int k = 0; k < 8; k++) found += s[k][0];
    return found;
}

static volatile float sink;

static double gb_per_s(long bytes) {
    vector *data = aligned_alloc(4096, bytes);
    if (!data) exit(1);
    memset(data, 0, bytes);
    long count = bytes / LINE, times = LEAST_BYTES / bytes + 1;
    double best = 0;
    for (int run = 0; run < RUNS; run++) {
        double began = now();
        sink = sum(data, count, times);
        double found = 1e-9 * bytes * times / (now() - began);
        if (found > best) best = found;
    }
    free(data);
    return best;
}

/* A chain of additions of which each needs the last: one a cycle on every core of today. */
static double ghz(void) {
    double best = 0;
    for (int run = 0; run < RUNS; run++) {
        uint64_t left = STEPS, x = 1;
        double began = now();
#if defined(__x86_64__)
        __asm__ volatile("1:\n\tadd %1, %1\n\tadd %1, %1\n\tadd %1, %1\n\tadd %1, %1\n\tdec %0\n\tjnz 1b"
                         : "+r"(left), "+r"(x)::"cc");
#elif defined(__aarch64__)
        __asm__ volatile("1:\n\tadd %1, %1, %1\n\tadd %1, %1, %1\n\tadd %1, %1, %1\n\tadd %1, %1, %1\n\t"
                         "subs %0, %0, #1\n\tb.ne 1b"
                         : "+r"(left), "+r"(x)::"cc");
#endif
        double found = 4e-9 * STEPS / (now() - began);
        if (found > best) best = found;
    }
    return best;
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    long l2 = atol(argv[1]), l3 = atol(argv[2]);
    printf("{\"clock_ghz\": %.3f, \"l1_gb_per_s\": %.1f, \"l2_gb_per_s\": %.1f, \"l3_gb_per_s\": %.1f, "
           "\"dram_gb_per_s\": %.1f}\n",
           ghz(), gb_per_s(16 << 10), gb_per_s(l2 / 2 / 4096 * 4096), gb_per_s((l2 + l3 / 4) / 4096 * 4096),
           gb_per_s(4 * l3 / 4096 * 4096));
    return 0;
}
