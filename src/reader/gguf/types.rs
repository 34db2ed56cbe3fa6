//! The types of GGUF's tensors.

use crate::block::Block;
use crate::tensor::Dtype;

/// Types without blocks, by their numbers.
const PLAIN: [(u32, Dtype); 8] = {
    use Dtype::*;
    [(0, F32), (1, F16), (30, BF16), (28, F64), (24, I8), (25, I16), (26, I32), (27, I64)]
};

/// Types that are known, and not read.
const FOREIGN: [(u32, &str); 22] = [
    (6, "Q5_0"),
    (7, "Q5_1"),
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (13, "Q5_K"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
    (41, "Q1_0"),
    (42, "Q2_0"),
];

/// What the elements of a tensor are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Numbers.
    Plain(Dtype),
    /// Blocks of quantized weights.
    Blocks(Block),
}

impl Kind {
    /// The type of this number, or what is wrong with it.
    pub fn of(number: u32) -> Result<Kind, String> {
        if let Some((_, dtype)) = PLAIN.iter().find(|(n, _)| *n == number) {
            return Ok(Kind::Plain(*dtype));
        }
        if let Some(block) = Block::from_gguf(number) {
            return Ok(Kind::Blocks(block));
        }
        let plain = PLAIN.iter().map(|(_, dtype)| dtype.name());
        let accepted: Vec<&str> = plain.chain(Block::ALL.into_iter().map(Block::name)).collect();
        let accepted = accepted.join(", ");
        Err(match FOREIGN.iter().find(|(n, _)| *n == number) {
            Some((_, name)) => format!(
                "{name} is not read; accepted: {accepted}. Of a quantized model, llama.cpp's llama-quantize \
                 --allow-requantize IN.gguf OUT.gguf F16 makes what can be read"
            ),
            None => format!("type {number} is unknown; accepted: {accepted}"),
        })
    }
}

/// The number of a dtype, if GGUF has it.
pub fn number_of(dtype: Dtype) -> Option<u32> {
    PLAIN.iter().find(|(_, d)| *d == dtype).map(|(n, _)| *n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_is_read_or_named() {
        for number in 0..50 {
            match Kind::of(number) {
                Ok(Kind::Plain(dtype)) => assert_eq!(number_of(dtype), Some(number)),
                Ok(Kind::Blocks(block)) => assert_eq!(block.gguf_type(), number),
                Err(text) => assert!(text.contains("accepted: F32, F16, BF16, F64, I8, I16, I32, I64, Q4_0")),
            }
        }
        assert!(Kind::of(13).unwrap_err().starts_with("Q5_K is not read"));
        assert!(Kind::of(4).unwrap_err().starts_with("type 4 is unknown"));
    }
}
