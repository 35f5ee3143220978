/* Causal attention within rows of text, forward and backward, of queries, keys and values in bf16 or float (decoder.py).
 *
 * In bf16 for CPUs that multiply pairs of it in vector units (AVX512-BF16) and have no matrix units, in float for all
 * that have AVX2: a library's products of such small matrices, a new shape for each length of a row, take longer there,
 * and compute the future too. Scores stay in float. A block of query rows is taken at a time, and of the keys those that
 * it may see. This file includes itself once for each type.
 *
 * Shapes: a row of text of L tokens, which may follow `before` tokens that are computed elsewhere (shared.py), has for each
 * key-value head, one after the other: queries [L x group, dim]; keys and values [before + L, dim]. `starts` and
 * `lengths`: first token and tokens of each row of text, `key_starts`: its first key. dim is a multiple of 16.
 * Products take K of what they sum over at a time, a UNIT: two bf16, or one float. Right-hand operands are packed in
 * panels of PANEL columns, [panel][unit][PANEL].
 */
#ifdef __AVX2__
#ifndef T
#include "bf16.h"
#include <immintrin.h>
#include <omp.h>

enum { BLOCK = 64, ROWS = 6 }; /* query rows of a block; rows of a tile in registers */
#ifdef __AVX512F__
enum { LANES = 16, VECTORS = 4 }; /* floats of a vector; vectors of a tile's row: 24 of 32 registers hold sums */
#else
enum { LANES = 8, VECTORS = 2 }; /* 12 of 16 */
#endif
enum { PANEL = LANES * VECTORS };
typedef float vector __attribute__((vector_size(4 * LANES)));
typedef float stored __attribute__((vector_size(4 * LANES), aligned(4), may_alias)); /* the same, anywhere in memory */

static inline long up(long value, long step) { return (value + step - 1) / step * step; }

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

/* Entries of 4 bytes that one thread needs for rows of text of up to `longest` tokens of keys, of either type. */
long attention_scratch(long longest, long dim) {
    long columns = up(longest, PANEL), wide = up(dim, PANEL);
    return up(2 * dim * columns + longest * wide + 4 * BLOCK * columns + 2 * BLOCK * wide + 2 * longest * wide, 16);
}

/* What a row of text and a key-value head have in common in both passes. */
typedef struct {
    long before, tokens, rows, columns, wide; /* tokens: of keys; rows: of queries */
    long queries, keys;                       /* where the head begins */
    float *scratch;
} Task;

static Task task(long number, const long *starts, const long *lengths, const long *key_starts, const long *befores,
                 long longest, long heads, long group, long dim, float *scratch) {
    long text = number / heads, head = number % heads, own = lengths[text], tokens = befores[text] + own;
    long queries = (starts[text] * heads + head * own) * group * dim, keys = (key_starts[text] * heads + head * tokens) * dim;
    return (Task){befores[text], tokens, own * group, up(tokens, PANEL), up(dim, PANEL), queries, keys,
                  scratch + omp_get_thread_num() * attention_scratch(longest, dim)};
}

#define T float
#define K 1
#define PUT(x) (x)
#define UNIT float
#define JOIN(one, two, i) ((one)[i])
#define BOTH(one, two) (one)
#define RIGHT vector
#define LOAD(from) (*(const stored *)(from))
#define REPEAT(unit) (unit)
#define DOT(sum, left, right) ((sum) + (left) * (right))
#define NAME(name) name##_f32
#include __FILE__
#if defined(__AVX512F__) && defined(__AVX512BF16__)
#undef T
#undef K
#undef PUT
#undef UNIT
#undef JOIN
#undef BOTH
#undef RIGHT
#undef LOAD
#undef REPEAT
#undef DOT
#undef NAME
#define T uint16_t
#define K 2
#define PUT(x) to_bf16(x)
#define UNIT uint32_t /* the first in the lower half */
#define JOIN(one, two, i) ((one)[i] | (uint32_t)((two) ? (two)[i] : 0) << 16)
#define BOTH(one, two) (to_bf16(one) | (uint32_t)to_bf16(two) << 16)
#define RIGHT __m512bh
#define LOAD(from) ((__m512bh)_mm512_loadu_si512(from))
#define REPEAT(unit) ((__m512bh)_mm512_set1_epi32((int)(unit)))
#define DOT(sum, left, right) _mm512_dpbf16_ps(sum, left, right)
#define NAME(name) name##_bf16
#include __FILE__
#endif
#else

static inline long NAME(units)(long count) { return (count + K - 1) / K; }

/* x [rows, dim] as the right-hand operand x of a product over its rows. */
static void NAME(pack_rows)(const T *x, long rows, long dim, UNIT *out) {
    long units = NAME(units)(rows);
    for (long k = 0; k < units; k++)
        for (long first = 0; first < dim; first += PANEL) {
            const T *one = x + K * k * dim + first, *two = K * k + 1 < rows ? one + dim : 0;
            UNIT *to = out + first * units + k * PANEL;
            long width = dim - first < PANEL ? dim - first : PANEL;
            (void)two; /* of floats there is one in a unit */
            for (long i = 0; i < width; i++) to[i] = JOIN(one, two, i);
        }
}

/* x [rows, dim] turned: the right-hand operand of a product over its columns. What fills the last panel up is 0. */
static void NAME(pack_turned)(const T *x, long rows, long dim, UNIT *out) {
    for (long first = 0; first < rows; first += PANEL, out += dim / K * PANEL)
        for (long row = 0; row < PANEL; row++) {
            const T *from = x + (first + row) * dim;
            for (long k = 0; k < dim / K; k++)
                out[k * PANEL + row] = first + row < rows ? JOIN(from + K * k, from + K * k + 1, 0) : 0;
        }
}

/* A tile of ROWS x LANES `wide` sums in registers. a: where each row's units begin, `step` apart; the rows from `rows` on
 * are computed and not stored. add: to what c holds. */
static inline __attribute__((always_inline)) void NAME(tile)(const int wide, const UNIT *const a[ROWS], long step,
                                                             const UNIT *b, long units, float *c, long across, long rows,
                                                             int add) {
    vector sums[ROWS][4];
#pragma GCC unroll 6
    for (int m = 0; m < ROWS; m++)
#pragma GCC unroll 4
        for (int n = 0; n < wide; n++)
            if (add && m < rows)
                sums[m][n] = *(const stored *)(c + m * across + LANES * n);
            else
                sums[m][n] = (vector){0};
    for (long k = 0; k < units; k++) {
        RIGHT right[4];
#pragma GCC unroll 4
        for (int n = 0; n < wide; n++) right[n] = LOAD(b + k * PANEL + LANES * n);
#pragma GCC unroll 6
        for (int m = 0; m < ROWS; m++) {
#pragma GCC unroll 4
            for (int n = 0; n < wide; n++) sums[m][n] = DOT(sums[m][n], REPEAT(a[m][k * step]), right[n]);
        }
    }
#pragma GCC unroll 6
    for (int m = 0; m < ROWS; m++)
#pragma GCC unroll 4
        for (int n = 0; n < wide; n++)
            if (m < rows) *(stored *)(c + m * across + LANES * n) = sums[m][n];
}

/* c [rows, columns] = a b, or += with `add`. a: unit k of row m at a[m * by_row + k * by_unit]. b: packed with `kept`
 * units, of which the first `units` are taken. columns: a multiple of 16. c's rows are `across` apart. */
static void NAME(product)(const UNIT *a, long by_row, long by_unit, long rows, const UNIT *b, long kept, long units, float *c,
                          long across, long columns, int add) {
    for (long first = 0; first < columns; first += PANEL)
        for (long row = 0; row < rows; row += ROWS) {
            const UNIT *begin[ROWS], *panel = b + first * kept;
            long left = rows - row;
            for (long m = 0; m < ROWS; m++) begin[m] = a + (row + (m < left ? m : left - 1)) * by_row;
            float *to = c + row * across + first;
            switch ((columns - first) / LANES) {
                case 1: NAME(tile)(1, begin, by_unit, panel, units, to, across, left, add); break;
                case 2: NAME(tile)(2, begin, by_unit, panel, units, to, across, left, add); break;
                case 3: NAME(tile)(VECTORS < 3 ? VECTORS : 3, begin, by_unit, panel, units, to, across, left, add); break;
                default: NAME(tile)(VECTORS, begin, by_unit, panel, units, to, across, left, add);
            }
        }
}

/* Rows of x as T, one after the other. */
static void NAME(store)(const float *x, long rows, long across, long dim, T *out) {
    for (long row = 0; row < rows; row++)
#pragma omp simd
        for (long i = 0; i < dim; i++) out[row * dim + i] = PUT(x[row * across + i]);
}

/* x [rows, columns], whose rows are `across` apart, as the left-hand operand of a product over its columns, an even number
 * where a unit has two: a row's units are across / K apart. In `room`, but for floats, which are taken where they are. */
static const UNIT *NAME(by_columns)(const float *x, long rows, long across, long columns, UNIT *room) {
    if (K == 1) return (const UNIT *)x;
    for (long row = 0; row < rows; row++)
        NAME(store)(x + row * across, 1, 0, columns, (T *)(room + row * (across / K)));
    return room;
}

/* The same of a product over its rows: the units are `across` apart. */
static const UNIT *NAME(by_rows)(const float *x, long rows, long across, long columns, UNIT *room) {
    if (K == 1) return (const UNIT *)x;
    for (long row = 0; row < rows; row += 2, x += 2 * across) {
        UNIT *out = room + row / 2 * across;
        if (row + 1 < rows)
#pragma omp simd
            for (long i = 0; i < columns; i++) out[i] = BOTH(x[i], x[across + i]);
        else
#pragma omp simd
            for (long i = 0; i < columns; i++) out[i] = BOTH(x[i], 0);
    }
    return room;
}

/* Probabilities of `rows` query rows from row `first` on, [rows, columns] in float. Gives how many keys the last one
 * sees; what an earlier one does not see is 0, up to the next even number. */
static long NAME(probabilities)(const T *q, const UNIT *turned_keys, Task t, long first, long rows, long group, long dim,
                                float scale, float *out) {
    long seen = t.before + (first + rows - 1) / group + 1, units = dim / K;
    NAME(product)((const UNIT *)(q + first * dim), units, 1, rows, turned_keys, units, units, out, t.columns, up(seen, 16), 0);
    for (long row = 0; row < rows; row++)
        softmax(out + row * t.columns, t.before + (first + row) / group + 1, up(seen, K), scale);
    return seen;
}

void NAME(attention)(const T *query, const T *key, const T *value, T *out, float *scratch, const long *starts,
                     const long *lengths, const long *key_starts, const long *befores, long texts, long longest, long heads,
                     long group, long dim, double scale, int threads) {
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (long number = 0; number < texts * heads; number++) {
        Task t = task(number, starts, lengths, key_starts, befores, longest, heads, group, dim, scratch);
        const T *q = query + t.queries;
        long kept = NAME(units)(t.tokens);
        UNIT *turned_keys = (UNIT *)t.scratch, *packed_values = turned_keys + dim / K * t.columns;
        float *scores = (float *)(packed_values + kept * t.wide), *sums = scores + BLOCK * t.columns;
        UNIT *room = (UNIT *)(sums + BLOCK * t.wide);
        NAME(pack_turned)(key + t.keys, t.tokens, dim, turned_keys);
        NAME(pack_rows)(value + t.keys, t.tokens, dim, packed_values);
        for (long first = 0; first < t.rows; first += BLOCK) {
            long rows = t.rows - first < BLOCK ? t.rows - first : BLOCK;
            long seen = up(NAME(probabilities)(q, turned_keys, t, first, rows, group, dim, (float)scale, scores), K);
            const UNIT *weights = NAME(by_columns)(scores, rows, t.columns, seen, room);
            NAME(product)(weights, t.columns / K, 1, rows, packed_values, kept, seen / K, sums, t.wide, dim, 0);
            NAME(store)(sums, rows, t.wide, dim, out + t.queries + first * dim);
        }
    }
}

void NAME(attention_backward)(const T *query, const T *key, const T *value, const T *outer, T *for_query, T *for_key,
                              T *for_value, float *scratch, const long *starts, const long *lengths, const long *key_starts,
                              const long *befores, long texts, long longest, long heads, long group, long dim, double scale,
                              int threads) {
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (long number = 0; number < texts * heads; number++) {
        Task t = task(number, starts, lengths, key_starts, befores, longest, heads, group, dim, scratch);
        const T *q = query + t.queries, *incoming = outer + t.queries;
        long kept = NAME(units)(t.tokens), units = dim / K;
        UNIT *turned_keys = (UNIT *)t.scratch, *turned_values = turned_keys + units * t.columns;
        UNIT *packed_keys = turned_values + units * t.columns;
        float *scores = (float *)(packed_keys + kept * t.wide), *wanted = scores + BLOCK * t.columns;
        UNIT *paired = (UNIT *)(wanted + BLOCK * t.columns), *packed = paired + BLOCK / K * t.columns;
        UNIT *room = packed + BLOCK / K * t.wide;
        float *sums = (float *)(room + BLOCK / K * t.columns);
        float *key_sums = sums + BLOCK * t.wide, *value_sums = key_sums + t.tokens * t.wide;
        memset(key_sums, 0, 2 * t.tokens * t.wide * sizeof(float));
        NAME(pack_turned)(key + t.keys, t.tokens, dim, turned_keys);
        NAME(pack_turned)(value + t.keys, t.tokens, dim, turned_values);
        NAME(pack_rows)(key + t.keys, t.tokens, dim, packed_keys);
        for (long first = 0; first < t.rows; first += BLOCK) {
            long rows = t.rows - first < BLOCK ? t.rows - first : BLOCK, halves = NAME(units)(rows);
            long seen = NAME(probabilities)(q, turned_keys, t, first, rows, group, dim, (float)scale, scores);
            long even = up(seen, K);
            const UNIT *left = NAME(by_rows)(scores, rows, t.columns, seen, paired);
            NAME(pack_rows)(incoming + first * dim, rows, dim, packed);
            NAME(product)(left, 1, t.columns, seen, packed, halves, halves, value_sums, t.wide, dim, 1);
            NAME(product)((const UNIT *)(incoming + first * dim), units, 1, rows, turned_values, units, units, wanted,
                          t.columns, up(seen, 16), 0);
            for (long row = 0; row < rows; row++) {
                float *p = scores + row * t.columns, *g = wanted + row * t.columns, dot = 0;
#pragma omp simd reduction(+ : dot)
                for (long i = 0; i < even; i++) dot += p[i] * g[i];
#pragma omp simd
                for (long i = 0; i < even; i++) g[i] = p[i] * (g[i] - dot) * (float)scale;
            }
            left = NAME(by_columns)(wanted, rows, t.columns, even, room);
            NAME(product)(left, t.columns / K, 1, rows, packed_keys, kept, even / K, sums, t.wide, dim, 0);
            NAME(store)(sums, rows, t.wide, dim, for_query + t.queries + first * dim);
            left = NAME(by_rows)(wanted, rows, t.columns, seen, paired);
            NAME(pack_rows)(q + first * dim, rows, dim, packed);
            NAME(product)(left, 1, t.columns, seen, packed, halves, halves, key_sums, t.wide, dim, 1);
        }
        NAME(store)(key_sums, t.tokens, t.wide, dim, for_key + t.keys);
        NAME(store)(value_sums, t.tokens, t.wide, dim, for_value + t.keys);
    }
}
#endif
#endif
