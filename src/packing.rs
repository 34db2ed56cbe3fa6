//! Codes and zero points from one layout to another, without loss.
//!
//! The layout in between is that of the kernels: every row of codes on its own in 32-bit words, lowest bits first,
//! offset to unsigned. Matrices come in bytes, as they are stored.

use rayon::prelude::*;

/// Output channels of a word of AWQ's, by the place of their nibble.
const AWQ_ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];
/// Rows that are moved together, so that a cache line is used up before it is gone.
const STRIP: usize = 16;

/// Transposes a matrix of words: GPTQ's codes from packed rows, and back.
pub fn transpose_words(words: &[u8], rows: usize, cols: usize) -> Vec<u8> {
    let mut out = vec![0; words.len()];
    if rows == 0 || cols == 0 {
        return out;
    }
    out.par_chunks_mut(4 * rows * STRIP).enumerate().for_each(|(strip, out)| {
        for row in 0..rows {
            for (i, col) in (strip * STRIP..cols).take(out.len() / (4 * rows)).enumerate() {
                let from = 4 * (row * cols + col);
                out[4 * (i * rows + row)..][..4].copy_from_slice(&words[from..from + 4]);
            }
        }
    });
    out
}

fn word(bytes: &[u8], i: usize) -> u32 {
    u32::from_le_bytes([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]])
}

/// AWQ's codes, `[8 · words][rows / 8]`, from packed rows of int4. `rows` is a multiple of 8.
pub fn to_awq(packed: &[u8], rows: usize, words: usize) -> Vec<u8> {
    let across = rows / 8;
    let mut out = vec![0; 32 * words * across];
    if across == 0 {
        return out;
    }
    out.par_chunks_mut(32 * across).enumerate().for_each(|(column, out)| {
        for c in 0..across {
            let codes: [u32; 8] =
                std::array::from_fn(|i| word(packed, (8 * c + AWQ_ORDER[i]) * words + column));
            for (input, out) in out.chunks_exact_mut(4 * across).enumerate() {
                let nibbles = codes.iter().enumerate();
                let word = nibbles.fold(0, |word, (i, code)| word | ((code >> (4 * input)) & 15) << (4 * i));
                out[4 * c..][..4].copy_from_slice(&word.to_le_bytes());
            }
        }
    });
    out
}

/// Inverse of [`to_awq`].
pub fn from_awq(stored: &[u8], rows: usize, words: usize) -> Vec<u8> {
    let across = rows / 8;
    let mut out = vec![0; 4 * rows * words];
    if words == 0 {
        return out;
    }
    out.par_chunks_mut(32 * words).enumerate().for_each(|(c, out)| {
        for column in 0..words {
            let codes: [u32; 8] =
                std::array::from_fn(|input| word(stored, (8 * column + input) * across + c));
            for (i, row) in AWQ_ORDER.into_iter().enumerate() {
                let nibbles = codes.iter().enumerate();
                let word =
                    nibbles.fold(0, |word, (input, code)| word | ((code >> (4 * i)) & 15) << (4 * input));
                out[4 * (row * words + column)..][..4].copy_from_slice(&word.to_le_bytes());
            }
        }
    });
    out
}

/// Packs codes of int8, `[rows][cols]`, into rows of words.
pub fn pack_int8(codes: &[u8], cols: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(codes.len());
    for row in codes.chunks(cols.max(1)) {
        out.extend(row.iter().map(|code| code ^ 0x80));
        out.resize(out.len().next_multiple_of(4), 0);
    }
    out
}

/// Inverse of [`pack_int8`].
pub fn unpack_int8(packed: &[u8], cols: usize) -> Vec<u8> {
    let rows = packed.chunks(cols.next_multiple_of(4).max(1));
    rows.flat_map(|row| row[..cols].iter().map(|code| code ^ 0x80)).collect()
}

/// Where zero points lie, beside `[rows][groups]` of int8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ZeroPoints {
    /// compressed-tensors: word `[row / per, group]`, rows from the lowest bits up.
    Rows,
    /// GPTQ: word `[group, row / per]`, rows from the lowest bits up; the first version stores one less.
    Gptq {
        /// Whether one less is stored.
        less_one: bool,
    },
    /// AWQ: word `[group, row / 8]`, rows in AWQ's order.
    Awq,
}

impl ZeroPoints {
    /// Row that lies in place `i` of a word's rows, and what is added to the zero point.
    fn place(self, i: usize, bits: u32) -> (usize, i32) {
        let offset = 1 << (bits - 1);
        match self {
            ZeroPoints::Rows => (i, offset),
            ZeroPoints::Gptq { less_one } => (i, offset - i32::from(less_one)),
            ZeroPoints::Awq => (AWQ_ORDER[i % 8], offset),
        }
    }

    /// Number of the word of some rows.
    fn index(self, word_row: usize, group: usize, word_rows: usize, groups: usize) -> usize {
        match self {
            ZeroPoints::Rows => word_row * groups + group,
            ZeroPoints::Gptq { .. } | ZeroPoints::Awq => group * word_rows + word_row,
        }
    }

    /// Packs `[rows][groups]`.
    pub fn pack(self, zero_points: &[i8], groups: usize, bits: u32) -> Vec<u8> {
        let per_word = 32 / bits as usize;
        let mask = (1u32 << bits) - 1;
        let rows = zero_points.len() / groups.max(1);
        let word_rows = rows.div_ceil(per_word);
        let mut out = vec![0; 4 * word_rows * groups];
        for word_row in 0..word_rows {
            for group in 0..groups {
                let word = (0..per_word).fold(0u32, |word, i| {
                    let (row, offset) = self.place(i, bits);
                    let z = zero_points.get((word_row * per_word + row) * groups + group);
                    let stored = z.map_or(0, |&z| (i32::from(z) + offset) as u32 & mask);
                    word | stored << (i as u32 * bits)
                });
                let at = 4 * self.index(word_row, group, word_rows, groups);
                out[at..at + 4].copy_from_slice(&word.to_le_bytes());
            }
        }
        out
    }

    /// Inverse of [`ZeroPoints::pack`].
    pub fn unpack(self, packed: &[u8], rows: usize, groups: usize, bits: u32) -> Vec<i32> {
        let per_word = 32 / bits as usize;
        let word_rows = rows.div_ceil(per_word);
        let mut out = vec![0; rows * groups];
        for word_row in 0..word_rows {
            for group in 0..groups {
                let word = word(packed, self.index(word_row, group, word_rows, groups));
                for i in 0..per_word {
                    let (row, offset) = self.place(i, bits);
                    let stored = (word >> (i as u32 * bits)) & ((1 << bits) - 1);
                    if let Some(z) = out.get_mut((word_row * per_word + row) * groups + group) {
                        *z = stored as i32 - offset;
                    }
                }
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection::vec, prelude::*};

    #[test]
    fn zero_points_pack_along_rows() {
        let z: Vec<i8> = (0..22).map(|i| (i % 16 - 8) as i8).collect();
        for groups in [1, 2, 11] {
            let packed = ZeroPoints::Rows.pack(&z, groups, 4);
            assert_eq!(packed.len(), 4 * groups * (22 / groups).div_ceil(8));
            let back = ZeroPoints::Rows.unpack(&packed, 22 / groups, groups, 4);
            assert_eq!(back, z.iter().map(|&v| i32::from(v)).collect::<Vec<_>>());
        }
        // row 0 is in the lowest nibble, and -8 is stored as 0
        assert_eq!(ZeroPoints::Rows.pack(&[-8, 7], 1, 4), [0xf0, 0, 0, 0]);
    }

    #[test]
    fn symmetric_zero_points_are_the_known_words() {
        let words = |z: ZeroPoints, bits| z.pack(&[0; 8], 1, bits);
        assert_eq!(words(ZeroPoints::Gptq { less_one: true }, 4), [0x77; 4]);
        assert_eq!(words(ZeroPoints::Gptq { less_one: false }, 4), [0x88; 4]);
        assert_eq!(words(ZeroPoints::Gptq { less_one: true }, 8), [0x7f; 8]);
        assert_eq!(words(ZeroPoints::Awq, 4), [0x88; 4]);
    }

    #[test]
    fn awq_orders_its_outputs() {
        // one input of 8 rows: row r has code r
        let packed: Vec<u8> = (0..8u32).flat_map(u32::to_le_bytes).collect();
        let stored = to_awq(&packed, 8, 1);
        assert_eq!(word(&stored, 0), 0x7531_6420);
        assert!(stored[4..].iter().all(|&b| b == 0));
    }

    proptest! {
        #[test]
        fn layouts_lead_back(rows in 1usize..40, words in 1usize..40, seed in vec(any::<u8>(), 64)) {
            let bytes = |n: usize| -> Vec<u8> {
                (0..n).map(|i| seed[i % 64].wrapping_mul(i as u8 | 1).wrapping_add((i >> 6) as u8)).collect()
            };
            let packed = bytes(4 * rows * words);
            prop_assert_eq!(&transpose_words(&transpose_words(&packed, rows, words), words, rows), &packed);
            let packed = bytes(32 * rows * words);
            prop_assert_eq!(&from_awq(&to_awq(&packed, 8 * rows, words), 8 * rows, words), &packed);
            let codes = bytes(rows * words);
            prop_assert_eq!(&unpack_int8(&pack_int8(&codes, words), words), &codes);
            for kind in [ZeroPoints::Rows, ZeroPoints::Gptq { less_one: false }, ZeroPoints::Awq] {
                for bits in if kind == ZeroPoints::Awq { vec![4] } else { vec![4, 8] } {
                    let z: Vec<i8> = bytes(8 * rows * words).iter().map(|&b| (b as i8) >> (8 - bits)).collect();
                    let back = kind.unpack(&kind.pack(&z, words, bits), 8 * rows, words, bits);
                    prop_assert!(back.iter().zip(&z).all(|(&a, &b)| a == i32::from(b)));
                }
            }
        }

        #[test]
        fn a_word_of_gptq_holds_inputs_of_one_output(rows in 1usize..20, words in 1usize..20) {
            let code = |row: usize, col: usize| ((3 * row + 7 * col) % 16) as u32;
            let packed: Vec<u8> = (0..rows * words)
                .flat_map(|i| {
                    let (row, col) = (i / words, 8 * (i % words));
                    (0..8).fold(0, |word, j| word | code(row, col + j) << (4 * j)).to_le_bytes()
                })
                .collect();
            let stored = transpose_words(&packed, rows, words);
            for (row, col) in [(0, 0), (rows - 1, 8 * words - 1), (rows / 2, 4 * words + 3)] {
                let word = word(&stored, col / 8 * rows + row);
                prop_assert_eq!((word >> (4 * (col % 8))) & 15, code(row, col));
            }
        }
    }
}
