// Twin: src/kernels/minmax.rs

fn seen(best: vec2<u32>, x: u32) -> vec2<u32> {
  let up = ordered(x);
  return max(best, vec2<u32>(~up, up));
}

@compute @workgroup_size(WORKGROUP)
fn minmax(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(num_workgroups) workgroups: vec3<u32>,
          @builtin(local_invocation_index) local: u32) {
  let thread = flat_index(workgroup, workgroups, local);
  let chunk = thread / LANES;
  let lane = thread % LANES;
  let group = chunk / params.chunks_per_group;
  var best = vec2<u32>(0u);
  if (chunk < params.chunks) {
    let start = group * params.group_len + (chunk % params.chunks_per_group) * params.chunk_len;
    let end = min(start + params.chunk_len, (group + 1u) * params.group_len);
    if (params.group_len % 8u != 0u) {
      for (var i = start + lane; i < end; i += LANES) { best = seen(best, load_weight(i)); }
    } else if (INPUT_DTYPE == F32) {
      for (var v = start / 4u + lane; v < end / 4u; v += LANES) {
        let words = input[v];
        best = seen(seen(best, flush(words.x)), flush(words.y));
        best = seen(seen(best, flush(words.z)), flush(words.w));
      }
    } else {
      for (var v = start / 8u + lane; v < end / 8u; v += LANES) {
        let words = input[v];
        best = seen_pair(seen_pair(best, words.x), words.y);
        best = seen_pair(seen_pair(best, words.z), words.w);
      }
    }
  }
  best = team_max(best, local);
  if (lane == 0u && chunk < params.chunks) {
    atomicMax(&ranges[2u * group], best.x);
    atomicMax(&ranges[2u * group + 1u], best.y);
  }
}

fn seen_pair(best: vec2<u32>, word: u32) -> vec2<u32> {
  let pair = weights_of(word);
  return seen(seen(best, pair.x), pair.y);
}
