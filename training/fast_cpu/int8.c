/* Products with frozen weights that are kept in 8 bits (int8.py), by the dot products of four bytes that vector units have.
 *
 * A weight [outputs, inputs] has one scale for each output, and what is multiplied one for each token: sums are whole
 * numbers, without rounding, and the same however they are cut up among threads. Vectors are turned before they are
 * rounded (see turn()). This file includes itself once for each type: float and bf16.
 */
#ifndef T
#include <stdlib.h>

#include "bf16.h"
#ifdef __x86_64__
#include <immintrin.h>
#endif

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512DQ__)
#define LANES 16
#define TOKENS 6
#define VECTORS 4
typedef __m512i ints;
#define ZERO _mm512_setzero_si512()
#define LOAD(from) _mm512_loadu_si512(from)
#define STORE(to, value) _mm512_storeu_si512(to, value)
#define REPEAT(word) _mm512_set1_epi32(word)
#define DOT(sum, x, w) _mm512_dpbusd_epi32(sum, x, w)
#define OFFSET 128
#elif defined(__AVX2__)
#define LANES 8
#define TOKENS 4
#define VECTORS 2
typedef __m256i ints;
#define ZERO _mm256_setzero_si256()
#define LOAD(from) _mm256_loadu_si256((const __m256i *)(from))
#define STORE(to, value) _mm256_storeu_si256((__m256i *)(to), value)
#define REPEAT(word) _mm256_set1_epi32(word)
#if defined(__AVXVNNI__)
#define DOT(sum, x, w) _mm256_dpbusd_avx_epi32(sum, x, w)
#define OFFSET 128
#else
/* Pairs of products are added in 16 bits: with both factors within 127 they fit. */
static inline __m256i dot(__m256i sum, __m256i x, __m256i w) {
    __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(x), _mm256_sign_epi8(w, x));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
#define DOT(sum, x, w) dot(sum, x, w)
#define OFFSET 0
#endif
#endif

#ifdef LANES
/* Outputs that are computed together: their weights, in the order in which they are read, stay in the nearer cache. */
#define PANEL 64

/* How far the bytes of what is multiplied are moved, so that none is negative where the CPU's dot product asks for that. */
long int8_offset(void) { return OFFSET; }

/* A vector turned by the orthogonal matrix H / sqrt(block) of Hadamard, in place: each number becomes a sum of `block` ones
 * that stand equally far apart, with signs. The few numbers that are many times larger than the others, as hidden states
 * have them, are so spread over many, and the scale is not theirs alone. Twice is nothing. */
static void turn(float *x, long width, long block) {
    for (long run = width / block; run < width; run *= 2)
        for (long at = 0; at < width; at += 2 * run)
#pragma omp simd
            for (long i = at; i < at + run; i++) {
                float a = x[i], b = x[i + run];
                x[i] = a + b;
                x[i + run] = a - b;
            }
    if (block > 1) {
        float scale = 1 / sqrtf(block);
#pragma omp simd
        for (long i = 0; i < width; i++) x[i] *= scale;
    }
}

/* The weights of outputs `from` on, forward: [outputs, inputs], of which four inputs at a time follow each other. */
static void pack_rows(const int8_t *w, long inputs, long from, long outputs, int32_t *to, int32_t *sums) {
    long words = inputs / 4;
    for (long j = 0; j < PANEL; j++) {
        int32_t sum = 0;
        if (from + j < outputs) {
            const int8_t *row = w + (from + j) * inputs;
#pragma omp simd reduction(+ : sum)
            for (long i = 0; i < inputs; i++) sum += row[i];
        }
        sums[j] = sum;
    }
    for (long first = 0; first < words; first += 16) {
        long last = first + 16 < words ? first + 16 : words;
        for (long j = 0; j < PANEL; j++) {
            if (from + j >= outputs) {
                for (long i = first; i < last; i++) to[i * PANEL + j] = 0;
                continue;
            }
            const int8_t *row = w + (from + j) * inputs;
            for (long i = first; i < last; i++) memcpy(to + i * PANEL + j, row + 4 * i, 4);
        }
    }
}

/* The same backward, of [inputs, outputs]: four rows become one of groups of four. */
static void pack_columns(const int8_t *w, long inputs, long from, long outputs, int32_t *to, int32_t *sums) {
    long wide = outputs - from < PANEL ? outputs - from : PANEL;
    memset(sums, 0, PANEL * sizeof(int32_t));
    for (long i = 0; i < inputs; i += 4) {
        const int8_t *a = w + i * outputs + from, *b = a + outputs, *c = b + outputs, *d = c + outputs;
        int8_t *out = (int8_t *)(to + i / 4 * PANEL);
        if (wide == PANEL) {
            for (long j = 0; j < PANEL; j++) {
                out[4 * j] = a[j], out[4 * j + 1] = b[j], out[4 * j + 2] = c[j], out[4 * j + 3] = d[j];
                sums[j] += a[j] + b[j] + c[j] + d[j];
            }
            continue;
        }
        memset(out, 0, 4 * PANEL);
        for (long j = 0; j < wide; j++) {
            out[4 * j] = a[j], out[4 * j + 1] = b[j], out[4 * j + 2] = c[j], out[4 * j + 3] = d[j];
            sums[j] += a[j] + b[j] + c[j] + d[j];
        }
    }
}

/* The sums of TOKENS rows of x with a panel; of fewer rows the last one is taken again. */
static inline void multiply(const uint8_t *x, long inputs, long rows, const int32_t *panel,
                            int32_t sums[TOKENS][PANEL]) {
    const uint8_t *from[TOKENS];
    for (long t = 0; t < TOKENS; t++) from[t] = x + (t < rows ? t : rows - 1) * inputs;
    for (long at = 0; at < PANEL; at += VECTORS * LANES) {
        ints total[TOKENS][VECTORS];
        for (int t = 0; t < TOKENS; t++)
            for (int v = 0; v < VECTORS; v++) total[t][v] = ZERO;
        for (long i = 0; i < inputs / 4; i++) {
            ints w[VECTORS];
            for (int v = 0; v < VECTORS; v++) w[v] = LOAD(panel + i * PANEL + at + v * LANES);
#pragma GCC unroll 6
            for (int t = 0; t < TOKENS; t++) {
                int32_t four;
                memcpy(&four, from[t] + 4 * i, 4);
                ints repeated = REPEAT(four);
#pragma GCC unroll 4
                for (int v = 0; v < VECTORS; v++) total[t][v] = DOT(total[t][v], repeated, w[v]);
            }
        }
        for (int t = 0; t < TOKENS; t++)
            for (int v = 0; v < VECTORS; v++) STORE(&sums[t][at + v * LANES], total[t][v]);
    }
}

#define T float
#define GET(x) (x)
#define PUT(x) (x)
#define NAME(name) name##_f32
#include __FILE__
#undef T
#undef GET
#undef PUT
#undef NAME
#define T uint16_t
#define GET(x) from_bf16(x)
#define PUT(x) to_bf16(x)
#define NAME(name) name##_bf16
#include __FILE__
#endif
#else

/* Rows of x, times `factors` where these are given, turned in blocks of `block` and rounded to bytes, `offset` added: what
 * a byte stands for is scales[row] * (byte - offset). A row with NaN or infinity has NaN as its scale. */
void NAME(int8_round)(const T *x, const float *factors, uint8_t *bytes, float *scales, long rows, long width, long block,
                      long offset, int threads) {
#pragma omp parallel for num_threads(threads)
    for (long row = 0; row < rows; row++) {
        const T *in = x + row * width;
        float *values = malloc(width * sizeof(float)), largest = 0;
        uint32_t none = 0;
        if (factors) {
#pragma omp simd
            for (long i = 0; i < width; i++) values[i] = GET(in[i]) * factors[i];
        } else {
#pragma omp simd
            for (long i = 0; i < width; i++) values[i] = GET(in[i]);
        }
        turn(values, width, block);
#pragma omp simd reduction(max : largest) reduction(| : none)
        for (long i = 0; i < width; i++) {
            float size = fabsf(values[i]);
            largest = size > largest ? size : largest;
            uint32_t bits;
            memcpy(&bits, &size, 4);
            none |= bits >= 0x7f800000;
        }
        float inverse = largest > 0 && !none ? 127 / largest : 0, middle = 128.5f;
        scales[row] = none ? NAN : largest / 127;
        uint8_t *to = bytes + row * width, back = 128 - offset;
        if (!none) {
#pragma omp simd
            for (long i = 0; i < width; i++) to[i] = (uint8_t)((int)(values[i] * inverse + middle) - back);
        } else
            memset(to, offset, width);
        free(values);
    }
}

/* out [rows, outputs] = x W^T of the bytes of x [rows, inputs]; with `columns` x W of w [inputs, outputs]. `scales`: of the
 * outputs; none where they are in x already. */
void NAME(int8_product)(const uint8_t *x, const float *of_rows, const int8_t *w, const float *scales, T *out, long rows,
                        long inputs, long outputs, long columns, int threads) {
    long panels = (outputs + PANEL - 1) / PANEL;
    /* Where there are few panels, each is shared out among threads, but for no fewer rows than its packing is worth. */
    long parts = (4 * threads + panels - 1) / panels, most = (rows + 191) / 192;
    parts = parts < most ? parts : (most > 0 ? most : 1);
    long each = ((rows + parts - 1) / parts + TOKENS - 1) / TOKENS * TOKENS;
#pragma omp parallel num_threads(threads)
    {
        int32_t *panel = malloc(inputs * PANEL), sums[PANEL], found[TOKENS][PANEL];
#pragma omp for schedule(dynamic, 1)
        for (long task = 0; task < panels * parts; task++) {
            long from = task / parts * PANEL, wide = outputs - from < PANEL ? outputs - from : PANEL;
            long first = task % parts * each, last = first + each < rows ? first + each : rows;
            if (first >= last) continue;
            (columns ? pack_columns : pack_rows)(w, inputs, from, outputs, panel, sums);
            float scale[PANEL];
            for (long j = 0; j < PANEL; j++) scale[j] = scales && j < wide ? scales[from + j] : 1;
            for (long row = first; row < last; row += TOKENS) {
                long some = last - row < TOKENS ? last - row : TOKENS;
                multiply(x + row * inputs, inputs, some, panel, found);
                for (long t = 0; t < some; t++) {
                    T *to = out + (row + t) * outputs + from;
                    float of_row = of_rows[row + t];
#pragma omp simd
                    for (long j = 0; j < wide; j++)
                        to[j] = PUT((float)(found[t][j] - OFFSET * sums[j]) * (of_row * scale[j]));
                }
            }
        }
        free(panel);
    }
}

/* Rows of float turned in blocks of `block`: the way back of a product's inputs. */
void NAME(int8_turned)(const float *x, T *out, long rows, long width, long block, int threads) {
#pragma omp parallel for num_threads(threads)
    for (long row = 0; row < rows; row++) {
        float *values = malloc(width * sizeof(float));
        memcpy(values, x + row * width, width * sizeof(float));
        turn(values, width, block);
        T *to = out + row * width;
#pragma omp simd
        for (long i = 0; i < width; i++) to[i] = PUT(values[i]);
        free(values);
    }
}
#endif
