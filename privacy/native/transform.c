/* Box and Muller's transform of random bits, written so that any compiler vectorises it.
   `privacy/noise.py` holds the same transform in numpy; the two are compared before use. */
#include <math.h>
#include <stdint.h>
#include <string.h>

void transform(const uint64_t *radii, const uint32_t *angles, float *restrict cosines,
               float *restrict sines, long pairs, double std)
{
    for (long i = 0; i < pairs; i++) {
        /* -2 ln u for u = (bits + 1/2) / 2^64, through 2 atanh((m - 1) / (m + 1)). */
        double u = (double)radii[i] + 0.5;
        uint64_t b;
        memcpy(&b, &u, 8);
        int64_t up = (b & 0xfffffffffffffULL) > 0x6a09e667f3bcdULL;   /* mantissa above sqrt 2 */
        int64_t exponent = (int64_t)(b >> 52) - 1023 - 64 + up;
        uint64_t mantissa = (b & 0xfffffffffffffULL) | ((uint64_t)(1023 - up) << 52);
        double m;
        memcpy(&m, &mantissa, 8);
        double s = (m - 1) / (m + 1), z = s * s;
        double log_m = 2 * s * (1 + z * (1. / 3 + z * (1. / 5 + z * (1. / 7 + z * (1. / 9
                       + z * (1. / 11 + z * (1. / 13 + z / 15)))))));
        double square = -2 * ((double)(int32_t)exponent * 0.69314718055994530942 + log_m);
        double radius = sqrt(square > 0 ? square : 0) * std;

        /* The angle: two bits of quadrant, thirty of the offset from its middle axis. */
        uint32_t a = angles[i];
        double t = (double)(int32_t)(a << 2) * 3.6572951981906436e-10;   /* pi / 2 / 2^32 */
        double w = t * t;
        double c = 1 - w * (1. / 2 - w * (1. / 24 - w * (1. / 720 - w * (1. / 40320
                   - w * (1. / 3628800 - w / 479001600)))));
        double d = t * (1 - w * (1. / 6 - w * (1. / 120 - w * (1. / 5040 - w * (1. / 362880
                   - w / 39916800)))));
        int odd = (a >> 30) & 1, high = (a >> 31) & 1;
        double x = odd ? d : c, y = odd ? c : d;
        cosines[i] = (float)(radius * (odd ^ high ? -x : x));
        sines[i] = (float)(radius * (high ? -y : y));
    }
}
