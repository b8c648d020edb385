/* Random bits to normal numbers to noisy sums on the public grid, and to the rows of a Poisson
   batch, written so that any compiler vectorises it. `privacy/mechanism/gaussian.py` holds the same
   operations in the same order in numpy: with -ffp-contract=off and IEEE doubles the two give the
   same bits, which is checked before use. `docs/randomness.md` bounds every error made here; where one
   could change what is released, the number is left to `privacy/mechanism/exact.py`.

   A chunk is PAIRS pairs of numbers: first their radii, 8 bytes each, then their angles, 8 bytes
   each, whose last ten bits are the radii's last; a last chunk is shorter, by whole fours of pairs.

   `noise.cu` goes on from here for a GPU: all but the last two functions are compiled there too.
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
/* Add N(0, std^2) to `n` sums, round them to multiples of `step` and divide them by `over`. `wide`:
   the sums are doubles, not floats. With `more`, floats beside floats, both are added first, as
   doubles. `step` is a power of two. Returns how many numbers may have been rounded to a wrong
   multiple; their positions are in `open` and their sums in `before`, which both have room for n. */
long add_noise(void *sums, int wide, const float *more, long n, const uint8_t *bits, double std,
               double step, double over, int64_t *open, double *before)
{
    _Alignas(64) double z[2 * PAIRS], s[2 * PAIRS], k[2 * PAIRS];
    const double scale = std / step * FINE, inverse = 1 / step, width = step / over;
    long opened = 0;
    for (long at = 0; at < n; at += 2 * PAIRS) {
        long count = n - at < 2 * PAIRS ? n - at : 2 * PAIRS;
        long pairs = (count + 7) / 8 * 4;
        const uint64_t *radii = (const uint64_t *)(bits + 8 * at);
        double *restrict wide_sums = (double *)sums + at;
        float *restrict slim_sums = (float *)sums + at;
        int any = transform(radii, radii + pairs, pairs, scale, z, z + pairs);
        if (wide)
            for (long i = 0; i < count; i++)
                s[i] = clamped(wide_sums[i] * inverse);
        else if (more)
            for (long i = 0; i < count; i++)
                s[i] = clamped(((double)slim_sums[i] + (double)more[at + i]) * inverse);
        else
            for (long i = 0; i < count; i++)
                s[i] = clamped(slim_sums[i] * inverse);
        for (long i = 0; i < count; i++) {
            double rest = beside(s[i], z[i]);
            any |= close_to_the_next(rest);
            k[i] = rint(s[i]) + floor(rest);
        }
        for (long i = 0; any && i < count; i++)
            if (extreme(radii[i % pairs]) || close_to_the_next(beside(s[i], z[i]))) {
                open[opened] = at + i;
                before[opened++] = s[i];
            }
        if (wide)
            for (long i = 0; i < count; i++)
                wide_sums[i] = k[i] * width;
        else
            for (long i = 0; i < count; i++)
                slim_sums[i] = (float)(k[i] * width);
    }
    memset(z, 0, sizeof z);
    memset(s, 0, sizeof s);
    memset(k, 0, sizeof k);
    __asm__ volatile("" : : "r"(z), "r"(s), "r"(k) : "memory");         /* do forget the noise */
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
