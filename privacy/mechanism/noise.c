/* Random bits to normal numbers to noisy sums on the public grid, and to the rows of a Poisson
   batch, written so that any compiler vectorises it. `privacy/mechanism/gaussian.py` holds the same
   operations in the same order in numpy: with -ffp-contract=off and IEEE doubles the two give the
   same bits, which is checked before use. `docs/randomness.md` bounds every error made here; where one
   could change what is released, the number is left to `privacy/mechanism/exact.py`.

   A chunk is PAIRS pairs of numbers: first their radii, 8 bytes each, then their angles, 8 bytes
   each, whose last ten bits are the radii's last; a last chunk is shorter, by whole fours of pairs.

   A CPU decides most numbers by floats before any doubles, with the same outcome (`estimate`).

   `noise.cu` goes on from here for a GPU: all up to `close_to_the_next` is compiled there too.
*/
#ifdef __CUDACC_RTC__
typedef unsigned char uint8_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
#define restrict __restrict__
#else
#include <math.h>
#include <stdint.h>
#include <string.h>
#endif

#define PAIRS 512
#define FINE 0x1p28                                     /* fine steps in a step of the grid */
#define NEAR (0.5 - 0x1p-27)             /* within two fine steps of the middle of two steps */
#define EXTREME 0x4000000000  /* a radius so close to 0 or 1, of 2^64, is too coarse or too long */

static double from_bits(uint64_t bits)
{
    double x;
    memcpy(&x, &bits, 8);
    return x;
}

static uint64_t to_bits(double x)
{
    uint64_t bits;
    memcpy(&bits, &x, 8);
    return bits;
}

static inline int extreme(uint64_t radius)
{
    return radius + EXTREME < 2 * EXTREME;
}

/* Box and Muller (1958): `pairs` radii and angles to as many cosines and sines times `scale`.
   Returns whether any radius is extreme. */
static int transform(const uint64_t *radii, const uint64_t *angles, long pairs, double scale,
                      double *restrict cosines, double *restrict sines)
{
    int any = 0;
    for (long i = 0; i < pairs; i++) {
        any |= extreme(radii[i]);
        /* x = (bits + 1/2) 2^-10 in (0, 2^64] of 74 bits; u = x / 2^64 */
        double high = from_bits((radii[i] >> 32) | 0x4330000000000000) - 0x1p52;
        double low = from_bits((radii[i] & 0xffffffff) | 0x4330000000000000) - 0x1p52;
        double last = from_bits((angles[i] & 1023) | 0x4330000000000000) - 0x1p52;
        double x = high * 0x1p32 + (low + (last + 0.5) * 0x1p-10);

        /* x = 2^e m with m in [sqrt 1/2, sqrt 2): near u = 1 is e = 64 and m - 1 exact. */
        uint64_t shifted = to_bits(x) + 0x00095f619980c433;
        double e = from_bits((shifted >> 52) | 0x4330000000000000) - (0x1p52 + 1023 + 64);
        double m = from_bits((shifted & 0x000fffffffffffff) + 0x3fe6a09e667f3bcd);

        /* ln m = 2 artanh s = 2 (s + s^3 / 3 + s^5 / 5 + ...), |s| < 0.1716 */
        double d = m - 1, s = d / (m + 1), z = s * s, p = 1.0 / 21;
        p = p * z + 1.0 / 19;
        p = p * z + 1.0 / 17;
        p = p * z + 1.0 / 15;
        p = p * z + 1.0 / 13;
        p = p * z + 1.0 / 11;
        p = p * z + 1.0 / 9;
        p = p * z + 1.0 / 7;
        p = p * z + 1.0 / 5;
        p = p * z + 1.0 / 3;
        double ln_m = 2 * s + 2 * s * z * p;
        double radius = sqrt(fabs(-2 * (e * 0x1.62e42fefa39efp-1 + ln_m))) * scale;

        /* Two bits of quadrant; 52 of the offset from its axis, in (-pi / 4, pi / 4). */
        uint64_t a = angles[i];
        double t = (from_bits(((a << 2) >> 12) | 0x3ff0000000000000) - 1.5 + 0x1p-53)
                   * 0x1.921fb54442d18p0;
        double v = t * t, c = 1.0 / 20922789888000, o = 1.0 / 355687428096000;
        c = c * v - 1.0 / 87178291200;
        c = c * v + 1.0 / 479001600;
        c = c * v - 1.0 / 3628800;
        c = c * v + 1.0 / 40320;
        c = c * v - 1.0 / 720;
        c = c * v + 1.0 / 24;
        c = c * v - 1.0 / 2;
        c = c * v + 1.0;
        o = o * v - 1.0 / 1307674368000;
        o = o * v + 1.0 / 6227020800;
        o = o * v - 1.0 / 39916800;
        o = o * v + 1.0 / 362880;
        o = o * v - 1.0 / 5040;
        o = o * v + 1.0 / 120;
        o = o * v - 1.0 / 6;
        o = t + t * v * o;

        /* A quadrant further is (-y, x) for (x, y). */
        uint64_t odd = -((a >> 62) & 1), high_bit = a & 0x8000000000000000;
        uint64_t x_bits = to_bits(c), y_bits = to_bits(o), changed = (x_bits ^ y_bits) & odd;
        uint64_t flipped = (a ^ (a << 1)) & 0x8000000000000000;
        cosines[i] = from_bits((x_bits ^ changed) ^ flipped) * radius;
        sines[i] = from_bits((y_bits ^ changed) ^ high_bit) * radius;
    }
    return any;
}

/* More than 2^52 grid steps, and no number, are clamped. */
static inline double clamped(double sum)
{
    double below = sum < 0x1p52 ? sum : 0x1p52;
    return below > -0x1p52 ? below : -0x1p52;
}

/* What is left of a sum beside its whole steps, and its noise, in steps and half a step more: both
   are rounded to whole fine steps and added without error. */
static inline double beside(double sum, double noise)
{
    return (rint((sum - rint(sum)) * FINE) + rint(noise)) * (1 / FINE) + 0.5;
}

static inline int close_to_the_next(double beside)
{
    return fabs(beside - floor(beside) - 0.5) >= NEAR;
}

#ifndef __CUDACC_RTC__
/* Estimates in floats decide most numbers. They need not be the same everywhere, only near enough:
   what they leave open is computed in doubles, so that all get what doubles would give them. */
#ifdef __FP_FAST_FMAF
#define TIMES_PLUS(a, b, c) __builtin_fmaf(a, b, c)
#else
#define TIMES_PLUS(a, b, c) ((a) * (b) + (c))
#endif

#define SHORTEST 0x1p-14f            /* of the squared radius, in standard deviations */
#define LONGEST 16.0f
#define PER_RADIUS 0x1.6p-21f        /* An estimate is off by less than so much of its radius, */
#define PER_STD 0x1.4p-22f           /* so much of a standard deviation */
#define PER_STEP 0x1p-18f            /* and so much of a step. */
#define SLIM 0x1p21f                 /* Sums of fewer steps are added up in floats, */
#define WIDE 0x1p51                  /* or in doubles. */
#define ROOM 128                     /* numbers left open that are computed together */

static float float_of(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

static uint32_t float_bits(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}

/* `transform` by the first 32 bits of each word, with a standard deviation of `std` steps, in steps.
   A number that is less than `within` from a whole number is nearest to that, whatever the error is,
   unless its pair is `far`. */
static void estimate(const uint64_t *restrict radii, const uint64_t *restrict angles, long pairs,
                     float std, float *restrict cosines, float *restrict sines,
                     float *restrict within, uint8_t *restrict far)
{
    const float most = 0.5f - PER_STEP - PER_STD * std;
    for (long i = 0; i < pairs; i++) {
        /* u below 1/2, and u - 1 from there on, which is as fine near 1 as u is near 0 */
        int32_t high = (int32_t)(radii[i] >> 32);
        float t = (float)high * 0x1p-32f, u = high < 0 ? t + 1 : t;

        /* u = 2^e m with m in [sqrt 1/2, sqrt 2); where e is 0, m - 1 is t. */
        uint32_t shifted = float_bits(u) + 0x004afb0d;
        float e = (float)((int32_t)(shifted >> 23) - 127);
        float d = float_of((shifted & 0x007fffff) + 0x3f3504f3) - 1;
        d = e == 0 ? t : d;
        float s = d / (d + 2), z = s * s, p = TIMES_PLUS(z, 1.0f / 9, 1.0f / 7);
        p = TIMES_PLUS(p, z, 1.0f / 5);
        p = TIMES_PLUS(p, z, 1.0f / 3);
        s *= -4;
        float square = TIMES_PLUS(e, -0x1.62e43p0f, TIMES_PLUS(s * z, p, s));
        float radius = sqrtf(fabsf(square)) * std;
        far[i] = !(square > SHORTEST && square < LONGEST);
        within[i] = TIMES_PLUS(radius, -PER_RADIUS, most);

        uint32_t a = (uint32_t)(angles[i] >> 32);
        float x = (float)(int32_t)(a << 2 ^ 0x80000000) * 0x1.921fb6p-32f, v = x * x;
        float c = TIMES_PLUS(v, -1.0f / 3628800, 1.0f / 40320);
        c = TIMES_PLUS(c, v, -1.0f / 720);
        c = TIMES_PLUS(c, v, 1.0f / 24);
        c = TIMES_PLUS(c, v, -1.0f / 2);
        c = TIMES_PLUS(c, v, 1.0f);
        float o = TIMES_PLUS(v, 1.0f / 362880, -1.0f / 5040);
        o = TIMES_PLUS(o, v, 1.0f / 120);
        o = TIMES_PLUS(o, v, -1.0f / 6);
        o = TIMES_PLUS(o, v * x, x);
        uint32_t changed = (float_bits(c) ^ float_bits(o)) & -(a >> 30 & 1);
        uint32_t x_bits = float_bits(c) ^ changed ^ ((a ^ a << 1) & 0x80000000);
        uint32_t y_bits = float_bits(o) ^ changed ^ (a & 0x80000000);
        cosines[i] = float_of(x_bits) * radius;
        sines[i] = float_of(y_bits) * radius;
    }
}

/* A chunk's noise in steps, its sums as they were, and numbers that are left open. */
typedef struct {
    _Alignas(64) float z[2 * PAIRS];
    float within[PAIRS];
    uint8_t far[PAIRS], open[2 * PAIRS];
    union {
        float slim[2 * PAIRS];
        double wide[2 * PAIRS];
    } sums;
    long left;
    uint64_t radii[ROOM], angles[ROOM];
    uint8_t sine[ROOM];
    double cosines[ROOM], sines[ROOM];
} Work;

/* Floats, their noise and what decides it, to what is released; + 0 makes -0 0, as in doubles. */
static void add_to_slim(const float *restrict sums, const float *restrict z,
                        const float *restrict within, const uint8_t *restrict far, long count,
                        float inverse, double width, float *restrict out, uint8_t *restrict open)
{
    for (long i = 0; i < count; i++) {
        float s = sums[i] * inverse, whole = rintf(s);
        float rest = s - whole + z[i], steps = rintf(rest);
        open[i] = far[i] | !(fabsf(rest - steps) < within[i]) | !(fabsf(s) < SLIM);
        out[i] = (float)((double)(whole + steps + 0.0f) * width);
    }
}

/* Of two floats, whose sum is meant. */
static void add_to_two(const float *restrict sums, const float *restrict more,
                       const float *restrict z, const float *restrict within,
                       const uint8_t *restrict far, long count, float inverse, double width,
                       float *restrict out, uint8_t *restrict open)
{
    for (long i = 0; i < count; i++) {
        float s = sums[i] * inverse, whole = rintf(s), t = more[i] * inverse, other = rintf(t);
        float rest = s - whole + (t - other) + z[i], steps = rintf(rest);
        open[i] = far[i] | !(fabsf(rest - steps) < within[i])
                  | !(fabsf(s) < SLIM) | !(fabsf(t) < SLIM);
        out[i] = (float)((double)(whole + other + steps + 0.0f) * width);
    }
}

/* Of doubles. */
static void add_to_wide(const double *restrict sums, const float *restrict z,
                        const float *restrict within, const uint8_t *restrict far, long count,
                        double inverse, double width, double *restrict out, uint8_t *restrict open)
{
    for (long i = 0; i < count; i++) {
        double s = sums[i] * inverse, whole = rint(s);
        float rest = (float)(s - whole) + z[i], steps = rintf(rest);
        open[i] = far[i] | !(fabsf(rest - steps) < within[i]) | !(fabs(s) < WIDE);
        out[i] = (whole + (double)steps + 0.0) * width;
    }
}

/* Compute the numbers that are left open, at `open` with sums `before`, in doubles. Returns how many
   of them are still open, whose places and sums become the first. */
static long decide(Work *w, void *sums, int wide, double scale, double width, int64_t *open,
                   double *before)
{
    long still = 0;
    for (long i = w->left; i % 4; i++)              /* by whole vectors */
        w->radii[i] = w->angles[i] = 0;
    transform(w->radii, w->angles, (w->left + 3) / 4 * 4, scale, w->cosines, w->sines);
    for (long i = 0; i < w->left; i++) {
        const int64_t at = open[i];
        const double s = before[i], rest = beside(s, w->sine[i] ? w->sines[i] : w->cosines[i]);
        const double released = (rint(s) + floor(rest)) * width;
        if (wide)
            ((double *)sums)[at] = released;
        else
            ((float *)sums)[at] = (float)released;
        if (extreme(w->radii[i]) || close_to_the_next(rest)) {
            open[still] = at;
            before[still++] = s;
        }
    }
    w->left = 0;
    return still;
}

/* Add N(0, std^2) to `n` sums, round them to multiples of `step` and divide them by `over`. `wide`:
   the sums are doubles, not floats. With `more`, floats beside floats, both are added first, as
   doubles. `step` is a power of two. Returns how many numbers may have been rounded to a wrong
   multiple; their positions are in `open` and their sums in `before`, which both have room for n. */
long add_noise(void *sums, int wide, const float *more, long n, const uint8_t *bits, double std,
               double step, double over, int64_t *open, double *before)
{
    const double scale = std / step * FINE, inverse = 1 / step, width = step / over;
    const int quick = step > 0x1p-100 && step < 0x1p100;     /* floats hold 1 / step and std / step */
    const long size = wide ? sizeof(double) : sizeof(float);
    long opened = 0;
    Work w;
    w.left = 0;
    memset(w.open, !quick, sizeof w.open);
    for (long at = 0; at < n; at += 2 * PAIRS) {
        const long count = n - at < 2 * PAIRS ? n - at : 2 * PAIRS;
        const long pairs = (count + 7) / 8 * 4;
        const uint64_t *radii = (const uint64_t *)(bits + 8 * at), *angles = radii + pairs;
        memcpy(&w.sums, (char *)sums + size * at, size * count);
        if (quick)
            estimate(radii, angles, pairs, (float)(std / step), w.z, w.z + pairs, w.within, w.far);
        for (long i = 0; quick && i < count; i += pairs) {      /* cosines, then sines */
            const long some = count - i < pairs ? count - i : pairs;
            float *slim = (float *)sums + at + i;
            if (wide)
                add_to_wide(w.sums.wide + i, w.z + i, w.within, w.far, some, inverse, width,
                            (double *)sums + at + i, w.open + i);
            else if (more)
                add_to_two(w.sums.slim + i, more + at + i, w.z + i, w.within, w.far, some,
                           (float)inverse, width, slim, w.open + i);
            else
                add_to_slim(w.sums.slim + i, w.z + i, w.within, w.far, some, (float)inverse, width,
                            slim, w.open + i);
        }
        for (long group = 0; group < count; group += 8) {
            uint64_t eight;                                             /* bytes of 0 and 1 */
            memcpy(&eight, w.open + group, 8);
            for (; eight; eight &= eight - 1) {
                const long i = group + __builtin_ctzll(eight) / 8;
                if (i >= count)
                    break;
                const double slim = w.sums.slim[i], two = more ? slim + (double)more[at + i] : slim;
                const long pair = i < pairs ? i : i - pairs;
                open[opened + w.left] = at + i;
                before[opened + w.left] = clamped((wide ? w.sums.wide[i] : two) * inverse);
                w.sine[w.left] = i >= pairs;
                w.radii[w.left] = radii[pair];
                w.angles[w.left++] = angles[pair];
                if (w.left == ROOM)
                    opened += decide(&w, sums, wide, scale, width, open + opened, before + opened);
            }
        }
    }
    opened += decide(&w, sums, wide, scale, width, open + opened, before + opened);
    memset(&w, 0, sizeof w);
    __asm__ volatile("" : : "r"(&w) : "memory");                        /* do forget the noise */
    return opened;
}

/* Write the positions of the words below `threshold` in order, and ~position of those equal to it;
   returns how many, or -1 where there is no room for so many. */
long draw(int64_t *rows, long room, long n, const uint16_t *words, long threshold)
{
    const uint16_t most = (uint16_t)threshold;
    long count = 0;
    for (long group = 0; group < n; group += 64) {
        long last = n - group < 64 ? n : group + 64;
        uint64_t below = 0;
        int any = 0;
        for (long i = group; i < last; i++)
            any |= words[i] <= most;
        for (long i = group; any && i < last; i++)
            below |= (uint64_t)(words[i] <= most) << (i - group);
        for (; below; below &= below - 1) {
            long i = group + __builtin_ctzll(below);
            if (count == room)
                return -1;
            rows[count++] = words[i] == most ? ~(int64_t)i : i;
        }
    }
    return count;
}
#endif
