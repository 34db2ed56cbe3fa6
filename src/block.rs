//! GGUF's block types: some weights of a row, stored together with their scales.

use serde::{Deserialize, Serialize};

/// A block type, by GGUF's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[allow(missing_docs, non_camel_case_types)]
#[repr(u32)]
pub enum Block {
    Q4_0,
    Q4_1,
    Q8_0,
    Q4_K,
    Q6_K,
}

impl Block {
    /// Every type; kernels know them by their number here.
    pub const ALL: [Block; 5] = [Block::Q4_0, Block::Q4_1, Block::Q8_0, Block::Q4_K, Block::Q6_K];

    /// GGUF's number, weights a block, bytes a block, weights that share a scale.
    fn row(self) -> (u32, usize, usize, usize) {
        match self {
            Block::Q4_0 => (2, 32, 18, 32),
            Block::Q4_1 => (3, 32, 20, 32),
            Block::Q8_0 => (8, 32, 34, 32),
            Block::Q4_K => (12, 256, 144, 32),
            Block::Q6_K => (14, 256, 210, 16),
        }
    }

    /// The number that GGUF files say.
    pub fn gguf_type(self) -> u32 {
        self.row().0
    }

    /// The type of this number in GGUF files.
    pub fn from_gguf(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|b| b.gguf_type() == number)
    }

    /// Weights a block. Rows consist of whole blocks.
    #[allow(clippy::len_without_is_empty)] // a length in weights; no block is empty
    pub fn len(self) -> usize {
        self.row().1
    }

    /// Bytes a block.
    pub fn bytes(self) -> usize {
        self.row().2
    }

    /// Bytes of so many weights, which fill whole blocks.
    pub fn bytes_for(self, weights: u64) -> u64 {
        weights / self.len() as u64 * self.bytes() as u64
    }

    /// Weights that share a scale.
    pub fn group_len(self) -> usize {
        self.row().3
    }

    /// Bits of a code.
    pub fn bits(self) -> u32 {
        match self {
            Block::Q4_0 | Block::Q4_1 | Block::Q4_K => 4,
            Block::Q6_K => 6,
            Block::Q8_0 => 8,
        }
    }

    /// GGUF's name.
    pub fn name(self) -> &'static str {
        ["Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q6_K"][self as usize]
    }
}

impl std::fmt::Display for Block {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_lead_back_to_types() {
        for (i, block) in Block::ALL.into_iter().enumerate() {
            assert_eq!(block as usize, i);
            assert_eq!(Block::from_gguf(block.gguf_type()), Some(block));
            assert_eq!(block.len() % block.group_len(), 0);
        }
        assert_eq!(Block::from_gguf(1), None);
    }
}
