// Twin: src/kernels/block_pack.rs

// The code of a weight, as it is stored.
fn stored(i: u32) -> u32 {
  let group = i / params.group_len;
  let code = block_code(load_weight(i), scales[params.groups + group], scales[2u * params.groups + group]);
  return u32(code + params.code_offset) & 0xffu;
}

// Byte `at` of the eight steps and lows of 6 bits each in a Q4_K block whose first group is `group`.
fn six_bits(group: u32, at: u32) -> u32 {
  let a = u32(zero_points[group + (at & 3u)]);
  let b = u32(zero_points[group + (at & 3u) + 4u]);
  if (at < 4u) { return (a & 63u) | (((b >> 4u) & 3u) << 6u); }
  if (at < 8u) { return ((a >> 8u) & 63u) | (((b >> 12u) & 3u) << 6u); }
  return (b & 15u) | (((b >> 8u) & 15u) << 4u);
}

fn block_byte(block: u32, at: u32) -> u32 {
  let first = block * block_len();
  let group = first / params.group_len;
  let halves = scales[3u * params.groups + group];
  switch (params.block) {
    case Q4_0: {
      if (at < 2u) { return halves >> (8u * at); }
      return stored(first + at - 2u) | (stored(first + at + 14u) << 4u);
    }
    case Q4_1: {
      if (at < 4u) { return halves >> (8u * at); }
      return stored(first + at - 4u) | (stored(first + at + 12u) << 4u);
    }
    case Q8_0: {
      if (at < 2u) { return halves >> (8u * at); }
      return stored(first + at - 2u);
    }
    case Q4_K: {
      if (at < 4u) { return halves >> (8u * at); }
      if (at < 16u) { return six_bits(group, at - 4u); }
      let i = first + (at - 16u) / 32u * 64u + (at - 16u) % 32u;
      return stored(i) | (stored(i + 32u) << 4u);
    }
    default: {
      if (at < 128u) {
        let i = first + at + at / 64u * 64u;
        return (stored(i) & 15u) | ((stored(i + 64u) & 15u) << 4u);
      }
      if (at < 192u) {
        let i = first + (at - 128u) + (at - 128u) / 32u * 96u;
        return (stored(i) >> 4u) | ((stored(i + 32u) >> 4u) << 2u) | ((stored(i + 64u) >> 4u) << 4u)
          | ((stored(i + 96u) >> 4u) << 6u);
      }
      if (at < 208u) { return u32(zero_points[group + at - 192u]); }
      return halves >> (8u * (at - 208u));
    }
  }
}

@compute @workgroup_size(WORKGROUP)
fn block_pack(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(num_workgroups) workgroups: vec3<u32>,
              @builtin(local_invocation_index) local: u32) {
  let word = flat_index(workgroup, workgroups, local);
  let bytes = params.elements / block_len() * block_bytes();
  if (4u * word >= bytes) { return; }
  var packed = 0u;
  for (var i = 4u * word; i < min(4u * word + 4u, bytes); i += 1u) {
    packed |= (block_byte(i / block_bytes(), i % block_bytes()) & 0xffu) << (8u * (i & 3u));
  }
  output[word] = packed;
}
