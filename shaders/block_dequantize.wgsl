// Twin: src/kernels/block_dequantize.rs

fn input_byte(i: u32) -> u32 { return (input_word(i >> 2u) >> (8u * (i & 3u))) & 0xffu; }

// The f32 of an f16 that begins at an even byte.
fn input_half(i: u32) -> u32 { return f16_to_f32((input_word(i >> 2u) >> (8u * (i & 2u))) & 0xffffu); }

// d * q - low, where both are exact. A scale that is not finite makes everything infinite, so that it is counted.
fn decoded(d: u32, q: i32, low: u32) -> u32 {
  if ((d & INFINITY) == INFINITY || (low & INFINITY) == INFINITY) { return INFINITY; }
  return flush(bitcast<u32>(opaque(multiply(d, bitcast<u32>(f32(q)))) - bitcast<f32>(low)));
}

// Step and low number `sub` of a Q4_K block, 6 bits each.
fn six_bits(scales: u32, sub: u32) -> vec2<u32> {
  let a = input_byte(scales + (sub & 3u));
  let b = input_byte(scales + 4u + (sub & 3u));
  if (sub < 4u) { return vec2<u32>(a & 63u, b & 63u); }
  let c = input_byte(scales + 4u + sub);
  return vec2<u32>((c & 15u) | ((a >> 6u) << 4u), (c >> 4u) | ((b >> 6u) << 4u));
}

fn weight(i: u32) -> u32 {
  let at = i / block_len() * block_bytes();
  let j = i % block_len();
  switch (params.block) {
    case Q4_0: {
      let q = (input_byte(at + 2u + (j & 15u)) >> (j / 16u * 4u)) & 15u;
      return decoded(input_half(at), i32(q) - 8, 0u);
    }
    case Q4_1: {
      let q = (input_byte(at + 4u + (j & 15u)) >> (j / 16u * 4u)) & 15u;
      return decoded(input_half(at), i32(q), input_half(at + 2u) ^ SIGN);
    }
    case Q8_0: {
      return decoded(input_half(at), i32(input_byte(at + 2u + j) << 24u) >> 24u, 0u);
    }
    case Q4_K: {
      let scale = six_bits(at + 4u, j / 32u);
      let q = (input_byte(at + 16u + j / 64u * 32u + j % 32u) >> (j / 32u % 2u * 4u)) & 15u;
      let dmin = input_half(at + 2u);
      if ((dmin & INFINITY) == INFINITY) { return INFINITY; }
      return decoded(input_half(at), i32(scale.x * q), multiply(dmin, bitcast<u32>(f32(i32(scale.y)))));
    }
    default: {
      let low = (input_byte(at + j / 128u * 64u + j % 64u) >> (j / 64u % 2u * 4u)) & 15u;
      let high = (input_byte(at + 128u + j / 128u * 32u + j % 32u) >> (j / 32u % 4u * 2u)) & 3u;
      let step = i32(input_byte(at + 192u + j / 16u) << 24u) >> 24u;
      return decoded(input_half(at + 208u), step * (i32(low | (high << 4u)) - 32), 0u);
    }
  }
}

@compute @workgroup_size(WORKGROUP)
fn block_dequantize(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(num_workgroups) workgroups: vec3<u32>,
                    @builtin(local_invocation_index) local: u32) {
  let word = flat_index(workgroup, workgroups, local);
  let per_word = select(2u, 1u, params.output_dtype == F32);
  let start = word * per_word;
  if (start >= params.elements) { return; }
  var packed = 0u;
  for (var i = start; i < start + per_word; i += 1u) {
    packed |= converted(weight(i)) << ((i - start) * 16u);
  }
  output[word] = packed;
}
