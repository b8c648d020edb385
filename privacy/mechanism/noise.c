/* Random bits to normal numbers to noisy sums, and to the rows of a Poisson batch, written so that
   any compiler vectorises it. `privacy/mechanism/noise.py` holds the same in numpy; the two are compared
   before use. A chunk is PAIRS pairs of numbers: first their radii, 8 bytes each, then their
   angles, 4 bytes each; a last chunk is shorter, by whole fours of pairs. */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define PAIRS 512
#define SHARE 16 /* chunks that a thread takes at a time */
#define BLOCK 16
#define WORDS 3072 /* of 16 bits: as many bytes as a chunk has */

/* Box and Muller (1958): `pairs` chunks' worth of bits to as many cosines and sines. */
static void transform(const uint8_t *bits, long pairs, float scale, float *restrict cosines,
                      float *restrict sines)
{
    const uint64_t *radii = (const uint64_t *)bits;
    const uint32_t *angles = (const uint32_t *)(bits + 8 * pairs);
    for (long i = 0; i < pairs; i++) {
        /* ln u for u = (bits + 1/2) / 2^63 = 2^exponent (1 + d): where u is near 1, d is taken from
           1 - u, which float32 holds as finely as it holds a small u. */
        float u = (float)(int64_t)(radii[i] >> 1) + 0.5f;
        float w = ((float)(int64_t)(~radii[i] >> 1) + 0.5f) * -1.0842021724855044e-19f;
        uint32_t b, above, mantissa;
        memcpy(&b, &u, 4);
        above = (b & 0x7fffff) > 0x3504f3;                      /* the mantissa exceeds sqrt 2 */
        mantissa = (b & 0x7fffff) | ((127 - above) << 23);
        float m;
        memcpy(&m, &mantissa, 4);
        int32_t exponent = (int32_t)(b >> 23) - 127 - 63 + (int32_t)above;
        int near = exponent >= 0;
        float d = near ? w : m - 1;
        float e = near ? 0.0f : (float)exponent;
        /* ln (1 + d) = 2 atanh(d / (2 + d)) */
        float s = d / (2 + d), z = s * s;
        float log_m = 2 * s * (1 + z * (1.f / 3 + z * (1.f / 5 + z * (1.f / 7 + z * (1.f / 9
                      + z * (1.f / 11))))));
        float square = -2 * (e * 0.69314718055994530942f + log_m);
        float radius = sqrtf(fabsf(square)) * scale;            /* -0 where u is 1 */

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

#if defined(__VAES__) && defined(__AVX512F__) && defined(__AVX512BW__)
/* AES-256 in counter mode from block 0 (FIPS 197, SP 800-38A), four blocks at a time. */
#include <immintrin.h>

typedef struct {
    __m512i round[15];
    uint64_t block;
} Stream;

static __m128i mixed(__m128i k, __m128i word)
{
    k = _mm_xor_si128(k, _mm_slli_si128(k, 4));
    k = _mm_xor_si128(k, _mm_slli_si128(k, 8));
    return _mm_xor_si128(k, word);
}

static void begin(Stream *s, const uint8_t *key)
{
    __m128i a = _mm_loadu_si128((const __m128i *)key);
    __m128i b = _mm_loadu_si128((const __m128i *)(key + 16));
    s->block = 0;
    s->round[0] = _mm512_broadcast_i32x4(a);
    s->round[1] = _mm512_broadcast_i32x4(b);
#define EVEN(i, constant)                                                                  \
    a = mixed(a, _mm_shuffle_epi32(_mm_aeskeygenassist_si128(b, constant), 0xff));         \
    s->round[i] = _mm512_broadcast_i32x4(a);
#define ODD(i)                                                                             \
    b = mixed(b, _mm_shuffle_epi32(_mm_aeskeygenassist_si128(a, 0), 0xaa));                \
    s->round[i] = _mm512_broadcast_i32x4(b);
    EVEN(2, 1) ODD(3) EVEN(4, 2) ODD(5) EVEN(6, 4) ODD(7) EVEN(8, 8) ODD(9)
    EVEN(10, 16) ODD(11) EVEN(12, 32) ODD(13) EVEN(14, 64)
}

/* The next `blocks` blocks; up to 15 more are written and not counted. */
static void next(Stream *s, uint8_t *out, long blocks)
{
    const __m512i big_endian = _mm512_broadcast_i32x4(
        _mm_set_epi8(8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
    for (long i = 0; i < blocks; i += 16) {
        __m512i x[4];
        for (int j = 0; j < 4; j++) {
            uint64_t n = s->block + i + 4 * j;
            x[j] = _mm512_set_epi64(n + 3, 0, n + 2, 0, n + 1, 0, n, 0);
            x[j] = _mm512_xor_si512(_mm512_shuffle_epi8(x[j], big_endian), s->round[0]);
        }
        for (int r = 1; r < 14; r++)
            for (int j = 0; j < 4; j++)
                x[j] = _mm512_aesenc_epi128(x[j], s->round[r]);
        for (int j = 0; j < 4; j++)
            _mm512_storeu_si512(out + BLOCK * (i + 4 * j),
                                _mm512_aesenclast_epi128(x[j], s->round[14]));
    }
    s->block += blocks;
}

static void seek(Stream *s, uint64_t block) { s->block = block; }

static void end(Stream *s)
{
    memset(s, 0, sizeof *s);
    __asm__ volatile("" : : "r"(s) : "memory");                 /* do forget the key */
}

int streams(void) { return 1; }
#else
typedef struct { int none; } Stream;
static void begin(Stream *s, const uint8_t *key) { (void)s; (void)key; }
static void next(Stream *s, uint8_t *out, long blocks) { (void)s; (void)out; (void)blocks; }
static void seek(Stream *s, uint64_t block) { (void)s; (void)block; }
static void end(Stream *s) { (void)s; }
int streams(void) { return 0; }
#endif

typedef struct {
    float *sums;
    long n, taken;
    const uint8_t *bits;
    float scale, inverse, width;
    int alone;
    Stream stream;
} Work;

/* Fill whichever chunks nobody has taken. */
static void fill_some(void *shared)
{
    Work *work = shared;
    _Alignas(64) uint8_t made[12 * PAIRS + 15 * BLOCK];
    _Alignas(64) float z[2 * PAIRS];
    const float inverse = work->inverse, width = work->width;
    const long share = 2 * PAIRS * SHARE;
    Stream stream = work->stream;
    for (;;) {
        long at = __atomic_fetch_add(&work->taken, share, __ATOMIC_RELAXED);
        if (at >= work->n)
            break;
        long last = work->n - at < share ? work->n : at + share;
        seek(&stream, at / (2 * PAIRS) * (12 * PAIRS / BLOCK));
        for (; at < last; at += 2 * PAIRS) {
            long count = last - at < 2 * PAIRS ? last - at : 2 * PAIRS;
            long pairs = (count + 7) / 8 * 4;
            float *restrict sum = work->sums + at;
            const uint8_t *bits = made;
            if (work->bits)
                bits = work->bits + at / (2 * PAIRS) * (12 * PAIRS);
            else
                next(&stream, made, 12 * pairs / BLOCK);
            transform(bits, pairs, work->scale, z, z + pairs);
            if (work->alone)
                memcpy(sum, z, count * sizeof *z);
            else
                for (long i = 0; i < count; i++)
                    sum[i] = rintf((sum[i] + z[i]) * inverse) * width;
        }
    }
    end(&stream);
    memset(made, 0, sizeof made);
    memset(z, 0, sizeof z);
    __asm__ volatile("" : : "r"(made), "r"(z) : "memory");
}

/* Add N(0, std^2) to `n` sums, round them to multiples of `step` and divide them by `over`; step 0
   puts the draws alone. The bits are given, or else made here from `key`, if `streams()`. `team`,
   if there is one, is GOMP_parallel: it calls a function in up to so many threads. */
void fill(float *sums, long n, const uint8_t *bits, const uint8_t *key, double std, double step,
          double over, void (*team)(void (*)(void *), void *, unsigned, unsigned),
          unsigned threads)
{
    Work work = {.sums = sums, .n = n, .bits = bits, .scale = (float)std,
                 .inverse = (float)(1 / step), .width = (float)(step / over), .alone = step == 0};
    if (!bits)
        begin(&work.stream, key);
    if (team && threads > 1 && n > 2 * PAIRS * SHARE)
        team(fill_some, &work, threads, 0);
    else
        fill_some(&work);
    end(&work.stream);
}

/* Write the positions of the words below `threshold` in order, and ~position of those equal to it;
   returns how many, or -1 where there is no room for so many. */
long draw(int64_t *rows, long room, long n, const uint8_t *bits, const uint8_t *key, long threshold)
{
    _Alignas(64) uint16_t made[WORDS + 15 * BLOCK / 2];
    const uint16_t most = (uint16_t)threshold;
    long found = 0;
    Stream stream;
    if (!bits)
        begin(&stream, key);
    for (long at = 0; at < n; at += WORDS) {
        long count = n - at < WORDS ? n - at : WORDS;
        const uint16_t *words = made;
        if (bits)
            words = (const uint16_t *)bits + at;
        else
            next(&stream, (uint8_t *)made, (2 * count + BLOCK - 1) / BLOCK);
        for (long group = 0; group < count; group += 64) {
            long last = count - group < 64 ? count : group + 64;
            uint64_t below = 0;
            int any = 0;
            for (long i = group; i < last; i++)
                any |= words[i] <= most;
            for (long i = group; any && i < last; i++)
                below |= (uint64_t)(words[i] <= most) << (i - group);
            for (; below; below &= below - 1) {
                long i = group + __builtin_ctzll(below);
                if (found == room) {
                    found = -1;
                    goto done;
                }
                rows[found++] = words[i] == most ? ~(int64_t)(at + i) : at + i;
            }
        }
    }
done:
    if (!bits)
        end(&stream);
    return found;
}
