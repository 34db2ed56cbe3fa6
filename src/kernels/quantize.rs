//! Scales, codes and errors in one reading of the weights: [`super::minmax`], [`super::qparams`], [`super::quantize_pack`]
//! and [`super::error`] one after another, group by group, or the last two where the scales are there (`scaled`).
//!
//! For groups and rows of whole runs of eight weights; the bytes are those of the four steps. Twin:
//! `shaders/quantize.wgsl`.

use super::{
    Binding, Kernel, TileBuffers, TileParams, arithmetic::*, bits::*, minmax::chunk_range,
    qparams::range_qparams,
};
use multiversion::multiversion;
use std::ops::Range;

/// The step.
pub const KERNEL: Kernel = Kernel {
    name: "quantize",
    wgsl: include_str!("../../shaders/quantize.wgsl"),
    cpu: quantize,
    threads: |p| p.groups,
    team: true,
    touches: |p| {
        vec![
            (Binding::Input, p.float_words(p.input_dtype) as usize),
            (Binding::Ranges, 2 * p.groups as usize),
            (Binding::Scales, p.groups as usize),
            (Binding::ZeroPoints, p.groups as usize),
            (Binding::Output, p.code_words() as usize),
            (Binding::Errors, 2 * p.chunks as usize),
        ]
    },
};

/// Whether the step can do what the four do.
pub fn suits(params: &TileParams) -> bool {
    params.group_len.is_multiple_of(8) && params.row_len.is_multiple_of(8)
}

/// Weights that are handled together: they stay in the nearest cache from range to code.
const SPAN: usize = 8192;
/// Most parts of groups that are handled together.
const PARTS: usize = 64;
/// Weights coded at a time: a whole number of vectors everywhere.
const RUN: usize = 32;
/// 3 · 2^22: adding it rounds to an integer, ties to even, which lands in the low bits.
const MAGIC: f32 = 12_582_912.0;

struct Scratch {
    codes: [u8; SPAN],
    /// Sums of every part, lane by lane.
    sums: [[[f32; RUN]; 2]; PARTS],
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2", "x86_64+sse4.1"))]
fn quantize(params: &TileParams, b: &mut TileBuffers) {
    let mut scratch = Scratch { codes: [0; SPAN], sums: [[[0.0; RUN]; 2]; PARTS] };
    let parts = (SPAN / params.chunk_len.max(1) as usize).clamp(1, PARTS);
    let per_group = params.chunks_per_group as usize;
    let groups = params.groups as usize;
    let together = (parts / per_group.max(1)).max(1);
    for first in (0..groups).step_by(together) {
        let last = (first + together).min(groups);
        if params.scaled == 0 {
            for group in first..last {
                let mut range = [0, 0];
                for chunk in 0..params.chunks_per_group {
                    let (low, high) = chunk_range(params, &b.input, params.chunk_of(group as u32, chunk));
                    range = [range[0].max(low), range[1].max(high)];
                }
                b.ranges[2 * group..][..2].copy_from_slice(&range);
            }
            let ranges = &b.ranges[2 * first..2 * last];
            range_qparams(params, ranges, &mut b.scales[first..last], &mut b.zero_points[first..last]);
        }
        for chunk in (first * per_group..last * per_group).step_by(parts) {
            let chunks = chunk..(chunk + parts).min(last * per_group);
            let input = std::mem::take(&mut b.input);
            let halves: &[u16] = bytemuck::cast_slice(&input);
            match params.input_dtype {
                F32 => encode(params, &input, flush, b, chunks, &mut scratch),
                F16 => {
                    let decode = |h| flush(f16_to_f32(u32::from(h)));
                    encode(params, halves, decode, b, chunks, &mut scratch);
                }
                // below the normals every code is that of zero, whatever the scale
                _ => encode(params, halves, |h: u16| u32::from(h) << 16, b, chunks, &mut scratch),
            }
            b.input = input;
        }
    }
}

/// Codes and errors of some parts of groups.
#[inline(always)]
fn encode<T: Copy + Default>(
    params: &TileParams,
    weights: &[T],
    decode: impl Fn(T) -> u32 + Copy,
    b: &mut TileBuffers,
    chunks: Range<usize>,
    scratch: &mut Scratch,
) {
    let span = |chunk: usize| {
        let (chunk, per_group) = (chunk as u32, params.chunks_per_group);
        params.chunk_of(chunk / per_group, chunk % per_group)
    };
    let whole = span(chunks.start).start..span(chunks.end - 1).end;
    for (chunk, sums) in chunks.clone().zip(&mut scratch.sums) {
        let group = chunk / params.chunks_per_group as usize;
        let coder = Coder::new(params, b.scales[group], b.zero_points[group]);
        let span = span(chunk);
        let codes = &mut scratch.codes[span.start - whole.start..span.end - whole.start];
        *sums = coder.code(&weights[span], decode, codes);
    }
    // whole words, as rows and groups are whole runs of eight; packed at once, long after the codes were stored
    let bits = params.bits as usize;
    let out: &mut [u8] = bytemuck::cast_slice_mut(&mut b.output);
    let out = &mut out[whole.start * bits / 8..whole.end * bits / 8];
    let codes = &scratch.codes[..whole.len()];
    if bits == 8 {
        out.copy_from_slice(codes);
    } else {
        for (byte, pair) in out.iter_mut().zip(codes.as_chunks::<2>().0) {
            let pair = u16::from_le_bytes(*pair) & 0x0f0f;
            *byte = (pair | (pair >> 4)) as u8;
        }
    }
    for (errors, sums) in b.errors[chunks].iter_mut().zip(&scratch.sums) {
        *errors = sums.map(total);
    }
}

#[derive(Clone, Copy)]
struct Coder {
    scale: f32,
    /// Added to a quotient: rounds it to its code.
    shift: f32,
    lowest: f32,
    highest: f32,
    offset: u32,
}

impl Coder {
    #[inline(always)]
    fn new(params: &TileParams, scale: u32, zero_point: i32) -> Self {
        Coder {
            scale: f32::from_bits(scale),
            shift: MAGIC + zero_point as f32,
            lowest: MAGIC + params.qmin as f32,
            highest: MAGIC + params.qmax as f32,
            offset: params.code_offset as u32,
        }
    }

    /// Codes the weights, a byte each, and returns the sums of [`super::error`], lane by lane.
    #[inline(always)]
    fn code<T: Copy + Default>(
        &self,
        weights: &[T],
        decode: impl Fn(T) -> u32 + Copy,
        codes: &mut [u8],
    ) -> [[f32; RUN]; 2] {
        let mut sums = [[0.0; RUN]; 2];
        let (runs, rest) = weights.as_chunks::<RUN>();
        let (code_runs, code_rest) = codes.as_chunks_mut::<RUN>();
        for (run, codes) in runs.iter().zip(code_runs) {
            self.run(run, decode, codes, &mut sums);
        }
        if !rest.is_empty() {
            // zeros add nothing to the sums
            let (mut run, mut codes) = ([T::default(); RUN], [0; RUN]);
            run[..rest.len()].copy_from_slice(rest);
            self.run(&run, decode, &mut codes, &mut sums);
            code_rest.copy_from_slice(&codes[..rest.len()]);
        }
        sums
    }

    #[inline(always)]
    fn run<T: Copy>(
        &self,
        weights: &[T; RUN],
        decode: impl Fn(T) -> u32,
        codes: &mut [u8; RUN],
        [signal, noise]: &mut [[f32; RUN]; 2],
    ) {
        for i in 0..RUN {
            let quotient = f32::from_bits(decode(weights[i])) / self.scale;
            let mut code = quotient + self.shift;
            code = if code > self.lowest { code } else { self.lowest };
            code = if code < self.highest { code } else { self.highest };
            codes[i] = code.to_bits().wrapping_add(self.offset) as u8;
            let error = quotient - (code - self.shift);
            signal[i] += quotient * quotient;
            noise[i] += error * error;
        }
    }
}

/// The sum of all, in few steps.
#[inline(always)]
fn total(mut sums: [f32; RUN]) -> f32 {
    let mut half = RUN / 2;
    while half > 0 {
        for i in 0..half {
            sums[i] += sums[i + half];
        }
        half /= 2;
    }
    sums[0]
}
