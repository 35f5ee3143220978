/* Causal attention of bf16 queries, keys and values within rows of text, forward and backward (see decoder.py).
 *
 * For CPUs that multiply pairs of bf16 in vector units (AVX512-BF16) and have no matrix units: there a library's products
 * of such small matrices, a new shape for each length of a row, take four times as long, and compute the future too.
 * Scores stay in float. A block of query rows is taken at a time, and of the keys those that it may see.
 *
 * Shapes: a row of text of L tokens, which may follow `before` tokens that are computed elsewhere (shared.py), has for each
 * key-value head, one after the other: queries [L x group, dim]; keys and values [before + L, dim]. `starts` and
 * `lengths`: first token and tokens of each row of text, `key_starts`: its first key. dim is a multiple of 16.
 * Right-hand operands of products are packed in panels of 64 columns, [panel][pair of k][64], each entry a pair of bf16.
 */
#if defined(__AVX512F__) && defined(__AVX512BF16__)
#include "bf16.h"
#include <immintrin.h>
#include <omp.h>

typedef uint16_t bf16;
typedef uint32_t pair; /* two bf16, the first in the lower half */
enum { PANEL = 64, BLOCK = 64, ROWS = 6 }; /* columns of a panel; query rows of a block; rows of a tile in registers */

static inline long up(long value, long step) { return (value + step - 1) / step * step; }

/* Rows 2k and 2k + 1 of x [rows, dim] as pairs: the right-hand operand x of a product over its rows. */
static void pack_rows(const bf16 *x, long rows, long dim, pair *out) {
    long pairs = (rows + 1) / 2;
    for (long k = 0; k < pairs; k++) {
        const bf16 *one = x + 2 * k * dim, *two = 2 * k + 1 < rows ? one + dim : 0;
        for (long first = 0; first < dim; first += PANEL) {
            pair *to = out + first * pairs + k * PANEL;
            long width = dim - first < PANEL ? dim - first : PANEL;
            if (two)
                for (long i = 0; i < width; i++) to[i] = one[first + i] | (pair)two[first + i] << 16;
            else
                for (long i = 0; i < width; i++) to[i] = one[first + i];
        }
    }
}

/* x [rows, dim] turned: the right-hand operand of a product over its columns. What fills the last panel up is 0. */
static void pack_turned(const bf16 *x, long rows, long dim, pair *out) {
    for (long first = 0; first < rows; first += PANEL, out += dim / 2 * PANEL)
        for (long row = 0; row < PANEL; row++) {
            const bf16 *from = x + (first + row) * dim;
            for (long k = 0; k < dim / 2; k++)
                out[k * PANEL + row] = first + row < rows ? from[2 * k] | (pair)from[2 * k + 1] << 16 : 0;
        }
}

/* A tile of ROWS x 16 `wide` sums in registers. a: where each row's pairs begin, `step` apart; the rows from `rows` on
 * are computed and not stored. add: to what c holds. */
static inline __attribute__((always_inline)) void tile(const int wide, const pair *const a[ROWS], long step, const pair *b,
                                                       long pairs, float *c, long across, long rows, int add) {
    __m512 sums[ROWS][4];
#pragma GCC unroll 6
    for (int m = 0; m < ROWS; m++)
#pragma GCC unroll 4
        for (int n = 0; n < wide; n++)
            sums[m][n] = add && m < rows ? _mm512_loadu_ps(c + m * across + 16 * n) : _mm512_setzero_ps();
    for (long k = 0; k < pairs; k++) {
        __m512bh right[4];
#pragma GCC unroll 4
        for (int n = 0; n < wide; n++) right[n] = (__m512bh)_mm512_loadu_si512(b + k * PANEL + 16 * n);
#pragma GCC unroll 6
        for (int m = 0; m < ROWS; m++) {
            __m512bh left = (__m512bh)_mm512_set1_epi32((int)a[m][k * step]);
#pragma GCC unroll 4
            for (int n = 0; n < wide; n++) sums[m][n] = _mm512_dpbf16_ps(sums[m][n], left, right[n]);
        }
    }
#pragma GCC unroll 6
    for (int m = 0; m < ROWS; m++)
#pragma GCC unroll 4
        for (int n = 0; n < wide; n++)
            if (m < rows) _mm512_storeu_ps(c + m * across + 16 * n, sums[m][n]);
}

/* c [rows, columns] = a b, or += with `add`. a: pair k of row m at a[m * by_row + k * by_pair]. b: packed with `stored`
 * pairs, of which the first `pairs` are taken. columns: a multiple of 16. c's rows are `across` apart. */
static void product(const pair *a, long by_row, long by_pair, long rows, const pair *b, long stored, long pairs, float *c,
                    long across, long columns, int add) {
    for (long first = 0; first < columns; first += PANEL)
        for (long row = 0; row < rows; row += ROWS) {
            const pair *begin[ROWS], *panel = b + first * stored;
            long left = rows - row;
            for (long m = 0; m < ROWS; m++) begin[m] = a + (row + (m < left ? m : left - 1)) * by_row;
            float *to = c + row * across + first;
            switch ((columns - first) / 16) {
                case 1: tile(1, begin, by_pair, panel, pairs, to, across, left, add); break;
                case 2: tile(2, begin, by_pair, panel, pairs, to, across, left, add); break;
                case 3: tile(3, begin, by_pair, panel, pairs, to, across, left, add); break;
                default: tile(4, begin, by_pair, panel, pairs, to, across, left, add);
            }
        }
}

/* Softmax of scale * scores in place, of the first `seen`; what follows up to `columns` becomes 0. */
static void softmax(float *s, long seen, long columns, float scale) {
    float largest = -INFINITY, total = 0;
#pragma omp simd reduction(max : largest)
    for (long i = 0; i < seen; i++) {
        s[i] *= scale;
        largest = s[i] > largest ? s[i] : largest;
    }
#pragma omp simd reduction(+ : total)
    for (long i = 0; i < seen; i++) {
        s[i] = fast_exp(s[i] - largest);
        total += s[i];
    }
    float inverse = 1 / total;
#pragma omp simd
    for (long i = 0; i < seen; i++) s[i] *= inverse;
    memset(s + seen, 0, (columns - seen) * sizeof(float));
}

/* Rows of x as bf16, one after the other. */
static void store(const float *x, long rows, long across, long dim, bf16 *out) {
    for (long row = 0; row < rows; row++)
#pragma omp simd
        for (long i = 0; i < dim; i++) out[row * dim + i] = to_bf16(x[row * across + i]);
}

/* Rows 2i and 2i + 1 of x [rows, columns] as pairs of bf16. */
static void pairs_of(const float *x, long rows, long across, long columns, pair *out) {
    for (long row = 0; row < rows; row += 2, x += 2 * across, out += across)
        if (row + 1 < rows)
#pragma omp simd
            for (long i = 0; i < columns; i++) out[i] = to_bf16(x[i]) | (pair)to_bf16(x[across + i]) << 16;
        else
#pragma omp simd
            for (long i = 0; i < columns; i++) out[i] = to_bf16(x[i]);
}

/* Entries of 4 bytes that one thread needs for rows of text of up to `longest` tokens of keys. */
long attention_scratch(long longest, long dim) {
    long columns = up(longest, PANEL), wide = up(dim, PANEL), pairs = (longest + 1) / 2;
    return up(dim * columns + pairs * wide + 4 * BLOCK * columns + 2 * BLOCK * wide + 2 * longest * wide, 16);
}

/* What a row of text and a key-value head have in common in both passes. */
typedef struct {
    long before, tokens, rows, columns, wide, pairs; /* tokens: of keys; rows: of queries */
    long queries, keys;                              /* where the head begins */
    float *scratch;
} Task;

static Task task(long number, const long *starts, const long *lengths, const long *key_starts, const long *befores,
                 long longest, long heads, long group, long dim, float *scratch) {
    long text = number / heads, head = number % heads, own = lengths[text], tokens = befores[text] + own;
    long queries = (starts[text] * heads + head * own) * group * dim, keys = (key_starts[text] * heads + head * tokens) * dim;
    return (Task){befores[text], tokens, own * group, up(tokens, PANEL), up(dim, PANEL), (tokens + 1) / 2, queries, keys,
                  scratch + omp_get_thread_num() * attention_scratch(longest, dim)};
}

/* Probabilities of `rows` query rows from row `first` on, [rows, columns] in float. Gives how many keys the last one
 * sees; what an earlier one does not see is 0, up to the next even number. */
static long probabilities(const bf16 *q, const pair *turned_keys, Task t, long first, long rows, long group, long dim,
                          float scale, float *out) {
    long seen = t.before + (first + rows - 1) / group + 1;
    product((const pair *)(q + first * dim), dim / 2, 1, rows, turned_keys, dim / 2, dim / 2, out, t.columns, up(seen, 16), 0);
    for (long row = 0; row < rows; row++)
        softmax(out + row * t.columns, t.before + (first + row) / group + 1, up(seen, 2), scale);
    return seen;
}

void attention_bf16(const bf16 *query, const bf16 *key, const bf16 *value, bf16 *out, float *scratch, const long *starts,
                    const long *lengths, const long *key_starts, const long *befores, long texts, long longest, long heads,
                    long group, long dim, double scale, int threads) {
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (long number = 0; number < texts * heads; number++) {
        Task t = task(number, starts, lengths, key_starts, befores, longest, heads, group, dim, scratch);
        const bf16 *q = query + t.queries;
        pair *turned_keys = (pair *)t.scratch, *packed_values = turned_keys + dim / 2 * t.columns;
        float *scores = (float *)(packed_values + t.pairs * t.wide), *sums = scores + BLOCK * t.columns;
        bf16 *weights = (bf16 *)(sums + BLOCK * t.wide);
        pack_turned(key + t.keys, t.tokens, dim, turned_keys);
        pack_rows(value + t.keys, t.tokens, dim, packed_values);
        for (long first = 0; first < t.rows; first += BLOCK) {
            long rows = t.rows - first < BLOCK ? t.rows - first : BLOCK;
            long seen = up(probabilities(q, turned_keys, t, first, rows, group, dim, (float)scale, scores), 2);
            for (long row = 0; row < rows; row++) store(scores + row * t.columns, 1, 0, seen, weights + row * t.columns);
            product((const pair *)weights, t.columns / 2, 1, rows, packed_values, t.pairs, seen / 2, sums, t.wide, dim, 0);
            store(sums, rows, t.wide, dim, out + t.queries + first * dim);
        }
    }
}

void attention_backward_bf16(const bf16 *query, const bf16 *key, const bf16 *value, const bf16 *outer, bf16 *for_query,
                             bf16 *for_key, bf16 *for_value, float *scratch, const long *starts, const long *lengths,
                             const long *key_starts, const long *befores, long texts, long longest, long heads, long group,
                             long dim, double scale, int threads) {
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (long number = 0; number < texts * heads; number++) {
        Task t = task(number, starts, lengths, key_starts, befores, longest, heads, group, dim, scratch);
        const bf16 *q = query + t.queries, *incoming = outer + t.queries;
        pair *turned_keys = (pair *)t.scratch, *turned_values = turned_keys + dim / 2 * t.columns;
        pair *packed_keys = turned_values + dim / 2 * t.columns;
        float *scores = (float *)(packed_keys + t.pairs * t.wide), *wanted = scores + BLOCK * t.columns;
        pair *paired = (pair *)(wanted + BLOCK * t.columns), *packed = paired + BLOCK / 2 * t.columns;
        bf16 *weights = (bf16 *)(packed + BLOCK / 2 * t.wide);
        float *sums = (float *)(weights + BLOCK * t.columns);
        float *key_sums = sums + BLOCK * t.wide, *value_sums = key_sums + t.tokens * t.wide;
        memset(key_sums, 0, 2 * t.tokens * t.wide * sizeof(float));
        pack_turned(key + t.keys, t.tokens, dim, turned_keys);
        pack_turned(value + t.keys, t.tokens, dim, turned_values);
        pack_rows(key + t.keys, t.tokens, dim, packed_keys);
        for (long first = 0; first < t.rows; first += BLOCK) {
            long rows = t.rows - first < BLOCK ? t.rows - first : BLOCK, halves = (rows + 1) / 2;
            long seen = probabilities(q, turned_keys, t, first, rows, group, dim, (float)scale, scores);
            long even = up(seen, 2);
            pairs_of(scores, rows, t.columns, seen, paired);
            pack_rows(incoming + first * dim, rows, dim, packed);
            product(paired, 1, t.columns, seen, packed, halves, halves, value_sums, t.wide, dim, 1);
            product((const pair *)(incoming + first * dim), dim / 2, 1, rows, turned_values, dim / 2, dim / 2, wanted,
                    t.columns, up(seen, 16), 0);
            for (long row = 0; row < rows; row++) {
                float *p = scores + row * t.columns, *g = wanted + row * t.columns, dot = 0;
#pragma omp simd reduction(+ : dot)
                for (long i = 0; i < even; i++) dot += p[i] * g[i];
#pragma omp simd
                for (long i = 0; i < even; i++) g[i] = p[i] * (g[i] - dot) * (float)scale;
                store(g, 1, 0, even, weights + row * t.columns);
            }
            product((const pair *)weights, t.columns / 2, 1, rows, packed_keys, t.pairs, even / 2, sums, t.wide, dim, 0);
            store(sums, rows, t.wide, dim, for_query + t.queries + first * dim);
            pairs_of(wanted, rows, t.columns, seen, paired);
            pack_rows(q + first * dim, rows, dim, packed);
            product(paired, 1, t.columns, seen, packed, halves, halves, key_sums, t.wide, dim, 1);
        }
        store(key_sums, t.tokens, t.wide, dim, for_key + t.keys);
        store(value_sums, t.tokens, t.wide, dim, for_value + t.keys);
    }
}
#endif
