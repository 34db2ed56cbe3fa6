// Twin: src/kernels/block_error.rs

@compute @workgroup_size(WORKGROUP)
fn block_error(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(num_workgroups) workgroups: vec3<u32>,
               @builtin(local_invocation_index) local: u32) {
  let group = flat_index(workgroup, workgroups, local);
  if (group >= params.groups) { return; }
  let absmax = scales[group];
  let inverse = scales[params.groups + group];
  let offset = scales[2u * params.groups + group];
  let halves = scales[3u * params.groups + group];
  var step = bitcast<f32>(f16_to_f32(halves & 0xffffu));
  var base = bitcast<f32>(f16_to_f32(halves >> 16u));
  if (params.block >= Q4_K) {
    let stored = zero_points[group];
    step *= f32(select((stored << 24u) >> 24u, stored & 63, params.block == Q4_K));
    base = bitcast<f32>(offset);
  }
  var sum = vec2<f32>(0.0);
  if (absmax >= MIN_NORMAL && absmax < MAX_BLOCK && (halves & 0x7c00u) != 0x7c00u && (halves & 0x7c000000u) != 0x7c000000u) {
    let scale = 1.0 / bitcast<f32>(absmax);
    for (var i = group * params.group_len; i < (group + 1u) * params.group_len; i += 1u) {
      let weight = load_weight(i);
      let code = f32(block_code(weight, inverse, offset));
      let x = bitcast<f32>(weight) * scale;
      let d = (bitcast<f32>(weight) - (opaque(bitcast<u32>(step * code)) + base)) * scale;
      sum += vec2<f32>(x * x, d * d);
    }
  }
  errors[group] = sum;
}
