//! How a matrix is cut: into pieces that fit a tile, and bands of pieces that share what must be found first.

use crate::{
    observer::Observer,
    scheme::{Scheme, Strategy},
};

/// Some whole rows of a matrix, or a part of one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// First row.
    pub row: usize,
    /// Number of rows.
    pub rows: usize,
    /// First column.
    pub col: usize,
    /// Number of columns; all of them unless `rows` is 1.
    pub cols: usize,
}

impl Piece {
    /// Number of weights.
    pub fn elements(&self) -> usize {
        self.rows * self.cols
    }

    /// Index of its first weight in the matrix of `cols` columns.
    pub fn start(&self, cols: usize) -> u64 {
        self.row as u64 * cols as u64 + self.col as u64
    }
}

/// Cuts `rows × cols` into pieces of at most `max` weights: whole rows if one fits, else parts of rows whose lengths are
/// multiples of `align`.
pub fn pieces(rows: usize, cols: usize, max: usize, align: usize) -> impl Iterator<Item = Piece> + Clone {
    let whole = cols > 0 && cols <= max.max(1);
    let step_rows = if whole { (max / cols).clamp(1, rows.max(1)) } else { 1 };
    let step_cols = if whole { cols } else { (max / align * align).max(align) };
    (0..rows).step_by(step_rows).flat_map(move |row| {
        let rows = step_rows.min(rows - row);
        (0..cols).step_by(step_cols.max(1)).map(move |col| Piece {
            row,
            rows,
            col,
            cols: step_cols.min(cols - col),
        })
    })
}

/// What a pass over a band finds or makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sweep {
    /// The range of what spans pieces.
    Range,
    /// A histogram of every channel.
    Histogram,
    /// Error sums of the coarse candidates for a scale that spans pieces.
    Search,
    /// Error sums of the candidates around the best coarse one.
    Refine,
    /// Codes, scales, zero points and errors.
    Quantize,
}

/// Pieces that are swept together, because a scale or a histogram spans them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Band {
    /// The pieces, in order.
    pub pieces: Vec<Piece>,
    /// Whether one scale spans several pieces.
    pub spans: bool,
    /// The passes.
    pub sweeps: &'static [Sweep],
}

/// Weights that share a scale, of a matrix with these dimensions.
pub fn group_len(strategy: Strategy, rows: usize, cols: usize) -> usize {
    match strategy {
        Strategy::Tensor => rows * cols,
        Strategy::Channel => cols,
        Strategy::Group { group_size } => group_size,
    }
}

/// The bands of a matrix that is quantized by `scheme`, for tiles of at most `max` weights.
pub fn bands(scheme: Scheme, rows: usize, cols: usize, max: usize) -> impl Iterator<Item = Band> {
    let group = group_len(scheme.strategy, rows, cols);
    // groups within a row stay whole, even if a tile grows by it; rows of int4 codes are cut at whole words
    let align = if group < cols { lcm(group, 8) } else { 8 };
    let max = max.max(align);
    let all: Vec<Piece> = pieces(rows, cols, max, align).collect();
    let histogram = scheme.observer.needs_histogram();
    let per_tensor = scheme.strategy == Strategy::Tensor;
    let per_row = per_tensor || histogram || group >= cols;
    let mut bands: Vec<Band> = Vec::new();
    for piece in all {
        let joins = bands.last().is_some_and(|b| per_tensor || (per_row && b.pieces[0].row == piece.row));
        match bands.last_mut() {
            Some(band) if joins => band.pieces.push(piece),
            _ => bands.push(Band { pieces: vec![piece], spans: false, sweeps: &[] }),
        }
    }
    for band in &mut bands {
        band.spans = band.pieces.len() > 1 && group > band.pieces[0].elements();
        band.sweeps = match (scheme.observer, band.spans) {
            (Observer::Percentile(_) | Observer::Histogram, _) => {
                &[Sweep::Range, Sweep::Histogram, Sweep::Quantize]
            }
            (Observer::Mse { .. }, true) => &[Sweep::Range, Sweep::Search, Sweep::Refine, Sweep::Quantize],
            (Observer::MinMax, true) => &[Sweep::Range, Sweep::Quantize],
            (_, false) => &[Sweep::Quantize],
        };
    }
    bands.into_iter()
}

fn lcm(a: usize, b: usize) -> usize {
    let (mut x, mut y) = (a, b);
    while y != 0 {
        (x, y) = (y, x % y);
    }
    a / x.max(1) * b
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheme::{Method, preset};
    use proptest::{prop_assert, prop_assert_eq, proptest};

    fn scheme(strategy: Strategy, observer: Observer) -> Scheme {
        let Method::Quantize(scheme) = preset("w4a16").unwrap().method else { unreachable!() };
        Scheme { strategy, observer, ..scheme }
    }

    proptest! {
        #[test]
        fn pieces_cover_every_weight_once(rows in 1usize..40, groups in 1usize..12, group in 1usize..40, max in 1usize..600) {
            let cols = groups * group;
            for strategy in [Strategy::Tensor, Strategy::Channel, Strategy::Group { group_size: group }] {
                for observer in [Observer::MinMax, Observer::Histogram, Observer::Mse { both_signs: true }] {
                    let mut next = 0;
                    for band in bands(scheme(strategy, observer), rows, cols, max) {
                        for piece in &band.pieces {
                            prop_assert_eq!(piece.start(cols), next);
                            next += piece.elements() as u64;
                            prop_assert!(piece.rows == 1 || piece.cols == cols);
                            // int4 words are never shared by two pieces
                            prop_assert!(piece.col % 8 == 0);
                            // a group lies within a piece, or a band is one group
                            let len = group_len(strategy, rows, cols);
                            if band.spans {
                                let total: usize = band.pieces.iter().map(Piece::elements).sum();
                                prop_assert_eq!(total, len);
                            } else {
                                prop_assert_eq!(piece.elements() % len, 0);
                            }
                        }
                    }
                    prop_assert_eq!(next, (rows * cols) as u64);
                }
            }
        }
    }

    #[test]
    fn a_row_longer_than_a_tile_is_swept_twice() {
        let all: Vec<_> = bands(scheme(Strategy::Channel, Observer::MinMax), 2, 100, 32).collect();
        assert_eq!(all.len(), 2);
        assert_eq!(all[0].sweeps, [Sweep::Range, Sweep::Quantize]);
        assert_eq!(all[0].pieces.len(), 4);
    }
}
