//! The buffers of a tile: one a binding, with the names and in the order of common.wgsl.

use super::{Kernel, TileParams};

/// Everything that a kernel reads or writes, a field a binding: the names and the order are those of common.wgsl.
#[derive(Debug, Clone, Default, PartialEq)]
#[allow(missing_docs)]
pub struct TileBuffers {
    pub input: Vec<u32>,
    pub ranges: Vec<u32>,
    pub edges: Vec<u32>,
    pub counts: Vec<u32>,
    pub scales: Vec<u32>,
    pub zero_points: Vec<i32>,
    pub output: Vec<u32>,
    pub errors: Vec<[f32; 2]>,
}

/// One of the storage bindings; its number is that of `@binding`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
#[allow(missing_docs)]
pub enum Binding {
    Input = 1,
    Ranges = 2,
    Edges = 3,
    Counts = 4,
    Scales = 5,
    ZeroPoints = 6,
    Output = 7,
    Errors = 8,
}

impl Binding {
    /// All of them, in order.
    pub const ALL: [Binding; 8] = [
        Binding::Input,
        Binding::Ranges,
        Binding::Edges,
        Binding::Counts,
        Binding::Scales,
        Binding::ZeroPoints,
        Binding::Output,
        Binding::Errors,
    ];

    /// The variable's name in common.wgsl, and the field's in [`TileBuffers`].
    pub fn name(self) -> &'static str {
        match self {
            Binding::Input => "input",
            Binding::Ranges => "ranges",
            Binding::Edges => "edges",
            Binding::Counts => "counts",
            Binding::Scales => "scales",
            Binding::ZeroPoints => "zero_points",
            Binding::Output => "output",
            Binding::Errors => "errors",
        }
    }

    /// Whether kernels only read it.
    pub fn read_only(self) -> bool {
        matches!(self, Binding::Input | Binding::Edges)
    }
}

impl TileBuffers {
    /// Memory that the buffers hold, in bytes.
    pub fn bytes(&self) -> usize {
        let words = [&self.input, &self.ranges, &self.edges, &self.counts, &self.scales, &self.output];
        let words: usize = words.iter().map(|buffer| buffer.capacity()).sum();
        4 * (words + self.zero_points.capacity() + 2 * self.errors.capacity())
    }

    /// The words behind a binding.
    pub fn words(&self, binding: Binding) -> &[u32] {
        match binding {
            Binding::Input => &self.input,
            Binding::Ranges => &self.ranges,
            Binding::Edges => &self.edges,
            Binding::Counts => &self.counts,
            Binding::Scales => &self.scales,
            Binding::ZeroPoints => bytemuck::cast_slice(&self.zero_points),
            Binding::Output => &self.output,
            Binding::Errors => bytemuck::cast_slice(&self.errors),
        }
    }

    /// The words behind a binding, to be written.
    pub fn words_mut(&mut self, binding: Binding) -> &mut [u32] {
        match binding {
            Binding::Input => &mut self.input,
            Binding::Ranges => &mut self.ranges,
            Binding::Edges => &mut self.edges,
            Binding::Counts => &mut self.counts,
            Binding::Scales => &mut self.scales,
            Binding::ZeroPoints => bytemuck::cast_slice_mut(&mut self.zero_points),
            Binding::Output => &mut self.output,
            Binding::Errors => bytemuck::cast_slice_mut(&mut self.errors),
        }
    }

    /// Sets every length to what `lengths` says (in words), keeping capacity; ranges and counts become zero, the rest
    /// keeps whatever it held: every kernel writes all that it is read for.
    pub fn resize(&mut self, lengths: &Lengths) {
        self.ranges.clear();
        self.counts.clear();
        for (buffer, binding) in [
            (&mut self.input, Binding::Input),
            (&mut self.ranges, Binding::Ranges),
            (&mut self.edges, Binding::Edges),
            (&mut self.counts, Binding::Counts),
            (&mut self.scales, Binding::Scales),
            (&mut self.output, Binding::Output),
        ] {
            buffer.resize(lengths.of(binding), 0);
        }
        self.zero_points.resize(lengths.of(Binding::ZeroPoints), 0);
        self.errors.resize(lengths.of(Binding::Errors) / 2, [0.0; 2]);
    }
}

/// Length of every storage buffer of a tile, in words.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lengths([usize; 8]);

impl Lengths {
    /// What `kernels` need for this tile.
    pub fn new(params: &TileParams, kernels: &[&'static Kernel]) -> Self {
        let mut lengths = Lengths::default();
        for kernel in kernels {
            for &(binding, length) in (kernel.touches)(params).as_slice() {
                let entry = &mut lengths.0[binding as usize - 1];
                *entry = (*entry).max(length);
            }
        }
        let input = &mut lengths.0[Binding::Input as usize - 1];
        *input = input.next_multiple_of(4); // array<vec4<u32>>
        lengths
    }

    /// Words of one buffer.
    pub fn of(&self, binding: Binding) -> usize {
        self.0[binding as usize - 1]
    }

    /// The larger of both, buffer by buffer.
    pub fn max(self, other: Self) -> Self {
        Lengths(std::array::from_fn(|i| self.0[i].max(other.0[i])))
    }

    /// Bytes of all buffers.
    pub fn bytes(&self) -> u64 {
        self.0.iter().map(|&w| 4 * w as u64).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::ALL;

    #[test]
    fn bytes_are_those_of_all_buffers() {
        let params = TileParams { row_len: 40, channel_len: 40, bins: 16, ..Default::default() };
        let params = params.with_groups(400, 8).with_grid(4, true, true).with_search(true, 8);
        let lengths = Lengths::new(&params, &ALL);
        let mut buffers = TileBuffers::default();
        buffers.resize(&lengths);
        let bytes = Binding::ALL.iter().map(|&binding| size_of_val(buffers.words(binding)) as u64);
        assert_eq!(lengths.bytes(), bytes.sum::<u64>());
        // vectors may reserve more than they hold
        assert!((lengths.bytes()..=2 * lengths.bytes()).contains(&(buffers.bytes() as u64)));
    }
}
