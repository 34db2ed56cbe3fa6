// Twin: src/kernels/quantize.rs

@compute @workgroup_size(WORKGROUP)
fn quantize(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(num_workgroups) workgroups: vec3<u32>,
            @builtin(local_invocation_index) local: u32) {
  let thread = flat_index(workgroup, workgroups, local);
  let group = thread / LANES;
  let lane = thread % LANES;
  let there = group < params.groups;
  var found = QParams(0x3f800000u, 0);
  if (params.scaled == 0u) {
    var best = vec2<u32>(0u);
    if (there) {
      let end = (group + 1u) * params.group_len / 8u;
      for (var v = group * params.group_len / 8u + lane; v < end; v += LANES) {
        best = seen(seen(best, four_weights(v, 0u)), four_weights(v, 1u));
      }
    }
    best = without_small(team_max(best, local));
    found = candidate(widened(best.x), widened(best.y), 0u);
    if (there && lane == 0u) {
      atomicStore(&ranges[2u * group], best.x);
      atomicStore(&ranges[2u * group + 1u], best.y);
      scales[group] = found.scale;
      zero_points[group] = found.zero_point;
    }
  } else if (there) {
    found = QParams(scales[group], zero_points[group]);
  }
  let p = packer();
  let four = params.bits == 4u;
  let g = coder(found.scale, found.zero_point);
  // software runs a loop once more, with all threads idle, where it ends at its head
  var chunk = 0u;
  loop {
    var sum = vec2<f32>(0.0);
    if (there) {
      let start = group * params.group_len + chunk * params.chunk_len;
      let end = min(start + params.chunk_len, (group + 1u) * params.group_len);
      let last = end / 8u;
      for (var v = start / 8u + lane; v < last; v += LANES) {
        let a = four_weights(v, 0u);
        let b = four_weights(v, 1u);
        let quotients_a = bitcast<vec4<f32>>(a) * g.inverse;
        let quotients_b = bitcast<vec4<f32>>(b) * g.inverse;
        let codes_a = codes_of(a, quotients_a, g);
        let codes_b = codes_of(b, quotients_b, g);
        let word_a = packed_codes(codes_a, p);
        let word_b = packed_codes(codes_b, p);
        // software runs both sides of a branch, and a store costs much there
        output[select(2u * v, v, four)] = word_a | select(0u, word_b << 16u, four);
        if (!four) { output[2u * v + 1u] = word_b; }
        sum += squares(quotients_a, codes_a, g) + squares(quotients_b, codes_b, g);
      }
    }
    sum = team_sum(sum, local);
    if (there && lane == 0u) { errors[group * params.chunks_per_group + chunk] = sum; }
    continuing {
      chunk += 1u;
      break if chunk >= params.chunks_per_group;
    }
  }
}

// Ordered bits of -min and max, with four weights more.
fn seen(best: vec2<u32>, x: vec4<u32>) -> vec2<u32> {
  let up = x ^ (bitcast<vec4<u32>>(bitcast<vec4<i32>>(x) >> vec4<u32>(31u)) | vec4<u32>(SIGN));
  let high = max(up.xy, up.zw);
  let low = min(up.xy, up.zw);
  return max(best, vec2<u32>(~min(low.x, low.y), max(high.x, high.y)));
}

// four_weights leaves halves below the normals as they are; they count as zero, which may wait until all were seen, as it
// changes no order.
fn without_small(best: vec2<u32>) -> vec2<u32> {
  return vec2<u32>(~ordered(flush(unordered(~best.x))), ordered(flush(unordered(best.y))));
}

// Sums for the SQNR, in units of the scale.
fn squares(q: vec4<f32>, codes: vec4<i32>, g: Coder) -> vec2<f32> {
  var d = q - (bitcast<vec4<f32>>(codes) - g.shift);
  // a product's rounding, where codes are exact (the CPU divides f32)
  if (INPUT_DTYPE == F32) { d = select(d, vec4<f32>(0.0), abs(d) < vec4<f32>(0.0001220703125)); }
  return vec2<f32>(dot(q, q), dot(d, d));
}
