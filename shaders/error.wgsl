// Twin: src/kernels/error.rs

@compute @workgroup_size(WORKGROUP)
fn error(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(num_workgroups) workgroups: vec3<u32>,
         @builtin(local_invocation_index) local: u32) {
  let thread = flat_index(workgroup, workgroups, local);
  let chunk = thread / LANES;
  let lane = thread % LANES;
  var sum = vec2<f32>(0.0);
  if (chunk < params.chunks) {
    let group = chunk / params.chunks_per_group;
    let s = scales[group];
    let z = zero_points[group];
    let inverse = 1.0 / bitcast<f32>(s);
    let start = group * params.group_len + (chunk % params.chunks_per_group) * params.chunk_len;
    let end = min(start + params.chunk_len, (group + 1u) * params.group_len);
    let codes_per_word = 32u / params.bits;
    let words_per_row = (params.row_len + codes_per_word - 1u) / codes_per_word;
    var row = (start + lane) / params.row_len;
    var column = (start + lane) % params.row_len;
    for (var i = start + lane; i < end; i += LANES) {
      let stored = output[row * words_per_row + column / codes_per_word] >> ((column % codes_per_word) * params.bits);
      let q = decoded_code(stored);
      let x = bitcast<f32>(load_weight(i)) * inverse;
      let d = x - f32(q - z);
      sum += vec2<f32>(x * x, d * d);
      column += LANES;
      while (column >= params.row_len) { column -= params.row_len; row += 1u; }
    }
  }
  sum = team_sum(sum, local);
  if (lane == 0u && chunk < params.chunks) { errors[chunk] = sum; }
}
