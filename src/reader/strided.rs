//! Strided windows as few, large accesses: which bytes to touch in one go, and the transposition in memory.

use std::ops::Range;

use crate::error::Result;
use crate::tensor::View;

#[cfg(test)]
mod tests;

/// Memory for one access at most.
const SCRATCH: u64 = 8 << 20;
/// A gap up to this many bytes is read through: cheaper than a second call.
const GAP: u64 = 8 << 10;
/// Runs from this many bytes on are written on their own, shorter ones by rewriting what lies around them.
const RUN: u64 = 512;

/// `len` elements, `stride` elements apart.
#[derive(Debug, Clone, Copy)]
struct Axis {
    len: u64,
    stride: u64,
    /// Distance of neighbours in the packed rows.
    packed: u64,
}

/// A two-dimensional window of a tensor, with the axis along which its elements lie closer together first.
#[derive(Debug)]
pub(crate) struct Lattice {
    start: u64,
    fast: Axis,
    slow: Axis,
}

/// Some lines (along `slow`) of some elements (along `fast`), accessed together.
struct Tile {
    fast: Range<u64>,
    slow: Range<u64>,
    /// Elements from the first to the last of a line.
    span: u64,
    /// Distance of the lines in memory; the same as in the file if `merged`.
    pitch: u64,
    /// All lines in one access, including the gaps between them.
    merged: bool,
}

impl Lattice {
    /// The window of rows and columns of a view on a tensor that has `limit` elements; otherwise, what is wrong.
    pub fn new(
        view: &View,
        rows: Range<usize>,
        cols: Range<usize>,
        limit: u64,
    ) -> std::result::Result<Self, String> {
        if rows.start > rows.end || rows.end > view.rows || cols.start > cols.end || cols.end > view.cols {
            return Err(format!(
                "rows {rows:?} and columns {cols:?} do not lie in a view of {} x {}",
                view.rows, view.cols
            ));
        }
        let (nr, nc) = (rows.len() as u64, cols.len() as u64);
        let reach = |r: usize, c: usize| {
            let row = view.row_stride.checked_mul(r as u64)?;
            let col = view.col_stride.checked_mul(c as u64)?;
            view.offset.checked_add(row)?.checked_add(col)
        };
        let mut start = 0;
        if nr > 0 && nc > 0 {
            start = reach(rows.start, cols.start).unwrap_or(u64::MAX);
            match reach(rows.end - 1, cols.end - 1) {
                Some(last) if last < limit => {}
                _ => {
                    return Err(format!("{view:?} reaches past the {limit} elements of the tensor"));
                }
            }
        }
        let r = Axis { len: nr, stride: view.row_stride, packed: nc };
        let c = Axis { len: nc, stride: view.col_stride, packed: 1 };
        // An axis of one element has no direction: it is never the fast one if the other has more.
        let columns_fast = nr <= 1 || (nc > 1 && c.stride <= r.stride);
        let (fast, slow) = if columns_fast { (c, r) } else { (r, c) };
        Ok(Lattice { start, fast, slow })
    }

    /// Number of elements.
    pub fn elements(&self) -> u64 {
        // Both are lengths of ranges within a view that fits its tensor; a broadcast view (stride 0) may overflow.
        self.fast.len.saturating_mul(self.slow.len)
    }

    /// Whether no two elements surely share a place: lines must not reach into each other.
    pub fn is_distinct(&self) -> bool {
        let (f, s) = (self.fast, self.slow);
        let line = f.stride.max(1).saturating_mul(f.len.saturating_sub(1)).saturating_add(1);
        (f.len <= 1 || f.stride > 0) && (s.len <= 1 || s.stride >= line)
    }

    /// Reads the window into `out`, packed row after row, through `read(byte offset, bytes)`.
    pub fn gather(
        &self,
        elem: u64,
        out: &mut [u8],
        mut read: impl FnMut(u64, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        if out.is_empty() {
            return Ok(());
        }
        if self.fast.stride == 1 && self.fast.packed == 1 {
            if self.is_dense() {
                return read(self.start * elem, out);
            }
            let line = (self.fast.len * elem) as usize;
            if self.gap(self.fast.len) * elem > GAP || line as u64 > SCRATCH {
                for (s, row) in out.chunks_exact_mut(line).enumerate() {
                    read((self.start + s as u64 * self.slow.stride) * elem, row)?;
                }
                return Ok(());
            }
        }
        let mut scratch = Vec::new();
        self.tiles(elem, true, |tile| {
            scratch.resize(tile.bytes(elem), 0);
            self.runs(&tile, elem, |at, bytes| read(at, &mut scratch[bytes]))?;
            self.copy(&tile, elem, &scratch, out, Direction::Gather);
            Ok(())
        })
    }

    /// Whether [`Lattice::scatter`] rewrites bytes between the elements, so that no one else may write meanwhile.
    pub fn rewrites(&self, elem: u64) -> bool {
        let short = self.fast.len * elem < RUN && self.slow.len > 1 && !self.is_dense();
        self.fast.len > 1 && self.fast.stride != 1 || short && self.gap(self.fast.len) * elem < RUN * 8
    }

    /// Writes packed rows into the window through `write(byte offset, bytes)`; the inverse of [`Lattice::gather`].
    ///
    /// `read` fetches what lies between the elements where writing them one by one would take too many calls.
    pub fn scatter(
        &self,
        elem: u64,
        bytes: &[u8],
        mut read: impl FnMut(u64, &mut [u8]) -> Result<()>,
        mut write: impl FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let rewrites = self.rewrites(elem);
        if self.fast.stride == 1 && self.fast.packed == 1 && !rewrites {
            if self.is_dense() {
                return write(self.start * elem, bytes);
            }
            let line = (self.fast.len * elem) as usize;
            for (s, row) in bytes.chunks_exact(line).enumerate() {
                write((self.start + s as u64 * self.slow.stride) * elem, row)?;
            }
            return Ok(());
        }
        let mut scratch = Vec::new();
        self.tiles(elem, rewrites, |tile| {
            scratch.resize(tile.bytes(elem), 0);
            if rewrites {
                self.runs(&tile, elem, |at, place| read(at, &mut scratch[place]))?;
            }
            self.copy(&tile, elem, bytes, &mut scratch, Direction::Scatter);
            self.runs(&tile, elem, |at, place| write(at, &scratch[place]))
        })
    }

    /// Whether lines follow each other without gaps.
    fn is_dense(&self) -> bool {
        self.fast.stride == 1 && (self.slow.len <= 1 || self.slow.stride == self.fast.len)
    }

    /// Elements between the end of a line and the start of the next.
    fn gap(&self, span: u64) -> u64 {
        self.slow.stride.saturating_sub(span)
    }

    /// Cuts the window into tiles that fit the scratch memory. Gaps between lines are included if `through` and small.
    fn tiles(&self, elem: u64, through: bool, mut visit: impl FnMut(Tile) -> Result<()>) -> Result<()> {
        let (f, s) = (self.fast, self.slow);
        let room = (SCRATCH / elem).max(1);
        let longest = match f.stride {
            // Elements that lie far apart are accessed one by one.
            stride if stride.saturating_mul(elem) > GAP => 1,
            0 => f.len,
            stride => (room - 1) / stride + 1,
        };
        let mut at = 0;
        while at < f.len {
            let fast = at..(at + longest).min(f.len);
            let span = (fast.end - fast.start - 1) * f.stride + 1;
            let merged =
                self.is_dense() && span == f.len || through && self.gap(span).saturating_mul(elem) <= GAP;
            let pitch = if merged { s.stride } else { span };
            let lines = match pitch {
                0 => s.len,
                pitch => (room.saturating_sub(span) / pitch + 1).min(s.len),
            };
            let mut line = 0;
            while line < s.len {
                let slow = line..(line + lines).min(s.len);
                line = slow.end;
                visit(Tile { fast: fast.clone(), slow, span, pitch, merged })?;
            }
            at = fast.end;
        }
        Ok(())
    }

    /// Visits the accesses of a tile: byte offset in the tensor, place in the scratch memory.
    fn runs(
        &self,
        tile: &Tile,
        elem: u64,
        mut visit: impl FnMut(u64, Range<usize>) -> Result<()>,
    ) -> Result<()> {
        let first = self.start + tile.fast.start * self.fast.stride;
        if tile.merged {
            let at = first + tile.slow.start * self.slow.stride;
            return visit(at * elem, 0..tile.bytes(elem));
        }
        let line = (tile.span * elem) as usize;
        for (i, s) in tile.slow.clone().enumerate() {
            visit((first + s * self.slow.stride) * elem, i * line..(i + 1) * line)?;
        }
        Ok(())
    }

    /// Copies between the scratch memory of a tile and the packed rows.
    fn copy(&self, tile: &Tile, elem: u64, from: &[u8], to: &mut [u8], direction: Direction) {
        let packed = tile.fast.start * self.fast.packed + tile.slow.start * self.slow.packed;
        let file = [self.fast.stride as usize, tile.pitch as usize];
        let rows = [self.fast.packed as usize, self.slow.packed as usize];
        let lens = [tile.fast.end - tile.fast.start, tile.slow.end - tile.slow.start];
        let lens = lens.map(|n| n as usize);
        let (from_at, from_strides, to_at, to_strides) = match direction {
            Direction::Gather => (0, file, packed as usize, rows),
            Direction::Scatter => (packed as usize, rows, 0, file),
        };
        let elem = elem as usize;
        let (from, to) = (&from[from_at * elem..], &mut to[to_at * elem..]);
        match elem {
            1 => transpose::<1>(from, from_strides, to, to_strides, lens),
            2 => transpose::<2>(from, from_strides, to, to_strides, lens),
            4 => transpose::<4>(from, from_strides, to, to_strides, lens),
            8 => transpose::<8>(from, from_strides, to, to_strides, lens),
            _ => blocks(lens, |f, s| {
                let i = (f * from_strides[0] + s * from_strides[1]) * elem;
                let j = (f * to_strides[0] + s * to_strides[1]) * elem;
                to[j..j + elem].copy_from_slice(&from[i..i + elem]);
            }),
        }
    }
}

impl Tile {
    fn bytes(&self, elem: u64) -> usize {
        (((self.slow.end - self.slow.start - 1) * self.pitch + self.span) * elem) as usize
    }
}

enum Direction {
    Gather,
    Scatter,
}

fn transpose<const N: usize>(
    from: &[u8],
    from_strides: [usize; 2],
    to: &mut [u8],
    to_strides: [usize; 2],
    lens: [usize; 2],
) {
    let (from, to) = (from.as_chunks::<N>().0, to.as_chunks_mut::<N>().0);
    if from_strides[0] == 1 && to_strides[0] == 1 {
        for s in 0..lens[1] {
            let (i, j) = (s * from_strides[1], s * to_strides[1]);
            to[j..j + lens[0]].copy_from_slice(&from[i..i + lens[0]]);
        }
        return;
    }
    blocks(lens, |f, s| {
        to[f * to_strides[0] + s * to_strides[1]] = from[f * from_strides[0] + s * from_strides[1]];
    });
}

/// Visits all pairs block by block, so that both sides of a transposition stay in the cache.
fn blocks(lens: [usize; 2], mut visit: impl FnMut(usize, usize)) {
    const BLOCK: usize = 32;
    for f0 in (0..lens[0]).step_by(BLOCK) {
        for s0 in (0..lens[1]).step_by(BLOCK) {
            for f in f0..(f0 + BLOCK).min(lens[0]) {
                for s in s0..(s0 + BLOCK).min(lens[1]) {
                    visit(f, s);
                }
            }
        }
    }
}
