// Twin: src/kernels/quantize_pack.rs

fn code(x: u32, s: u32, inverse: f32, z: i32) -> i32 {
  let k = i32(round_quotient(x & MAGNITUDE, s & MAGNITUDE, inverse, z));
  return clamp(select(k, -k, ((x ^ s) & SIGN) != 0u) + z, params.qmin, params.qmax);
}

@compute @workgroup_size(WORKGROUP)
fn quantize_pack(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(num_workgroups) workgroups: vec3<u32>,
                 @builtin(local_invocation_index) local: u32) {
  let word = flat_index(workgroup, workgroups, local);
  let codes_per_word = 32u / params.bits;
  let words_per_row = (params.row_len + codes_per_word - 1u) / codes_per_word;
  let row = word / words_per_row;
  let start = row * params.row_len + (word % words_per_row) * codes_per_word;
  let end = min(min(start + codes_per_word, (row + 1u) * params.row_len), params.elements);
  if (start >= end) { return; }
  let mask = 0xffffffffu >> (32u - params.bits);
  var group = start / params.group_len;
  var group_end = (group + 1u) * params.group_len;
  var s = scales[group];
  var z = zero_points[group];
  var inverse = 1.0 / bitcast<f32>(s & MAGNITUDE);
  var packed = 0u;
  for (var i = start; i < end; i += 1u) {
    if (i == group_end) {
      group += 1u;
      group_end += params.group_len;
      s = scales[group];
      z = zero_points[group];
      inverse = 1.0 / bitcast<f32>(s & MAGNITUDE);
    }
    let stored = u32(code(load_weight(i), s, inverse, z) + params.code_offset) & mask;
    packed |= stored << ((i - start) * params.bits);
  }
  output[word] = packed;
}
