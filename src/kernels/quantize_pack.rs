//! Codes of the weights, packed into 32-bit words, lowest bits first; every row starts on a new word.
//!
//! code = clamp(RNE(x/scale + zero_point)) of the f32 quotient, ties to the even code; `code_offset` is added before
//! packing. Twin: `shaders/quantize_pack.wgsl`.

use super::{Binding, Kernel, TileBuffers, TileParams, arithmetic::*, bits::*};
use multiversion::multiversion;

/// The step.
pub const KERNEL: Kernel = Kernel {
    name: "quantize_pack",
    wgsl: include_str!("../../shaders/quantize_pack.wgsl"),
    cpu: quantize_pack,
    threads: TileParams::code_words,
    team: false,
    touches: |p| {
        vec![
            (Binding::Input, p.float_words(p.input_dtype) as usize),
            (Binding::Scales, p.groups as usize),
            (Binding::ZeroPoints, p.groups as usize),
            (Binding::Output, p.code_words() as usize),
        ]
    },
};

/// Weights that are decoded and coded at once: a multiple of the codes in a word.
const RUN: usize = 1024;

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2", "x86_64+sse4.1"))]
fn quantize_pack(params: &TileParams, b: &mut TileBuffers) {
    let mut codes = [0u32; RUN];
    let codes_per_word = params.codes_per_word() as usize;
    let row_len = params.row_len as usize;
    let words_per_row = params.words_per_row() as usize;
    let elements = params.elements as usize;
    for row_start in (0..elements).step_by(row_len.max(1)) {
        let row_end = (row_start + row_len).min(elements);
        let row_words = &mut b.output[row_start / row_len * words_per_row..];
        for run_start in (row_start..row_end).step_by(RUN) {
            let run_end = (run_start + RUN).min(row_end);
            let run = &mut codes[..run_end - run_start];
            load_weights(params, &b.input, run_start, run);
            code_groups(params, &b.scales, &b.zero_points, run_start, run);
            let length = run.len().next_multiple_of(codes_per_word);
            codes[run_end - run_start..length].fill(0);
            let words = &mut row_words[(run_start - row_start) / codes_per_word..];
            if params.bits == 4 {
                pack::<8, 4>(&codes[..length], words);
            } else {
                pack::<4, 8>(&codes[..length], words);
            }
        }
    }
}

/// Replaces the weights of a run, which begins at `start`, by their codes as they are stored.
#[inline(always)]
fn code_groups(params: &TileParams, scales: &[u32], zero_points: &[i32], start: usize, run: &mut [u32]) {
    let group_len = params.group_len as usize;
    let mut at = 0;
    while at < run.len() {
        let group = (start + at) / group_len;
        let end = ((group + 1) * group_len - start).min(run.len());
        let (s, z) = (scales[group], zero_points[group]);
        for x in &mut run[at..end] {
            *x = (code(params, *x, s, z) + params.code_offset) as u32;
        }
        at = end;
    }
}

/// One code. Bits of any finite float, of a scale of either sign.
#[inline(always)]
pub(super) fn code(params: &TileParams, x: u32, s: u32, z: i32) -> i32 {
    let k = round_quotient(x & MAGNITUDE, s & MAGNITUDE, z) as i32;
    let negative = (x ^ s) as i32 >> 31;
    ((k ^ negative) - negative + z).clamp(params.qmin, params.qmax)
}

#[inline(always)]
fn pack<const CODES: usize, const BITS: u32>(codes: &[u32], words: &mut [u32]) {
    let mask = u32::MAX >> (32 - BITS);
    for (word, codes) in words.iter_mut().zip(codes.as_chunks::<CODES>().0) {
        let mut packed = 0;
        for (i, code) in codes.iter().enumerate() {
            packed |= (code & mask) << (i as u32 * BITS);
        }
        *word = packed;
    }
}
