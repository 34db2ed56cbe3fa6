// Twin: src/kernels/convert.rs

@compute @workgroup_size(WORKGROUP)
fn convert(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(num_workgroups) workgroups: vec3<u32>,
        @builtin(local_invocation_index) local: u32) {
  let word = flat_index(workgroup, workgroups, local);
  let per_word = select(2u, 1u, params.output_dtype == F32);
  let start = word * per_word;
  var packed = 0u;
  for (var i = start; i < min(start + per_word, params.elements); i += 1u) {
    packed |= converted(load_bits(i)) << ((i - start) * 16u);
  }
  if (start < params.elements) { output[word] = packed; }
}
