//! Output whose writes are seen in a profile.

use std::ops::Range;

use super::{FileLayout, Output};
use crate::error::Result;
use crate::profile::{Profile, Span, Stage};
use crate::tensor::View;

/// Hands everything on, and records it.
pub struct ProfiledOutput<'a> {
    output: &'a dyn Output,
    files: &'a [FileLayout],
    profile: &'a Profile,
}

impl<'a> ProfiledOutput<'a> {
    /// `files` have the names of the tensors.
    pub fn new(output: &'a dyn Output, files: &'a [FileLayout], profile: &'a Profile) -> Self {
        ProfiledOutput { output, files, profile }
    }

    fn span(&self, file: usize, tensor: usize, bytes: &[u8]) -> Span {
        let tensor = self.files.get(file).and_then(|f| f.tensors.get(tensor));
        self.profile.span(Stage::Write).of(tensor.map_or("", |t| &t.name), bytes.len())
    }
}

impl Output for ProfiledOutput<'_> {
    fn write(&self, file: usize, tensor: usize, byte_offset: u64, bytes: &[u8]) -> Result<()> {
        let _span = self.span(file, tensor, bytes);
        self.output.write(file, tensor, byte_offset, bytes)
    }

    fn write_view(
        &self,
        file: usize,
        tensor: usize,
        view: &View,
        rows: Range<usize>,
        elem_size: usize,
        bytes: &[u8],
    ) -> Result<()> {
        let _span = self.span(file, tensor, bytes);
        self.output.write_view(file, tensor, view, rows, elem_size, bytes)
    }
}
