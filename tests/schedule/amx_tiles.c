// The AMX instructions that the kernels use, in plain C: tile registers as Intel's manual describes them.
#include <stdint.h>
#include <string.h>

typedef struct { uint8_t palette, start, zeros[14]; uint16_t row_bytes[16]; uint8_t rows[16]; } Configuration;

static _Thread_local Configuration configuration;
static _Thread_local uint8_t tiles[8][16][64];
static int wrong;  // instructions without a configuration, or with tiles that do not fit

int amx_wrong(void) { return wrong; }

static void check(int holds) { wrong += !holds; }

int amx_ldtilecfg(const void *from) {
    memcpy(&configuration, from, 64);
    check(configuration.palette == 1 && configuration.start == 0);
    memset(tiles, 0, sizeof tiles);
    return 0;
}

int amx_tilerelease(void) {
    memset(&configuration, 0, 64);
    return 0;
}

int amx_tilezero(int8_t tile) {
    check(configuration.palette == 1);
    memset(tiles[tile], 0, sizeof tiles[tile]);
    return 0;
}

int amx_tileloadd64(int8_t tile, const uint8_t *from, int64_t stride) {
    check(configuration.palette == 1);
    memset(tiles[tile], 0, sizeof tiles[tile]);
    for (int row = 0; row < configuration.rows[tile]; row++)
        memcpy(tiles[tile][row], from + row * stride, configuration.row_bytes[tile]);
    return 0;
}

int amx_tilestored64(int8_t tile, uint8_t *to, int64_t stride) {
    check(configuration.palette == 1);
    for (int row = 0; row < configuration.rows[tile]; row++)
        memcpy(to + row * stride, tiles[tile][row], configuration.row_bytes[tile]);
    return 0;
}

int amx_tdpbusd(int8_t sums, int8_t left, int8_t right) {
    const Configuration *c = &configuration;
    check(c->palette == 1 && c->rows[sums] == c->rows[left] && c->row_bytes[sums] == c->row_bytes[right]);
    check(c->row_bytes[left] == 4 * c->rows[right]);
    for (int row = 0; row < c->rows[sums]; row++)
        for (int k = 0; k < c->row_bytes[left] / 4; k++)
            for (int column = 0; column < c->row_bytes[sums] / 4; column++) {
                int32_t sum;
                memcpy(&sum, &tiles[sums][row][4 * column], 4);
                for (int byte = 0; byte < 4; byte++)
                    sum += tiles[left][row][4 * k + byte] * (int8_t)tiles[right][k][4 * column + byte];
                memcpy(&tiles[sums][row][4 * column], &sum, 4);
            }
    return 0;
}
