// Twin: src/kernels.rs (constants, TileParams, TileBuffers) and src/kernels/arithmetic.rs (functions).
//
// Weights travel as the bits of an f32. Comparisons are made on bits, and no product feeds a sum, so that no driver's
// liberty with floats can change a byte of the result (see src/kernels.rs).

const WORKGROUP: u32 = 64u;
const F32: u32 = 0u;
const F16: u32 = 1u;
const BF16: u32 = 2u;
const SIGN: u32 = 0x80000000u;
const MAGNITUDE: u32 = 0x7fffffffu;
const INFINITY: u32 = 0x7f800000u;
const MIN_NORMAL: u32 = 0x00800000u;
const MIN_SCALE: u32 = 0x01000000u;   // 2^-125
const MIN_SEARCH: u32 = 0x0d800000u;  // 2^-100
const MAX_BLOCK: u32 = 0x71800000u;   // 2^100: no block holds such weights, as its scales are f16
const Q4_0: u32 = 0u;                 // types of blocks
const Q4_1: u32 = 1u;
const Q8_0: u32 = 2u;
const Q4_K: u32 = 3u;
const Q6_K: u32 = 4u;
const MAGIC: f32 = 12582912.0;        // 3 * 2^22: what is added is rounded to an integer, in the lowest bits
const PLACES: f32 = 3072.0;           // 3 * 2^10: what is smaller than 1024 is rounded to 12 binary places
const TRIES: u32 = 16u;               // scales that a search in a group of a block tries at once

override INPUT_DTYPE: u32 = 2u;
override LANES: u32 = 1u;             // threads that share a chunk: a power of two, at most WORKGROUP

struct TileParams {
  input_dtype: u32,
  output_dtype: u32,    // of dequantize and convert
  scale_dtype: u32,
  elements: u32,        // weights in the tile
  row_len: u32,         // weights a packed row; each row of codes starts on a new word
  group_len: u32,       // neighbours that share a scale
  groups: u32,
  chunk_len: u32,       // part of a group that one team reduces
  chunks_per_group: u32,
  chunks: u32,
  channel_len: u32,     // neighbours that share a histogram or a clip
  bits: u32,
  symmetric: u32,
  qmin: i32,
  qmax: i32,
  code_offset: i32,     // added to a code before packing; 0 keeps two's complement
  bins: u32,            // of a histogram
  candidates: u32,      // of the search for the least squared error; 0 is none
  coarse: u32,          // those of them that are tried first
  both_signs: u32,      // whether the search tries negative scales
  tallies: u32,         // tables of error sums a group
  saturate: u32,        // whether convert and dequantize clamp what overflows
  scaled: u32,          // whether the scales are there when codes are made
  block: u32,           // type of the blocks
  zero: u32,            // 0, which no compiler knows
}

@group(0) @binding(0) var<uniform> params: TileParams;
@group(0) @binding(1) var<storage, read> input: array<vec4<u32>>;               // weights as stored; codes for dequantize
@group(0) @binding(2) var<storage, read_write> ranges: array<atomic<u32>>;      // [groups][2]: ordered(-min), ordered(max)
@group(0) @binding(3) var<storage, read> edges: array<u32>;                     // [channels][bins + 1], or [channels][2] clips; ordered
@group(0) @binding(4) var<storage, read_write> counts: array<atomic<u32>>;      // [channels][bins], or [chunks][candidates][low, high]
@group(0) @binding(5) var<storage, read_write> scales: array<u32>;              // [groups] f32 bits, already rounded to scale_dtype
@group(0) @binding(6) var<storage, read_write> zero_points: array<i32>;         // [groups]
@group(0) @binding(7) var<storage, read_write> output: array<u32>;              // packed codes; floats for dequantize and convert
@group(0) @binding(8) var<storage, read_write> errors: array<vec2<f32>>;        // [chunks] sums of (x/s)^2 and ((x - x̂)/s)^2

fn flat_index(workgroup: vec3<u32>, workgroups: vec3<u32>, local: u32) -> u32 {
  return (workgroup.y * workgroups.x + workgroup.x) * WORKGROUP + local;
}

fn input_word(i: u32) -> u32 { return input[i >> 2u][i & 3u]; }

// f32 bits of weight i, exactly as stored.
fn load_bits(i: u32) -> u32 {
  if (INPUT_DTYPE == F32) { return input_word(i); }
  let half = (input_word(i >> 1u) >> ((i & 1u) * 16u)) & 0xffffu;
  if (INPUT_DTYPE == F16) { return f16_to_f32(half); }
  return half << 16u;
}

// What lies below the normals counts as zero.
fn flush(x: u32) -> u32 { return select(x, 0u, (x & MAGNITUDE) < MIN_NORMAL); }

fn load_weight(i: u32) -> u32 { return flush(load_bits(i)); }

// The two 16-bit weights of a word.
fn weights_of(word: u32) -> vec2<u32> {
  if (INPUT_DTYPE == F16) { return vec2<u32>(flush(f16_to_f32(word & 0xffffu)), flush(f16_to_f32(word >> 16u))); }
  return vec2<u32>(flush(word << 16u), flush(word & 0xffff0000u));
}

// x, by a way that no compiler can look through: what is computed from it stays a step of its own.
fn opaque(x: u32) -> f32 { return bitcast<f32>(x ^ params.zero); }

// Orders the bits of floats as the floats are ordered; ordered(-x) == ~ordered(x).
fn ordered(x: u32) -> u32 { return x ^ select(SIGN, 0xffffffffu, x >= SIGN); }

// Inverse of ordered.
fn unordered(x: u32) -> u32 { return select(~x, x ^ SIGN, x >= SIGN); }

fn multiply(a: u32, b: u32) -> u32 { return bitcast<u32>(bitcast<f32>(a) * bitcast<f32>(b)); }

// a / b of positive normal floats, rounded to nearest; below the normals 0, above them infinity.
fn div_rn(a: u32, b: u32) -> u32 {
  if (a < MIN_NORMAL) { return 0u; }
  if (a >= INFINITY) { return INFINITY; }
  let divisor = (b & 0x7fffffu) | 0x800000u;
  var rest = (a & 0x7fffffu) | 0x800000u;
  var exponent = i32(a >> 23u) - i32(b >> 23u) + 127;
  if (rest < divisor) { rest = rest << 1u; exponent = exponent - 1; }
  rest = (rest - divisor) << 8u;
  let d0 = rest / divisor; rest = (rest - d0 * divisor) << 8u;
  let d1 = rest / divisor; rest = (rest - d1 * divisor) << 8u;
  let d2 = rest / divisor;
  let quotient = (d0 << 16u) | (d1 << 8u) | d2;   // bit 0 is the round bit; a tie cannot occur
  if (exponent <= 0) { return select(0u, MIN_NORMAL, exponent == 0 && quotient >= 0xfffffeu); }
  if (exponent >= 255) { return INFINITY; }
  return (u32(exponent) << 23u) + (quotient >> 1u) + (quotient & 1u);
}

fn f32_to_f16(x: u32) -> u32 {
  let sign = (x >> 16u) & 0x8000u;
  let u = x & MAGNITUDE;
  if (u >= 0x38800000u) {
    if (u > INFINITY) { return sign | 0x7e00u | ((u >> 13u) & 0x3ffu); }
    if (u >= 0x477ff000u) { return sign | 0x7c00u; }
    return sign | ((u - 0x38000000u + 0xfffu + ((u >> 13u) & 1u)) >> 13u);
  }
  if (u <= 0x33000000u) { return sign; }
  let shift = 126u - (u >> 23u);
  let mantissa = (u & 0x7fffffu) | 0x800000u;
  let k = mantissa >> shift;
  return sign | ((mantissa + (1u << (shift - 1u)) - 1u + (k & 1u)) >> shift);
}

fn f16_to_f32(h: u32) -> u32 {
  let sign = (h & 0x8000u) << 16u;
  let u = h & 0x7fffu;
  if (u > 0x7c00u) { return sign | 0x7fc00000u | (u << 13u); }
  if (u == 0x7c00u) { return sign | INFINITY; }
  if (u >= 0x400u) { return sign | ((u << 13u) + 0x38000000u); }
  if (u == 0u) { return sign; }
  let zeros = countLeadingZeros(u);
  return sign | (((134u - zeros) << 23u) + ((u << (zeros - 8u)) & 0x7fffffu));
}

fn f32_to_bf16(x: u32) -> u32 {
  if ((x & MAGNITUDE) > INFINITY) { return (x >> 16u) | 0x40u; }
  return (x + 0x7fffu + ((x >> 16u) & 1u)) >> 16u;
}

// The bits of x in dtype, in the low half for 16-bit floats.
fn narrow(x: u32, dtype: u32) -> u32 {
  if (dtype == F32) { return x; }
  if (dtype == F16) { return f32_to_f16(x); }
  return f32_to_bf16(x);
}

fn widen(x: u32, dtype: u32) -> u32 {
  if (dtype == F32) { return x; }
  if (dtype == F16) { return f16_to_f32(x); }
  return x << 16u;
}

// A scale as it is stored; one that is too small to work with becomes the dtype's eps, and everything decodes to zero.
fn stored_scale(s: u32) -> u32 {
  let rounded = widen(narrow(s, params.scale_dtype), params.scale_dtype);
  if (rounded >= MIN_SCALE) { return rounded; }
  if (params.scale_dtype == F32) { return 0x34000000u; }   // 2^-23
  if (params.scale_dtype == F16) { return 0x3a800000u; }   // 2^-10
  return 0x3c000000u;                                      // 2^-7
}

// Nearest integer to the f32 quotient x / s, ties to where result + z is even. Bits of non-negative floats; inverse is
// about 1 / s: an error of one in the guess k is made good by the comparison with the middle between k and k + 1. That
// is exact for 16-bit weights; for others, where it is too close to call, the division is carried out.
fn round_quotient(x: u32, s: u32, inverse: f32, z: i32) -> u32 {
  var magnitude = min(x, min(s + (10u << 23u), 0x7f7fffffu));
  let k = u32(bitcast<f32>(magnitude) * inverse);
  var middle = bitcast<u32>((f32(k) + 0.5) * bitcast<f32>(s));
  if (INPUT_DTYPE == F32 && max(magnitude, middle) - min(magnitude, middle) <= 8u) {
    magnitude = div_rn(magnitude, s);
    middle = bitcast<u32>(f32(k) + 0.5);
  }
  let odd = ((k + u32(z)) & 1u) == 1u;
  return k + u32(magnitude > middle || (magnitude == middle && odd));
}

// How the weights of a group become codes. A quotient plus `shift` has its code in its lowest bits; `lowest` and
// `highest` are those of the ends. Made before loops: software reads parameters anew in every round.
struct Coder { s: u32, z: i32, inverse: f32, shift: f32, lowest: i32, highest: i32, zero: u32 }

fn coder(s: u32, z: i32) -> Coder {
  let magic = bitcast<i32>(MAGIC);
  return Coder(s, z, 1.0 / bitcast<f32>(s), MAGIC + f32(z), magic + params.qmin, magic + params.qmax, params.zero);
}

// Codes of four weights, each above the bits of MAGIC; `q` are the weights times the inverse. Bits of floats order as
// integers do, which takes fewer steps.
//
// For 16-bit weights and scales a quotient is half-way between two codes or at least 1/4094 away from that, and the
// product, of an inverse that may be off by 2.5 units in the last place, is off by less than 2^-13: rounding it to 12
// binary places restores what is half-way, and nothing else becomes it. That is opaque, as two sums may be made one. All
// else is exact up to the rounding to a code, so that no contraction changes it.
fn codes_of(x: vec4<u32>, q: vec4<f32>, g: Coder) -> vec4<i32> {
  if (INPUT_DTYPE == F32) {
    return vec4<i32>(code_of(x.x, g), code_of(x.y, g), code_of(x.z, g), code_of(x.w, g)) + bitcast<i32>(MAGIC);
  }
  let places = bitcast<vec4<f32>>(bitcast<vec4<u32>>(q + PLACES) ^ vec4<u32>(g.zero));
  let codes = bitcast<vec4<i32>>(places + (g.shift - PLACES));
  return clamp(codes, vec4<i32>(g.lowest), vec4<i32>(g.highest));
}

// Code of one weight of any dtype.
fn code_of(x: u32, g: Coder) -> i32 {
  let k = i32(round_quotient(x & MAGNITUDE, g.s & MAGNITUDE, abs(g.inverse), g.z));
  return clamp(select(k, -k, ((x ^ g.s) & SIGN) != 0u) + g.z, params.qmin, params.qmax);
}

// How four codes become the low bits of a word. Made before loops, as a Coder.
struct Packer { shifts: vec3<u32>, lowest: u32, flipped: u32 }

fn packer() -> Packer {
  let shifts = vec3<u32>(1u, 2u, 3u) * params.bits;
  let ones = 1u | (1u << shifts.x) | (1u << shifts.y) | (1u << shifts.z);
  let lowest = u32(bitcast<i32>(MAGIC) + params.qmin) * ones;
  return Packer(shifts, lowest, select(0u, ones << (params.bits - 1u), params.code_offset == 0));
}

// Codes as they are stored, side by side: from 0 on, or in two's complement where nothing is added to them.
fn packed_codes(codes: vec4<i32>, p: Packer) -> u32 {
  let c = bitcast<vec4<u32>>(codes);
  return (c.x + (c.y << p.shifts.x) + (c.z << p.shifts.y) + (c.w << p.shifts.z) - p.lowest) ^ p.flipped;
}

// Four weights, from vector `half` of two of the eight that begin at weight 8v.
fn four_weights(v: u32, half: u32) -> vec4<u32> {
  if (INPUT_DTYPE == F32) {
    let words = input[2u * v + half];
    return select(words, vec4<u32>(0u), (words & vec4<u32>(MAGNITUDE)) < vec4<u32>(MIN_NORMAL));
  }
  let words = input[v];
  let pair = select(words.xy, words.zw, half == 1u);
  if (INPUT_DTYPE == F16) { return vec4<u32>(weights_of(pair.x), weights_of(pair.y)); }
  return vec4<u32>(pair.x << 16u, pair.x & 0xffff0000u, pair.y << 16u, pair.y & 0xffff0000u);
}

struct QParams { scale: u32, zero_point: i32 }

// Scale and zero point of a candidate for [-low, high]; number 0 covers the whole range (see src/kernels/search.rs).
fn candidate(low: u32, high: u32, number: u32) -> QParams {
  if (params.symmetric == 1u) {
    let place = select(0u, number - 1u, number > 0u);
    var steps = f32(params.qmax - params.qmin) * 0.5;
    if (number > 0u) { steps = select(f32(124u + (place >> 1u)), f32(50u + (place >> 1u)) * 0.125, params.bits == 4u); }
    let scale = stored_scale(div_rn(max(low, high), bitcast<u32>(steps)));
    return QParams(scale | select(0u, SIGN, (place & 1u) == 1u), 0);
  }
  let shrink = bitcast<u32>(f32(64u - number) * 0.015625);   // exact, like every factor of the form n/64
  let range = multiply(bitcast<u32>(bitcast<f32>(low) + bitcast<f32>(high)), shrink);
  let scale = stored_scale(div_rn(range, bitcast<u32>(f32(params.qmax - params.qmin))));
  let offset = round_quotient(flush(multiply(low, shrink)), scale, 1.0 / bitcast<f32>(scale), params.qmin);
  return QParams(scale, min(params.qmin + i32(offset), params.qmax));
}

// The number of coarse candidate i of a group. The lowest code is for its largest weights, if scales may be negative.
fn coarse_number(group: u32, i: u32) -> u32 {
  if (params.symmetric == 0u) { return 4u * i; }
  if (i == 0u) { return 0u; }
  return 1u + 2u * select(4u * i - 1u, 8u * i - 2u, params.bits == 4u) + sign_of(group);
}
fn sign_of(group: u32) -> u32 { return u32(params.both_signs == 1u && range_high(group) > range_low(group)); }

// The number of fine candidate f: so many steps from the best coarse one towards the better of its neighbours.
fn fine_number(group: u32, best: u32, f: u32) -> u32 {
  let whole = params.symmetric == 1u && best == 0u;
  // the whole range, at 7.5, lies between the first two; at 127.5 before the second
  let below = coarse_sum(group, select(best - 1u, 1u, whole));
  let above = coarse_sum(group, select(best + 1u, 2u, whole));
  let down = (below.y < above.y || (below.y == above.y && below.x < above.x)) && !(whole && params.bits == 8u);
  let steps = select(1 + i32(f), -1 - i32(f), down);
  if (params.symmetric == 0u) { return u32(i32(4u * best) + steps); }
  let four = params.bits == 4u;
  let number = select(coarse_number(group, best), select(7u, 21u, four) + sign_of(group), whole);
  return u32(i32(number) + select(2, 4, four) * steps);
}

fn coarse_sum(group: u32, i: u32) -> vec2<u32> {
  if (i < params.symmetric || i >= params.coarse) { return vec2<u32>(0xffffffffu); }
  return error_sum(group, i);
}

// A candidate's error on a group, over all its chunks.
fn error_sum(group: u32, i: u32) -> vec2<u32> {
  var sum = vec2<u32>(0u);
  for (var table = 0u; table < params.tallies; table += 1u) {
    let at = 2u * ((group * params.tallies + table) * params.candidates + i);
    let low = atomicLoad(&counts[at]);
    sum.x += low;
    sum.y += atomicLoad(&counts[at + 1u]) + u32(sum.x < low);
  }
  return sum;
}

// Which of the first `count` candidates has the smallest sum in a group, the first of equals.
fn best_of(group: u32, count: u32) -> u32 {
  var best = 0u;
  var least = vec2<u32>(0xffffffffu);
  for (var i = 0u; i < count; i += 1u) {
    let sum = error_sum(group, i);
    if (sum.y < least.y || (sum.y == least.y && sum.x < least.x)) {
      best = i;
      least = sum;
    }
  }
  return best;
}

// The number of the candidate with the smallest sum.
fn best_number(group: u32) -> u32 {
  let best = best_of(group, params.candidates);
  if (best < max(params.coarse, 1u)) { return coarse_number(group, best); }
  return fine_number(group, best_of(group, params.coarse), best - params.coarse);
}

// -min and max of a group, each widened to include zero. Zeros stand for "nothing seen".
fn range_low(group: u32) -> u32 { return widened(atomicLoad(&ranges[2u * group])); }
fn range_high(group: u32) -> u32 { return widened(atomicLoad(&ranges[2u * group + 1u])); }
fn widened(bound: u32) -> u32 { return select(0u, bound & MAGNITUDE, bound >= SIGN); }

// The code in the low bits of a packed word.
fn decoded_code(stored: u32) -> i32 {
  let unused = 32u - params.bits;
  if (params.code_offset != 0) { return i32((stored << unused) >> unused) - params.code_offset; }
  return i32(stored << unused) >> unused;
}

// x in output_dtype, in the low half for 16-bit floats. counts[0] is of finite values that overflowed, which are clamped
// if the tile says so; counts[1] of values that were not finite.
fn converted(x: u32) -> u32 {
  let narrowed = narrow(x, params.output_dtype);
  if ((x & MAGNITUDE) >= INFINITY) {
    atomicAdd(&counts[1], 1u);
    return narrowed;
  }
  if ((widen(narrowed, params.output_dtype) & MAGNITUDE) < INFINITY) { return narrowed; }
  atomicAdd(&counts[0], 1u);
  return narrowed - params.saturate;   // the largest finite value lies just below infinity, on either side of zero
}

// Weights and bytes a block.
fn block_len() -> u32 { return select(32u, 256u, params.block >= Q4_K); }
fn block_bytes() -> u32 {
  switch (params.block) {
    case Q4_0: { return 18u; }
    case Q4_1: { return 20u; }
    case Q8_0: { return 34u; }
    case Q4_K: { return 144u; }
    default: { return 210u; }
  }
}

// Code of a weight in a block whose step has this inverse, after `offset` was taken off the weight where the type has one.
// Halves go up for Q4_0 and Q4_1, else away from zero. An inverse of 0 makes every code 0.
fn block_code(x: u32, inverse: u32, offset: u32) -> i32 {
  if (inverse == 0u) { return 0; }
  // the float sums of the reference, which round
  if (params.block == Q4_0) { return min(i32(opaque(multiply(x, inverse)) + 8.5), 15) - 8; }
  var y = x;
  if (params.block != Q8_0 && params.block != Q6_K) { y = flush(bitcast<u32>(bitcast<f32>(x) - bitcast<f32>(offset))); }
  if (params.block == Q4_1) { return min(i32(opaque(multiply(y, inverse)) + 0.5), 15); }
  let negative = ((y ^ inverse) & SIGN) != 0u;
  let product = min(multiply(y & MAGNITUDE, inverse & MAGNITUDE), 0x437f0000u);   // 255
  let k = u32(bitcast<f32>(product));
  let magnitude = i32(k + u32(product >= bitcast<u32>(f32(k) + 0.5)));
  return clamp(select(magnitude, -magnitude, negative), params.qmin, params.qmax);
}

// The real quotient in 1/256, halves up. The quotient lies below 2^23, the denominator below 2^20; neither is negative.
fn fixed_quotient(numerator: i32, denominator: i32) -> i32 {
  let whole = numerator / denominator;
  return (whole << 8u) + (((numerator - whole * denominator) << 9u) + denominator) / (2 * denominator);
}

// Squared error of a weight x that is decoded as (code * step - low) / 256; inverse is about 1 / step.
fn code_error(x: i32, step: i32, low: i32, inverse: f32) -> u32 {
  let y = (x << 8u) + low;
  let code = clamp(i32(round(f32(y) * inverse)), params.qmin, params.qmax);
  let difference = min(abs((y - code * step + 128) >> 8u), 8191);
  return u32(difference * difference);
}
