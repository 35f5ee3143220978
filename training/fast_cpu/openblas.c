/* Products of float32 matrices by OpenBLAS, each of this program's threads with a part of the result (openblas.py).
 *
 * OpenBLAS has threads of its own, which would want the processors while those of OpenMP still wait on them for the next
 * part of the layer: so it is told to use the thread that calls it.
 */
#include <stdint.h>

enum { ROW_MAJOR = 101, AS_IT_IS = 111, TRANSPOSED = 112 }; /* as cblas.h has them */
/* Columns of one thread at least, and a multiple of what OpenBLAS computes together. */
enum { LEAST_PART = 64, TOGETHER = 16 };

typedef void (*sgemm_t)(int order, int transpose_a, int transpose_b, int64_t m, int64_t n, int64_t k, float alpha,
                        const float *a, int64_t lda, const float *b, int64_t ldb, float beta, float *c, int64_t ldc);
typedef int (*get_threads_t)(void);
typedef void (*set_threads_t)(int);

/* Where part `number` of `parts` begins. */
static long begins(long size, long number, long parts, long multiple) {
    long units = (size + multiple - 1) / multiple, at = units * number / parts * multiple;
    return at < size ? at : size;
}

/* c [m, n] = a [m, k] b [k, n], added to what is in c where `adds`. Rows of a are `of_a` apart; where `a_turned`, a is stored
 * as [k, m]; b likewise; rows of c are dense. The pointers: functions of OpenBLAS. */
void openblas_product(void *sgemm, void *get_threads, void *set_threads, const float *a, const float *b, float *c, long m,
                      long n, long k, long of_a, long of_b, int a_turned, int b_turned, int adds, int threads) {
    int before = ((get_threads_t)get_threads)();
    /* Each thread lays the part of b that it needs out anew: so columns are parted before rows. */
    int across = threads;
    while (across > 1 && (threads % across || n / across < LEAST_PART)) across--;
    int down = threads / across;
    ((set_threads_t)set_threads)(1);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int number = 0; number < threads; number++) {
        long row = begins(m, number / across, down, 1), rows = begins(m, number / across + 1, down, 1) - row;
        long column = begins(n, number % across, across, TOGETHER);
        long columns = begins(n, number % across + 1, across, TOGETHER) - column;
        if (rows > 0 && columns > 0)
            ((sgemm_t)sgemm)(ROW_MAJOR, a_turned ? TRANSPOSED : AS_IT_IS, b_turned ? TRANSPOSED : AS_IT_IS, rows, columns,
                             k, 1.0f, a_turned ? a + row : a + row * of_a, of_a,
                             b_turned ? b + column * of_b : b + column, of_b, adds ? 1.0f : 0.0f, c + row * n + column, n);
    }
    ((set_threads_t)set_threads)(before);
}
