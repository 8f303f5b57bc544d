// NumPy's frozen RandomState in JavaScript: a seed gives the latent that model.py draws for it.
//
// Seeding and stream: MT19937 (Matsumoto and Nishimura 1998), as NumPy seeds it with one integer.
// Normal numbers: Marsaglia's polar method, as NumPy's legacy standard_normal applies it.

const N = 624;
const M = 397;
export const SEED_MAX = 2 ** 32 - 1;

/** A stream of random numbers for one seed, 0 … 2³²−1. */
export class RandomState {
  constructor(seed) {
    if (!Number.isInteger(seed) || seed < 0 || seed > SEED_MAX) {
      throw new RangeError(`a seed is a whole number from 0 to ${SEED_MAX}`);
    }
    this.state = new Uint32Array(N);
    this.state[0] = seed;
    for (let i = 1; i < N; i++) {
      const previous = this.state[i - 1];
      this.state[i] = Math.imul(1812433253, previous ^ (previous >>> 30)) + i;
    }
    this.next = N; // all used: the first number asks for a fresh block
    this.spare = null; // the polar method makes two normal numbers at a time
  }

  /** Return 32 random bits as a number from 0 up. */
  bits() {
    if (this.next === N) {
      this.refill();
    }
    let y = this.state[this.next++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  }

  refill() {
    const s = this.state;
    for (let i = 0; i < N; i++) {
      const y = (s[i] & 0x80000000) | (s[(i + 1) % N] & 0x7fffffff);
      s[i] = s[(i + M) % N] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
    }
    this.next = 0;
  }

  /** Return a number in [0, 1) of 53 random bits. */
  uniform() {
    const high = this.bits() >>> 5;
    return (high * 67108864 + (this.bits() >>> 6)) / 9007199254740992;
  }

  /** Return one standard normal number. */
  normal() {
    if (this.spare !== null) {
      const kept = this.spare;
      this.spare = null;
      return kept;
    }
    let x, y, square;
    do {
      x = 2 * this.uniform() - 1;
      y = 2 * this.uniform() - 1;
      square = x * x + y * y;
    } while (square >= 1 || square === 0);
    const factor = Math.sqrt((-2 * Math.log(square)) / square);
    this.spare = factor * x;
    return factor * y;
  }
}

/** Return the latents of some seeds, one row of `zDim` numbers each, in one Float32Array. */
export function latents(seeds, zDim) {
  const z = new Float32Array(seeds.length * zDim);
  seeds.forEach((seed, row) => {
    const stream = new RandomState(seed);
    for (let i = 0; i < zDim; i++) {
      z[row * zDim + i] = stream.normal();
    }
  });
  return z;
}
