// Twin: src/kernels/dequantize.rs

@compute @workgroup_size(WORKGROUP)
fn dequantize(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(num_workgroups) workgroups: vec3<u32>,
              @builtin(local_invocation_index) local: u32) {
  let word = flat_index(workgroup, workgroups, local);
  let per_word = select(2u, 1u, params.output_dtype == F32);
  let start = word * per_word;
  if (start >= params.elements) { return; }
  let codes_per_word = 32u / params.bits;
  let words_per_row = (params.row_len + codes_per_word - 1u) / codes_per_word;
  var packed = 0u;
  for (var i = start; i < min(start + per_word, params.elements); i += 1u) {
    let row = i / params.row_len;
    let column = i % params.row_len;
    let stored = input_word(row * words_per_row + column / codes_per_word) >> ((column % codes_per_word) * params.bits);
    let q = decoded_code(stored);
    let group = i / params.group_len;
    let x = flush(multiply(bitcast<u32>(f32(q - zero_points[group])), scales[group]));
    packed |= converted(x) << ((i - start) * 16u);
  }
  output[word] = packed;
}
