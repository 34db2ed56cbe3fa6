// Twin: src/kernels/search.rs

@compute @workgroup_size(WORKGROUP)
fn search(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(num_workgroups) workgroups: vec3<u32>,
          @builtin(local_invocation_index) local: u32) {
  let thread = flat_index(workgroup, workgroups, local);
  if (thread >= params.chunks * params.candidates) { return; }
  let chunk = thread / params.candidates;
  let group = chunk / params.chunks_per_group;
  let low = range_low(group);
  let high = range_high(group);
  let absmax = max(low, high);
  var sum_low = 0u;
  var sum_high = 0u;
  if (absmax >= MIN_SEARCH && absmax < INFINITY) {
    let four = params.bits == 4u;
    let tried = candidate(low, high, thread % params.candidates);
    let fine = div_rn(select(0x47800000u, 0x46000000u, four), absmax);      // 2^16 or 2^13
    let unit = div_rn(select(0x4b800000u, 0x4a000000u, four), absmax);      // 2^24 or 2^21
    let step = i32(round(bitcast<f32>(min(multiply(tried.scale & MAGNITUDE, unit), 0x4b000000u))));
    let inverse = bitcast<f32>(div_rn(0x44000000u, bitcast<u32>(f32(step))));   // 512 / step
    let flip = tried.scale >= SIGN;
    let signed_step = select(step, -step, flip);
    let start = group * params.group_len + (chunk % params.chunks_per_group) * params.chunk_len;
    let end = min(start + params.chunk_len, (group + 1u) * params.group_len);
    for (var i = start; i < end; i += 1u) {
      let x = i32(round(bitcast<f32>(load_weight(i)) * bitcast<f32>(fine)));
      let k = i32((u32(f32(abs(x)) * inverse) + 1u) >> 1u);
      let code = clamp(select(k, -k, (x < 0) != flip) + tried.zero_point, params.qmin, params.qmax);
      let decoded = ((code - tried.zero_point) * signed_step + 128) >> 8u;
      let difference = u32(min(abs(x - decoded), 65535));
      let square = difference * difference;
      sum_low += square;
      sum_high += u32(sum_low < square);
    }
  }
  atomicStore(&counts[2u * thread], sum_low);
  atomicStore(&counts[2u * thread + 1u], sum_high);
}
