//! Sums for the SQNR of every chunk, in units of the scale: `errors[chunk] = [Σ(x/s)², Σ(x/s − (q − z))²]`.
//!
//! Only a report is made of these, so they are outside the byte contract: devices may differ in the last digits.
//! Twin: `shaders/error.wgsl`.

use super::{Binding, CHUNK, Kernel, TileBuffers, TileParams, arithmetic::*};
use multiversion::multiversion;

/// The step.
pub const KERNEL: Kernel = Kernel {
    name: "error",
    wgsl: include_str!("../../shaders/error.wgsl"),
    cpu: error,
    threads: |p| p.chunks,
    team: true,
    touches: |p| {
        vec![
            (Binding::Input, p.float_words(p.input_dtype) as usize),
            (Binding::Scales, p.groups as usize),
            (Binding::ZeroPoints, p.groups as usize),
            (Binding::Output, p.code_words() as usize),
            (Binding::Errors, 2 * p.chunks as usize),
        ]
    },
};

/// Partial sums that are kept side by side, so that they fill a vector register.
const SUMS: usize = 16;

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2", "x86_64+sse4.1"))]
fn error(params: &TileParams, b: &mut TileBuffers) {
    let mut weights = [0u32; CHUNK as usize];
    let mut codes = [0i32; CHUNK as usize];
    for chunk in 0..params.chunks {
        let group = chunk / params.chunks_per_group;
        let start = group * params.group_len + (chunk % params.chunks_per_group) * params.chunk_len;
        let end = (start + params.chunk_len).min((group + 1) * params.group_len);
        let length = (end - start) as usize;
        load_weights(params, &b.input, start as usize, &mut weights[..length]);
        unpack(params, &b.output, start as usize, &mut codes[..length]);
        let z = b.zero_points[group as usize];
        let inverse = 1.0 / f32::from_bits(b.scales[group as usize]);
        let (mut signal, mut noise) = ([0f32; SUMS], [0f32; SUMS]);
        weights[length..].iter_mut().take(SUMS).for_each(|x| *x = 0);
        codes[length..].iter_mut().take(SUMS).for_each(|q| *q = z);
        let padded = length.next_multiple_of(SUMS);
        let lanes = weights[..padded].as_chunks::<SUMS>().0.iter().zip(codes[..padded].as_chunks::<SUMS>().0);
        for (xs, qs) in lanes {
            for i in 0..SUMS {
                let x = f32::from_bits(xs[i]) * inverse;
                let d = x - (qs[i] - z) as f32;
                signal[i] += x * x;
                noise[i] += d * d;
            }
        }
        b.errors[chunk as usize] = [signal.iter().sum(), noise.iter().sum()];
    }
}

/// Codes `start..start + codes.len()` of the tile.
#[inline(always)]
pub(super) fn unpack(params: &TileParams, packed: &[u32], start: usize, codes: &mut [i32]) {
    let row_len = params.row_len as usize;
    let words_per_row = params.words_per_row() as usize;
    let mut at = 0;
    while at < codes.len() {
        let (row, column) = ((start + at) / row_len, (start + at) % row_len);
        let end = (at + row_len - column).min(codes.len());
        let words = &packed[row * words_per_row..];
        if params.bits == 4 {
            unpack_row::<8, 4>(params, words, column, &mut codes[at..end]);
        } else {
            unpack_row::<4, 8>(params, words, column, &mut codes[at..end]);
        }
        at = end;
    }
}

#[inline(always)]
fn unpack_row<const CODES: usize, const BITS: usize>(
    params: &TileParams,
    words: &[u32],
    column: usize,
    codes: &mut [i32],
) {
    if !column.is_multiple_of(CODES) {
        for (i, code) in (column..).zip(codes) {
            *code = decoded_code(params, words[i / CODES] >> ((i % CODES) * BITS));
        }
        return;
    }
    for (codes, &word) in codes.chunks_mut(CODES).zip(&words[column / CODES..]) {
        if let Ok(codes) = <&mut [i32; CODES]>::try_from(&mut *codes) {
            for (i, code) in codes.iter_mut().enumerate() {
                *code = decoded_code(params, word >> (i * BITS));
            }
        } else {
            for (i, code) in codes.iter_mut().enumerate() {
                *code = decoded_code(params, word >> (i * BITS));
            }
        }
    }
}
