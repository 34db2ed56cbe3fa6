//! Tensors whose elements lie strided in their storage, read as if they were contiguous.

use super::strided::Lattice;
use crate::error::{Error, Result};
use crate::tensor::View;

/// The dimensions of such a tensor, neighbours joined where they lie as one.
#[derive(Debug)]
pub(super) struct Dims(Vec<Dim>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Dim {
    len: u64,
    stride: u64,
}

impl Dims {
    pub fn new(shape: &[usize], strides: &[u64]) -> Self {
        let mut dims: Vec<Dim> = Vec::new();
        for (&len, &stride) in shape.iter().zip(strides).filter(|(len, _)| **len != 1) {
            let len = len as u64;
            match dims.last_mut() {
                Some(outer) if Some(outer.stride) == stride.checked_mul(len) => {
                    *outer = Dim { len: outer.len * len, stride };
                }
                _ => dims.push(Dim { len, stride }),
            }
        }
        Dims(dims)
    }

    /// Fills `out` with the elements from number `first` on, counted as in a contiguous tensor.
    pub fn gather(
        &self,
        first: u64,
        elem: u64,
        out: &mut [u8],
        mut read: impl FnMut(u64, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        gather(&self.0, 0, first, elem, out, &mut read)
    }
}

fn gather(
    dims: &[Dim],
    base: u64,
    first: u64,
    elem: u64,
    out: &mut [u8],
    read: &mut dyn FnMut(u64, &mut [u8]) -> Result<()>,
) -> Result<()> {
    let count = out.len() as u64 / elem;
    let Some((dim, inner)) = dims.split_first() else { return read(base * elem, out) };
    let within: u64 = inner.iter().map(|d| d.len).product();
    let at = |i: u64| base + i * dim.stride;
    match inner {
        [] => rows(at(first), Dim { len: 1, stride: 0 }, Dim { len: count, ..*dim }, elem, out, read),
        // whole rows of a matrix in one go
        [cols] if first.is_multiple_of(within) && count.is_multiple_of(within) => {
            rows(at(first / within), Dim { len: count / within, ..*dim }, *cols, elem, out, read)
        }
        _ => {
            let (mut first, mut out) = (first, out);
            while !out.is_empty() {
                let (i, skipped) = (first / within, first % within);
                let left = out.len() as u64 / elem;
                let mut taken = (within - skipped).min(left);
                if skipped == 0 && inner.len() == 1 && left >= within {
                    taken = left - left % within;
                }
                let (part, rest) = std::mem::take(&mut out).split_at_mut((taken * elem) as usize);
                match taken > within {
                    true => gather(dims, base, first, elem, part, read)?,
                    false => gather(inner, at(i), skipped, elem, part, read)?,
                }
                (first, out) = (first + taken, rest);
            }
            Ok(())
        }
    }
}

fn rows(
    offset: u64,
    rows: Dim,
    cols: Dim,
    elem: u64,
    out: &mut [u8],
    read: &mut dyn FnMut(u64, &mut [u8]) -> Result<()>,
) -> Result<()> {
    let (r, c) = (rows.len as usize, cols.len as usize);
    let view = View { offset, rows: r, cols: c, row_stride: rows.stride, col_stride: cols.stride };
    // that every element lies in the storage was checked when the file was opened
    let lattice = Lattice::new(&view, 0..r, 0..c, u64::MAX)
        .map_err(|what| Error::Usage(format!("internal error: {what}")))?;
    lattice.gather(elem, out, read)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Against the definition: element (i, j, …) lies at i·stride₀ + j·stride₁ + …
        #[test]
        fn equals_the_definition(
            shape in proptest::collection::vec(1usize..5, 0..5),
            strides in proptest::collection::vec(0u64..40, 5),
            from in 0.0..1.0f64,
            to in 0.0..1.0f64,
        ) {
            let strides = &strides[..shape.len()];
            let storage: Vec<u8> = (0..2000u32).flat_map(|i| (i as u16).to_le_bytes()).collect();
            let total: usize = shape.iter().product();
            let mut expected = Vec::new();
            for n in 0..total {
                let (mut rest, mut at) = (n, 0);
                for (&len, &stride) in shape.iter().zip(strides).rev() {
                    at += (rest % len) as u64 * stride;
                    rest /= len;
                }
                expected.extend_from_slice(&(at as u16).to_le_bytes());
            }
            let [a, b] = [from, to].map(|f| (f * (total + 1) as f64) as usize);
            let (a, b) = (a.min(b), a.max(b));
            let mut out = vec![0; (b - a) * 2];
            let read = |at: u64, out: &mut [u8]| {
                out.copy_from_slice(&storage[at as usize..][..out.len()]);
                Ok(())
            };
            Dims::new(&shape, strides).gather(a as u64, 2, &mut out, read).unwrap();
            prop_assert_eq!(&out, &expected[a * 2..b * 2]);
        }
    }
}
