/* Products of a few rows with a weight, in float: what the next token of some answers takes (few_rows.py).
 *
 * A library lays a weight out anew before it multiplies, which pays for hundreds of rows; for a dozen it takes longer than
 * the product. Here each weight is read once, as it lies in memory, which is all that such a product should take.
 *
 * x [m, k], w [n, k] (outputs and inputs), y [m, n], all dense. k is taken PART at a time, so that x stays near the core.
 */
#ifdef __AVX2__
#include <omp.h>

#ifdef __AVX512F__
enum { FEW_LANES = 16, FEW_ROWS = 6, FEW_WEIGHTS = 4 }; /* 24 of 32 registers hold sums */
#else
enum { FEW_LANES = 8, FEW_ROWS = 4, FEW_WEIGHTS = 3 }; /* 12 of 16 */
#endif
enum { PART = 4096, LINE = 64 }; /* LINE: bytes that come from memory together */
typedef float few_lanes __attribute__((vector_size(4 * FEW_LANES)));
typedef float few_stored __attribute__((vector_size(4 * FEW_LANES), aligned(4), may_alias)); /* the same, anywhere in memory */

static inline float few_sum(few_lanes v) {
    float total = 0;
    for (int lane = 0; lane < FEW_LANES; lane++) total += v[lane];
    return total;
}

/* Add the products of `rows` rows and `weights` weights to y: both are constants where this is inlined. Meanwhile `ahead` bytes
 * from `next` on are fetched, which are read later. */
__attribute__((always_inline)) static inline void few_tile(const float *x, const float *w, float *y, long size, long k,
                                                           long n, const int rows, const int weights, const char *next,
                                                           long ahead) {
    few_lanes sums[FEW_ROWS][FEW_WEIGHTS] = {0};
    long whole = size / FEW_LANES * FEW_LANES, fetched = 0;
    for (long at = 0; at < whole; at += FEW_LANES) {
        for (; fetched * size < ahead * at; fetched += LINE) __builtin_prefetch(next + fetched);
        few_lanes read[FEW_WEIGHTS];
        for (int weight = 0; weight < weights; weight++) {
            read[weight] = *(const few_stored *)(w + weight * k + at);
            __asm__("" : "+v"(read[weight]));
        }
        for (int row = 0; row < rows; row++) {
            few_lanes own = *(const few_stored *)(x + row * k + at);
            __asm__("" : "+v"(own)); /* read once: a compiler would read it again for each product, and reads are what is short */
            for (int weight = 0; weight < weights; weight++) sums[row][weight] += own * read[weight];
        }
    }
    for (int row = 0; row < rows; row++)
        for (int weight = 0; weight < weights; weight++) {
            float total = few_sum(sums[row][weight]);
            for (long at = whole; at < size; at++) total += x[row * k + at] * w[weight * k + at];
            y[row * n + weight] += total;
        }
}

/* All rows with `weights` weights. */
__attribute__((always_inline)) static inline void few_strip(const float *x, const float *w, float *y, long size, long m,
                                                            long k, long n, const int weights) {
    /* The next strip follows in memory where the rows are whole. */
    long row = 0, tiles = m / FEW_ROWS + m % FEW_ROWS, ahead = size == k ? weights * k * (long)sizeof(float) / tiles : 0;
    const char *next = (const char *)(w + weights * size);
    for (; row + FEW_ROWS <= m; row += FEW_ROWS, next += ahead)
        few_tile(x + row * k, w, y + row * n, size, k, n, FEW_ROWS, weights, next, ahead);
    for (; row < m; row++, next += ahead) few_tile(x + row * k, w, y + row * n, size, k, n, 1, weights, next, ahead);
}

/* y = x w^T, and `bias` [n] where it is not null. Each output is summed by one thread, in the same order whatever their number. */
void few_rows_f32(const float *x, const float *w, const float *bias, float *y, long m, long k, long n, int threads) {
#pragma omp parallel num_threads(threads)
    {
        int parts = omp_get_num_threads(), part = omp_get_thread_num();
        /* Whole strips: which of them an output is in decides the order of its sum. */
        long strips = n / FEW_WEIGHTS, begin = strips * part / parts * FEW_WEIGHTS;
        long end = part + 1 == parts ? n : strips * (part + 1) / parts * FEW_WEIGHTS;
        for (long row = 0; row < m; row++)
            for (long at = begin; at < end; at++) y[row * n + at] = bias ? bias[at] : 0;
        for (long start = 0; start < k; start += PART) {
            long size = k - start < PART ? k - start : PART, at = begin;
            const float *from = x + start;
            for (; at + FEW_WEIGHTS <= end; at += FEW_WEIGHTS)
                few_strip(from, w + at * k + start, y + at, size, m, k, n, FEW_WEIGHTS);
            for (; at < end; at++) few_strip(from, w + at * k + start, y + at, size, m, k, n, 1);
        }
    }
}
#endif
