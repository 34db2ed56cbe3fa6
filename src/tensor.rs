//! Words for tensors: dtypes, names, shapes, and the exact decoding of 16-bit floats.

use serde::{Deserialize, Serialize};

/// Element type of a stored tensor. The names are those of the safetensors format, which lacks C32 and C128.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[allow(missing_docs, non_camel_case_types)]
pub enum Dtype {
    BOOL,
    U8,
    I8,
    F8_E4M3,
    F8_E5M2,
    F8_E8M0,
    F8_E4M3FNUZ,
    F8_E5M2FNUZ,
    U16,
    I16,
    F16,
    BF16,
    U32,
    I32,
    F32,
    C32,
    U64,
    I64,
    F64,
    C64,
    C128,
}

impl Dtype {
    /// Every dtype that a checkpoint may hold, smallest first.
    pub const ALL: [Dtype; 21] = {
        use Dtype::*;
        [
            BOOL,
            U8,
            I8,
            F8_E4M3,
            F8_E5M2,
            F8_E8M0,
            F8_E4M3FNUZ,
            F8_E5M2FNUZ,
            U16,
            I16,
            F16,
            BF16,
            U32,
            I32,
            F32,
            C32,
            U64,
            I64,
            F64,
            C64,
            C128,
        ]
    };

    /// Name in safetensors, name in torch, bytes of one element.
    fn row(self) -> (&'static str, &'static str, usize) {
        use Dtype::*;
        match self {
            BOOL => ("BOOL", "bool", 1),
            U8 => ("U8", "uint8", 1),
            I8 => ("I8", "int8", 1),
            F8_E4M3 => ("F8_E4M3", "float8_e4m3fn", 1),
            F8_E5M2 => ("F8_E5M2", "float8_e5m2", 1),
            F8_E8M0 => ("F8_E8M0", "float8_e8m0fnu", 1),
            F8_E4M3FNUZ => ("F8_E4M3FNUZ", "float8_e4m3fnuz", 1),
            F8_E5M2FNUZ => ("F8_E5M2FNUZ", "float8_e5m2fnuz", 1),
            U16 => ("U16", "uint16", 2),
            I16 => ("I16", "int16", 2),
            F16 => ("F16", "float16", 2),
            BF16 => ("BF16", "bfloat16", 2),
            U32 => ("U32", "uint32", 4),
            I32 => ("I32", "int32", 4),
            F32 => ("F32", "float32", 4),
            C32 => ("C32", "complex32", 4),
            U64 => ("U64", "uint64", 8),
            I64 => ("I64", "int64", 8),
            F64 => ("F64", "float64", 8),
            C64 => ("C64", "complex64", 8),
            C128 => ("C128", "complex128", 16),
        }
    }

    /// Bytes of one element.
    pub fn size(self) -> usize {
        self.row().2
    }

    /// The name that safetensors uses.
    pub fn name(self) -> &'static str {
        self.row().0
    }

    /// The name that torch uses, after `torch.`.
    pub fn torch_name(self) -> &'static str {
        self.row().1
    }

    /// Whether a safetensors file can hold it.
    pub fn in_safetensors(self) -> bool {
        !matches!(self, Dtype::C32 | Dtype::C128)
    }

    /// The dtype that torch calls so, with or without `torch.`.
    pub fn from_torch(name: &str) -> Option<Self> {
        let name = match name.strip_prefix("torch.").unwrap_or(name) {
            "float" => "float32",
            "double" => "float64",
            "half" => "float16",
            "long" => "int64",
            "int" => "int32",
            "short" => "int16",
            name => name,
        };
        Self::ALL.into_iter().find(|d| d.torch_name() == name)
    }

    /// The dtype with this safetensors name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|d| d.name() == name)
    }

    /// The float dtype that the kernels can read, if this is one.
    pub fn float(self) -> Option<Float> {
        match self {
            Dtype::F32 => Some(Float::F32),
            Dtype::F16 => Some(Float::F16),
            Dtype::BF16 => Some(Float::BF16),
            _ => None,
        }
    }

    /// Whether values of this dtype are floats of any width.
    pub fn is_float(self) -> bool {
        use Dtype::*;
        matches!(self, F8_E4M3 | F8_E5M2 | F8_E8M0 | F8_E4M3FNUZ | F8_E5M2FNUZ | F16 | BF16 | F32 | F64)
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// A float dtype that the kernels read and write. The numbers are those of `INPUT_DTYPE` in common.wgsl.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u32)]
pub enum Float {
    /// IEEE binary32.
    F32 = 0,
    /// IEEE binary16.
    F16 = 1,
    /// The upper half of binary32.
    BF16 = 2,
}

impl Float {
    /// All three.
    pub const ALL: [Float; 3] = [Float::F32, Float::F16, Float::BF16];

    /// The stored dtype.
    pub fn dtype(self) -> Dtype {
        match self {
            Float::F32 => Dtype::F32,
            Float::F16 => Dtype::F16,
            Float::BF16 => Dtype::BF16,
        }
    }

    /// Bytes of one element.
    pub fn size(self) -> usize {
        self.dtype().size()
    }

    /// torch's name: `float32`, `float16`, `bfloat16`.
    pub fn torch_name(self) -> &'static str {
        match self {
            Float::F32 => "float32",
            Float::F16 => "float16",
            Float::BF16 => "bfloat16",
        }
    }

    /// The short name: `f32`, `f16`, `bf16`.
    pub fn short_name(self) -> &'static str {
        match self {
            Float::F32 => "f32",
            Float::F16 => "f16",
            Float::BF16 => "bf16",
        }
    }

    /// Largest finite value.
    pub fn max(self) -> f32 {
        match self {
            Float::F32 => f32::MAX,
            Float::F16 => half::f16::MAX.to_f32(),
            Float::BF16 => half::bf16::MAX.to_f32(),
        }
    }

    /// Decodes one little-endian element, exactly.
    pub fn decode(self, bytes: &[u8]) -> f32 {
        match self {
            Float::F32 => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
            Float::F16 => half::f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
            Float::BF16 => half::bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
        }
    }

    /// Encodes one value, rounded to nearest even, as little-endian bytes.
    pub fn encode(self, value: f32, out: &mut Vec<u8>) {
        match self {
            Float::F32 => out.extend_from_slice(&value.to_le_bytes()),
            Float::F16 => out.extend_from_slice(&half::f16::from_f32(value).to_le_bytes()),
            Float::BF16 => out.extend_from_slice(&half::bf16::from_f32(value).to_le_bytes()),
        }
    }
}

/// Name, dtype and shape of a stored tensor.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TensorInfo {
    /// Full name, e.g. `model.layers.0.mlp.up_proj.weight`.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
}

impl TensorInfo {
    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.shape.iter().map(|&d| d as u64).product()
    }

    /// Number of bytes.
    pub fn bytes(&self) -> u64 {
        self.elements() * self.dtype.size() as u64
    }
}

/// A 2-D window on a stored tensor, in elements: row `r`, column `c` lies at `offset + r·row_stride + c·col_stride`.
///
/// A contiguous matrix has `col_stride` 1 and `row_stride` equal to `cols`; a transposed one `row_stride` 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct View {
    /// First element.
    pub offset: u64,
    /// Output channels.
    pub rows: usize,
    /// Elements a row.
    pub cols: usize,
    /// Distance between rows.
    pub row_stride: u64,
    /// Distance between columns.
    pub col_stride: u64,
}

impl View {
    /// A matrix stored row after row from the tensor's start.
    pub fn contiguous(rows: usize, cols: usize) -> Self {
        View { offset: 0, rows, cols, row_stride: cols as u64, col_stride: 1 }
    }

    /// Whether rows follow each other without gaps.
    pub fn is_contiguous(&self) -> bool {
        self.col_stride == 1 && (self.row_stride == self.cols as u64 || self.rows <= 1)
    }

    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.rows as u64 * self.cols as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for d in Dtype::ALL {
            assert_eq!(Dtype::from_name(d.name()), Some(d));
            assert_eq!(Dtype::from_torch(d.torch_name()), Some(d));
        }
        assert_eq!(Dtype::from_name("nonsense"), None);
    }

    #[test]
    fn sixteen_bit_floats_decode_exactly() {
        assert_eq!(Float::F16.decode(&0x3c01u16.to_le_bytes()), 1.0 + 1.0 / 1024.0);
        assert_eq!(Float::F16.decode(&1u16.to_le_bytes()), 2f32.powi(-24));
        assert_eq!(Float::BF16.decode(&0x3f81u16.to_le_bytes()), 1.0 + 1.0 / 128.0);
    }
}
