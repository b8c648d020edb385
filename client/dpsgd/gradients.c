/* Per-example gradients: the norms of a Linear's, the norms and the weighted sum of an Embedding's.
   `client/dpsgd/clipped_sum.py` holds the same in torch; they are compared before use. An example's equal
   tokens add up in their order before the square or the weight is taken: `next` chains them. */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define SHARES 4  /* of the vocabulary, or of the examples; client/dpsgd/native.py makes their slots */
#define LANES 16
#define BLOCK 1024
#define WIDE 4096  /* numbers of a token's gradient at a time; a multiple of LANES */
#define MANY (1 << 15) /* numbers that are worth a second thread */

typedef void (*Team)(void (*)(void *), void *, unsigned, unsigned); /* GOMP_parallel */

typedef struct {
    const int64_t *tokens;         /* [rows, length] */
    long rows, length, padding;    /* padding -1: none */
    const float *g;                /* [rows, length, width], with strides */
    long row, place, width;
    int32_t *next;                 /* [rows, length]: the next place of the same token, 0 if none */
    uint8_t *again;                /* [rows, length]: an earlier place has the token, or padding */
    int32_t *slots;                /* [SHARES, 2^bits] */
    int bits;
    float *squares;                /* [rows] */
    const float *factors;          /* [rows] */
    float *sums;                   /* [vocabulary, width] */
    long shares, taken;
} Work;

/* Chain the places of an example that hold the same token. */
static void chain(const Work *w, long b, int32_t *slots)
{
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

static void square_some(void *shared)
{
    Work *w = shared;
    float made[WIDE];
    for (long share; (share = __atomic_fetch_add(&w->taken, 1, __ATOMIC_RELAXED)) < w->shares;)
        for (long b = w->rows * share / w->shares; b < w->rows * (share + 1) / w->shares; b++) {
            double sum = 0;
            chain(w, b, w->slots + (share << w->bits));
            for (long l = 0; l < w->length; l++)
                for (long s = 0; s < w->width && !w->again[b * w->length + l]; s += WIDE) {
                    long count = w->width - s < WIDE ? w->width - s : WIDE;
                    sum += square(gradient(w, b, l, s, count, made), count);
                }
            w->squares[b] = (float)sum;
        }
}

/* Every share of the vocabulary sums in the order of the examples: any team gives the same. */
static void add_some(void *shared)
{
    Work *w = shared;
    float made[WIDE];
    for (long share; (share = __atomic_fetch_add(&w->taken, 1, __ATOMIC_RELAXED)) < w->shares;)
        for (long b = 0; b < w->rows; b++) {
            const int64_t *tokens = w->tokens + b * w->length;
            const uint8_t *again = w->again + b * w->length;
            const float factor = w->factors[b];
            if (factor == 0)                            /* broken: not even times zero */
                continue;
            for (long l = 0; l < w->length; l++) {
                if ((tokens[l] & (w->shares - 1)) != share || again[l])
                    continue;
                for (long s = 0; s < w->width; s += WIDE) {
                    long count = w->width - s < WIDE ? w->width - s : WIDE;
                    const float *g = gradient(w, b, l, s, count, made);
                    float *restrict sum = w->sums + tokens[l] * w->width + s;
                    for (long i = 0; i < count; i++)
                        sum[i] += factor * g[i];
                }
            }
        }
}

static void together(void (*some)(void *), Work *work, Team team, unsigned threads)
{
    int shared = team && threads > 1 && work->rows * work->length * work->width > MANY;
    work->taken = 0;
    work->shares = shared ? SHARES : 1;
    if (shared)
        team(some, work, threads, 0);
    else
        some(work);
}

typedef struct {
    const float *a, *g;            /* [rows, width] and [rows, length], with a stride of the rows */
    long rows, row_a, width, row_g, length;
    float more, most, *squares;
    long shares, taken;
} Pair;

static void outer_some(void *shared)
{
    Pair *p = shared;
    for (long share; (share = __atomic_fetch_add(&p->taken, 1, __ATOMIC_RELAXED)) < p->shares;)
        for (long b = p->rows * share / p->shares; b < p->rows * (share + 1) / p->shares; b++) {
            double width = square(p->a + b * p->row_a, p->width);
            double length = square(p->g + b * p->row_g, p->length);
            int fine = width <= p->most && length <= p->most;
            p->squares[b] = fine ? (float)(length * (width + p->more)) : INFINITY;
        }
}

/* Each example's |g|^2 (|a|^2 + more); infinite where a factor is above `most`, or no number. */
void outer(const float *a, long row_a, long width, const float *g, long row_g, long length,
           long rows, float more, float most, float *squares, Team team, unsigned threads)
{
    int shared = team && threads > 1 && rows * (width + length) > MANY;
    Pair pair = {a, g, rows, row_a, width, row_g, length, more, most, squares,
                 shared ? SHARES : 1, 0};
    if (shared)
        team(outer_some, &pair, threads, 0);
    else
        outer_some(&pair);
}

/* Each example's squared norm, and the chains that `add` takes. */
void squares(Work *work, Team team, unsigned threads) { together(square_some, work, team, threads); }

/* Add every example's gradient times its factor to the sums; nothing where the factor is 0. */
void add(Work *work, Team team, unsigned threads) { together(add_some, work, team, threads); }
