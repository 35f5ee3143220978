/* The parts of a decoder layer that are no matrix products, each in one pass over memory (see decoder.py).
 *
 * Compiled on the machine that trains (kernels.py), so that the compiler may use every vector unit there is. This file
 * includes itself once for each type: float, bf16 (kept as its upper 16 bits) and double (for tests by finite
 * differences). Sums are kept in float, for double in double. Arrays are dense, row after row, unless a stride is given.
 * Outputs never overlap inputs, but for element by element in place: "omp simd" tells the compiler so, which for short
 * loops (the dimensions of a head) would rather compute one element at a time than ask whether they overlap.
 */
#ifndef T
#include "bf16.h"

/* So many elements one thread computes sooner than it wakes another: what the next token of some answers takes (greedy.py). */
enum { ALONE = 1 << 15 };

/* Which of the vectors of one head a token's is, in rows of text of [key-value head, token, group]. `first`: the first
 * token of its row of text, `length`: how many tokens that has. */
static inline long place(long first, long length, long token, long head, long heads, long group) {
    return (first * heads + (head / group) * length + token - first) * group + head % group;
}
static inline double exact_exp(double x) { return exp(x); }

#define T float
#define ACC float
#define GET(x) (x)
#define PUT(x) (x)
#define EXP fast_exp
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
#undef T
#undef ACC
#undef GET
#undef PUT
#undef EXP
#undef NAME
#define T double
#define ACC double
#define GET(x) (x)
#define PUT(x) (x)
#define EXP exact_exp
#define NAME(name) name##_f64
#include __FILE__
#else

/* y = x / sqrt(mean(x^2) + eps) * w, each row of `width`; with `added`, x + added is stored in `sum` and taken instead. */
void NAME(rms_norm)(const T *x, const T *added, const T *w, T *sum, T *y, ACC *inverse, long rows, long width,
                    double eps, int threads) {
#pragma omp parallel for num_threads(threads) if (rows * width > ALONE)
    for (long row = 0; row < rows; row++) {
        const T *in = x + row * width;
        if (added) {
            const T *more = added + row * width;
            T *out = sum + row * width;
#pragma omp simd
            for (long i = 0; i < width; i++) out[i] = PUT(GET(in[i]) + GET(more[i]));
            in = out;
        }
        ACC squares = 0;
#pragma omp simd reduction(+ : squares)
        for (long i = 0; i < width; i++) squares += GET(in[i]) * GET(in[i]);
        ACC scale = 1 / sqrt(squares / width + eps);
        inverse[row] = scale;
        T *out = y + row * width;
        /* rounded before the weight, as the Llama family's own code does */
#pragma omp simd
        for (long i = 0; i < width; i++) out[i] = PUT(GET(PUT(GET(in[i]) * scale)) * GET(w[i]));
    }
}

/* The gradient with respect to x of the above, plus `more` (the gradient that reaches the sum by another way). */
void NAME(rms_norm_backward)(const T *gradient, const T *more, const T *x, const T *w, const ACC *inverse, T *out,
                             long rows, long width, int threads) {
#pragma omp parallel for num_threads(threads) if (rows * width > ALONE)
    for (long row = 0; row < rows; row++) {
        const T *g = gradient + row * width, *in = x + row * width;
        ACC scale = inverse[row], dot = 0;
#pragma omp simd reduction(+ : dot)
        for (long i = 0; i < width; i++) dot += GET(g[i]) * GET(w[i]) * GET(in[i]);
        ACC pull = dot * scale * scale * scale / width;
        T *to = out + row * width;
        if (more) {
            const T *other = more + row * width;
#pragma omp simd
            for (long i = 0; i < width; i++)
                to[i] = PUT(GET(other[i]) + GET(g[i]) * GET(w[i]) * scale - GET(in[i]) * pull);
        } else {
#pragma omp simd
            for (long i = 0; i < width; i++) to[i] = PUT(GET(g[i]) * GET(w[i]) * scale - GET(in[i]) * pull);
        }
    }
}

/* From [token, head, dimension] (rows of `stride`) to [key-value head, token, group, dimension] within each row of text,
 * one row of text after the other, turned by the tokens' angles where `cosine` [token, dimension] is given. `first` and
 * `length` [token]: see place(). With `source` a token of `out` is a copy of the token source[token] of x. */
void NAME(to_heads)(const T *x, long stride, const T *cosine, const T *sine, const long *source, const long *first,
                    const long *length, T *out, long tokens, long heads, long group, long dim, int threads) {
    long half = dim / 2;
#pragma omp parallel for num_threads(threads)
    for (long token = 0; token < tokens; token++)
        for (long head = 0; head < heads * group; head++) {
            long from = source ? source[token] : token;
            const T *in = x + from * stride + head * dim;
            T *to = out + place(first[token], length[token], token, head, heads, group) * dim;
            if (!cosine) {
                memcpy(to, in, dim * sizeof(T));
                continue;
            }
            const T *c = cosine + from * dim, *s = sine + from * dim;
#pragma omp simd
            for (long i = 0; i < half; i++) {
                ACC a = GET(in[i]), b = GET(in[i + half]);
                to[i] = PUT(a * GET(c[i]) - b * GET(s[i]));
                to[i + half] = PUT(b * GET(c[i + half]) + a * GET(s[i + half]));
            }
        }
}

/* The way back of the above, and its gradient: the transposed layout, turned the other way. */
void NAME(from_heads)(const T *x, long stride, const T *cosine, const T *sine, const long *first, const long *length,
                      T *out, long tokens, long heads, long group, long dim, int threads) {
    long half = dim / 2;
#pragma omp parallel for num_threads(threads)
    for (long token = 0; token < tokens; token++)
        for (long head = 0; head < heads * group; head++) {
            const T *in = x + place(first[token], length[token], token, head, heads, group) * dim;
            T *to = out + token * stride + head * dim;
            if (!cosine) {
                memcpy(to, in, dim * sizeof(T));
                continue;
            }
            const T *c = cosine + token * dim, *s = sine + token * dim;
#pragma omp simd
            for (long i = 0; i < half; i++) {
                ACC a = GET(in[i]), b = GET(in[i + half]);
                to[i] = PUT(a * GET(c[i]) + b * GET(s[i + half]));
                to[i + half] = PUT(b * GET(c[i + half]) - a * GET(s[i]));
            }
        }
}

/* The gradient of to_heads with `source`, of one vector a head (group 1): of each token the sum over its copies, which are
 * copies[begins[token]] up to before copies[begins[token + 1]]. `first` and `length` are those of the copies. */
void NAME(sum_heads)(const T *x, long stride, const T *cosine, const T *sine, const long *begins, const long *copies,
                     const long *first, const long *length, T *out, long tokens, long heads, long dim, int threads) {
    long half = dim / 2;
#pragma omp parallel for num_threads(threads)
    for (long token = 0; token < tokens; token++)
        for (long head = 0; head < heads; head++) {
            ACC sums[dim];
            for (long i = 0; i < dim; i++) sums[i] = 0;
            for (long at = begins[token]; at < begins[token + 1]; at++) {
                long copy = copies[at];
                const T *in = x + place(first[copy], length[copy], copy, head, heads, 1) * dim;
#pragma omp simd
                for (long i = 0; i < dim; i++) sums[i] += GET(in[i]);
            }
            T *to = out + token * stride + head * dim;
            if (!cosine) {
#pragma omp simd
                for (long i = 0; i < dim; i++) to[i] = PUT(sums[i]);
                continue;
            }
            const T *c = cosine + token * dim, *s = sine + token * dim;
#pragma omp simd
            for (long i = 0; i < half; i++) {
                ACC a = sums[i], b = sums[i + half];
                to[i] = PUT(a * GET(c[i]) + b * GET(s[i + half]));
                to[i + half] = PUT(b * GET(c[i + half]) - a * GET(s[i]));
            }
        }
}

/* Softmax of scale * scores in place, row by row of `columns`. Row r belongs to position first + r / group (modulo
 * `rows_a_head` rows) and sees the columns up to it; those after it become 0. */
void NAME(softmax)(T *scores, long rows, long columns, long rows_a_head, long group, long first, double scale,
                   int threads) {
#pragma omp parallel for num_threads(threads)
    for (long row = 0; row < rows; row++) {
        T *s = scores + row * columns;
        long seen = first + (row % rows_a_head) / group + 1;
        ACC factor = scale, largest = -INFINITY, total = 0, buffer[seen];
#pragma omp simd reduction(max : largest)
        for (long i = 0; i < seen; i++) {
            ACC value = GET(s[i]) * factor;
            buffer[i] = value;
            largest = value > largest ? value : largest;
        }
#pragma omp simd reduction(+ : total)
        for (long i = 0; i < seen; i++) {
            ACC value = EXP(buffer[i] - largest);
            buffer[i] = value;
            total += value;
        }
        ACC inverse = 1 / total;
#pragma omp simd
        for (long i = 0; i < seen; i++) s[i] = PUT(buffer[i] * inverse);
        memset(s + seen, 0, (columns - seen) * sizeof(T));
    }
}

/* The gradient of the above with respect to the scores, in place of `gradient`. */
void NAME(softmax_backward)(T *gradient, const T *probabilities, long rows, long columns, long rows_a_head, long group,
                            long first, double scale, int threads) {
#pragma omp parallel for num_threads(threads)
    for (long row = 0; row < rows; row++) {
        T *g = gradient + row * columns;
        const T *p = probabilities + row * columns;
        long seen = first + (row % rows_a_head) / group + 1;
        ACC dot = 0, factor = scale;
#pragma omp simd reduction(+ : dot)
        for (long i = 0; i < seen; i++) dot += GET(g[i]) * GET(p[i]);
#pragma omp simd
        for (long i = 0; i < seen; i++) g[i] = PUT(GET(p[i]) * (GET(g[i]) - dot) * factor);
        memset(g + seen, 0, (columns - seen) * sizeof(T));
    }
}

/* out = silu(gate) * up, of rows that hold gate and up side by side (`width` each). */
void NAME(swiglu)(const T *both, T *out, long rows, long width, int threads) {
#pragma omp parallel for num_threads(threads) if (rows * width > ALONE)
    for (long row = 0; row < rows; row++) {
        const T *gate = both + row * 2 * width, *up = gate + width;
        T *to = out + row * width;
#pragma omp simd
        for (long i = 0; i < width; i++) {
            ACC x = GET(gate[i]);
            to[i] = PUT(GET(PUT(x / (1 + EXP(-x)))) * GET(up[i]));
        }
    }
}

void NAME(swiglu_backward)(const T *gradient, const T *both, T *out, long rows, long width, int threads) {
#pragma omp parallel for num_threads(threads) if (rows * width > ALONE)
    for (long row = 0; row < rows; row++) {
        const T *gate = both + row * 2 * width, *up = gate + width, *g = gradient + row * width;
        T *to_gate = out + row * 2 * width, *to_up = to_gate + width;
#pragma omp simd
        for (long i = 0; i < width; i++) {
            ACC x = GET(gate[i]), incoming = GET(g[i]), sigmoid = 1 / (1 + EXP(-x));
            to_up[i] = PUT(incoming * x * sigmoid);
            to_gate[i] = PUT(incoming * GET(up[i]) * sigmoid * (1 + x * (1 - sigmoid)));
        }
    }
}

/* The sum of -log softmax(logits)[target] over the rows; logits become its gradient, softmax - one at the target. With
 * `times` a row counts so many times. */
double NAME(cross_entropy)(T *logits, const long *targets, const long *times, long rows, long classes, int threads) {
    double sum = 0;
#pragma omp parallel for num_threads(threads) reduction(+ : sum)
    for (long row = 0; row < rows; row++) {
        T *x = logits + row * classes;
        ACC largest = -INFINITY, total = 0;
#pragma omp simd reduction(max : largest)
        for (long i = 0; i < classes; i++) largest = GET(x[i]) > largest ? GET(x[i]) : largest;
#pragma omp simd reduction(+ : total)
        for (long i = 0; i < classes; i++) total += EXP(GET(x[i]) - largest);
        ACC target = GET(x[targets[row]]), offset = largest + log(total);
        if (times) {
            ACC count = times[row];
            sum += count * (offset - target);
#pragma omp simd
            for (long i = 0; i < classes; i++) x[i] = PUT(count * EXP(GET(x[i]) - offset));
            x[targets[row]] = PUT(count * (EXP(target - offset) - 1));
            continue;
        }
        sum += offset - target;
#pragma omp simd
        for (long i = 0; i < classes; i++) x[i] = PUT(EXP(GET(x[i]) - offset));
        x[targets[row]] = PUT(EXP(target - offset) - 1);
    }
    return sum;
}
#endif
