//! What a weight may be for what is stored of it.
//!
//! Codes: the quotient x / s in f32, as the kernels compute it, lies within 1/2 of q − z, or beyond that on the side of the
//! lowest or highest code. As a division in f32 rounds by 2⁻²⁴ of its result at most, |x − x̂| ≤ s/2 + 2⁻²⁴ · |x| follows; the
//! quotient of 16-bit weights and scales that is not half-way is further from it than that, so that there
//! |x − x̂| ≤ s/2 holds as it stands. Of two codes at exactly the same distance, both are accepted.

use super::blocks;
use crate::{
    block::Block,
    error::Result,
    pairs::{Parameters, Side, Weight},
    tensor::{Float, View},
    tiles::Piece,
};

/// What was found in a weight, or a piece of it.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// Values beyond the reach of codes.
    pub clipped: u64,
    /// Values that a cast clamped.
    pub saturated: u64,
    /// Largest |x − x̂| / step of what is not clipped.
    pub worst: f64,
    /// Whether another dtype was checked.
    pub cast: bool,
    /// Whether bytes were compared.
    pub copy: bool,
    /// Weights that are wrong.
    pub wrong: u64,
    /// The first of them: index, what is there, what is accepted.
    pub first: Option<(Option<u64>, String, String)>,
}

impl Outcome {
    /// Of a layer that cannot be read.
    pub fn refused(problems: Vec<String>) -> Self {
        let first = Some((None, problems.join("; "), "scales and zero points that can be read".into()));
        Outcome { wrong: 1, first, ..Outcome::default() }
    }

    /// Adds what was found in a later piece.
    pub fn add(&mut self, other: Outcome) {
        self.clipped += other.clipped;
        self.saturated += other.saturated;
        self.worst = self.worst.max(other.worst);
        self.wrong += other.wrong;
        self.first = self.first.take().or(other.first);
    }

    /// Counts a weight that is wrong.
    pub fn wrong(&mut self, index: u64, what: impl FnOnce() -> (String, String)) {
        self.wrong += 1;
        if self.first.is_none() {
            let (value, expected) = what();
            self.first = Some((Some(index), value, expected));
        }
    }
}

/// What a pair of weights is checked for.
enum Rule {
    /// The same bytes, elements of so many.
    Copy(usize),
    /// The same bytes of blocks.
    CopyBlocks(Block),
    Cast(Float),
    Codes,
    Blocks(Block),
    Unlike,
}

/// A weight of the output, what it was made from, and how to check that.
pub struct Pair<'a> {
    sides: &'a [Side; 2],
    weights: [&'a Weight; 2],
    views: [View; 2],
    parameters: [Parameters; 2],
    /// Scales of 1 and zero points of 0: decoded by them, codes come out as they are.
    plain: Parameters,
    rule: Rule,
}

impl<'a> Pair<'a> {
    /// Reads scales and zero points of both.
    pub fn open(sides: &'a [Side; 2], weights: [&'a Weight; 2], views: [View; 2]) -> Result<Self> {
        let rule = match weights {
            [Weight::Blocks(a), Weight::Blocks(b)] if a.block == b.block => Rule::CopyBlocks(b.block),
            [_, Weight::Blocks(b)] if sides[0].float(weights[0]).is_some() => Rule::Blocks(b.block),
            [_, Weight::Coded(_)] if sides[0].float(weights[0]).is_some() => Rule::Codes,
            [Weight::Stored(a, _), Weight::Stored(b, _)]
                if sides[0].tensors[*a].dtype == sides[1].tensors[*b].dtype =>
            {
                Rule::Copy(sides[1].tensors[*b].dtype.size())
            }
            [_, Weight::Stored(..)] => match (sides[0].float(weights[0]), sides[1].float(weights[1])) {
                (Some(_), Some(to)) => Rule::Cast(to),
                _ => Rule::Unlike,
            },
            _ => Rule::Unlike,
        };
        let (first, second) = (sides[0].parameters(weights[0])?, sides[1].parameters(weights[1])?);
        let plain = match rule {
            Rule::Codes => (vec![1f32.to_bits(); second.0.len()], vec![0; second.1.len()]),
            _ => Parameters::default(),
        };
        Ok(Pair { sides, weights, views, parameters: [first, second], plain, rule })
    }

    /// What was found before any piece was looked at.
    pub fn outcome(&self) -> Outcome {
        let mut outcome = Outcome {
            cast: matches!(self.rule, Rule::Cast(_)),
            copy: matches!(self.rule, Rule::CopyBlocks(_)),
            ..Outcome::default()
        };
        if let Rule::Unlike = self.rule {
            let [a, b] = [0, 1].map(|i: usize| self.sides[i].kind(self.weights[i]));
            outcome.wrong = 1;
            outcome.first = Some((None, b, format!("{a}, as in the input, or floats of it")));
        }
        outcome
    }

    /// Checks a piece.
    pub fn check(&self, piece: Piece) -> Result<Outcome> {
        match self.rule {
            Rule::Copy(size) => self.check_copy(piece, size),
            Rule::CopyBlocks(block) => self.check_copied_blocks(piece, block),
            Rule::Cast(to) => self.check_cast(piece, to),
            Rule::Codes => self.check_codes(piece),
            Rule::Blocks(block) => self.check_blocks(piece, block),
            Rule::Unlike => Ok(Outcome::default()),
        }
    }

    fn rows(&self, side: usize, piece: Piece) -> Result<Vec<f32>> {
        self.sides[side].rows(self.weights[side], &self.parameters[side], &self.views[side], piece)
    }

    /// Index of a piece's first weight, in the output's order where its view is contiguous.
    fn start(&self, piece: Piece) -> u64 {
        piece.start(self.views[1].cols)
    }

    fn check_copy(&self, piece: Piece, size: usize) -> Result<Outcome> {
        let read = |side: usize| -> Result<Vec<u8>> {
            let Weight::Stored(tensor, _) = self.weights[side] else { return Ok(Vec::new()) };
            let mut bytes = vec![0; piece.elements() * size];
            let (rows, cols) = (piece.row..piece.row + piece.rows, piece.col..piece.col + piece.cols);
            self.sides[side].source.read_view(*tensor, &self.views[side], rows, cols, &mut bytes)?;
            Ok(bytes)
        };
        Ok(same(&read(0)?, &read(1)?, size, self.start(piece)))
    }

    fn check_copied_blocks(&self, piece: Piece, block: Block) -> Result<Outcome> {
        let mut outcome = same(
            &self.block_bytes(0, piece, block)?,
            &self.block_bytes(1, piece, block)?,
            block.bytes(),
            self.start(piece) / block.len() as u64,
        );
        if let Some((Some(index), ..)) = &mut outcome.first {
            *index *= block.len() as u64;
        }
        Ok(outcome)
    }

    fn block_bytes(&self, side: usize, piece: Piece, block: Block) -> Result<Vec<u8>> {
        let Some(layer) = self.weights[side].blocks() else { return Ok(Vec::new()) };
        let mut bytes = vec![0; block.bytes_for(piece.elements() as u64) as usize];
        self.sides[side].source.read(
            layer.tensor,
            block.bytes_for(piece.start(self.views[side].cols)),
            &mut bytes,
        )?;
        Ok(bytes)
    }

    fn check_cast(&self, piece: Piece, to: Float) -> Result<Outcome> {
        let (weights, found) = (self.rows(0, piece)?, self.rows(1, piece)?);
        let (mut outcome, mut bytes) = (Outcome::default(), Vec::new());
        for (i, (&x, &y)) in weights.iter().zip(&found).enumerate() {
            bytes.clear();
            to.encode(x, &mut bytes);
            let nearest = to.decode(&bytes);
            if nearest.to_bits() == y.to_bits() || (nearest.is_nan() && y.is_nan()) {
                continue;
            }
            if nearest.is_infinite() && x.is_finite() && y == to.max().copysign(x) {
                outcome.saturated += 1;
                continue;
            }
            outcome.wrong(self.start(piece) + i as u64, || {
                (format!("{y:e}"), format!("{nearest:e}, the nearest to {x:e} in {}", to.dtype()))
            });
        }
        Ok(outcome)
    }

    fn check_codes(&self, piece: Piece) -> Result<Outcome> {
        let (side, Weight::Coded(layer)) = (&self.sides[1], self.weights[1]) else {
            return Ok(Outcome::default());
        };
        let weights = self.rows(0, piece)?;
        let codes = side.rows(self.weights[1], &self.plain, &self.views[1], piece)?;
        let half = 1i32 << (layer.coded.bits - 1);
        let (lowest, highest) = (-half, half - 1);
        let start = piece.start(layer.coded.cols);
        let mut outcome = Outcome::default();
        for (i, (&x, &code)) in weights.iter().zip(&codes).enumerate() {
            let group = (start as usize + i) / layer.coded.group_len;
            let (scale, z) = (f32::from_bits(self.parameters[1].0[group]), self.parameters[1].1[group]);
            let code = code as i32;
            let quotient = x / scale;
            let away = quotient - (code - z) as f32;
            if away.abs() <= 0.5 {
                outcome.worst = outcome.worst.max(away.abs().into());
            } else if (code == lowest && away < 0.0) || (code == highest && away > 0.0) {
                outcome.clipped += 1;
            } else {
                outcome.wrong(start + i as u64, || {
                    let value = (code - z) as f32 * scale;
                    let right = (f64::from(quotient).round_ties_even() + f64::from(z))
                        .clamp(lowest.into(), highest.into());
                    (
                        format!("code {code} with scale {scale:e} and zero point {z} is {value:e}"),
                        format!("code {right}, within {:e} of {x:e}", 0.5 * scale.abs()),
                    )
                });
            }
        }
        Ok(outcome)
    }

    fn check_blocks(&self, piece: Piece, block: Block) -> Result<Outcome> {
        let (weights, bytes) = (self.rows(0, piece)?, self.block_bytes(1, piece, block)?);
        let mut outcome = Outcome::default();
        let start = self.start(piece);
        for (i, (bytes, weights)) in
            bytes.chunks_exact(block.bytes()).zip(weights.chunks_exact(block.len())).enumerate()
        {
            blocks::check(block, bytes, weights, start + (i * block.len()) as u64, &mut outcome);
        }
        Ok(outcome)
    }
}

/// Compares bytes, `size` an element; `start` is the first one's index.
fn same(expected: &[u8], found: &[u8], size: usize, start: u64) -> Outcome {
    let mut outcome = Outcome::default();
    if expected == found {
        return outcome;
    }
    for (i, (a, b)) in expected.chunks(size.max(1)).zip(found.chunks(size.max(1))).enumerate() {
        if a != b {
            let place = a.iter().zip(b).position(|(a, b)| a != b).unwrap_or(0);
            let hexadecimal = |bytes: &[u8]| -> String {
                bytes[place..].iter().take(8).map(|byte| format!("{byte:02x}")).collect()
            };
            let at = if size > 8 { format!(" from byte {place} of it on") } else { String::new() };
            outcome.wrong(start + i as u64, || {
                let expected = format!("{}, as in the input", hexadecimal(a));
                (format!("bytes {}{at}", hexadecimal(b)), expected)
            });
        }
    }
    outcome
}
