// What search.wgsl and refine.wgsl share. Twin: src/kernels/search.rs (Trials, try_candidates).

// The squared error of candidate i on a chunk, into `counts`.
fn try_candidate(chunk: u32, i: u32, number: u32) {
  let group = chunk / params.chunks_per_group;
  let low = range_low(group);
  let high = range_high(group);
  let absmax = max(low, high);
  if (absmax < MIN_SEARCH || absmax >= INFINITY) { return; }   // sums start as zeros
  let four = params.bits == 4u;
  let tried = candidate(low, high, number);
  let unit = div_rn(select(0x49000000u, 0x46000000u, four), absmax);                  // 2^19 or 2^13
  let normal = bitcast<f32>(div_rn(select(0x47000000u, 0x46000000u, four), absmax));  // 2^15 or 2^13
  let step = i32(round(bitcast<f32>(min(multiply(tried.scale & MAGNITUDE, unit), 0x47800000u))));
  let at = 2u * (chunk * params.candidates + i);
  let start = group * params.group_len + (chunk % params.chunks_per_group) * params.chunk_len;
  let end = min(start + params.chunk_len, (group + 1u) * params.group_len);
  // at 4 bits codes reach over more than half of the range
  let both = bitcast<u32>(select(bitcast<f32>(low) + bitcast<f32>(high), 2.0 * bitcast<f32>(absmax), params.symmetric == 1u));
  let range = select(0, i32(round(bitcast<f32>(min(multiply(both, unit), 0x47800000u)))), four);
  if (step < select(1088, 257, four) || step >= select(32768, 2048, four) || 29 * step < range) {
    atomicStore(&counts[at], (end - start) << 30u);
    atomicStore(&counts[at + 1u], (end - start) >> 2u);
    return;
  }
  let inverse = i32(round(bitcast<f32>(div_rn(select(0x4c800000u, 0x4b000000u, four), bitcast<u32>(f32(step))))));
  let a = params.qmin - tried.zero_point;
  let b = params.qmax - tried.zero_point;
  let flip = tried.scale >= SIGN;
  let t = Trial(normal, step, inverse, select(a, -b, flip), select(b, -a, flip), four);
  var sum = vec2<u32>(0u);
  if (params.group_len % 8u == 0u) {
    for (var v = start / 8u; v < end / 8u; v += 1u) {
      let squares = four_squares(four_weights(v, 0u), t) + four_squares(four_weights(v, 1u), t);   // two of 30 bits
      sum = add_wide(add_wide(add_wide(add_wide(sum, squares.x), squares.y), squares.z), squares.w);
    }
  } else {
    for (var w = start; w < end; w += 1u) { sum = add_wide(sum, four_squares(vec4<u32>(load_weight(w)), t).x); }
  }
  atomicStore(&counts[at], sum.x);
  atomicStore(&counts[at + 1u], sum.y);
}

struct Trial { normal: f32, step: i32, inverse: i32, lowest: i32, highest: i32, four: bool }

fn four_squares(bits: vec4<u32>, t: Trial) -> vec4<u32> {
  let x = min(vec4<i32>(round(bitcast<vec4<f32>>(bits) * t.normal)), vec4<i32>(32767));
  let places = select(6u, 7u, t.four);
  let rounded = ((x * t.inverse) >> vec4<u32>(16u)) + (1 << (places - 1u));
  let codes = clamp(rounded >> vec4<u32>(places), vec4<i32>(t.lowest), vec4<i32>(t.highest));
  let decoded = codes * t.step;
  let d = x - select((decoded + 8) >> vec4<u32>(4u), decoded, t.four);
  return vec4<u32>(d * d);
}

fn add_wide(sum: vec2<u32>, x: u32) -> vec2<u32> {
  let low = sum.x + x;
  return vec2<u32>(low, sum.y + u32(low < x));
}
