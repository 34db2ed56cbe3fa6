// Twin: src/kernels/block_search.rs

// Decoding by (code * step - low) / 256.
struct Fit { step: i32, low: i32 }

var<private> normal: array<i32, 32>;   // the group, scaled to [-4096, 4096]

// The steps that were tried: the range is spread over so many codes.
fn reach(i: u32) -> f32 {
  if (params.block == Q4_K) { return f32(52u + i) * 0.25; }
  return f32(119u + (i >> 1u) * 2u) * 0.25;
}

// The straight line through (code, weight), by least squares, for codes that the reach of a try gives.
fn fit(i: u32, bottom: i32, top: i32) -> Fit {
  let n = i32(params.group_len);
  let flip = params.block == Q6_K && (i & 1u) == 1u;
  let inverse = bitcast<f32>(div_rn(bitcast<u32>(reach(i)), bitcast<u32>(f32(top + bottom))));
  var xs = 0;
  var codes = 0;
  var squares = 0;
  var products = 0;
  for (var j = 0; j < n; j += 1) {
    let x = select(normal[j], -normal[j], flip) + bottom;
    let code = clamp(i32(round(f32(x) * inverse)), params.qmin, params.qmax);
    xs += x;
    codes += code;
    squares += code * code;
    products += x * code;
  }
  if (params.block == Q6_K) {
    let step = fixed_quotient(max(products, 0), max(squares, 1));
    return Fit(select(step, -step, flip), 0);
  }
  let step = fixed_quotient(max(n * products - xs * codes, 0), max(n * squares - codes * codes, 1));
  let low = (bottom << 8u) - (((xs << 8u) - step * codes + 16) >> 5u);
  if (low >= 0) { return Fit(step, low); }
  return Fit(fixed_quotient(max(products - bottom * codes, 0), max(squares, 1)), 0);
}

@compute @workgroup_size(WORKGROUP)
fn block_search(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(num_workgroups) workgroups: vec3<u32>,
                @builtin(local_invocation_index) local: u32) {
  let group = flat_index(workgroup, workgroups, local);
  if (group >= params.groups) { return; }
  let absmax = max(range_low(group), range_high(group));
  var best = Fit(0, 0);
  if (absmax >= MIN_SEARCH && absmax < MAX_BLOCK) {
    let fine = bitcast<f32>(div_rn(0x45800000u, absmax));   // 2^12 / absmax
    var bottom = 0;
    var top = -4096;
    for (var j = 0u; j < params.group_len; j += 1u) {
      let x = i32(round(bitcast<f32>(load_weight(group * params.group_len + j)) * fine));
      normal[j] = x;
      bottom = max(bottom, -x);
      top = max(top, x);
    }
    if (params.block == Q6_K) {
      bottom = 0;
      top = 4096;
    }
    best.low = bottom << 8u;   // of equal weights below zero, all codes are 0
    if (top + bottom > 0) {
      var least = 0xffffffffu;
      for (var i = 0u; i < TRIES; i += 1u) {
        let tried = fit(i, bottom, top);
        if (tried.step == 0) { continue; }
        let inverse = bitcast<f32>(div_rn(0x3f800000u, bitcast<u32>(f32(abs(tried.step)))));
        let signed_inverse = select(inverse, -inverse, tried.step < 0);
        var error = 0u;
        for (var j = 0u; j < params.group_len; j += 1u) {
          error += code_error(normal[j], tried.step, tried.low, signed_inverse);
        }
        if (error < least) {
          least = error;
          best = tried;
        }
      }
    }
  }
  scales[4u * params.groups + group] = select(multiply(bitcast<u32>(f32(best.step)), absmax), 0x7f000000u, absmax >= MAX_BLOCK);
  scales[5u * params.groups + group] = select(multiply(bitcast<u32>(f32(best.low)), absmax), 0u, absmax >= MAX_BLOCK);
}
