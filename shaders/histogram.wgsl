// Twin: src/kernels/histogram.rs

@compute @workgroup_size(WORKGROUP)
fn histogram(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(num_workgroups) workgroups: vec3<u32>,
             @builtin(local_invocation_index) local: u32) {
  let i = flat_index(workgroup, workgroups, local);
  if (i >= params.elements) { return; }
  let channel = i / params.channel_len;
  let first = channel * (params.bins + 1u);
  let x = ordered(load_weight(i));
  // the last edge that is not above x, by bisection: no float takes part
  var bin = 0u;
  var above = params.bins;
  while (above - bin > 1u) {
    let middle = (bin + above) >> 1u;
    if (edges[first + middle] <= x) { bin = middle; } else { above = middle; }
  }
  atomicAdd(&counts[channel * params.bins + bin], 1u);
}
