/* Noise made, and rows drawn, where the sums lie, on a GPU: `noise.c`, whose text goes before this
   one, with bits by ChaCha20 in place of AES, which a GPU has no instructions for. A thread makes
   eight pairs. The operations and their order are `add_noise`'s, so that the same bits give the same
   numbers with --fmad=false; compiled as C this file shows it without a GPU.

   A key's stream is cut into turns, each with a nonce of its own. Key and turn lie in the device's
   memory, and a turn is begun by a kernel: so a CUDA graph that is replayed takes a new turn each
   time. Noise for which no turn was begun is NaN, and is told to the host.
*/

#define NOISE 0                                      /* what a turn's bits are for: in the nonce */
#define MORE 1                                                     /* `exact.cu`'s for one pair */
#define ROWS 2
#define TIES 3

typedef struct {
    uint32_t key[8];
    uint64_t turn;                                        /* the one in use; 0: none was begun */
    uint64_t done;                                                   /* the last one that ended */
    uint32_t count;                                          /* undecided numbers of this turn */
    uint32_t failed;           /* not 0 once there was no turn, or no room for undecided numbers */
} State;

/* What all threads share: positions and sums of undecided numbers, with `room` for so many. */
typedef struct {
    State *state;
    int64_t *open;
    double *before;
    int64_t room;
} Stream;

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

/* The block `counter` of ChaCha20's stream (RFC 8439, section 2.3) of a turn and a purpose. */
static inline void chacha20(const State *state, uint32_t purpose, uint32_t counter, uint64_t *words)
{
    const uint32_t *key = state->key;
    const uint64_t turn = state->turn;
    const uint32_t start[16] = {
        0x61707865, 0x3320646e, 0x79622d32, 0x6b206574,
        key[0], key[1], key[2], key[3], key[4], key[5], key[6], key[7],
        counter, (uint32_t)turn, (uint32_t)(turn >> 32), purpose,
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

static inline uint32_t next(uint32_t *count)
{
#ifdef __CUDACC_RTC__
    return atomicAdd(count, 1);
#else
    return (*count)++;
#endif
}

static inline void begin(State *state)
{
    state->turn++;
    state->count = 0;
}

static inline int begun(State *state)
{
    if (state->turn != state->done)
        return 1;
    state->failed = 1;
    return 0;
}

static inline void end(const Stream *stream)
{
    State *state = stream->state;
    state->done = state->turn;
    if (state->count > stream->room)
        state->failed = 1;
}

static inline void put(void *sums, int wide, int64_t at, double value)
{
    if (wide)
        ((double *)sums)[at] = value;
    else
        ((float *)sums)[at] = (float)value;
}

/* `add_noise` for the pairs 8 `group` to 8 `group` + 7 of all. */
static void add_to_group(void *sums, int wide, const float *second, int64_t n, double std,
                         double step, double over, int64_t group, const Stream *stream)
{
    const double scale = std / step * FINE, inverse = 1 / step, width = step / over;
    const int64_t at = group / (PAIRS / 8) * 2 * PAIRS;
    const long first = group % (PAIRS / 8) * 8, count = n - at < 2 * PAIRS ? n - at : 2 * PAIRS;
    const long pairs = (count + 7) / 8 * 4, here = pairs - first < 8 ? pairs - first : 8;
    const int right = begun(stream->state);
    uint64_t radii[8], angles[16];
    double z[2][8];
    if (here <= 0)
        return;
    chacha20(stream->state, NOISE, (uint32_t)((at + first) / 8), radii);
    const int64_t place = at + pairs + first;           /* of the angles, which may start in the */
    chacha20(stream->state, NOISE, (uint32_t)(place / 8), angles);   /* middle of a chunk's block */
    if (place % 8 && here == 8)
        chacha20(stream->state, NOISE, (uint32_t)(place / 8 + 1), angles + 8);
    transform(radii, angles + place % 8, here, scale, z[0], z[1]);
    for (long i = 0; i < 2 * here; i++) {
        const int sine = i >= here;
        const long pair = i - sine * here, position = sine * pairs + first + pair;
        if (position >= count)
            continue;
        const int64_t where = at + position;
        const double sum = wide ? ((double *)sums)[where] : ((float *)sums)[where];
        const double s = clamped((second ? sum + second[where] : sum) * inverse);
        const double rest = beside(s, z[sine][pair]);
        put(sums, wide, where, right ? (rint(s) + floor(rest)) * width : from_bits(~0ull));
        if (extreme(radii[pair]) || close_to_the_next(rest)) {
            uint32_t slot = next(&stream->state->count);
            if (slot < stream->room) {
                stream->open[slot] = where;
                stream->before[slot] = s;
            }
        }
    }
}

/* Rows 32 `group` to 32 `group` + 31 of a Poisson batch: 1 in `drawn` for each that is. The first 16
   bits decide, those that equal `threshold` by 64 more, of which fewer than `rest` are drawn. */
static void draw_group(unsigned char *drawn, int64_t n, uint32_t threshold, uint64_t rest,
                       int64_t group, const Stream *stream)
{
    const int right = begun(stream->state);
    uint64_t words[8], more[8];
    if (32 * group >= n)
        return;
    chacha20(stream->state, ROWS, (uint32_t)group, words);
    for (int i = 0; i < 32 && 32 * group + i < n; i++) {
        const int64_t row = 32 * group + i;
        const uint32_t word = words[i / 4] >> 16 * (i % 4) & 0xffff;
        int below = word < threshold;
        if (word == threshold) {
            chacha20(stream->state, TIES, (uint32_t)(row / 8), more);
            below = more[row % 8] < rest;
        }
        drawn[row] = right && below;
    }
}

/* Zeros in a row of `width` words, from `first` on, every `stride`th: nothing where it is whole. */
static void erase_row(uint32_t *data, int64_t length, int64_t width, const unsigned char *broken,
                      int64_t row, int64_t first, int64_t stride)
{
    for (int64_t i = broken[row] ? first : width; i < width; i += stride)
        data[row * length + i] = 0;
}
