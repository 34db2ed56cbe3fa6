//! The exact arithmetic of common.wgsl on every adapter, against the Rust twin: millions of directed and random inputs.

use monoquant::{
    backend::{Backend, Pass, Results, Tile, run_on_cpu},
    gpu::{self, GpuBackend, GpuOptions},
    kernels::{Binding, Kernel, TileBuffers, TileParams, arithmetic::*, bits, cases::Random},
};

const WORDS: u32 = 11;

/// Pairs of floats in, the results of every function out.
static PROBE: Kernel = Kernel {
    name: "probe",
    wgsl: "
@compute @workgroup_size(WORKGROUP)
fn probe(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(num_workgroups) workgroups: vec3<u32>,
         @builtin(local_invocation_index) local: u32) {
  let pair = flat_index(workgroup, workgroups, local);
  if (2u * pair >= params.elements) { return; }
  let a = input_word(2u * pair);
  let b = input_word(2u * pair + 1u);
  let s = 0x3f800000u | (b & 0x7fffffu);
  output[11u * pair] = div_rn(a & MAGNITUDE, max(b & MAGNITUDE, MIN_NORMAL));
  output[11u * pair + 1u] = f32_to_f16(a);
  output[11u * pair + 2u] = f32_to_bf16(a);
  output[11u * pair + 3u] = f16_to_f32(a >> 16u);
  output[11u * pair + 4u] = ordered(a);
  output[11u * pair + 5u] = flush(a);
  output[11u * pair + 6u] = round_quotient(a & MAGNITUDE, s, 1.0 / bitcast<f32>(s), i32(b & 1u));
  let denominator = i32(b & 0xfffu) + 1;
  output[11u * pair + 7u] = unordered(a);
  output[11u * pair + 8u] = u32(fixed_quotient(i32(a >> 5u), denominator + i32(a >> 17u)));
  output[11u * pair + 9u] = u32(block_code(flush(a & 0xc0ffffffu), s - 0x800000u, 0u));
  output[11u * pair + 10u] = code_error(i32(a & 0x1fffu) - 4096, denominator, i32(b >> 16u), bitcast<f32>(div_rn(0x3f800000u, bitcast<u32>(f32(denominator)))));
}
",
    cpu: |params, b| {
        for pair in 0..params.elements as usize / 2 {
            let (x, y) = (b.input[2 * pair], b.input[2 * pair + 1]);
            let s = 0x3f80_0000 | (y & 0x7f_ffff);
            let denominator = (y & 0xfff) as i32 + 1;
            let results = [
                div_rn(x & !(1 << 31), (y & !(1 << 31)).max(0x80_0000)),
                f32_to_f16(x),
                f32_to_bf16(x),
                f16_to_f32(x >> 16),
                ordered(x),
                flush(x),
                round_quotient(x & !(1 << 31), s, (y & 1) as i32),
                unordered(x),
                fixed_quotient((x >> 5) as i32, denominator + (x >> 17) as i32) as u32,
                block_code::<{ bits::Q4_0 }>(params, flush(x & 0xc0ff_ffff), s - 0x80_0000, 0) as u32,
                code_error(
                    params,
                    (x & 0x1fff) as i32 - 4096,
                    denominator,
                    (y >> 16) as i32,
                    1.0 / denominator as f32,
                ),
            ];
            b.output[WORDS as usize * pair..][..WORDS as usize].copy_from_slice(&results);
        }
    },
    threads: |p| p.elements / 2,
    team: false,
    touches: |p| {
        vec![(Binding::Input, p.elements as usize), (Binding::Output, (p.elements / 2 * WORDS) as usize)]
    },
};

/// Where rounding goes wrong: mantissas at their edges, exponents at theirs, halves of 16-bit steps; then anything.
fn inputs() -> Vec<u32> {
    let mantissas = [
        0, 1, 2, 3, 0xfff, 0x1000, 0x1001, 0x7fff, 0x8000, 0x8001, 0x2a_aaaa, 0x3f_ffff, 0x40_0000,
        0x55_5555, 0x7f_efff, 0x7f_f000, 0x7f_fffe, 0x7f_ffff,
    ];
    let exponents =
        [0, 1, 2, 3, 64, 101, 102, 103, 112, 113, 125, 126, 127, 128, 137, 142, 143, 190, 252, 253, 254];
    let directed: Vec<u32> = exponents
        .iter()
        .flat_map(|e| mantissas.iter().map(move |m| e << 23 | m))
        .flat_map(|x| [x, x | 1 << 31])
        .collect();
    let mut pairs: Vec<u32> =
        directed.iter().flat_map(|&a| directed.iter().step_by(2).flat_map(move |&b| [a, b])).collect();
    let mut random = Random(11);
    // near ties of the quotient: x is (k + 1/2) s, or a neighbour of it
    for _ in 0..1 << 19 {
        let word = random.next_u64();
        let s = 0x3f80_0000 | (word as u32 & 0x7f_ffff);
        let k = (word >> 23 & 0x7f) as f32 + 0.5;
        let x = (k * f32::from_bits(s)).to_bits();
        pairs.extend([(x as i32 + (word >> 40 & 7) as i32 - 3) as u32, s]);
    }
    for _ in 0..1 << 21 {
        let word = random.next_u64();
        pairs.extend(
            [word as u32, (word >> 32) as u32].map(|w| if w >> 23 & 0xff == 0xff { w ^ 1 << 29 } else { w }),
        );
    }
    pairs
}

fn differences(backend: &mut GpuBackend, inputs: &[u32]) -> Vec<String> {
    let mut differences = Vec::new();
    for pairs in inputs.chunks(1 << 20) {
        let params = TileParams { elements: pairs.len() as u32, qmin: -32, qmax: 31, ..Default::default() };
        let pass = Pass { params, kernels: vec![&PROBE], preload: vec![], wants: &[Binding::Output] };
        let tile = Tile::one(0, 4 * pairs.len(), pass);
        let mut expected = TileBuffers::default();
        expected.resize(&tile.lengths());
        expected.input[..pairs.len()].copy_from_slice(pairs);
        run_on_cpu(&tile.passes[0], &mut expected);
        let mut fill = |bytes: &mut [u8]| {
            bytes.copy_from_slice(bytemuck::cast_slice(pairs));
            Ok(())
        };
        backend.submit(tile, &mut fill).unwrap();
        let mut take = |_, results: &[Results]| {
            for (i, (&got, &right)) in
                results[0].get(Binding::Output).iter().zip(&expected.output).enumerate()
            {
                let (a, b) = (pairs[i / WORDS as usize * 2], pairs[i / WORDS as usize * 2 + 1]);
                // the payload of a NaN is nobody's business
                let nan = |x: u32| x & 0x7fff_ffff > 0x7f80_0000;
                if got != right && !(nan(got) && nan(right)) && differences.len() < 20 {
                    differences.push(format!(
                        "function {} of {a:#x}, {b:#x}: {got:#x}, the CPU has {right:#x}",
                        i % WORDS as usize
                    ));
                }
            }
            Ok(())
        };
        assert!(backend.collect(&mut take).unwrap());
    }
    differences
}

#[test]
fn every_adapter_computes_exactly() {
    let inputs = inputs();
    assert!(inputs.len() > 4 << 20);
    for adapter in gpu::adapters() {
        let mut backend = GpuBackend::open(&adapter, GpuOptions::default()).unwrap();
        let differences = differences(&mut backend, &inputs);
        assert!(differences.is_empty(), "{}: {differences:#?}", adapter.facts.name);
    }
}

#[test]
fn a_broken_variant_is_noticed() {
    let inputs = inputs();
    for corrupt in [
        ("(quotient >> 1u) + (quotient & 1u)", "(quotient >> 1u)"),
        ("exponent == 0 && quotient >= 0xfffffeu", "false"),
        ("if (exponent >= 255)", "if (exponent >= 256)"),
        ("+ 0xfffu", "+ 0xffeu"),
        ("(k & 1u)) >> shift", "1u) >> shift"),
        ("(x + 0x7fffu", "(x + 0x8000u"),
        ("134u - zeros", "133u - zeros"),
        ("u32(magnitude > middle ||", "u32(magnitude >= middle ||"),
        ("min(magnitude, middle) <= 8u", "min(magnitude, middle) < 0u"),
        ("<< 9u) + denominator)", "<< 9u))"),
        ("opaque(multiply(x, inverse)) + 8.5", "opaque(multiply(x, inverse)) + 8.499999"),
        ("code * step + 128", "code * step + 127"),
    ] {
        let options = GpuOptions { corrupt: Some(corrupt), ..Default::default() };
        let mut backend = GpuBackend::open(&gpu::adapters()[0], options).unwrap();
        assert!(!differences(&mut backend, &inputs).is_empty(), "{corrupt:?} was not noticed");
    }
}
