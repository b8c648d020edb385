/* What `honest_noise.py` looks at of an update, in one pass over its memory. */
#include <math.h>
#include <string.h>

#define LANES 8
#define BLOCK 32768  /* numbers whose squares add up by themselves */

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef double Doubles __attribute__((vector_size(8 * LANES / 2)));
typedef int Words __attribute__((vector_size(4 * LANES)));
typedef float Half __attribute__((vector_size(2 * LANES)));

static double sum(Doubles x)
{
    return x[0] + x[1] + (x[2] + x[3]);
}

/* Of n floats the sum of their squares, that of the squared differences of neighbours (0 and 1, 2 and
   3, ...), and how many are larger than `interval` in size. */
void figures(const float *x, long n, double interval, double *square, double *apart, long *outside)
{
    const Words sizes = {0x7fffffff, 0x7fffffff, 0x7fffffff, 0x7fffffff,
                         0x7fffffff, 0x7fffffff, 0x7fffffff, 0x7fffffff};
    float most = (float)interval;
    if (most > interval)                /* the largest float that is not larger */
        most = nextafterf(most, -INFINITY);
    *square = *apart = 0;
    *outside = 0;
    for (long at = 0; at < n; at += BLOCK) {
        const long end = n - at < BLOCK ? n : at + BLOCK;
        Doubles squares[2] = {{0}}, differences = {0};
        Words larger = {0};
        long i = at;
        for (; i + LANES <= end; i += LANES) {
            Floats all, size;
            Half low, high;
            memcpy(&all, x + i, sizeof all);
            memcpy(&low, x + i, sizeof low);
            memcpy(&high, x + i + LANES / 2, sizeof high);
            const Words bits = (Words)all & sizes;
            memcpy(&size, &bits, sizeof size);
            larger -= size > most;                              /* -1 where it is */
            const Doubles one = __builtin_convertvector(low, Doubles);
            const Doubles two = __builtin_convertvector(high, Doubles);
            squares[0] += one * one;
            squares[1] += two * two;
            const Doubles apart_by = __builtin_shufflevector(one, two, 0, 2, 4, 6)
                                     - __builtin_shufflevector(one, two, 1, 3, 5, 7);
            differences += apart_by * apart_by;
        }
        *square += sum(squares[0]) + sum(squares[1]);
        *apart += sum(differences);
        for (int j = 0; j < LANES; j++)
            *outside += larger[j];
        for (long j = i; j < end; j++) {
            *square += (double)x[j] * x[j];
            *outside += fabsf(x[j]) > most;
        }
        for (long j = i; j + 1 < end; j += 2) {
            const double difference = (double)x[j] - (double)x[j + 1];
            *apart += difference * difference;
        }
    }
}
