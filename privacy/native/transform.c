/* Box and Muller's transform of random bits, written so that any compiler vectorises it.
   `privacy/noise.py` holds the same transform in numpy; the two are compared before use. */
#include <math.h>
#include <stdint.h>
#include <string.h>

void transform(const uint64_t *radii, const uint32_t *angles, float *restrict cosines,
               float *restrict sines, long pairs, double std)
{
    const float scale = (float)std;
    for (long i = 0; i < pairs; i++) {
        /* ln u for u = (bits + 1/2) / 2^64 = 2^exponent (1 + d): where u is near 1, d is taken from
           1 - u, which float32 holds as finely as it holds a small u. */
        float u = (float)radii[i] + 0.5f, w = (float)~radii[i] * -5.4210108624275222e-20f;
        uint32_t b, above, mantissa;
        memcpy(&b, &u, 4);
        above = (b & 0x7fffff) > 0x3504f3;                      /* the mantissa exceeds sqrt 2 */
        mantissa = (b & 0x7fffff) | ((127 - above) << 23);
        float m;
        memcpy(&m, &mantissa, 4);
        int32_t exponent = (int32_t)(b >> 23) - 127 - 64 + (int32_t)above;
        int near = exponent >= 0;
        float d = near ? w : m - 1;
        float e = near ? 0.0f : (float)exponent;
        /* ln (1 + d) = 2 atanh(d / (2 + d)) */
        float s = d / (2 + d), z = s * s;
        float log_m = 2 * s * (1 + z * (1.f / 3 + z * (1.f / 5 + z * (1.f / 7 + z * (1.f / 9
                      + z * (1.f / 11))))));
        float square = -2 * (e * 0.69314718055994530942f + log_m);
        float radius = sqrtf(square > 0 ? square : 0) * scale;

        /* The angle: two bits of quadrant, thirty of the offset from its middle axis. */
        uint32_t a = angles[i];
        float t = (float)(int32_t)(a << 2) * 3.6572951981906436e-10f;   /* pi / 2 / 2^32 */
        float v = t * t;
        float c = 1 - v * (1.f / 2 - v * (1.f / 24 - v * (1.f / 720 - v * (1.f / 40320))));
        float o = t * (1 - v * (1.f / 6 - v * (1.f / 120 - v * (1.f / 5040 - v * (1.f / 362880)))));
        uint32_t odd = (a >> 30) & 1, high = a >> 31;
        float x = odd ? o : c, y = odd ? c : o;
        cosines[i] = radius * (odd ^ high ? -x : x);
        sines[i] = radius * (high ? -y : y);
    }
}
