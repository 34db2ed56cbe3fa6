// Twin: src/kernels/quantize_pack.rs

fn group_of(i: u32) -> Coder {
  let group = i / params.group_len;
  return coder(scales[group], zero_points[group]);
}

fn stored(x: u32, g: Coder) -> u32 {
  return u32(code_of(x, g) + params.code_offset) & (0xffffffffu >> (32u - params.bits));
}

// Two weights side by side.
fn stored_pair(pair: vec2<u32>, g: Coder) -> u32 { return stored(pair.x, g) | (stored(pair.y, g) << params.bits); }

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
  var g = group_of(start);
  if ((params.group_len | params.row_len) % 8u == 0u) {
    output[word] = aligned_word(start, g);
    return;
  }
  var packed = 0u;
  for (var i = start; i < end; i += 1u) {
    if (i % params.group_len == 0u) { g = group_of(i); }
    packed |= stored(load_weight(i), g) << ((i - start) * params.bits);
  }
  output[word] = packed;
}

// A word of codes that share a scale, from whole vectors of weights.
fn aligned_word(start: u32, g: Coder) -> u32 {
  if (INPUT_DTYPE == F32) {
    let a = input[start / 4u];
    let low = stored_pair(vec2<u32>(flush(a.x), flush(a.y)), g)
      | (stored_pair(vec2<u32>(flush(a.z), flush(a.w)), g) << (2u * params.bits));
    if (params.bits == 8u) { return low; }
    let b = input[start / 4u + 1u];
    return low | (stored_pair(vec2<u32>(flush(b.x), flush(b.y)), g) << 16u)
      | (stored_pair(vec2<u32>(flush(b.z), flush(b.w)), g) << 24u);
  }
  let words = input[start / 8u];
  if (params.bits == 8u) {
    let half = select(words.xy, words.zw, (start & 4u) != 0u);
    return stored_pair(weights_of(half.x), g) | (stored_pair(weights_of(half.y), g) << 16u);
  }
  return stored_pair(weights_of(words.x), g) | (stored_pair(weights_of(words.y), g) << 8u)
    | (stored_pair(weights_of(words.z), g) << 16u) | (stored_pair(weights_of(words.w), g) << 24u);
}
