/* Per-example gradients of an Embedding: their norms and their weighted sum.
   `client/dpsgd/clipped_sum.py` holds the same in torch; they are compared before use. An example's equal
   tokens add up in their order before the square or the weight is taken: `next` chains them. */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define LANES 16
#define BLOCK 1024
#define WIDE 4096  /* numbers of a token's gradient at a time; a multiple of LANES */

typedef struct {
    const int64_t *tokens;         /* [rows, length] */
    long rows, length, padding;    /* padding -1: none */
    const float *g;                /* [rows, length, width], with strides */
    long row, place, width;
    int32_t *next;                 /* [rows, length]: the next place of the same token, 0 if none */
    uint8_t *again;                /* [rows, length]: an earlier place has the token, or padding */
    int32_t *slots;                /* [2^bits] */
    int bits;
    double *squares;               /* [rows] */
    const float *factors;          /* [rows] */
    void *sums;                    /* [vocabulary, width], doubles if `wide`, else floats */
    int wide;
} Work;

/* Chain the places of an example that hold the same token. */
static void chain(const Work *w, long b)
{
    int32_t *slots = w->slots;
    const int64_t *tokens = w->tokens + b * w->length;
    int32_t *next = w->next + b * w->length;
    uint8_t *again = w->again + b * w->length;
    const uint64_t most = ((uint64_t)1 << w->bits) - 1;
    memset(slots, 0xff, sizeof *slots << w->bits);
    for (long l = 0; l < w->length; l++) {
        next[l] = 0;
        again[l] = tokens[l] == w->padding;
        if (again[l])
            continue;
        uint64_t at = (uint64_t)tokens[l] * 0x9e3779b97f4a7c15u >> (64 - w->bits);
        while (slots[at] >= 0 && tokens[slots[at]] != tokens[l])
            at = (at + 1) & most;
        if (slots[at] >= 0) {
            next[slots[at]] = (int32_t)l;
            again[l] = 1;
        }
        slots[at] = (int32_t)l;
    }
}

/* The numbers from `start` of the gradient of place l's token: there, or added up in `made`. */
static const float *gradient(const Work *w, long b, long l, long start, long count, float *made)
{
    const float *g = w->g + b * w->row + start;
    const int32_t *next = w->next + b * w->length;
    if (!next[l])
        return g + l * w->place;
    memcpy(made, g + l * w->place, count * sizeof *made);
    while ((l = next[l])) {
        const float *restrict other = g + l * w->place;
        for (long i = 0; i < count; i++)
            made[i] += other[i];
    }
    return made;
}

/* Blocks add up in double precision, so that rounding does not grow with the length. */
static double square(const float *g, long count)
{
    double sum = 0;
    while (count > 0) {
        float lanes[LANES] = {0}, block = 0;
        long size = count < BLOCK ? count : BLOCK, i = 0;
        for (; i + LANES <= size; i += LANES)
            for (int j = 0; j < LANES; j++)
                lanes[j] += g[i + j] * g[i + j];
        for (int j = 0; j < LANES; j++)
            block += lanes[j];
        for (; i < size; i++)
            block += g[i] * g[i];
        sum += block;
        g += size;
        count -= size;
    }
    return sum;
}

/* Each example's squared norm, and the chains that `add` takes. */
void squares(Work *w)
{
    float made[WIDE];
    for (long b = 0; b < w->rows; b++) {
        double sum = 0;
        chain(w, b);
        for (long l = 0; l < w->length; l++)
            for (long s = 0; s < w->width && !w->again[b * w->length + l]; s += WIDE) {
                long count = w->width - s < WIDE ? w->width - s : WIDE;
                sum += square(gradient(w, b, l, s, count, made), count);
            }
        w->squares[b] = sum;
    }
}

/* Add every example's gradient times its factor to the sums; nothing where the factor is 0. */
void add(Work *w)
{
    float made[WIDE];
    for (long b = 0; b < w->rows; b++) {
        const int64_t *tokens = w->tokens + b * w->length;
        const uint8_t *again = w->again + b * w->length;
        const float factor = w->factors[b];
        if (factor == 0)                                /* broken: not even times zero */
            continue;
        for (long l = 0; l < w->length; l++) {
            if (again[l])
                continue;
            for (long s = 0; s < w->width; s += WIDE) {
                long count = w->width - s < WIDE ? w->width - s : WIDE;
                const float *g = gradient(w, b, l, s, count, made);
                long at = tokens[l] * w->width + s;
                if (w->wide) {
                    double *restrict sum = (double *)w->sums + at;
                    for (long i = 0; i < count; i++)
                        sum[i] += (double)factor * g[i];
                } else {
                    float *restrict sum = (float *)w->sums + at;
                    for (long i = 0; i < count; i++)
                        sum[i] += factor * g[i];
                }
            }
        }
    }
}
