//! A quantized layer on its way out, on one grid. Some layouts need more of it at once than a tile.

use super::Stream;
use crate::{
    error::Result,
    formats::Part,
    kernels::arithmetic::narrow,
    packing,
    plan::Job,
    scheme::Grid,
    tensor::{Float, View},
    tiles::group_len,
};
use std::collections::BTreeMap;

/// Bytes of codes that are rearranged together: the more, the longer the runs that are written.
const SLAB: u64 = 64 << 20;

pub struct Outgoing {
    grid: usize,
    bits: u32,
    scale: Float,
    rows: usize,
    groups: usize,
    group_len: usize,
    /// Bytes of a row of codes.
    row_bytes: usize,
    /// Rows that are rearranged together.
    slab_rows: usize,
    /// Rows in the making, and the bytes of them that are there.
    slabs: BTreeMap<usize, (Vec<u8>, usize)>,
    /// Scales as stored, and zero points, of the whole layer.
    scales: Vec<u8>,
    zero_points: Vec<i8>,
}

impl Outgoing {
    /// A layer of `[rows][cols]` weights, number `number` of its job's grids.
    pub fn new(stream: &Stream, job: &Job, number: usize, grid: &Grid) -> Self {
        let (rows, cols) = (job.view.rows, job.view.cols);
        let bits = grid.scheme.bits;
        let group_len = group_len(grid.scheme.strategy, rows, cols);
        let row_bytes = if grid.scheme.packed() { 4 * (cols * bits as usize).div_ceil(32) } else { cols };
        let slab = (stream.max_memory / 16).clamp(1 << 20, SLAB) as usize;
        Outgoing {
            grid: number,
            bits,
            scale: grid.scale,
            rows,
            groups: (cols / group_len.max(1)).max(1),
            group_len,
            row_bytes,
            slab_rows: (slab / row_bytes.max(1) / 8 * 8).max(8),
            slabs: BTreeMap::new(),
            scales: Vec::new(),
            zero_points: Vec::new(),
        }
    }

    fn has(&self, job: &Job, wanted: impl Fn(Part) -> bool) -> bool {
        job.outputs.iter().any(|o| o.grid == self.grid && wanted(o.part))
    }

    /// Writes what does not depend on the weights.
    pub fn start(&self, stream: &Stream, job: &Job) -> Result<()> {
        let write = |part, bytes: &[u8]| stream.write(job, self.grid, part, 0, bytes);
        let shape = &stream.plan.rows[job.row].shape;
        write(Part::Shape, &shape.iter().flat_map(|&d| (d as i64).to_le_bytes()).collect::<Vec<u8>>())?;
        if self.has(job, |part| part == Part::GroupIndex) {
            let index = (0..job.view.cols).flat_map(|i| ((i / self.group_len) as i32).to_le_bytes());
            write(Part::GroupIndex, &index.collect::<Vec<u8>>())?;
        }
        if let Some(input) = job.input {
            let mut scale = Vec::new();
            self.scale.encode(input.scale, &mut scale);
            write(Part::InputScale, &scale)?;
            write(Part::InputZeroPoint, &(input.zero_point as i8).to_le_bytes())?;
        }
        Ok(())
    }

    /// Takes codes in the kernels' layout, from byte `at` on.
    pub fn codes(&mut self, stream: &Stream, job: &Job, at: u64, bytes: &[u8]) -> Result<()> {
        stream.write(job, self.grid, Part::Codes, at, bytes)?;
        if !self.has(job, |part| matches!(part, Part::TransposedCodes | Part::AwqCodes)) {
            return Ok(());
        }
        let slab_bytes = self.slab_rows * self.row_bytes;
        let (mut at, mut bytes) = (at as usize, bytes);
        while !bytes.is_empty() {
            let (slab, offset) = (at / slab_bytes, at % slab_bytes);
            let length = (self.rows * self.row_bytes - slab * slab_bytes).min(slab_bytes);
            let (part, rest) = bytes.split_at(bytes.len().min(length - offset));
            let (buffer, filled) = self.slabs.entry(slab).or_insert_with(|| (vec![0; length], 0));
            buffer[offset..offset + part.len()].copy_from_slice(part);
            *filled += part.len();
            if *filled == length
                && let Some((buffer, _)) = self.slabs.remove(&slab)
            {
                self.slab(stream, job, slab * self.slab_rows, &buffer)?;
            }
            (at, bytes) = (at + part.len(), rest);
        }
        Ok(())
    }

    /// Writes some whole rows in other layouts.
    fn slab(&self, stream: &Stream, job: &Job, row: usize, codes: &[u8]) -> Result<()> {
        let (rows, words) = (codes.len() / self.row_bytes, self.row_bytes / 4);
        for place in job.outputs.iter().filter(|o| o.grid == self.grid) {
            // words of the output: lines, words a line in this slab and in all, the first of these
            let (bytes, lines, across, all, first) = match place.part {
                Part::TransposedCodes => {
                    (packing::transpose_words(codes, rows, words), words, rows, self.rows, row)
                }
                Part::AwqCodes => {
                    (packing::to_awq(codes, rows, words), 8 * words, rows / 8, self.rows / 8, row / 8)
                }
                _ => continue,
            };
            if across == all {
                stream.writer.write(place.file, place.tensor, 0, &bytes)?;
                continue;
            }
            let view = View {
                offset: first as u64,
                rows: lines,
                cols: across,
                row_stride: all as u64,
                col_stride: 1,
            };
            stream.writer.write_view(place.file, place.tensor, &view, 0..lines, 4, &bytes)?;
        }
        Ok(())
    }

    /// Takes scales (f32 bits) and zero points of groups `first..`.
    pub fn qparams(
        &mut self,
        stream: &Stream,
        job: &Job,
        first: usize,
        scales: &[u32],
        zero_points: &[i8],
    ) -> Result<()> {
        let size = self.scale.size();
        let halves: Vec<u16>;
        let bytes: &[u8] = match self.scale {
            Float::F32 => bytemuck::cast_slice(scales),
            half => {
                halves = scales.iter().map(|&s| narrow(s, half as u32) as u16).collect();
                bytemuck::cast_slice(&halves)
            }
        };
        stream.write(job, self.grid, Part::Scales, (first * size) as u64, bytes)?;
        stream.write(job, self.grid, Part::ZeroPoints, first as u64, bytemuck::cast_slice(zero_points))?;
        if self.has(job, |part| part == Part::TransposedScales) {
            let end = first * size + bytes.len();
            self.scales.resize(self.scales.len().max(end), 0);
            self.scales[first * size..end].copy_from_slice(bytes);
        }
        if self.has(job, |part| matches!(part, Part::PackedZeroPoints(_))) {
            let end = first + zero_points.len();
            self.zero_points.resize(self.zero_points.len().max(end), 0);
            self.zero_points[first..end].copy_from_slice(zero_points);
        }
        Ok(())
    }

    /// Writes what needed the whole layer.
    pub fn finish(&mut self, stream: &Stream, job: &Job) -> Result<()> {
        for place in job.outputs.iter().filter(|o| o.grid == self.grid) {
            let bytes = match place.part {
                Part::PackedZeroPoints(kind) => kind.pack(&self.zero_points, self.groups, self.bits),
                Part::TransposedScales => transposed(&self.scales, self.groups, self.scale.size()),
                _ => continue,
            };
            stream.writer.write(place.file, place.tensor, 0, &bytes)?;
        }
        Ok(())
    }
}

/// A matrix of `cols` columns, transposed.
fn transposed(bytes: &[u8], cols: usize, size: usize) -> Vec<u8> {
    let rows = bytes.len() / (cols * size).max(1);
    let mut out = Vec::with_capacity(bytes.len());
    for col in 0..cols {
        for row in 0..rows {
            out.extend_from_slice(&bytes[(row * cols + col) * size..][..size]);
        }
    }
    out
}
