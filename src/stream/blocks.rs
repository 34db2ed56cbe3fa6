//! Blocks of GGUF on their way back from a backend.

use super::{JobResult, Stream};
use crate::{
    backend::{Pass, Results},
    block::Block,
    error::{Error, Result},
    kernels::Binding,
    plan::{Job, Place},
    tiles::Piece,
};

/// Writes the blocks of a piece, and adds up its errors.
pub fn store(
    stream: &Stream,
    job: &Job,
    block: Block,
    piece: &Piece,
    (pass, results): (&Pass, &Results),
    result: &mut JobResult,
) -> Result<()> {
    let overflows = results.get(Binding::Counts).first().copied().unwrap_or(0);
    if overflows > 0 {
        let name = &stream.tensors[job.source].name;
        let (s, needs) = if overflows == 1 { ("", "needs") } else { ("s", "need") };
        return Err(Error::refused(format!(
            "{name}: {overflows} block{s} from row {} on {needs} scales beyond the largest F16, which {block} stores; leave \
             the tensor out with --exclude, or scale its weights down",
            piece.row
        )));
    }
    let output: &[u8] = bytemuck::cast_slice(results.get(Binding::Output));
    let &Place { file, tensor, .. } = &job.outputs[0];
    let at = block.bytes_for(piece.start(job.view.cols));
    let bytes = block.bytes_for(piece.elements() as u64) as usize;
    stream.writer.write(file, tensor, at, &output[..bytes])?;
    if result.squares.is_empty() {
        result.squares.push(Default::default());
    }
    result.squares[0].add(super::run::squares(pass, results));
    Ok(())
}
