// Twin: src/kernels/error.rs

// Sums for two weights and the codes in the low bits of `stored`.
fn squares(pair: vec2<u32>, stored: u32, inverse: f32, z: i32) -> vec2<f32> {
  let x = bitcast<vec2<f32>>(pair) * inverse;
  let q = vec2<i32>(decoded_code(stored), decoded_code(stored >> params.bits));
  let d = x - vec2<f32>(q - z);
  return vec2<f32>(dot(x, x), dot(d, d));
}

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
    if ((params.group_len | params.row_len) % 8u == 0u) {
      for (var v = start / 8u + lane; v < end / 8u; v += LANES) { sum += aligned_squares(v, inverse, z); }
    } else {
      let codes_per_word = 32u / params.bits;
      let words_per_row = (params.row_len + codes_per_word - 1u) / codes_per_word;
      for (var i = start + lane; i < end; i += LANES) {
        let column = i % params.row_len;
        let word = i / params.row_len * words_per_row + column / codes_per_word;
        let stored = output[word] >> ((column % codes_per_word) * params.bits);
        let x = bitcast<f32>(load_weight(i)) * inverse;
        let d = x - f32(decoded_code(stored) - z);
        sum += vec2<f32>(x * x, d * d);
      }
    }
  }
  sum = team_sum(sum, local);
  if (lane == 0u && chunk < params.chunks) { errors[chunk] = sum; }
}

// Sums for weights 8v to 8v + 7, whose codes fill whole words.
fn aligned_squares(v: u32, inverse: f32, z: i32) -> vec2<f32> {
  var pairs: array<vec2<u32>, 4>;
  if (INPUT_DTYPE == F32) {
    let a = input[2u * v];
    let b = input[2u * v + 1u];
    pairs = array<vec2<u32>, 4>(vec2<u32>(flush(a.x), flush(a.y)), vec2<u32>(flush(a.z), flush(a.w)),
                                vec2<u32>(flush(b.x), flush(b.y)), vec2<u32>(flush(b.z), flush(b.w)));
  } else {
    let words = input[v];
    pairs = array<vec2<u32>, 4>(weights_of(words.x), weights_of(words.y), weights_of(words.z), weights_of(words.w));
  }
  if (params.bits == 4u) {
    let codes = output[v];
    return squares(pairs[0], codes, inverse, z) + squares(pairs[1], codes >> 8u, inverse, z)
      + squares(pairs[2], codes >> 16u, inverse, z) + squares(pairs[3], codes >> 24u, inverse, z);
  }
  let low = output[2u * v];
  let high = output[2u * v + 1u];
  return squares(pairs[0], low, inverse, z) + squares(pairs[1], low >> 16u, inverse, z)
    + squares(pairs[2], high, inverse, z) + squares(pairs[3], high >> 16u, inverse, z);
}
