//! The steps of quantization, each in two bodies: a WGSL kernel and a Rust twin that make the same bytes.
//!
//! This file is Rust's side of `shaders/common.wgsl`: constants, [`TileParams`], [`TileBuffers`] (one field a binding)
//! and the list [`ALL`]. `tests/twins.rs` holds both sides against each other.
//!
//! The contract, for every device (steps say more in their own files):
//! 1. Weights decode to f32 exactly, by integers; what lies below the normals counts as zero.
//! 2. A range is −min and max, widened to include 0; lanes, tiles and workgroups combine by integer maximum.
//! 3. scale = RN(absmax / ((qmax − qmin)/2)) or RN(RN(max − min) / (qmax − qmin)), rounded to the dtype that stores it.
//!    Everything after uses the stored scale. One below 2⁻¹²⁵ becomes the dtype's eps, and all codes decode to 0.
//! 4. zero_point = clamp(qmin + RNE(−min/scale)); 0 when symmetric.
//! 5. code = clamp(RNE(x/scale + zero_point)), of the quotient rounded to f32, ties to the even code. For 16-bit weights
//!    this is the real quotient's: operands of 11 bits cannot come near a tie without being one.
//! 6. x̂ = RN((code − zero_point) · scale).

pub mod arithmetic;
pub mod block_dequantize;
pub mod block_error;
pub mod block_pack;
pub mod block_scales;
pub mod block_search;
pub mod blocks;
mod buffers;
pub mod cases;
pub mod clip_range;
pub mod convert;
pub mod dequantize;
pub mod error;
pub mod histogram;
pub mod minmax;
pub mod qparams;
pub mod quantize;
pub mod quantize_pack;
pub mod refine;
pub mod search;

pub use buffers::{Binding, Lengths, TileBuffers};

use crate::tensor::Float;
pub use blocks::block_steps;

/// Threads a workgroup, in every kernel.
pub const WORKGROUP: u32 = 64;
/// Longest part of a group that one team of threads reduces.
pub const CHUNK: u32 = 1024;

/// Bit patterns that both sides name alike.
pub mod bits {
    #![allow(missing_docs)]
    pub const F32: u32 = 0;
    pub const F16: u32 = 1;
    pub const BF16: u32 = 2;
    pub const SIGN: u32 = 0x8000_0000;
    pub const MAGNITUDE: u32 = 0x7fff_ffff;
    pub const INFINITY: u32 = 0x7f80_0000;
    pub const MIN_NORMAL: u32 = 0x0080_0000;
    pub const MIN_SCALE: u32 = 0x0100_0000;
    pub const MIN_SEARCH: u32 = 0x0d80_0000;
    pub const MAX_BLOCK: u32 = 0x7180_0000;
    pub const Q4_0: u32 = 0;
    pub const Q4_1: u32 = 1;
    pub const Q8_0: u32 = 2;
    pub const Q4_K: u32 = 3;
    pub const Q6_K: u32 = 4;
    pub const TRIES: u32 = 16;

    /// Names and values, for the comparison with common.wgsl.
    pub const NAMED: [(&str, u32); 17] = [
        ("WORKGROUP", super::WORKGROUP),
        ("F32", F32),
        ("F16", F16),
        ("BF16", BF16),
        ("SIGN", SIGN),
        ("MAGNITUDE", MAGNITUDE),
        ("INFINITY", INFINITY),
        ("MIN_NORMAL", MIN_NORMAL),
        ("MIN_SCALE", MIN_SCALE),
        ("MIN_SEARCH", MIN_SEARCH),
        ("MAX_BLOCK", MAX_BLOCK),
        ("Q4_0", Q4_0),
        ("Q4_1", Q4_1),
        ("Q8_0", Q8_0),
        ("Q4_K", Q4_K),
        ("Q6_K", Q6_K),
        ("TRIES", TRIES),
    ];
}

/// What a tile is and how it is to be computed: the only uniform. Fields as in common.wgsl, in the same order.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[allow(missing_docs)]
pub struct TileParams {
    pub input_dtype: u32,
    pub output_dtype: u32,
    pub scale_dtype: u32,
    pub elements: u32,
    pub row_len: u32,
    pub group_len: u32,
    pub groups: u32,
    pub chunk_len: u32,
    pub chunks_per_group: u32,
    pub chunks: u32,
    pub channel_len: u32,
    pub bits: u32,
    pub symmetric: u32,
    pub qmin: i32,
    pub qmax: i32,
    pub code_offset: i32,
    pub bins: u32,
    pub candidates: u32,
    pub coarse: u32,
    pub both_signs: u32,
    pub tallies: u32,
    pub saturate: u32,
    pub scaled: u32,
    pub block: u32,
    pub zero: u32,
}

/// Names of the fields of [`TileParams`], in order; every one is four bytes.
pub const PARAM_NAMES: [&str; 25] = [
    "input_dtype",
    "output_dtype",
    "scale_dtype",
    "elements",
    "row_len",
    "group_len",
    "groups",
    "chunk_len",
    "chunks_per_group",
    "chunks",
    "channel_len",
    "bits",
    "symmetric",
    "qmin",
    "qmax",
    "code_offset",
    "bins",
    "candidates",
    "coarse",
    "both_signs",
    "tallies",
    "saturate",
    "scaled",
    "block",
    "zero",
];

impl TileParams {
    /// Sets the lengths of groups and what follows from them: chunks, tallies.
    pub fn with_groups(mut self, elements: u32, group_len: u32) -> Self {
        self.elements = elements;
        self.group_len = group_len;
        self.groups = elements.checked_div(group_len).unwrap_or(0);
        self.chunk_len = group_len.min(CHUNK);
        self.chunks_per_group = group_len.div_ceil(CHUNK);
        self.chunks = self.groups * self.chunks_per_group;
        self.tallies = self.chunks_per_group;
        self
    }

    /// Sets the grid of codes.
    pub fn with_grid(mut self, bits: u32, symmetric: bool, packed: bool) -> Self {
        self.bits = bits;
        self.symmetric = symmetric.into();
        self.qmin = -(1 << (bits - 1));
        self.qmax = (1 << (bits - 1)) - 1;
        self.code_offset = if packed { 1 << (bits - 1) } else { 0 };
        self
    }

    /// Sets the number of scales that the search for the least squared error tries, for groups of so many weights (which
    /// may be more than the tile has).
    pub fn with_search(mut self, both_signs: bool, group_len: usize) -> Self {
        self.both_signs = (both_signs && self.symmetric == 1).into();
        self.coarse = match (self.symmetric, self.bits) {
            (0, _) => 7,
            (_, 4) if group_len <= 256 => 6,
            (_, 4) => 9,
            (_, _) => 10,
        };
        self.candidates = self.coarse + 3;
        self
    }

    /// Where a part of a group lies among the weights.
    pub fn chunk_of(&self, group: u32, chunk: u32) -> std::ops::Range<usize> {
        let start = group * self.group_len + chunk * self.chunk_len;
        start as usize..(start + self.chunk_len).min((group + 1) * self.group_len) as usize
    }

    /// The dtype of the weights.
    pub fn input_float(&self) -> Float {
        float(self.input_dtype)
    }

    /// Codes in a 32-bit word.
    pub fn codes_per_word(&self) -> u32 {
        32 / self.bits
    }

    /// Words of a row of codes.
    pub fn words_per_row(&self) -> u32 {
        self.row_len.div_ceil(self.codes_per_word())
    }

    /// Words of all codes of the tile.
    pub fn code_words(&self) -> u32 {
        if self.row_len == 0 { 0 } else { self.elements.div_ceil(self.row_len) * self.words_per_row() }
    }

    /// Words of the tile's weights in `dtype`.
    pub fn float_words(&self, dtype: u32) -> u32 {
        if dtype == bits::F32 { self.elements } else { self.elements.div_ceil(2) }
    }

    /// Channels in the tile.
    pub fn channels(&self) -> u32 {
        self.elements.div_ceil(self.channel_len.max(1))
    }
}

/// The [`Float`] with this number.
pub fn float(number: u32) -> Float {
    Float::ALL[number as usize]
}

/// One step in its two bodies.
pub struct Kernel {
    /// Name of the entry point, the shader's file and the Rust module.
    pub name: &'static str,
    /// The WGSL body, without common.wgsl.
    pub wgsl: &'static str,
    /// The Rust body.
    pub cpu: fn(&TileParams, &mut TileBuffers),
    /// Threads for a tile; for a team kernel, teams.
    pub threads: fn(&TileParams) -> u32,
    /// Whether LANES threads work as a team.
    pub team: bool,
    /// The buffers it reads or writes, with their lengths in words.
    pub touches: fn(&TileParams) -> Vec<(Binding, usize)>,
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl PartialEq for Kernel {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

/// Every kernel.
pub const ALL: [&Kernel; 16] = [
    &minmax::KERNEL,
    &histogram::KERNEL,
    &clip_range::KERNEL,
    &search::KERNEL,
    &refine::KERNEL,
    &qparams::KERNEL,
    &quantize_pack::KERNEL,
    &error::KERNEL,
    &quantize::KERNEL,
    &dequantize::KERNEL,
    &convert::KERNEL,
    &block_search::KERNEL,
    &block_scales::KERNEL,
    &block_pack::KERNEL,
    &block_error::KERNEL,
    &block_dequantize::KERNEL,
];

/// How threads work as teams; chosen for an adapter, without effect on the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Threads that share a chunk.
    pub lanes: u32,
    /// Whether they exchange values by subgroup shuffles rather than workgroup memory.
    pub subgroups: bool,
}

/// The whole WGSL source of a kernel.
pub fn source(kernel: &Kernel, shape: Shape) -> String {
    let common = include_str!("../shaders/common.wgsl");
    let (enable, team) = match (kernel.team, shape.subgroups) {
        (false, _) => ("", ""),
        (true, false) => ("", include_str!("../shaders/team_workgroup.wgsl")),
        (true, true) => ("", include_str!("../shaders/team_subgroup.wgsl")),
    };
    [enable, common, team, kernel.wgsl].concat()
}
