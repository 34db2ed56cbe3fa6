// Twin: src/kernels/block_scales.rs

// The first of the weights that are largest in magnitude, or a float of its sign and magnitude.
fn extreme(group: u32, low: u32, high: u32) -> u32 {
  if (low != high) { return max(low, high) | select(0u, SIGN, low > high); }
  for (var i = group * 32u; i < group * 32u + 32u; i += 1u) {
    let x = load_weight(i);
    if ((x & MAGNITUDE) == high) { return x; }
  }
  return 0u;
}

struct Scale { step: u32, offset: u32 }

// Step and offset of a block that is one group.
fn simple_scale(group: u32, low: u32, high: u32) -> Scale {
  if (max(low, high) >= MAX_BLOCK) { return Scale(MAX_BLOCK, 0u); }
  if (params.block == Q4_0) {
    let largest = extreme(group, low, high);
    return Scale(flush(multiply(largest & MAGNITUDE, 0x3e000000u)) | (~largest & SIGN), 0u);   // / -8
  }
  if (params.block == Q8_0) { return Scale(div_rn(max(low, high), 0x42fe0000u), 0u); }         // / 127
  let bottom = unordered(~atomicLoad(&ranges[2u * group]));
  let top = unordered(atomicLoad(&ranges[2u * group + 1u]));
  return Scale(div_rn(flush(bitcast<u32>(bitcast<f32>(top) - bitcast<f32>(bottom))), 0x41700000u), bottom);   // / 15
}

// The smallest f16 that is not below a positive float.
fn f16_above(x: u32) -> u32 {
  let h = f32_to_f16(x);
  return h + u32(f16_to_f32(h) < x);
}

// d and dmin of a super-block: its largest step and low need not be cut.
fn super_halves(first: u32) -> u32 {
  var step = 0u;
  var low = 0u;
  for (var i = first; i < first + 256u / params.group_len; i += 1u) {
    let other = scales[4u * params.groups + i];
    if ((other & MAGNITUDE) > (step & MAGNITUDE)) { step = other; }
    low = max(low, scales[5u * params.groups + i]);
  }
  if (params.block == Q6_K) {
    return f16_above(flush(multiply(step & MAGNITUDE, 0x32000000u))) | ((~step & SIGN) >> 16u);   // 2^-20 / -128
  }
  let d = f16_above(flush(multiply(div_rn(step, 0x427c0000u), 0x35800000u)));                     // 2^-20 / 63
  return d | (f16_above(flush(multiply(div_rn(low, 0x427c0000u), 0x35800000u))) << 16u);
}

// Nearest integer to a / (b 2^20), at most 512, of positive floats.
fn multiple(a: u32, b: u32) -> i32 {
  if (b == 0u) { return 0; }
  return i32(round(bitcast<f32>(min(multiply(div_rn(a, b), 0x35800000u), 0x44000000u))));
}

// A small float in units of 1 / fine of the group's absmax; more than 2^23 is as good as 2^23.
fn unit(x: u32, fine: u32, absmax: u32) -> i32 {
  return i32(round(bitcast<f32>(min(multiply(x, div_rn(fine, absmax)), 0x4b000000u))));
}

// 0, 1, -1, 2, -2, 3 ...
fn nearby(i: u32) -> i32 { return select(-i32(i >> 1u), i32((i + 1u) >> 1u), (i & 1u) == 1u); }

struct Stored { step: i32, low: i32 }

fn tried(i: u32, middle: Stored) -> Stored {
  if (params.block == Q6_K) { return Stored(clamp(middle.step + nearby(i), -128, 127), 0); }
  return Stored(clamp(middle.step + nearby(i % 5u), 0, 63), clamp(middle.low + nearby(i / 5u), 0, 63));
}

// The best of the stored integers around those that the search would like to have.
fn stored_scale_of(group: u32, absmax: u32, d: u32, dmin: u32) -> Stored {
  if (absmax < MIN_SEARCH) { return Stored(0, 0); }
  let step = scales[4u * params.groups + group];
  let multiples = multiple(step & MAGNITUDE, d & MAGNITUDE);
  let middle = Stored(select(multiples, -multiples, ((step ^ d) & SIGN) != 0u),
                      multiple(scales[5u * params.groups + group], dmin));
  let unit_step = unit(d & MAGNITUDE, 0x4b800000u, absmax);   // 2^24
  let unit_low = unit(dmin, 0x4a800000u, absmax);             // 2^22
  let fine = bitcast<f32>(div_rn(0x45800000u, absmax));       // 2^12
  var best = Stored(0, 0);
  var least = 0xffffffffu;
  for (var i = 0u; i < TRIES; i += 1u) {
    let stored = tried(i, middle);
    let magnitude = min((unit_step * abs(stored.step) + 8) >> 4u, 0x200000);
    let low = min((unit_low * stored.low + 2) >> 2u, 0x200000);
    let negative = (stored.step < 0) != (d >= SIGN);
    let tried_step = select(magnitude, -magnitude, negative);
    var inverse = 0.0;
    if (magnitude != 0) { inverse = bitcast<f32>(div_rn(0x3f800000u, bitcast<u32>(f32(magnitude)))); }
    inverse = select(inverse, -inverse, negative);
    var error = 0u;
    for (var j = group * params.group_len; j < (group + 1u) * params.group_len; j += 1u) {
      error += code_error(i32(round(bitcast<f32>(load_weight(j)) * fine)), tried_step, low, inverse);
    }
    if (error < least) {
      least = error;
      best = stored;
    }
  }
  return best;
}

fn overflows(halves: u32) -> bool { return (halves & 0x7fffu) >= 0x7c00u || ((halves >> 16u) & 0x7fffu) >= 0x7c00u; }

@compute @workgroup_size(WORKGROUP)
fn block_scales(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(num_workgroups) workgroups: vec3<u32>,
                @builtin(local_invocation_index) local: u32) {
  let group = flat_index(workgroup, workgroups, local);
  if (group >= params.groups) { return; }
  let low = range_low(group);
  let high = range_high(group);
  let first = group - group % (block_len() / params.group_len);
  var scale = Scale(0u, 0u);
  var halves = 0u;
  if (params.block < Q4_K) {
    scale = simple_scale(group, low, high);
    halves = f32_to_f16(scale.step) | (f32_to_f16(scale.offset) << 16u);
    if (max(low, high) >= MAX_BLOCK) { scale.step = 0u; }
  } else {
    halves = super_halves(first);
    var stored = Stored(0, 0);
    if (!overflows(halves)) {
      let d = f16_to_f32(halves & 0xffffu);
      let dmin = f16_to_f32(halves >> 16u);
      stored = stored_scale_of(group, max(low, high), d, dmin);
      scale = Scale(flush(multiply(d, bitcast<u32>(f32(stored.step)))), flush(multiply(dmin, bitcast<u32>(f32(-stored.low)))));
    }
    zero_points[group] = (stored.step & 0xff) | (stored.low << 8u);
  }
  var inverse = 0u;
  if ((scale.step & MAGNITUDE) != 0u) { inverse = div_rn(0x3f800000u, scale.step & MAGNITUDE) | (scale.step & SIGN); }
  scales[group] = max(low, high);
  scales[params.groups + group] = inverse;
  scales[2u * params.groups + group] = scale.offset;
  scales[3u * params.groups + group] = halves;
  if (group == first && overflows(halves)) { atomicAdd(&counts[0], 1u); }
}
