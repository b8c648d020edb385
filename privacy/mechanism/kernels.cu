
/* The kernels of a GPU; on a host the same loops, which show without a GPU what they do. */

#ifdef __CUDACC_RTC__
#define KERNEL extern "C" __global__ void
#define THREAD ((int64_t)blockIdx.x * blockDim.x + threadIdx.x)
#define THREADS ((int64_t)gridDim.x * blockDim.x)
#else
#define KERNEL void
#define THREAD 0
#define THREADS 1
#endif
#define EACH(i, total) (int64_t i = THREAD; i < (total); i += THREADS)
#define LANES 128                                                            /* threads of a row */

KERNEL begin_turn(Stream stream)
{
    if (THREAD == 0)
        begin(stream.state);
}

KERNEL end_turn(Stream stream)
{
    if (THREAD == 0)
        end(&stream);
}

KERNEL add_noise_to_sums(void *sums, int wide, const float *second, int64_t n, double std,
                         double step, double over, Stream stream)
{
    for EACH(group, (n + 2 * PAIRS - 1) / (2 * PAIRS) * (PAIRS / 8))
        add_to_group(sums, wide, second, n, std, step, over, group, &stream);
}

KERNEL settle_undecided(void *sums, int wide, int64_t n, double std, double step, double over,
                        Stream stream)
{
    const int64_t count = stream.state->count;
    for EACH(slot, count < stream.room ? count : stream.room)
        settle_one(sums, wide, n, std, step, over, slot, &stream);
}

KERNEL draw_rows(unsigned char *drawn, int64_t n, uint32_t threshold, uint64_t rest, Stream stream)
{
    for EACH(group, (n + 31) / 32)
        draw_group(drawn, n, threshold, rest, group, &stream);
}

KERNEL erase_rows(uint32_t *data, int64_t rows, int64_t length, int64_t width,
                  const unsigned char *broken)
{
    for EACH(i, rows * LANES)
        erase_row(data, length, width, broken, i / LANES, i % LANES, LANES);
}

#ifndef __CUDACC_RTC__
void chacha20_block(const State *state, uint32_t purpose, uint32_t counter, uint64_t *words)
{
    chacha20(state, purpose, counter, words);
}

int64_t exact_noise_of(uint64_t radius, uint64_t angle, int sine, const uint64_t *more, double steps)
{
    return exact_noise(radius, angle, sine, more, steps);
}
#endif
