//! Codes of a layer in the kernels' layout, whatever the file's.

use crate::{
    error::Result,
    packing,
    plan::{Coded, Layout},
    reader::Source,
    tensor::View,
    tiles::Piece,
};
use std::ops::Range;

/// Where a piece's codes lie in the kernels' layout, in bytes.
pub fn code_offset(bits: u32, packed: bool, cols: usize, piece: &Piece) -> u64 {
    if !packed {
        return piece.start(cols);
    }
    let bits = bits as usize;
    4 * (piece.row as u64 * (cols * bits).div_ceil(32) as u64 + (piece.col * bits / 32) as u64)
}

/// Reads the codes of pieces; of layouts that lie across them, many rows at once.
#[derive(Debug, Default)]
pub struct Incoming {
    rows: Range<usize>,
    codes: Vec<u8>,
}

/// Bytes of codes that are rearranged together.
const SLAB: usize = 64 << 20;

impl Incoming {
    /// Fills `out` with the codes of a piece. `max_memory` is that of the whole run.
    pub fn read(
        &mut self,
        source: &Source,
        coded: &Coded,
        codes: usize,
        piece: &Piece,
        max_memory: u64,
        out: &mut [u8],
    ) -> Result<()> {
        let at = code_offset(coded.bits, coded.packed(), coded.cols, piece);
        if matches!(coded.layout, Layout::Packed | Layout::Int8) {
            return source.read(codes, at, out);
        }
        let row_bytes = 4 * (coded.cols * coded.bits as usize).div_ceil(32);
        let slab = ((max_memory / 16) as usize).clamp(1 << 20, SLAB);
        let slab_rows = (slab / row_bytes.max(1) / 8 * 8).max(8);
        let (mut at, mut out) = (at as usize, out);
        while !out.is_empty() {
            let row = at / row_bytes;
            if !self.rows.contains(&row) {
                let first = row / slab_rows * slab_rows;
                self.rows = first..(first + slab_rows).min(coded.rows);
                self.codes = packed_rows(source, coded, codes, self.rows.clone())?;
            }
            let offset = at - self.rows.start * row_bytes;
            let length = out.len().min(self.codes.len() - offset);
            let (part, rest) = std::mem::take(&mut out).split_at_mut(length);
            part.copy_from_slice(&self.codes[offset..offset + length]);
            (at, out) = (at + length, rest);
        }
        Ok(())
    }
}

/// Some rows of codes, each packed into words. Of layouts in words of several rows, these must be whole words.
pub fn packed_rows(source: &Source, coded: &Coded, codes: usize, rows: Range<usize>) -> Result<Vec<u8>> {
    let words = (coded.cols * coded.bits as usize).div_ceil(32);
    let row_bytes = if coded.packed() { 4 * words } else { coded.cols };
    let mut bytes = vec![0; rows.len() * row_bytes];
    let line = |all: usize, lines: usize, first: usize, cols: usize| View {
        offset: first as u64,
        rows: lines,
        cols,
        row_stride: all as u64,
        col_stride: 1,
    };
    match coded.layout {
        Layout::Packed => {
            source.read(codes, (rows.start * row_bytes) as u64, &mut bytes)?;
            Ok(bytes)
        }
        Layout::Int8 => {
            source.read(codes, (rows.start * row_bytes) as u64, &mut bytes)?;
            Ok(packing::pack_int8(&bytes, coded.cols))
        }
        Layout::Gptq { .. } => {
            let view = line(coded.rows, words, rows.start, rows.len());
            source.read_view(codes, &view, 0..words, 0..rows.len(), &mut bytes)?;
            Ok(packing::transpose_words(&bytes, words, rows.len()))
        }
        Layout::Awq => {
            let view = line(coded.rows / 8, 8 * words, rows.start / 8, rows.len() / 8);
            source.read_view(codes, &view, 0..8 * words, 0..rows.len() / 8, &mut bytes)?;
            Ok(packing::from_awq(&bytes, rows.len(), words))
        }
    }
}
