//! Codes, what they decode to, and the sums of errors.

use crate::made::*;
use monoquant::kernels::{Kernel, TileParams, dequantize, error, minmax, qparams, quantize, quantize_pack};
use proptest::{collection::vec, prelude::*};

const QUANTIZE: [&Kernel; 3] = [&minmax::KERNEL, &qparams::KERNEL, &quantize_pack::KERNEL];

/// f32 weights of some codes.
fn decoded(params: TileParams, words: &[u32], scales: &[u32], zero_points: &[i32]) -> Vec<f32> {
    let buffers = run(
        params,
        &[&dequantize::KERNEL],
        bytemuck::cast_slice(&words[..params.code_words() as usize]),
        |b| {
            b.scales.copy_from_slice(scales);
            b.zero_points.copy_from_slice(zero_points);
        },
    );
    assert_eq!(buffers.counts, [0, 0]);
    bytemuck::cast_slice(&buffers.output).to_vec()
}

/// Codes of a grid, and scales and zero points of their groups.
fn coded() -> impl Strategy<Value = (TileParams, Vec<i32>, Vec<f32>, Vec<i32>)> {
    let scale = (1.0f32..2.0, -100i32..100, any::<bool>())
        .prop_map(|(x, e, negative)| x * 2f32.powi(e) * if negative { -1.0 } else { 1.0 });
    (tiles(1), vec(scale, 18), vec(any::<i32>(), 18 + 6 * 3 * 400)).prop_map(|(tile, scales, numbers)| {
        let params = TileParams { input_dtype: 0, output_dtype: 0, ..tile.params };
        let groups = params.groups as usize;
        let code = |&n: &i32| n.rem_euclid(params.qmax - params.qmin + 1) + params.qmin;
        let zero_points =
            numbers[..groups].iter().map(|n| if params.symmetric == 1 { 0 } else { code(n) }).collect();
        (
            params,
            numbers[18..][..params.elements as usize].iter().map(code).collect(),
            scales[..groups].to_vec(),
            zero_points,
        )
    })
}

properties! {
    /// A weight decodes to within half a step of where its range puts it: `|x − x̂| ≤ s/2`, and what the rounding of the
    /// scale and of zero's code cut off at the ends.
    [minmax qparams quantize_pack dequantize]
    fn weights_come_back_within_half_a_step(tile in tiles(1)) {
        let params = tile.params;
        let buffers = tile.run(&QUANTIZE);
        let back = decoded(params, &buffers.output, &buffers.scales, &buffers.zero_points);
        let groups = tile.weights().into_iter().zip(back).enumerate();
        let qparams = crate::made::qparams(&buffers);
        for (i, (x, back)) in groups {
            let (scale, zero_point) = qparams[i / params.group_len as usize];
            let [least, most] = [params.qmin, params.qmax].map(|q| (f64::from(q) - zero_point) * scale);
            let nearest = x.clamp(least, most);
            // the quotient is rounded to f32, and so is the product
            let rounded = 2f64.powi(-23) * (256.0 * scale + nearest.abs());
            prop_assert!((f64::from(back) - nearest).abs() <= scale / 2.0 + rounded, "{} became {} by {}", x, back, scale);
            let stored = monoquant::kernels::float(params.scale_dtype);
            let cut = scale / 2.0 + 512.0 * rounding(stored) * scale + if params.scale_dtype == 1 { 256.0 * 2f64.powi(-25) } else { 0.0 };
            prop_assert!((x - nearest).abs() <= cut, "{} was cut to {} by {}", x, nearest, scale);
        }
    }

    /// Decoded weights have the codes that they were decoded from, with the stored scale and zero point: any code, any
    /// scale of either sign. The words are the same, the filling between rows too.
    [quantize_pack dequantize]
    fn codes_come_back_exactly((params, codes, scales, zero_points) in coded()) {
        let weights: Vec<f32> = codes.iter().enumerate().map(|(i, q)| {
            let group = i / params.group_len as usize;
            (q - zero_points[group]) as f32 * scales[group]
        }).collect();
        let bits: Vec<u32> = scales.iter().map(|s| s.to_bits()).collect();
        let quantized = |weights: &[f32]| run(params, &[&quantize_pack::KERNEL], bytemuck::cast_slice(weights), |b| {
            b.scales.copy_from_slice(&bits);
            b.zero_points.copy_from_slice(&zero_points);
        });
        let once = quantized(&weights);
        prop_assert_eq!(&crate::made::codes(&params, &once.output), &codes);
        let back = decoded(params, &once.output, &bits, &zero_points);
        prop_assert!(back.iter().zip(&weights).all(|(a, b)| a == b), "decoded to something else");
        prop_assert_eq!(quantized(&back).output, once.output);
    }

    /// Weights, quantized, decoded and quantized with what was stored have the same codes.
    [minmax qparams quantize_pack dequantize]
    fn quantizing_again_changes_no_code(tile in tiles(1)) {
        let first = tile.run(&QUANTIZE);
        let params = TileParams { input_dtype: 0, ..tile.params };
        let back = decoded(params, &first.output, &first.scales, &first.zero_points);
        let second = run(params, &[&quantize_pack::KERNEL], bytemuck::cast_slice(&back), |b| {
            b.scales.copy_from_slice(&first.scales);
            b.zero_points.copy_from_slice(&first.zero_points);
        });
        prop_assert_eq!(first.output, second.output);
    }

    /// A larger weight has no smaller code; with a negative scale, no larger one.
    [quantize_pack]
    fn codes_are_in_the_order_of_the_weights(
        mut weights in values(200), scale in 0.001f32..0.1, negative in any::<bool>(), bits in prop::sample::select(vec![4, 8]), zero_point in -8i32..8
    ) {
        weights.sort_by(f32::total_cmp);
        let params = TileParams { row_len: 200, channel_len: 200, ..Default::default() };
        let params = params.with_groups(200, 200).with_grid(bits, false, true);
        let buffers = run(params, &[&quantize_pack::KERNEL], bytemuck::cast_slice(&weights), |b| {
            b.scales[0] = if negative { -scale } else { scale }.to_bits();
            b.zero_points[0] = zero_point;
        });
        let mut codes = codes(&params, &buffers.output);
        if negative {
            codes.reverse();
        }
        prop_assert!(codes.is_sorted());
    }

    /// Half-way between two codes it is the even one.
    [quantize_pack quantize]
    fn halves_go_to_the_even_code(
        below in vec(-300i32..300, 200), e in -20i32..20, negative in any::<bool>(), bits in prop::sample::select(vec![4, 8]), zero_point in -8i32..8
    ) {
        let scale = 2f32.powi(e) * if negative { -1.0 } else { 1.0 };
        let weights: Vec<f32> = below.iter().map(|&n| (n as f32 + 0.5) * scale).collect();
        let params = TileParams { row_len: 200, channel_len: 200, scaled: 1, ..Default::default() };
        let params = params.with_groups(200, 200).with_grid(bits, false, true);
        let even = |n: i32| (n + (n & 1)).clamp(params.qmin, params.qmax);
        let expected: Vec<i32> = below.iter().map(|n| even(n + zero_point)).collect();
        for kernel in [&quantize_pack::KERNEL, &quantize::KERNEL] {
            let buffers = run(params, &[kernel], bytemuck::cast_slice(&weights), |b| {
                b.scales[0] = scale.to_bits();
                b.zero_points[0] = zero_point;
            });
            prop_assert_eq!(&codes(&params, &buffers.output), &expected, "{}", kernel.name);
        }
    }

    /// The kernel of all steps at once makes what the steps make one by one, and sums of errors that differ by rounding.
    [quantize minmax qparams quantize_pack error]
    fn the_fused_kernel_does_what_its_steps_do(tile in tiles(8)) {
        prop_assert!(quantize::suits(&tile.params));
        let apart = tile.run(&[&QUANTIZE[..], &[&error::KERNEL]].concat());
        let fused = tile.run(&[&quantize::KERNEL]);
        prop_assert_eq!(&fused.scales, &apart.scales);
        prop_assert_eq!(&fused.zero_points, &apart.zero_points);
        prop_assert_eq!(&fused.output, &apart.output);
        for (fused, apart) in fused.errors.as_flattened().iter().zip(apart.errors.as_flattened()) {
            prop_assert!((fused - apart).abs() <= 1e-3 * apart + 1e-5, "{} and {}", fused, apart);
        }
    }

    /// Sums of errors are those of a plain computation in f64, in units of the scale.
    [error quantize]
    fn sums_of_errors_are_those_of_plain_arithmetic(tile in tiles(8)) {
        let params = tile.params;
        let buffers = tile.run(&[&QUANTIZE[..], &[&error::KERNEL]].concat());
        let fused = tile.run(&[&quantize::KERNEL]);
        let codes = codes(&params, &buffers.output);
        let (weights, qparams) = (tile.weights(), crate::made::qparams(&buffers));
        for chunk in 0..params.chunks {
            let group = chunk / params.chunks_per_group;
            let (scale, zero_point) = qparams[group as usize];
            let mut expected = [0.0; 2];
            for i in params.chunk_of(group, chunk % params.chunks_per_group) {
                let quotient = weights[i] / scale;
                expected[0] += quotient * quotient;
                expected[1] += (quotient - (f64::from(codes[i]) - zero_point)).powi(2);
            }
            for found in [buffers.errors[chunk as usize], fused.errors[chunk as usize]] {
                for (found, expected) in found.into_iter().zip(expected) {
                    prop_assert!((f64::from(found) - expected).abs() <= 1e-3 * expected + 1e-4, "{} instead of {}", found, expected);
                }
            }
        }
    }
}
