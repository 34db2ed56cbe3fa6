//! Plans that change nothing: from a file into memory, and out of it.

use crate::{
    error::Result,
    formats::Part,
    plan::{Job, Place, Plan, Row, Work, lay_out},
    quantize::{Prepared, Settings, finish_preparing, infos},
    reader::Checkpoint,
    tensor::View,
    writer::Destination,
};
use std::collections::BTreeMap;

/// Plans to write every tensor as it is. `metadata` goes into the file.
pub fn prepare(
    checkpoint: Checkpoint,
    metadata: &BTreeMap<String, String>,
    settings: &Settings,
    destination: Destination,
) -> Result<Prepared> {
    let tensors = infos(&checkpoint);
    let mut plan = Plan::default();
    for (source, info) in tensors.iter().enumerate() {
        plan.rows.push(Row {
            name: info.name.clone(),
            dtype: info.dtype.to_string(),
            shape: info.shape.clone(),
            action: "kept".into(),
            reason: None,
            before: info.bytes(),
            after: info.bytes(),
            scheme: None,
        });
        plan.jobs.push(Job {
            source,
            view: View::contiguous(1, info.elements() as usize),
            work: Work::Copy,
            outputs: vec![Place { part: Part::Codes, grid: 0, file: 0, tensor: source }],
            target: None,
            input: None,
            row: source,
        });
    }
    lay_out(&mut plan, tensors.clone(), None, vec![metadata.clone()]);
    finish_preparing(checkpoint, tensors, Ok(plan), destination, settings, false)
}
