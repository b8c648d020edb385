
/* The few numbers that rounding in doubles could have moved, where the sums lie: what `exact.py`
   computes in decimals, in fixed point of 672 bits after the point. docs/randomness.md (section 4)
   bounds the errors. After it come the kernels: they go behind `noise.cu`.
*/

#ifdef __CUDACC_RTC__
#define APART static __noinline__                          /* else compiling it takes seconds */
#else
#define APART static
#endif
#define LIMBS 22                                                          /* the last is whole */
#define FRACTION 21
#define MORE_BITS 512                                           /* of radius and of angle each */

typedef struct {
    uint32_t w[LIMBS];                                                    /* the lowest first */
} Fixed;

static const Fixed LN_2 = {{
    0xb9ea9bc3, 0x317c387e, 0x1acbda11, 0x224ae8c5, 0x3e96ca16, 0x1169b825,
    0x27573b29, 0xc1382144, 0xed2eae35, 0x4afa1b10, 0x559552fb, 0x6debac98,
    0xe7b87620, 0x8baafa2b, 0x8a0d175b, 0x7298b62d, 0x40f34326, 0x03f2f6af,
    0xc9e3b398, 0xd1cf79ab, 0xb17217f7, 0x00000000,
}};
static const Fixed HALF_PI = {{
    0x17feb96d, 0x4c6fdad6, 0xe89885d3, 0xc4bcfd8d, 0xc90b6aec, 0xdaa3848b,
    0x9fc26ada, 0xe4be286e, 0x605614db, 0x9a748636, 0xdf2a3367, 0x1c6809bb,
    0xa29410f3, 0x76273644, 0x04177d4c, 0x14cf98e8, 0x52049c11, 0x01b839a2,
    0x898cc517, 0x42d18469, 0x921fb544, 0x00000001,
}};

static Fixed whole(uint32_t value)
{
    Fixed x;
    for (int i = 0; i < FRACTION; i++)
        x.w[i] = 0;
    x.w[FRACTION] = value;
    return x;
}

static int is_zero(const Fixed *x)
{
    uint32_t any = 0;
    for (int i = 0; i < LIMBS; i++)
        any |= x->w[i];
    return !any;
}

APART int at_least(const Fixed *x, const Fixed *y)
{
    for (int i = LIMBS - 1; i >= 0; i--)
        if (x->w[i] != y->w[i])
            return x->w[i] > y->w[i];
    return 1;
}

APART void add(Fixed *x, const Fixed *y)
{
    uint64_t carry = 0;
    for (int i = 0; i < LIMBS; i++) {
        carry += (uint64_t)x->w[i] + y->w[i];
        x->w[i] = (uint32_t)carry;
        carry >>= 32;
    }
}

/* x - y, of x >= y */
APART void subtract(Fixed *x, const Fixed *y)
{
    uint64_t borrow = 0;
    for (int i = 0; i < LIMBS; i++) {
        uint64_t difference = (uint64_t)x->w[i] - y->w[i] - borrow;
        x->w[i] = (uint32_t)difference;
        borrow = difference >> 63;
    }
}

APART void double_up(Fixed *x, int bits)
{
    for (; bits; bits--)
        for (int i = LIMBS - 1; i >= 0; i--)
            x->w[i] = x->w[i] << 1 | (i ? x->w[i - 1] >> 31 : 0);
}

APART void scale_up(Fixed *x, uint32_t factor)
{
    uint64_t carry = 0;
    for (int i = 0; i < LIMBS; i++) {
        carry += (uint64_t)x->w[i] * factor;
        x->w[i] = (uint32_t)carry;
        carry >>= 32;
    }
}

APART void divide(Fixed *x, uint32_t divisor)
{
    uint64_t rest = 0;
    for (int i = LIMBS - 1; i >= 0; i--) {
        rest = rest << 32 | x->w[i];
        x->w[i] = (uint32_t)(rest / divisor);
        rest %= divisor;
    }
}

/* x y, rounded down */
APART Fixed times(const Fixed *x, const Fixed *y)
{
    uint32_t product[2 * LIMBS];
    Fixed out;
    for (int i = 0; i < 2 * LIMBS; i++)
        product[i] = 0;
    for (int i = 0; i < LIMBS; i++) {
        uint64_t carry = 0;
        for (int j = 0; j < LIMBS; j++) {
            carry += (uint64_t)x->w[i] * y->w[j] + product[i + j];
            product[i + j] = (uint32_t)carry;
            carry >>= 32;
        }
        product[i + LIMBS] = (uint32_t)carry;
    }
    for (int i = 0; i < LIMBS; i++)
        out.w[i] = product[i + FRACTION];
    return out;
}

/* x / y rounded down, of x < y < 2^31: bit by bit */
APART Fixed ratio(Fixed x, const Fixed *y)
{
    Fixed out = whole(0);
    for (int bit = 32 * FRACTION - 1; bit >= 0; bit--) {
        double_up(&x, 1);
        if (at_least(&x, y)) {
            subtract(&x, y);
            out.w[bit / 32] |= 1u << bit % 32;
        }
    }
    return out;
}

/* The square root of x < 2^10, 2^-667 of x too small at most: the bits b whose square still fits,
   from the highest on. `rest` is (x - root^2) / 2 b, and b fits where that is root + b / 2. */
APART Fixed root(Fixed x)
{
    const int highest = 32 * FRACTION + 4;
    Fixed out = whole(0);
    divide(&x, 32);
    for (int bit = highest; bit >= 0; bit--) {
        Fixed tried = out;
        if (bit < highest)
            double_up(&x, 1);
        if (bit)
            tried.w[(bit - 1) / 32] |= 1u << (bit - 1) % 32;
        if (at_least(&x, &tried)) {
            subtract(&x, &tried);
            out.w[bit / 32] |= 1u << bit % 32;
        }
    }
    return out;
}

/* `bits` bits of a value into the fraction, below its first `from` bits. */
static void lay(Fixed *x, int from, uint64_t value, int bits)
{
    const int low = 32 * FRACTION - from - bits, limb = low / 32, shift = low % 32;
    const uint64_t shifted = value << shift;
    x->w[limb] |= (uint32_t)shifted;
    x->w[limb + 1] |= (uint32_t)(shifted >> 32);
    if (shift && limb + 2 < LIMBS)
        x->w[limb + 2] |= (uint32_t)(value >> (64 - shift));
}

/* The middle of the interval that `bits` bits and 512 more name in (0, 1). */
APART Fixed middle(uint64_t high, int bits, uint64_t low, int low_bits, const uint64_t *more)
{
    Fixed x = whole(0);
    lay(&x, 0, high, bits);
    if (low_bits)
        lay(&x, bits, low, low_bits);
    for (int i = 0; i < MORE_BITS / 64; i++)
        lay(&x, bits + low_bits + 64 * i, more[MORE_BITS / 64 - 1 - i], 64);
    lay(&x, bits + low_bits + MORE_BITS, 1, 1);
    return x;
}

/* sqrt(-2 ln u) of u in (0, 1): u = 2^-e m and -ln m = 2 artanh((1 - m) / (1 + m)), m >= 1/2 */
APART Fixed radius_of(Fixed u)
{
    Fixed above = whole(1), below = whole(1), total, power, square;
    uint32_t e = 0;
    for (; !(u.w[FRACTION - 1] >> 31); e++)
        double_up(&u, 1);
    subtract(&above, &u);
    add(&below, &u);
    power = ratio(above, &below);
    total = power;
    square = times(&power, &power);
    for (uint32_t n = 3; !is_zero(&power); n += 2) {
        Fixed term;
        power = times(&power, &square);
        term = power;
        divide(&term, n);
        add(&total, &term);
    }
    double_up(&total, 2);
    power = LN_2;
    scale_up(&power, 2 * e);
    add(&total, &power);
    return root(total);
}

/* Taylor's series of the cosine (`power` 0) or the sine (1) of t in [0, 1). */
APART Fixed series(const Fixed *t, uint32_t power)
{
    const Fixed square = times(t, t);
    Fixed term = power ? *t : whole(1), sums[2] = {term, whole(0)};
    for (int negative = 1; !is_zero(&term); negative = !negative, power += 2) {
        term = times(&term, &square);
        divide(&term, (power + 1) * (power + 2));
        add(&sums[negative], &term);
    }
    subtract(&sums[0], &sums[1]);
    return sums[0];
}

/* z `steps` 2^28 rounded to a whole number below 2^62; `steps` is a normal double in 2^-10..2^30 */
APART int64_t fine_steps(const Fixed *z, double steps)
{
    const uint64_t bits = to_bits(steps), mantissa = (bits & 0x000fffffffffffff) | 1ull << 52;
    const int shift = 32 * FRACTION - ((int)(bits >> 52) - 1023 - 52 + 28) - 1;
    uint32_t product[LIMBS + 3] = {0};
    uint64_t twice = 0;
    for (int part = 0; part < 2; part++) {
        const uint32_t factor = (uint32_t)(mantissa >> 32 * part);
        uint64_t carry = 0;
        for (int i = 0; i < LIMBS; i++) {
            carry += (uint64_t)z->w[i] * factor + product[i + part];
            product[i + part] = (uint32_t)carry;
            carry >>= 32;
        }
        product[LIMBS + part] = (uint32_t)carry;
    }
    for (int bit = 63; bit >= 0; bit--) {
        const int at = shift + bit;
        twice = twice << 1 | (at < 32 * (LIMBS + 3) && product[at / 32] >> at % 32 & 1);
    }
    return (int64_t)((twice + 1) >> 1);
}

/* One of the numbers of a pair's words and 1,024 more bits, in fine steps. */
static int64_t exact_noise(uint64_t radius, uint64_t angle, int sine, const uint64_t *more,
                           double steps)
{
    const int odd = angle >> 62 & 1, quadrant = (int)(angle >> 62);
    Fixed r = radius_of(middle(radius, 64, angle & 1023, 10, more));
    Fixed offset = middle(angle >> 10 & 0x000fffffffffffff, 52, 0, 0, more + 8), half = whole(0);
    half.w[FRACTION - 1] = 1u << 31;
    const int below = !at_least(&offset, &half);
    if (below) {
        subtract(&half, &offset);
        offset = half;
    } else
        subtract(&offset, &half);
    Fixed t = times(&offset, &HALF_PI);
    /* (x, y), (-y, x), (-x, -y), (y, -x) by quadrant; y has the sign of t, which is below 0 or not */
    const int by_sine = sine != odd, turned = sine ? quadrant >= 2 : quadrant == 1 || quadrant == 2;
    Fixed part = series(&t, (uint32_t)by_sine);
    Fixed z = times(&r, &part);
    const int64_t size = fine_steps(&z, steps);
    return turned != (by_sine && below) ? -size : size;
}

/* `exact.settle` for the undecided number in a slot. */
static void settle_one(void *sums, int wide, int64_t n, double std, double step, double over,
                       int64_t slot, const Stream *stream)
{
    const int64_t where = stream->open[slot], at = where / (2 * PAIRS) * 2 * PAIRS;
    const int64_t count = n - at < 2 * PAIRS ? n - at : 2 * PAIRS, pairs = (count + 7) / 8 * 4;
    const int sine = where - at >= pairs;
    const int64_t pair = where - at - sine * pairs, place = at + pairs + pair;
    const uint64_t unique = (uint64_t)(at / 2 + pair);
    const uint32_t purpose = MORE | (uint32_t)(unique >> 31) << 8;
    uint64_t radii[8], angles[8], more[16];
    if (!begun(stream->state))
        return;
    chacha20(stream->state, NOISE, (uint32_t)((at + pair) / 8), radii);
    chacha20(stream->state, NOISE, (uint32_t)(place / 8), angles);
    chacha20(stream->state, purpose, (uint32_t)(2 * unique), more);
    chacha20(stream->state, purpose, (uint32_t)(2 * unique + 1), more + 8);
    const uint64_t radius = radii[(at + pair) % 8], angle = angles[place % 8];
    const int64_t noise = exact_noise(radius, angle, sine, more, std / step);
    const double s = stream->before[slot], rest = rint((s - rint(s)) * FINE);
    const int64_t fine = (int64_t)rest + noise + (1 << 27);
    put(sums, wide, where, (rint(s) + (double)(fine >> 28)) * (step / over));
}
