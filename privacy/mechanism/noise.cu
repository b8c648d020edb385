/* Noise made where the sums lie, on a GPU: `noise.c`, whose text goes before this one, with bits by
   ChaCha20 in place of AES, which a GPU has no instructions for. A thread makes eight pairs. The
   stream, the operations and their order are `add_noise`'s, so that the same key gives the same
   numbers to the last bit with --fmad=false; compiled as C this file shows it without a GPU.
*/

typedef struct {
    uint32_t words[8];
} Key;

static inline uint32_t rotated(uint32_t x, int bits)
{
    return x << bits | x >> (32 - bits);
}

static inline void quarter(uint32_t *x, int a, int b, int c, int d)
{
    x[a] += x[b], x[d] = rotated(x[d] ^ x[a], 16);
    x[c] += x[d], x[b] = rotated(x[b] ^ x[c], 12);
    x[a] += x[b], x[d] = rotated(x[d] ^ x[a], 8);
    x[c] += x[d], x[b] = rotated(x[b] ^ x[c], 7);
}

/* The block `counter` of ChaCha20's stream (RFC 8439, section 2.3), nonce 0: a key is used once. */
static inline void chacha20(const Key *key, uint32_t counter, uint64_t *words)
{
    const uint32_t start[16] = {
        0x61707865, 0x3320646e, 0x79622d32, 0x6b206574,
        key->words[0], key->words[1], key->words[2], key->words[3],
        key->words[4], key->words[5], key->words[6], key->words[7],
        counter, 0, 0, 0,
    };
    uint32_t x[16];
    for (int i = 0; i < 16; i++)
        x[i] = start[i];
    for (int i = 0; i < 10; i++) {
        quarter(x, 0, 4, 8, 12), quarter(x, 1, 5, 9, 13);
        quarter(x, 2, 6, 10, 14), quarter(x, 3, 7, 11, 15);
        quarter(x, 0, 5, 10, 15), quarter(x, 1, 6, 11, 12);
        quarter(x, 2, 7, 8, 13), quarter(x, 3, 4, 9, 14);
    }
    for (int i = 0; i < 8; i++)
        words[i] = (uint64_t)(x[2 * i + 1] + start[2 * i + 1]) << 32 | (x[2 * i] + start[2 * i]);
}

/* What threads share: how many numbers are in `open` and `before`, which have `room` for so many. */
typedef struct {
    int64_t *open;
    double *before;
    uint32_t *count;
    int64_t room;
} Opened;

static inline uint32_t next(uint32_t *count)
{
#ifdef __CUDACC_RTC__
    return atomicAdd(count, 1);
#else
    return (*count)++;
#endif
}

/* `add_noise` for the pairs 8 `group` to 8 `group` + 7 of all. */
static void add_to_group(void *sums, int wide, int64_t n, Key key, double std, double step,
                         double over, int64_t group, Opened opened)
{
    const double scale = std / step * FINE, inverse = 1 / step, width = step / over;
    const int64_t at = group / (PAIRS / 8) * 2 * PAIRS;
    const long first = group % (PAIRS / 8) * 8, count = n - at < 2 * PAIRS ? n - at : 2 * PAIRS;
    const long pairs = (count + 7) / 8 * 4, here = pairs - first < 8 ? pairs - first : 8;
    uint64_t radii[8], angles[16];
    double z[2][8];
    if (here <= 0)
        return;
    chacha20(&key, (at + first) / 8, radii);
    const int64_t place = at + pairs + first;           /* of the angles, which may start in the */
    chacha20(&key, place / 8, angles);                              /* middle of a last chunk's block */
    if (place % 8 && here == 8)
        chacha20(&key, place / 8 + 1, angles + 8);
    transform(radii, angles + place % 8, here, scale, z[0], z[1]);
    for (long i = 0; i < 2 * here; i++) {
        const int sine = i >= here;
        const long pair = i - sine * here, position = sine * pairs + first + pair;
        if (position >= count)
            continue;
        double *wide_sum = (double *)sums + at + position;
        float *slim_sum = (float *)sums + at + position;
        double s = clamped((wide ? *wide_sum : *slim_sum) * inverse);
        double rest = beside(s, z[sine][pair]);
        if (wide)
            *wide_sum = (rint(s) + floor(rest)) * width;
        else
            *slim_sum = (float)((rint(s) + floor(rest)) * width);
        if (extreme(radii[pair]) || close_to_the_next(rest)) {
            uint32_t slot = next(opened.count);
            if (slot < opened.room) {
                opened.open[slot] = at + position;
                opened.before[slot] = s;
            }
        }
    }
}

#ifdef __CUDACC_RTC__
extern "C" __global__ void add_noise_on_device(void *sums, int wide, int64_t n, Key key, double std,
                                               double step, double over, Opened opened)
{
    int64_t group = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    add_to_group(sums, wide, n, key, std, step, over, group, opened);
}
#else
void add_noise_in_groups(void *sums, int wide, int64_t n, const Key *key, double std, double step,
                         double over, const Opened *opened)
{
    int64_t chunks = (n + 2 * PAIRS - 1) / (2 * PAIRS);
    for (int64_t group = 0; group < chunks * (PAIRS / 8); group++)
        add_to_group(sums, wide, n, *key, std, step, over, group, *opened);
}

void chacha20_block(const Key *key, uint32_t counter, uint64_t *words)
{
    chacha20(key, counter, words);
}
#endif
